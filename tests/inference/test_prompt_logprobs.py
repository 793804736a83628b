"""How likely a text is by its model, whichever engine computes it."""

from collections.abc import Iterator

import pytest

from fieldlm.engines import Engine, EngineOptions, Sampling, TokenChoice, open_engine
from fieldlm.engines.onnx import open_graph
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.prompt_logprobs import prompt_logprobs
from tests.support import onnx_models

OPTIONS = EngineOptions(threads=1, context=256, parallel=1)


@pytest.fixture(params=["llama", "onnx"])
def engine(request: pytest.FixtureRequest, base_bundle: Bundle) -> Iterator[Engine]:
    if request.param == "llama":
        opened: Engine = open_engine(base_bundle, OPTIONS)
    else:
        folder = onnx_models.fp32("llama").folder
        opened = open_graph(folder / "model.onnx", folder / "tokenizer.json", OPTIONS)
    yield opened
    opened.close()


def choices(engine: Engine, tokens: list[int]) -> list[TokenChoice]:
    chunks = list(prompt_logprobs(engine, tokens, top=2))
    assert chunks[-1].outcome in ("stop", "length")
    return [choice for chunk in chunks for choice in chunk.choices]


def test_a_text_is_as_likely_as_where_it_is_said(engine: Engine) -> None:
    prompt = engine.tokenize("One, two, three")
    said = list(engine.start(prompt, Sampling(max_tokens=24, logprobs=2, ignore_eos=True)))
    known = [choice for chunk in said for choice in chunk.choices]
    found = choices(engine, [*prompt, *(choice.token for choice in known)])
    assert len(found) == len(prompt) - 1 + 24
    for own, other in zip(found[-24:], known, strict=True):
        assert own.token == other.token == own.top[0][0]
        assert own.logprob == pytest.approx(other.logprob, abs=0.2)


def test_a_token_that_ends_answers_ends_no_text(engine: Engine) -> None:
    end = min(engine.stop_tokens)
    tokens = [*engine.tokenize("One"), end, end, *engine.tokenize(" two")]
    assert [choice.token for choice in choices(engine, tokens)] == tokens[1:]
