"""`fieldlm.confidence`: on every whole answer of a generation that was calibrated, in every endpoint's own fields."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fieldlm.core.files import canonical_json
from fieldlm.formats.confidence import Confidence
from fieldlm.inference.confidence import SIGNALS
from tests.support.api_server import ApiServer, api_server
from tests.support.material import tiny_bundle

FOUND = Confidence(signal="min_logprob", steps=((-30.0, 0.123456), (0.0, 0.95)), quantiles=(-20.0, -10.0))
WORD = [{"role": "user", "content": "Say yes or no."}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"enum": ["yes", "no"]}}}
FORCED = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"const": "yes"}}}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    bundle = tiny_bundle(tmp_path_factory.mktemp("sure") / "bundle", confidence=canonical_json(FOUND))
    with api_server(bundle) as made:
        yield made


def ask(server: ApiServer, path: str = CHAT, **asked: Any) -> dict[str, Any]:
    body = {"messages": WORD, "response_format": SCHEMA, **asked}
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_whole_answer_says_how_likely_it_is_right(server: ApiServer) -> None:
    own = ask(server)["fieldlm"]
    exchange = server.exchanges[-1]
    signal = SIGNALS["min_logprob"](exchange.timings)
    assert signal is not None
    assert exchange.confidence == FOUND.p(signal)
    assert own["confidence"] == round(exchange.confidence or 0, 3)
    assert exchange.is_unsure is False


def test_a_stream_says_it_with_its_last_words(server: ApiServer) -> None:
    whole = ask(server)["fieldlm"]["confidence"]
    body = {"messages": WORD, "response_format": SCHEMA, "stream": True}
    lines = httpx.post(server.url + CHAT, json=body, timeout=60).text.splitlines()
    assert [line for line in lines if f'"confidence":{whole}' in line] == [
        [line for line in lines if line.startswith("data: {")][-1]
    ]


def test_another_api_says_it_too(server: ApiServer) -> None:
    whole = ask(server)["fieldlm"]["confidence"]
    body = {"messages": WORD, "format": {"enum": ["yes", "no"]}, "stream": False, "options": {"temperature": 0}}
    answer = httpx.post(f"{server.url}/api/chat", json=body | {"model": "smollm2-135m-instruct"}, timeout=60).json()
    assert answer["fieldlm"]["confidence"] == whole


def test_an_answer_that_was_cut_or_that_a_schema_forced_has_none(server: ApiServer) -> None:
    cut = ask(server, max_tokens=2, response_format={"type": "text"})
    assert cut["fieldlm"]["outcome"] == "length"
    assert cut["fieldlm"]["confidence"] is None
    forced = ask(server, response_format=FORCED)
    assert forced["fieldlm"]["outcome"] == "stop"
    assert forced["fieldlm"]["confidence"] is None


def test_it_is_counted(server: ApiServer) -> None:
    def count() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("fieldlm_confidence_count"))

    before = count()
    ask(server)
    ask(server, response_format=FORCED)
    assert count() == before + 1


def test_without_a_calibration_it_is_null(tmp_path_factory: pytest.TempPathFactory) -> None:
    with api_server(tiny_bundle(tmp_path_factory.mktemp("unsure") / "bundle")) as server:
        own = ask(server)["fieldlm"]
    assert own["confidence"] is None
    assert own["outcome"] == "stop"
    assert server.exchanges[-1].is_unsure is None
