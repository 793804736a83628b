"""Every name that another server knows: honoured, refused by name, or in the table of the harmless ones."""

import difflib
import json
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from fieldlm.api.anthropic.requests import MessagesRequest
from fieldlm.api.chat_request import ChatRequest, CompletionParams, parse
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.embeddings import EmbeddingRequest
from fieldlm.api.parameters import COMPARED, HARMLESS, REFUSED, SAYS_NOTHING
from fieldlm.api.responses_request import ResponsesRequest
from fieldlm.network.allowed_values import words_at
from fieldlm.network.json_api import ApiError

BODIES: dict[type[Any], dict[str, Any]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"prompt": "Hi"},
    ResponsesRequest: {"input": "Hi"},
    EmbeddingRequest: {"input": "Hi"},
}
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "model": "m"}
OPENAI: list[tuple[type[Any], Any]] = [
    (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
    (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
    (ResponsesRequest, response_create_params.ResponseCreateParamsStreaming),
    (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def refused(kind: type[Any], **given: Any) -> str | None:
    """Return the parameter that is refused in a request with `given`."""
    try:
        asked = parse(json.dumps(BODIES[kind] | given).encode(), kind)
        if isinstance(asked, CompletionParams):
            asked.refuse()
    except ApiError as error:
        return error.param if error.status == 400 else str(error.status)
    return None


@pytest.mark.parametrize(("kind", "params"), OPENAI)
def test_each_parameter_of_openai_is_known(kind: type[Any], params: Any) -> None:
    names: frozenset[str] = params.__required_keys__ | params.__optional_keys__
    unknown = names - set(kind.__struct_fields__) - set(REFUSED) - HARMLESS
    assert not unknown


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_not_built_is_refused_by_its_name_and_what_says_nothing_passes(kind: type[Any]) -> None:
    for name in REFUSED.keys() - set(kind.__struct_fields__):
        for value in (7, "x", SCHEMA, ["x"], -0.5):
            assert refused(kind, **{name: value}) == name
        for value in (None, False, "", [], *SAYS_NOTHING.get(name, ())):
            assert refused(kind, **{name: value}) is None


@pytest.mark.parametrize("kind", BODIES)
def test_what_changes_no_answer_passes(kind: type[Any]) -> None:
    for name in [*HARMLESS - set(kind.__struct_fields__), "x_trace", "title"]:
        assert refused(kind, **{name: {"any": "thing"}}) is None


@pytest.mark.parametrize(
    ("kind", "given", "name"),
    [
        (ResponsesRequest, {"response_format": FORM}, "response_format"),
        (ChatRequest, {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}, "text"),
        (ChatRequest, {"response_schema": {}}, "response_schema"),
        (ChatRequest, {"options": {}}, None),
        (ChatRequest, {"reasoning_format": "none"}, "reasoning_format"),
        (ChatRequest, {"max_output_tokens": 8}, "max_output_tokens"),
        (ResponsesRequest, {"max_completion_tokens": 8}, "max_completion_tokens"),
        (ResponsesRequest, {"max_tokens": 8}, "max_tokens"),
        (ChatRequest, {"answer_grammar_v2": "root"}, "answer_grammar_v2"),
        (ChatRequest, {"MaxTokens": 8}, "MaxTokens"),
        (ChatRequest, {"my_top_p": 0.5}, "my_top_p"),
        (CompletionRequest, {"tools": [{}]}, "tools"),
        (ResponsesRequest, {"messages": [{}]}, "messages"),
        (ChatRequest, {"output_config": {"format": FORM}}, "output_config"),  # Anthropic's
        (ChatRequest, {"nvext": {"guided_json": SCHEMA}}, "nvext.guided_json"),  # NVIDIA's
        (CompletionRequest, {"nvext": {"annotations": ["llm_metrics"], "guided_json": None}}, None),
        (
            ResponsesRequest,
            {"generationConfig": {"responseSchema": SCHEMA}},
            "generationConfig.responseSchema",
        ),  # Google's
        (ChatRequest, {"generation_config": {"temperature": 0.5}}, "generation_config.temperature"),
        (ChatRequest, {"tool_config": {"function_calling_config": {"mode": "ANY"}}}, "tool_config"),  # Google's
        (ChatRequest, {"trace": {"steps": 3, "user": "a"}}, None),
        (ChatRequest, {"topP": 0.5}, "topP"),
        (ChatRequest, {"logitBias": {"1": 1}}, "logitBias"),
        (ChatRequest, {"parallelToolCalls": True}, None),
        (ChatRequest, {"temprature": 0}, None),
        (ChatRequest, {"temprature": 0.5}, "temprature"),
        (ChatRequest, {"mesages": [{}]}, "mesages"),
        (CompletionRequest, {"prompts": ["a"]}, "prompts"),
    ],
)
def test_a_form_a_length_or_a_choice_under_another_name_is_not_dropped(
    kind: type[Any], given: dict[str, Any], name: str | None
) -> None:
    assert refused(kind, **given) == name


def test_a_great_many_unknown_names_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def close(word: str, known: Any, n: int, cutoff: float) -> list[str]:
        compared.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", close)
    assert refused(ChatRequest, **{f"field_of_{number}": 1 for number in range(1000)}, **{"x" * 1000: 1}) is None
    assert 0 < len(compared) <= COMPARED
    assert max(map(len, compared)) <= COMPARED


def test_a_completion_has_the_form_that_is_asked_for() -> None:
    asked = parse(json.dumps({"prompt": "Hi", "response_format": FORM}).encode(), CompletionRequest)
    assert [rule.kind for rule in asked.rules().values()] == ["json_schema"]


WHOLE = {
    ChatRequest: ["max_tokens", "max_completion_tokens", "top_k", "seed", "n", "top_logprobs"],
    CompletionRequest: ["max_tokens", "top_k", "seed", "n", "logprobs"],
    ResponsesRequest: ["max_output_tokens", "top_k", "seed", "top_logprobs"],
    EmbeddingRequest: ["dimensions"],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_number_may_be_written_with_a_point(kind: type[Any]) -> None:
    for name in WHOLE[kind]:
        for text in ("3.0", "3.00", "3e0", "0.3E1"):
            body = json.dumps(BODIES[kind])[:-1] + f', "{name}": {text}}}'
            value = getattr(parse(body.encode(), kind), name)
            assert (value, type(value)) == (3, int)
        for wrong in (1.5, -0.5, "3", True, [3.0]):
            assert refused(kind, **{name: wrong}) is not None, (name, wrong)
    with pytest.raises(ApiError):
        parse(b'{"input": "Hi", "dimensions": 1e999}', EmbeddingRequest)
    assert refused(ChatRequest, max_tokens=1.5) == "max_tokens"
    assert refused(ChatRequest, max_tokens=0.0) == "max_tokens"


def test_numbers_that_are_no_parameter_stay_as_they_were_written() -> None:
    body = json.dumps(BODIES[ChatRequest] | {"max_tokens": 9.0, "temperature": 1.0, "fallback": {"price": 3.0}})
    asked = parse(body.encode(), ChatRequest)
    assert (asked.max_tokens, asked.temperature, json.dumps(asked.fallback)) == (9, 1.0, '{"price": 3.0}')


CALLED = {"type": "function", "function": {"name": "w"}}
NOWHERE: list[tuple[type[Any], dict[str, Any], str]] = [
    (ChatRequest, {"tool_choice": "some"}, "tool_choice is 'some'; want one of auto, none, required"),
    (ChatRequest, {"tool_choice": {"type": "some"}}, "tool_choice.type is 'some'; want one of function, allowed_tools"),
    (
        ChatRequest,
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "some", "tools": [CALLED]}}},
        "tool_choice.allowed_tools.mode is 'some'; want one of auto, required",
    ),
    (ChatRequest, {"tools": [CALLED, {**CALLED, "type": "x"}]}, "tools[1].type is 'x'; want one of function"),
    (ChatRequest, {"function_call": "x"}, "function_call is 'x'; want one of auto, none"),
    (
        ChatRequest,
        {"response_format": {"type": "xml"}},
        "response_format.type is 'xml'; want one of json_object, json_schema, text",
    ),
    (CompletionRequest, {"priority": "high"}, "priority is 'high'; want one of batch, interactive, safety"),
    (ResponsesRequest, {"truncation": "it's"}, 'truncation is "it\'s"; want one of auto, disabled'),
    (
        ResponsesRequest,
        {"text": {"format": {"type": "x"}}},
        "text.format.type is 'x'; want one of json_object, json_schema, text",
    ),
    (EmbeddingRequest, {"encoding_format": "hex"}, "encoding_format is 'hex'; want one of base64, float"),
    (MessagesRequest, {"tool_choice": {"type": "x"}}, "tool_choice.type is 'x'; want one of any, auto, none, tool"),
]


@pytest.mark.parametrize(("kind", "given", "line"), NOWHERE)
def test_a_word_that_is_none_of_those_is_told_which_there_are(
    kind: type[Any], given: dict[str, Any], line: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        parse(json.dumps((BODIES | {MessagesRequest: MESSAGES})[kind] | given).encode(), kind)
    assert str(refusal.value) == line
    assert refusal.value.code == "invalid_value"


@pytest.mark.parametrize("kind", BODIES)
def test_no_list_of_words_is_kept_to_itself(kind: type[Any]) -> None:
    for field in kind.__struct_fields__:
        if not (words := words_at(kind, field)):
            continue
        with pytest.raises(ApiError) as refusal:
            parse(json.dumps(BODIES[kind] | {field: "no such word"}).encode(), kind)
        assert str(refusal.value).endswith(f"want one of {', '.join(words)}")
