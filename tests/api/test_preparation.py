"""Work before an answer: few threads, and none for who has left."""

import asyncio
import threading
from pathlib import Path
from typing import cast

import pytest
from starlette.requests import Request
from starlette.types import Message

from fieldlm.api.preparation import AT_A_TIME, Preparation, tokens_of
from fieldlm.engines import Engine, EngineOptions
from fieldlm.engines.llama import LlamaEngine
from fieldlm.network.json_api import ApiError


def test_who_leaves_while_others_are_prepared_costs_nothing() -> None:
    began = list[str]()

    async def talk() -> None:
        preparation, free = Preparation("test"), threading.Event()

        async def stays() -> Message:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def leaves() -> Message:
            return {"type": "http.disconnect"}

        before = [
            asyncio.create_task(preparation.run(Request({"type": "http"}, stays), free.wait)) for _ in range(AT_A_TIME)
        ]
        await asyncio.sleep(0)  # they take the threads
        with pytest.raises(ApiError, match="left"):
            await preparation.run(Request({"type": "http"}, leaves), lambda: began.append("left"))
        # Other work has other threads.
        assert await asyncio.to_thread(lambda: "feedback") == "feedback"
        free.set()
        await asyncio.gather(*before)
        await preparation.run(Request({"type": "http"}, stays), lambda: began.append("stayed"))

    asyncio.run(talk())
    assert began == ["stayed"]


def test_a_short_prompt_has_nobody_look_at_the_whole_vocabulary(smollm2_gguf: Path) -> None:
    narrow = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=512, parallel=1))
    looked: list[str] = []

    class Watched:
        context = narrow.context
        tokenize = narrow.tokenize

        def least_tokens(self, text: str) -> int:
            looked.append(text)
            return narrow.least_tokens(text)

    engine = cast(Engine, Watched())
    short, long = "ü" * (narrow.context // 2), "word " * narrow.context
    assert tokens_of(engine, short, param="prompt") == narrow.tokenize(short)
    assert looked == []
    with pytest.raises(ApiError) as refused:
        tokens_of(engine, long, param="prompt")
    assert refused.value.code == "context_length_exceeded"
    assert looked == [long]
    narrow.close()
