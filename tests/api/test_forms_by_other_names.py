"""Forms as vLLM, llama.cpp and SGLang call them are held to as `response_format`, `regex` and `grammar` are."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fieldlm.api.chat_request import ChatRequest, parse
from fieldlm.formats.bundle import Bundle
from fieldlm.network.json_api import ApiError
from tests.support.api_server import api_server

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
ON = r'\{"on": (true|false)\}'
CHOICES = ["a.b (c)", "[x] {1} #&-~^$|", "to be\nor not\tto be", "né 😀 \\d+?*"]
CHOICE = "|".join(map(re.escape, CHOICES))
LARK = 'start: ("tea" | "milk") ", " SIZE\nSIZE: /small|large/'
GBNF = 'root ::= ("tea" | "milk") ", " size\nsize ::= "small" | "large"'
DRINK = "(tea|milk), (small|large)"
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"json": SCHEMA}}, ON),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}}, ON),
    ({"structured_outputs": {"regex": "(yes|no), [a-c]"}}, "(yes|no), [a-c]"),
    ({"structured_outputs": {"choice": CHOICES}}, CHOICE),
    ({"structured_outputs": {"grammar": LARK}}, DRINK),
    ({"guided_json": SCHEMA}, ON),
    ({"guided_json": json.dumps(SCHEMA), "guided_decoding_backend": "outlines"}, ON),
    ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
    ({"guided_choice": CHOICES}, CHOICE),
    ({"guided_grammar": GBNF}, DRINK),
    # What guidance sends: one of them is of an older vLLM.
    ({"guided_decoding_backend": "guidance", "guided_grammar": LARK, "structured_outputs": {"grammar": LARK}}, DRINK),
    ({"json_schema": SCHEMA}, ON),
    ({"ebnf": GBNF}, DRINK),
]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tea, please"}], "max_tokens": 60},
    "/v1/completions": {"prompt": "Tea, please", "max_tokens": 60},
    "/v1/responses": {"input": "Tea, please", "max_output_tokens": 60},
}


@pytest.fixture(scope="module")
def http(base_bundle: Bundle) -> Iterator[httpx.Client]:
    with api_server(base_bundle, context=256) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        yield client


def said(path: str, answer: dict[str, Any]) -> str:
    if path == "/v1/responses":
        return answer["output"][0]["content"][0]["text"]
    choice = answer["choices"][0]
    return choice["text"] if path == "/v1/completions" else choice["message"]["content"]


@pytest.mark.parametrize(("given", "form"), FORMS)
def test_a_form_is_held_to_whatever_it_is_called(http: httpx.Client, given: dict[str, Any], form: str) -> None:
    for seed, (path, body) in enumerate(PATHS.items()):
        reply = http.post(path, json={**body, **given, "temperature": 2.0, "seed": seed})
        assert reply.status_code == 200, reply.text
        assert re.fullmatch(form, said(path, reply.json())), reply.text


def test_two_names_of_one_form_are_one() -> None:
    format = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    (rule, other) = asked_for({"json_schema": json.dumps(SCHEMA), "response_format": format}).rules().values()
    assert rule == other


def test_what_is_empty_asks_for_no_form(http: httpx.Client) -> None:
    nothing = {
        "grammar": "",
        "regex": None,
        "guided_choice": None,
        "guided_json": None,
        "ebnf": "",
        "json_schema": None,
    }
    assert asked_for(nothing).rules() == {}
    asked = {**PATHS["/v1/completions"], **nothing, "max_tokens": 3}
    assert http.post("/v1/completions", json=asked).status_code == 200
    for body in (
        {"guided_json": {}},
        {"structured_outputs": {"json": {}}},
        {"structured_outputs": {"json_object": True}},
    ):
        assert len(asked_for(body).rules()) == 1, "any JSON"


def test_an_empty_regex_is_the_form_of_an_empty_answer(http: httpx.Client) -> None:
    for given in ({"regex": ""}, {"guided_regex": ""}, {"structured_outputs": {"regex": ""}}):
        reply = http.post("/v1/chat/completions", json={**PATHS["/v1/chat/completions"], **given})
        assert (reply.status_code, said("/v1/chat/completions", reply.json())) == (200, ""), given


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [], "regex": "a"}}, "structured_outputs.choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"json": ""}}, "structured_outputs.json"),
        ({"guided_json": ""}, "guided_json"),
        ({"structured_outputs": {"choices": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " ?"}}, "structured_outputs.whitespace_pattern"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.regex, structured_outputs.choice",
        ),
        ({"guided_regex": "a", "guided_grammar": GBNF}, "guided_regex, guided_grammar"),
        ({"guided_json": "not JSON"}, "guided_json"),
        ({"guided_json": 3}, "guided_json"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_whitespace_pattern": " ?", "guided_regex": "a"}, "guided_whitespace_pattern"),
    ],
)
def test_what_is_no_form_or_two_is_refused_by_its_name(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ApiError) as refusal:
        asked_for(given)
    assert (refusal.value.status, refusal.value.param) == (400, name)


def test_a_form_that_cannot_be_followed_is_named_as_it_was_called(http: httpx.Client) -> None:
    for given in (
        {"guided_regex": "("},
        {"structured_outputs": {"grammar": "no"}},
        {"json_schema": {"type": "hiccup"}},
        {"guided_grammar": ""},
        {"structured_outputs": {"grammar": ""}},
    ):
        reply = http.post("/v1/chat/completions", json={**PATHS["/v1/chat/completions"], **given})
        name = "structured_outputs.grammar" if "structured_outputs" in given else next(iter(given))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)


def asked_for(given: dict[str, Any]) -> ChatRequest:
    asked = parse(json.dumps({**PATHS["/v1/chat/completions"], **given}).encode(), ChatRequest)
    asked.refuse()
    return asked
