"""Work before an answer: few threads, and none for who has left."""

import asyncio
import threading

import pytest
from starlette.requests import Request
from starlette.types import Message

from fieldlm.api.preparation import AT_A_TIME, Preparation
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
