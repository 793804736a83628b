"""Log probabilities of prompts: what OpenAI's `echo` with `logprobs` tells, one prompt after the other."""

import time
from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request

from fieldlm.api.choices import UNKNOWN, Prompt
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.preparation import Preparation
from fieldlm.api.response_stream import failure_of
from fieldlm.engines import Chunk, RunningAnswer, TokenChoice
from fieldlm.inference.engine_watchdog import ProgressMonitor
from fieldlm.inference.generations import Serving
from fieldlm.inference.prompt_logprobs import prompt_logprobs


class PromptScores:
    """How likely prompts are, by the engine that also answers them. Those of one request come one after the other."""

    def __init__(self, pulse: ProgressMonitor) -> None:
        self._pulse = pulse
        self._threads = Preparation("scores")

    async def of(
        self, prompts: Sequence[Prompt], request: Request, serving: Serving, asked: CompletionRequest, came_s: float
    ) -> list[Prompt]:
        """Return `prompts` with the choices of their own tokens; raises ApiError for who leaves or is too late."""
        return [await self._scored(prompt, request, serving, asked, came_s) for prompt in prompts]

    async def _scored(
        self, prompt: Prompt, request: Request, serving: Serving, asked: CompletionRequest, came_s: float
    ) -> Prompt:
        first = TokenChoice(token=prompt.tokens[0], logprob=UNKNOWN)
        if len(prompt.tokens) == 1:
            return replace(prompt, choices=(first,)[prompt.lead :])
        running: list[RunningAnswer] = []

        def run() -> list[Chunk]:
            terms, adapter = asked.terms(time.monotonic() - came_s), serving.adapter
            answer = prompt_logprobs(
                serving.engine, prompt.tokens, top=asked.logprobs or 0, adapter=adapter, terms=terms
            )
            running.append(self._pulse.watch(answer))
            return list(running[0])

        def leave() -> None:
            for answer in running:
                answer.cancel()

        chunks = await self._threads.run(request, run, leave=leave)
        if error := failure_of(chunks[-1].outcome, chunks[-1].error):
            raise error
        choices = (first, *(choice for chunk in chunks for choice in chunk.choices))
        return replace(prompt, choices=choices[prompt.lead :])
