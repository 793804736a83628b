"""Vectors of texts, through the `openai` client."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fieldlm.engines import Sampling
from fieldlm.engines.llama import LlamaEngine
from fieldlm.inference.generations import Generations
from tests.support.material import lora_gguf

MODEL = "smollm2-135m-instruct"
TEXTS = ["The cat sleeps on the warm sofa.", "A kitten naps on the couch.", "Interest rates rose again in March."]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_texts_that_mean_the_same_lie_closer(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    cat, kitten, rates = (np.array(entry.embedding) for entry in answer.data)
    assert cat.shape == (576,)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ rates
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10


def test_floats_and_base64_and_tokens_give_the_same_vector(client: openai.OpenAI, live: Generations) -> None:
    tokens = live.current.engine.tokenize(TEXTS[0])
    floats, packed = (
        client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format=form) for form in ("float", "base64")
    )
    assert isinstance(packed.data[0].embedding, str)
    by_default, by_tokens, in_a_list = (
        client.embeddings.create(model=MODEL, input=given).data[0].embedding for given in (TEXTS[0], tokens, [tokens])
    )
    assert by_default == pytest.approx(floats.data[0].embedding)
    assert by_tokens == in_a_list == by_default


def test_a_long_text_goes_through_in_pieces_beside_an_answer(live: Generations) -> None:
    engine = live.current.engine
    assert isinstance(engine, LlamaEngine)
    tokens = engine.tokenize("A long text about nothing in particular. " * 40)[:250]
    vectors: list[Any] = []
    thread = threading.Thread(target=lambda: vectors.append(engine.embed(tokens, is_wanted=lambda: True)))
    answer = engine.start(engine.tokenize("One two three four"), Sampling(max_tokens=60))
    thread.start()
    assert list(answer)[-1].outcome == "length"
    thread.join()
    (vector,) = vectors
    assert vector @ engine.embed(tokens, is_wanted=lambda: True) == pytest.approx(1, abs=1e-4)
    # The mean over pieces is the mean over tokens: a text of one piece and a bit is not its last piece alone.
    assert vector @ engine.embed(tokens[192:], is_wanted=lambda: True) < 0.999


def test_an_adapter_changes_the_vectors(live: Generations, tmp_path: Path) -> None:
    engine = live.current.engine
    assert isinstance(engine, LlamaEngine)
    engine.load_adapter("other", lora_gguf(tmp_path / "a.gguf", scale=0.5))
    tokens = engine.tokenize(TEXTS[0])
    plain, tuned = (engine.embed(tokens, adapter=name, is_wanted=lambda: True) for name in (None, "other"))
    engine.drop_adapter("other")
    assert plain @ tuned < 0.99


def test_an_adapter_that_is_dropped_in_the_middle_of_a_text_is_freed_after_it(
    live: Generations, tmp_path: Path
) -> None:
    engine = live.current.engine
    assert isinstance(engine, LlamaEngine)
    engine.load_adapter("leaving", lora_gguf(tmp_path / "l.gguf", scale=0.5))
    asked = 0

    def is_wanted() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            engine.drop_adapter("leaving")
        return True

    tokens = engine.tokenize(TEXTS[0] * 20)[:200]
    assert engine.embed(tokens, adapter="leaving", is_wanted=is_wanted).shape == (576,)
    assert asked > 3


def test_a_text_that_nobody_wants_any_more_costs_nothing_and_is_no_failure(live: Generations) -> None:
    engine = live.current.engine
    assert isinstance(engine, LlamaEngine)
    assert not engine.embed(engine.tokenize(TEXTS[0]), is_wanted=lambda: False).any()


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [[]]}, 400, "input"),
        ({"input": {"a": 1}}, 400, "input"),
        ({"input": [1, "a"]}, 400, "input"),
        ({"input": ["a", 1]}, 400, "input"),
        ({"input": ["a"] * 257}, 400, "input"),
        ({"input": [10**9]}, 400, "input"),
        ({"input": [-1]}, 400, "input"),
        ({"input": "word " * 300}, 400, "input"),
        ({"input": "a", "dimensions": 64}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "model": "gpt-5"}, 404, "model"),
        ({"input": "a", "deadline_ms": 0}, 504, None),
        ({}, 400, "input"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(url: str, body: Any, status: int, param: str | None) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
