"""Plain completions, as programs older than chat ask for them: many prompts, tokens, echoes, likelihoods."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.completion_choice import Logprobs

from fieldlm.api.chat_request import Exchange
from fieldlm.api.completion_request import MAX_ANSWERS
from fieldlm.engines import Engine
from fieldlm.formats.bundle import Bundle
from tests.support.api_server import api_server

MODEL = "smollm2-135m-instruct"
PROMPTS = ["The capital of France is", "One, two, three,", "Grüße aus"]


class Kiosk:
    """A running server, its client, and what it told telemetry."""

    def __init__(self, url: str, engine: Engine, exchanges: list[Exchange]) -> None:
        self.engine = engine
        self.exchanges = exchanges
        self.http = httpx.Client(base_url=url, timeout=120)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, prompt: Any, **more: Any) -> Any:
        asked: dict[str, Any] = {"max_tokens": 6, **more}
        return self.client.completions.create(model=MODEL, prompt=prompt, **asked)

    def refusal(self, **body: Any) -> dict[str, Any]:
        response = self.http.post("/v1/completions", json=body)
        assert response.status_code == 400
        return response.json()["error"]


@pytest.fixture(scope="module")
def kiosk(base_bundle: Bundle) -> Iterator[Kiosk]:
    # One answer at a time: a batch of several rounds in another way, and the likelihoods here are compared.
    with api_server(base_bundle, context=256, parallel=1) as server:
        made = Kiosk(server.url, server.engine, server.exchanges)
        yield made
        made.http.close()
        made.client.close()


def test_each_prompt_of_a_list_has_its_answer_in_order(kiosk: Kiosk) -> None:
    alone = [kiosk.ask(prompt) for prompt in PROMPTS]
    together = kiosk.ask(PROMPTS)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert together.usage.completion_tokens == 18
    (exchange,) = kiosk.exchanges[-1:]
    assert exchange.messages == [{"role": "user", "content": PROMPTS[0]}]


def test_several_answers_to_each_prompt_stand_in_a_row(kiosk: Kiosk) -> None:
    asked: dict[str, Any] = {"temperature": 1.5, "seed": 5, "n": 2}
    together = kiosk.ask(PROMPTS, **asked)
    alone = [choice.text for prompt in PROMPTS for choice in kiosk.ask(prompt, **asked).choices]
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == list(range(6))


def test_a_stream_names_the_prompt_that_it_goes_on_with(kiosk: Kiosk) -> None:
    for more in ({}, {"echo": True}, {"echo": True, "logprobs": 1, "n": 2}):
        whole = kiosk.ask(PROMPTS, **more)
        parts: dict[int, str] = {}
        offsets: dict[int, list[int]] = {}
        for chunk in kiosk.ask(PROMPTS, stream=True, **more):
            for choice in chunk.choices:
                parts[choice.index] = parts.get(choice.index, "") + choice.text
                offsets.setdefault(choice.index, []).extend((choice.logprobs and choice.logprobs.text_offset) or [])
        assert parts == {choice.index: choice.text for choice in whole.choices}
        for choice in whole.choices:
            assert offsets[choice.index] == (choice.logprobs.text_offset if choice.logprobs else [])


def test_tokens_and_lists_of_them_are_prompts_too(kiosk: Kiosk) -> None:
    tokens = [kiosk.engine.tokenize(prompt) for prompt in PROMPTS]
    texts = [choice.text for choice in kiosk.ask(PROMPTS).choices]
    assert [choice.text for choice in kiosk.ask(tokens).choices] == texts
    assert kiosk.ask(tokens[0]).choices[0].text == texts[0]
    assert kiosk.ask(tokens[2], echo=True).choices[0].text == PROMPTS[2] + texts[2]


def test_an_echo_begins_with_the_prompt_and_may_be_all(kiosk: Kiosk) -> None:
    text = kiosk.ask(PROMPTS[0]).choices[0].text
    assert kiosk.ask(PROMPTS[0], echo=True).choices[0].text == PROMPTS[0] + text
    nothing = kiosk.ask(PROMPTS[0], echo=True, max_tokens=0)
    assert nothing.choices[0].text == PROMPTS[0]
    assert nothing.choices[0].finish_reason == "length"
    assert nothing.usage.completion_tokens == 0
    assert kiosk.ask(PROMPTS[0], max_tokens=0).choices[0].text == ""


def logprobs(answer: Any) -> Logprobs:
    assert answer.choices[0].logprobs is not None
    return answer.choices[0].logprobs


def test_tokens_of_a_prompt_are_as_likely_as_where_the_model_says_them(kiosk: Kiosk) -> None:
    said = kiosk.ask(PROMPTS[0], logprobs=3, max_tokens=12)
    known = logprobs(said)
    whole = PROMPTS[0] + said.choices[0].text
    own = logprobs(kiosk.ask(whole, logprobs=3, echo=True, max_tokens=0))
    assert own.tokens is not None
    assert "".join(own.tokens) == whole
    assert own.text_offset is not None
    likely, best = own.token_logprobs or [], own.top_logprobs or []
    assert likely[0] is best[0] is None
    assert likely[-12:] == pytest.approx(known.token_logprobs, abs=0.15)
    assert all(max(top, key=top.__getitem__) == token for token, top in zip(own.tokens[-12:], best[-12:], strict=True))
    assert own.text_offset == [len("".join(own.tokens[:i])) for i in range(len(own.tokens))]
    assert known.text_offset == own.text_offset[-12:]


def test_likelihoods_are_asked_for_as_lm_eval_does(kiosk: Kiosk) -> None:
    """lm-eval's `local-completions`: batches of tokens, an echo, and one more token, which it leaves out."""
    pairs = [("The sky is", " blue"), ("The sky is", " sideways"), ("<|im_start|>user\nHi<|im_end|>\n", "<|im_end|>")]
    tokens = [[kiosk.engine.tokenize(one) for one in pair] for pair in pairs]
    answer = kiosk.ask(
        [context + rest for context, rest in tokens], temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1234
    )
    sums: list[float] = []
    for choice, (context, rest) in zip(answer.choices, tokens, strict=True):
        told = choice.logprobs
        assert len(told.token_logprobs) == len(told.top_logprobs) == len(context) + len(rest) + 1
        sums.append(sum(told.token_logprobs[len(context) : -1]))
        tops = told.top_logprobs[len(context) : -1]
        assert all(
            max(top.values()) >= own for own, top in zip(told.token_logprobs[len(context) : -1], tops, strict=True)
        )
    assert 0 > sums[0] > sums[1] + 2
    assert all(total < 0 for total in sums)


def test_offsets_count_characters_and_what_special_tokens_were_written_as(kiosk: Kiosk) -> None:
    prompt = "<|im_start|>Grüße 🙂<|im_end|>Hi"
    told = logprobs(kiosk.ask(prompt, echo=True, logprobs=0, max_tokens=0))
    assert told.tokens is not None
    assert told.text_offset is not None
    assert told.text_offset[-1] == prompt.index("Hi")
    assert told.text_offset[1] == len("<|im_start|>")
    places = zip(told.tokens, told.text_offset, strict=True)
    assert all(prompt[at:].startswith(token) for token, at in places if "�" not in token)


@pytest.mark.parametrize("prompt", [[], [[]], "", ["a", ""], 7, ["a", 7], [10**6], ["a"] * (MAX_ANSWERS + 1), {"a": 1}])
def test_what_is_no_prompt_is_refused_by_name(kiosk: Kiosk, prompt: Any) -> None:
    assert kiosk.refusal(prompt=prompt, max_tokens=1)["param"] == "prompt"


def test_the_bounds_hold_for_all_prompts_and_answers_together(kiosk: Kiosk) -> None:
    error = kiosk.refusal(prompt=["a"] * (MAX_ANSWERS // 4 + 1), n=4, max_tokens=1)
    assert str(MAX_ANSWERS // 4) in error["message"]
    assert kiosk.refusal(prompt=["a", "word " * 300])["code"] == "context_length_exceeded"
    assert kiosk.refusal(prompt=[[1] * 256])["code"] == "context_length_exceeded"
    assert kiosk.refusal(prompt="a", echo=True, logprobs=1, fallback="x")["param"] == "fallback"
