"""Completions (OpenAI's legacy API), the requests: one prompt or many, as text or tokens, with or without an echo."""

from dataclasses import replace
from typing import Annotated, Any

import msgspec

from fieldlm.api.chat_request import MAX_TOP_LOGPROBS, CompletionParams
from fieldlm.api.choices import Prompt
from fieldlm.api.preparation import LONG_TEXT, texts_of, tokens_of
from fieldlm.engines import Chunk, Constraint, Sampling
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.inference.chat_template import opening
from fieldlm.inference.generations import Serving
from fieldlm.network.json_api import ApiError

MAX_TOKENS_COMPLETION = 16  # OpenAI's own default
MAX_ANSWERS = 64  # prompts times n


class CompletionRequest(CompletionParams, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Any
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.scores_prompts and self.canned is not None:
            what = "fallback cannot stand in for the log probabilities of a prompt (echo with logprobs)"
            raise ApiError(400, what, param="fallback", code="invalid_value")

    @property
    def scores_prompts(self) -> bool:
        """Whether the tokens of the prompts are to be told how likely they were."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def most_tokens(self) -> int:
        return MAX_TOKENS_COMPLETION if self.max_tokens is None else self.max_tokens

    def wanted(self, constraint: Constraint | None = None, index: int = 0) -> Sampling:
        sampling = self.sampling(self.most_tokens, constraint, index, self.logprobs)
        # Evaluations ask for one token behind the prompt and leave the last one out: there is one, whatever it is.
        return replace(sampling, ignore_eos=self.scores_prompts and self.most_tokens == 1)

    @property
    def is_long(self) -> bool:
        """Whether it takes a while to know the tokens of the prompts."""
        return not isinstance(self.prompt, str) or len(self.prompt) > LONG_TEXT

    def prompts(self, serving: Serving) -> list[Prompt]:
        """Return what to go on with; raises ApiError for what is no prompt, is empty, or does not fit."""
        engine, room = serving.engine, min(self.most_tokens, 1)
        texts = texts_of(engine, self.prompt, param="prompt", most=MAX_ANSWERS // (self.n or 1))
        before = engine.tokenize(bos) if (bos := opening(serving.bundle)) else []
        found: list[Prompt] = []
        for given in texts:
            # Tokens go in as they are; whoever sends them has thought of a BOS.
            tokens = tokens_of(engine, bos + given if isinstance(given, str) else given, param="prompt", room=room)
            if not tokens:
                raise ApiError(400, "prompt is empty", param="prompt", code="invalid_value")
            text = given if isinstance(given, str) else engine.detokenize(given)
            lead = len(before) if isinstance(given, str) and tokens[: len(before)] == before else 0
            found.append(Prompt(text=text, tokens=tokens, lead=lead))
        return found


def answer_of_nothing(prompt: list[int]) -> AnswerStream:
    """Return the answer of no token that `max_tokens: 0` asks for."""
    made = AnswerStream(prompt_tokens=len(prompt), wake=lambda: None)
    made.put(Chunk(text="", tokens=(), outcome="length"))
    return made
