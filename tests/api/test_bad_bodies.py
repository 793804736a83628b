"""Whatever a body says, the answer is a whole one or a 4xx that names what is wrong: hypothesis looks for another."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import ChatRequest, Feedback
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.embeddings import EmbeddingRequest
from fieldlm.api.responses_request import ResponsesRequest
from fieldlm.api.tokens.endpoints import DetokenizeRequest, TemplateRequest, TokenizeRequest
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening

MESSAGES = [{"role": "user", "content": "Hi"}]
# Endpoint → what its body is read into, and a small body that is right.
ENDPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": MESSAGES, "max_tokens": 1}),
    "/v1/completions": (CompletionRequest, {"prompt": "Hi", "max_tokens": 1}),
    "/v1/responses": (ResponsesRequest, {"input": "Hi", "max_output_tokens": 1}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "Hi"}),
    "/tokenize": (TokenizeRequest, {"content": "Hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
    "/apply-template": (TemplateRequest, {"messages": MESSAGES}),
    "/v1/feedback": (Feedback, {"id": "chatcmpl-1", "rating": "up"}),
}


def words(text: str) -> list[str]:
    return text.split()


# Words that lead further into the server than random ones do.
NAMES = words("""type function json_schema json_object schema name required auto text object string role user assistant
tool content input_text message function_call $ref # enum""")
WORDS = st.sampled_from(NAMES)
KEYWORDS = words("""type properties items enum const anyOf oneOf allOf not pattern minLength maxLength minimum maximum
multipleOf format required $ref $defs additionalProperties""")
LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | WORDS
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)
SLOW = ("max_tokens", "max_completion_tokens", "max_output_tokens")
BOUNDED = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def http(base_bundle: Bundle) -> Iterator[httpx.Client]:
    live = Generations(base_bundle, EngineOptions(threads=1, context=128, parallel=2))
    app = make_app(live, lambda _: None, ready=lambda: None, on_feedback=lambda said: said.id == "chatcmpl-1")
    with listening(app) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
    live.close()


def check(response: httpx.Response, sent: bytes) -> None:
    if response.status_code == 200:
        return
    # A deadline of nothing, or a queue that may not be waited in, is a valid wish that comes true.
    error = response.json()["error"]
    if error["code"] not in ("deadline_exceeded", "rejected"):
        assert 400 <= response.status_code < 500, f"{sent!r}: {response.status_code} {response.text}"
    assert error["message"], response.text
    assert set(error) == {"message", "type", "param", "code"}, response.text


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_body_with_wrong_fields_is_a_4xx(http: httpx.Client, path: str) -> None:
    kind, right = ENDPOINTS[path]
    # An answer of hundreds of tokens proves nothing more than one of two.
    names = [name for name in kind.__struct_fields__ if name not in SLOW]

    @BOUNDED
    @given(st.dictionaries(st.sampled_from(names), VALUE, min_size=1, max_size=2))
    def look(change: dict[str, Any]) -> None:
        body = json.dumps({**right, **change}).encode()
        check(http.post(path, content=body), body)

    look()


@pytest.mark.parametrize("path", ENDPOINTS)
def test_what_is_no_such_body_at_all_is_a_4xx(http: httpx.Client, path: str) -> None:
    @BOUNDED
    @given(st.binary(max_size=64) | VALUE.map(lambda value: json.dumps(value).encode()))
    def look(body: bytes) -> None:
        response = http.post(path, content=body)
        check(response, body)
        assert response.status_code != 200, body

    look()
    deep = b'{"messages":' + b"[" * 100_000
    assert http.post(path, content=deep).status_code == 400


@pytest.mark.parametrize("name", ["response_format", "tools", "messages", "stop", "logit_bias", "fallback"])
def test_wrong_values_of_the_richest_fields_are_a_4xx(http: httpx.Client, name: str) -> None:
    _, right = ENDPOINTS["/v1/chat/completions"]
    shapes: dict[str, st.SearchStrategy[Any]] = {
        "response_format": st.fixed_dictionaries(
            {"type": st.just("json_schema"), "json_schema": st.fixed_dictionaries({"schema": VALUE | schemas()})}
        ),
        "tools": st.lists(
            st.fixed_dictionaries(
                {
                    "type": st.just("function"),
                    "function": st.fixed_dictionaries({"name": st.text(max_size=4) | WORDS, "parameters": schemas()}),
                }
            ),
            max_size=2,
        ),
        "messages": st.lists(st.dictionaries(WORDS, VALUE, max_size=3) | st.just(MESSAGES[0]), max_size=3),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=6),
        "logit_bias": st.dictionaries(st.text(max_size=6) | st.integers().map(str), LEAF, max_size=3),
        "fallback": VALUE,
    }

    @BOUNDED
    @given(shapes[name])
    def look(value: Any) -> None:
        body = json.dumps({**right, name: value}).encode()
        check(http.post("/v1/chat/completions", content=body), body)

    look()


def schemas() -> st.SearchStrategy[Any]:
    """JSON schemas: some right, most with something in them that is not."""
    types = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null", "thing"])
    keys = st.sampled_from(KEYWORDS)
    return st.dictionaries(keys, types | VALUE, max_size=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "x" * 100_000},
        {"messages": [{"role": "x" * 100_000, "content": "Hi"}]},
        {"priority": "x" * 100_000},
        {"x" * 100_000 + "_grammar": "x"},
        {"regex": "(" * 100_000},
        {"keep_alive": "x" * 100_000},
    ],
    ids=["model", "role", "priority", "name", "regex", "keep_alive"],
)
def test_a_refusal_does_not_send_a_long_word_back(http: httpx.Client, wrong: dict[str, Any]) -> None:
    reply = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, **wrong})
    assert reply.status_code in (400, 404)
    assert len(reply.content) < 10_000
