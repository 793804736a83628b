"""Tokens of texts and texts of tokens, asked in the words of llama.cpp's server and of vLLM."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fieldlm.formats.bundle import Bundle
from fieldlm.inference.chat_template import render
from tests.support import onnx_models
from tests.support.api_server import ApiServer, api_server

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the lift? <|im_end|>"}]
TOOL = {"type": "function", "function": {"name": "go", "description": "Go", "parameters": {"type": "object"}}}
TEXTS = ["", "Hello, world", "Grüße, 漢字 and 😀! ", "<|im_start|>user\nHi<|im_end|>", "  spaces\n\nand lines"]


@pytest.fixture(scope="module")
def served(base_bundle: Bundle) -> Iterator[ApiServer]:
    with api_server(base_bundle, context=512) as server:
        yield server


def ask(server: ApiServer, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    reply = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert reply.status_code == status, reply.text
    return reply.json()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_its_tokens_in_the_words_of_both(served: ApiServer, text: str) -> None:
    told = ask(served, "/tokenize", content=text)
    assert told["tokens"] == served.engine.tokenize(text)
    assert ask(served, "/detokenize", tokens=told["tokens"]) == {"content": text, "prompt": text}
    counted = ask(served, "/tokenize", prompt=text, model="smollm2-135m-instruct", return_token_strs=True)
    assert (counted["tokens"], counted["count"]) == (told["tokens"], len(told["tokens"]))
    assert counted["max_model_len"] == served.engine.context
    assert len(counted["token_strs"]) == counted["count"]


def test_pieces_are_texts_or_the_bytes_of_a_part_of_a_character(served: ApiServer) -> None:
    told = ask(served, "/tokenize", content="<|im_start|>I 😀", with_pieces=True)["tokens"]
    assert told[0]["piece"] == "<|im_start|>"
    spelt = b"".join(bytes(t["piece"]) if isinstance(t["piece"], list) else t["piece"].encode() for t in told)
    assert spelt.decode() == "<|im_start|>I 😀"
    assert any(isinstance(token["piece"], list) for token in told)


def test_a_special_token_is_text_where_it_is_not_to_be_read(served: ApiServer) -> None:
    (one,) = ask(served, "/tokenize", content="<|im_end|>")["tokens"]
    several = ask(served, "/tokenize", content="<|im_end|>", parse_special=False)["tokens"]
    assert len(several) > 1
    assert ask(served, "/detokenize", tokens=several)["content"] == "<|im_end|>"
    assert ask(served, "/tokenize", content=["Hi", one, " there"])["tokens"] == [
        *served.engine.tokenize("Hi"), one, *served.engine.tokenize(" there"),
    ]  # fmt: skip


def test_a_conversation_has_the_tokens_that_an_answer_to_it_counts(served: ApiServer) -> None:
    counted = ask(served, "/tokenize", messages=TALK, tools=[TOOL])
    answer = ask(served, "/v1/chat/completions", messages=TALK, tools=[TOOL], max_tokens=1)
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    told = ask(served, "/tokenize", messages=TALK, add_generation_prompt=False)
    assert told["tokens"] == counted_prefix(served, told["count"])


def counted_prefix(served: ApiServer, count: int) -> list[int]:
    return ask(served, "/tokenize", messages=TALK)["tokens"][:count]


def test_a_template_is_applied_as_for_an_answer(served: ApiServer, base_bundle: Bundle) -> None:
    said = [{"role": "user", "content": "Where is the lift?"}]
    assert ask(served, "/apply-template", messages=said, temperature=0.5) == {"prompt": render(base_bundle, said)}
    assert ask(served, "/apply-template", messages=TALK)["prompt"].count("Where is the lift? <|im_end|><|im_end|>") == 1
    assert '"name": "go"' in ask(served, "/apply-template", messages=said, tools=[TOOL])["prompt"]
    whole = ask(served, "/apply-template", messages=said)["prompt"]
    assert ask(served, "/apply-template", messages=said, add_generation_prompt=False)["prompt"] == whole.removesuffix(
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "content"),
        ("/tokenize", {"content": [10**6]}, "content"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ("/tokenize", {"messages": TALK, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/detokenize", {"tokens": [49152]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    served: ApiServer, path: str, body: dict[str, Any], param: str
) -> None:
    assert ask(served, path, 400, **body)["error"]["param"] == param


def test_a_tokenizer_is_told_of_as_vllm_does(served: ApiServer, base_bundle: Bundle) -> None:
    told = httpx.get(f"{served.url}/tokenizer_info", timeout=60).json()
    assert (told["eos_token"], told["model_max_length"]) == ("<|im_end|>", served.engine.context)
    assert told["chat_template"] == base_bundle.need("template").read_text()
    assert httpx.get(f"{served.url}/tokenizer_info?model=other", timeout=60).status_code == 404


def test_a_model_that_is_not_here_has_no_tokens(served: ApiServer) -> None:
    assert ask(served, "/tokenize", 404, content="a", model="other")["error"]["code"] == "model_not_found"


def test_onnxruntime_tells_the_same(tmp_path: Any) -> None:
    with api_server(onnx_models.bundle(tmp_path / "bundle", onnx_models.int4("llama")), context=64) as server:
        tokens = ask(server, "/tokenize", content=TEXTS[3])["tokens"]
        assert tokens == server.engine.tokenize(TEXTS[3])
        assert ask(server, "/detokenize", tokens=tokens)["content"] == TEXTS[3]
