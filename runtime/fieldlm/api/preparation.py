"""Preparation of requests, in few threads: what takes long before an engine is asked (tokenising, compiling).

Two at a time of each: a hundred requests for a hard form keep neither feedback nor embeddings nor health from a thread.
A client that leaves while its request waits has cost nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request

from fieldlm.api.chat_request import CompletionParams
from fieldlm.engines import Engine
from fieldlm.inference.generations import Serving
from fieldlm.network.json_api import ApiError

AT_A_TIME = 2
LONG_TEXT = 8192  # characters; more than this is not rendered or tokenised in the event loop
MOST_TASK_CHARS = 64
POLL_S = 0.2  # how often somebody looks whether the client is still there

T = TypeVar("T")
Tokens = Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)]


class Preparation:
    """The threads for one kind of work."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(AT_A_TIME, name)

    async def run(self, request: Request, job: Callable[[], T], *, leave: Callable[[], None] | None = None) -> T:
        """Return what `job` returns; raises ApiError when the client of `request` leaves before.

        A job that has begun is not waited for then, unless `leave` asks it to end soon.
        """
        work = self._threads.submit(job)
        done = asyncio.wrap_future(work)
        while not (await asyncio.wait([done], timeout=POLL_S))[0]:
            if not await request.is_disconnected():
                continue
            if leave is not None:
                leave()
            if work.cancel() or leave is None:
                done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                raise ApiError(503, "the client left before its answer began", code="cancelled")
        return done.result()


def texts_of(engine: Engine, given: Any, *, param: str, most: int) -> list[str | list[int]]:
    """Return what `given` holds, in whichever of four ways OpenAI knows: texts, or their tokens, one or up to `most`.

    Raises ApiError for anything else, or a token that the model has not.
    """
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    kind = Annotated[list[str | Tokens], msgspec.Meta(min_length=1, max_length=most)]
    try:
        texts: list[str | list[int]] = msgspec.convert(several, kind)
    except msgspec.ValidationError as error:
        what = f"{param}: {error}; want a text, its tokens, or a list of up to {most} of either"
        raise ApiError(400, what, param=param, code="invalid_type") from error
    size = len(engine.vocabulary()) if any(not isinstance(text, str) for text in texts) else 0
    for i, text in enumerate(texts):
        if not isinstance(text, str) and max(text) >= size:
            raise ApiError(400, f"{param}[{i}] names a token above {size - 1}", param=param, code="invalid_value")
    return texts


def tokens_of(engine: Engine, text: str | Sequence[int], *, param: str, room: int = 0) -> list[int]:
    """Return the tokens of `text`; raises ApiError when they do not leave `room` in the context.

    What is too long for certain is refused before it is tokenised.
    """
    most = engine.context - room
    # A token has a byte at least. Who is asked for the first time what it has at most looks at the whole vocabulary.
    is_long = isinstance(text, str) and len(text.encode(errors="replace")) > most
    least = engine.least_tokens(text) if isinstance(text, str) and is_long else 0
    count = f"at least {least}" if least > most else ""
    tokens = ([] if count else engine.tokenize(text)) if isinstance(text, str) else list(text)
    if count or len(tokens) > most:
        raise ApiError(
            400,
            f"{param} has {count or len(tokens)} tokens; this model's maximum context length is {engine.context} tokens"
            + (", for prompt and answer" if room else ""),
            param=param,
            code="context_length_exceeded",
        )
    return tokens


def task_of(asked: CompletionParams, serving: Serving, question: str) -> tuple[str, bool]:
    """Return the task of a request: what the client calls it, or what the bundle's router takes `question` for.

    Says too whether the router knows it for none.
    """
    task = (asked.label("task") or "")[:MOST_TASK_CHARS]
    if task or (router := serving.bundle.router) is None:
        return task, False
    found = router.task(question)
    return found or "", found is None
