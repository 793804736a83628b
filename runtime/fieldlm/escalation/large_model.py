"""The large model: any endpoint that speaks OpenAI's chat completions, over a network that may not be there.

Whether it can be reached is known without asking. After a failure nobody waits for it again until a pause is over,
which doubles with each failure in a row, and then a background task looks first whether anybody is there. So a device
without a network answers as fast as one that has no large model.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import IncompleteRead
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import HTTPError

from fieldlm.core.errors import FieldlmError
from fieldlm.core.tasks import Tasks
from fieldlm.core.urls import shown
from fieldlm.core.wording import counted
from fieldlm.escalation.large_reply import (
    MOST_CHARS,
    SILENCE_S,
    LargeModelError,
    LargeReply,
    add,
    events,
    keep,
    shut_at,
)
from fieldlm.network.bounded_http import connections
from fieldlm.network.http_client import refusal

CONNECT_S = 3.0
"""A person is waiting, and the small model could have answered by then."""
PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
LEAST_S = 0.001
LOOK_S = 0.25
"""How soon a close is noticed."""
BYTES_PER_TOKEN = 4.0
"""Of a request, until an endpoint has counted one: English text in the vocabularies of today."""
REMEMBERED = 64
"""Answers by which the time of the next one is foreseen."""
SLOW_SHARE = 0.9
"""Of them so many were at least as quick as is foreseen."""
OK, TOO_MANY = 200, 429
LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"
UNWANTED = "nobody wants the answer any more"
_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What reading raises where an endpoint sends JSON of another shape, or text that is none."""


def foreseen_s(took_s: Iterable[float]) -> float:
    """Return how long the next answer takes, by the slower ones of those that took `took_s`; 0 where there is none."""
    ranked = sorted(took_s)
    return ranked[int(SLOW_SHARE * (len(ranked) - 1))] if ranked else 0.0


class LargeModel:
    """An endpoint such as https://HOST/v1 with the model `name` there. Safe from any thread; `ask` blocks.

    `key` is sent as a bearer token. Without a name it is the only model that the endpoint lists.
    """

    def __init__(self, url: str, *, name: str = "", key: str = "") -> None:
        self.url = shown(url)
        self._name = name
        self._base = url.rstrip("/")
        tls = urlsplit(url).scheme == "https"
        self._pool = connections(tls=tls, maxsize=32, timeout=Timeout(connect=CONNECT_S, read=SILENCE_S))
        self._headers = {"content-type": "application/json", "accept": "text/event-stream, application/json"}
        self._key = key
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._lock = threading.Lock()
        self._failures = 0
        self._open_s = self._pause_end_s = 0.0
        self.problem = ""
        """Why it was not reached the last time; empty while it is."""
        self._has_failed = threading.Event()
        self._is_closed = False
        self._knows_new_limit = False
        self._is_watched = False
        self._took_s: deque[float] = deque(maxlen=REMEMBERED)
        self._bytes_per_token = BYTES_PER_TOKEN

    @property
    def label(self) -> str:
        """What clients and records call it."""
        return self._name or "large"

    @property
    def is_reachable(self) -> bool:
        """Whether asking is worth the wait: it answered the last time, or somebody has looked since it did not."""
        return time.monotonic() >= self._open_s

    def watch(self, tasks: Tasks) -> None:
        """Look in the background whether it is there again, so that no request has to wait for that."""
        self._is_watched = True
        tasks.start("large-model", self._look, restarts=True)

    def close(self) -> None:
        self._is_closed = True
        self._has_failed.set()
        self._pool.clear()

    def foreseen_s(self) -> float:
        """Return how long an answer takes, by the slower ones of the last; 0 while nothing is known."""
        with self._lock:
            return foreseen_s(self._took_s)

    def ask(
        self, body: dict[str, Any], *, within_s: float | None, on_text: Callable[[str], None], handle: "AskHandle"
    ) -> LargeReply:
        """Ask for the chat completion `body`, which names no model, and return it; `on_text` gets its text as it comes.

        Raises LargeModelError when there is no whole answer, within `within_s` where that is given; `handle.stop` ends
        it from another thread.
        """
        began_s = time.monotonic()
        if within_s is not None and within_s <= 0:
            raise LargeModelError("there is no time left to ask the large model", is_late=True)
        reply, asked = LargeReply(), dict[str, Any]()
        try:
            asked = {**body, "model": self._named(within_s), "stream": True, "stream_options": {"include_usage": True}}
            self._read(reply, asked, within_s=within_s, on_text=on_text, handle=handle)
            if not reply.outcome:
                raise self._broken(None, began_s, within_s, handle)
        except (HTTPError, OSError, msgspec.MsgspecError, FieldlmError, *_MALFORMED) as error:
            told = error if isinstance(error, LargeModelError) else self._broken(error, began_s, within_s, handle)
            told.partial = self._counted(reply, asked) if reply.has_begun else None
            if told is error:
                raise
            raise told from error
        reply.duration_s = time.monotonic() - began_s
        with self._lock:
            self._failures, self._open_s, self.problem = 0, 0.0, ""
            self._has_failed.clear()
            self._took_s.append(reply.duration_s)
            if reply.prompt_tokens:
                self._bytes_per_token = len(msgspec.json.encode(asked)) / reply.prompt_tokens
        return self._counted(reply, asked)

    def _read(
        self,
        reply: LargeReply,
        asked: dict[str, Any],
        *,
        within_s: float | None,
        on_text: Callable[[str], None],
        handle: "AskHandle",
    ) -> None:
        """Ask, and take what comes into `reply`."""
        due_s = None if within_s is None else time.monotonic() + within_s
        response = self._asked(asked, due_s)
        reply.has_begun = True
        with handle.holding(response), shut_at(due_s, response):
            for event in events(response):
                add(reply, event, on_text)
                if due_s is not None and time.monotonic() > due_s:
                    self._late(within_s)
                    raise LargeModelError("the large model was not done by the deadline", is_late=True)
            if reply.outcome:
                keep(response)

    def _counted(self, reply: LargeReply, asked: dict[str, Any]) -> LargeReply:
        """Return `reply` with its tokens: what the endpoint counted, else by what was said and what others had.

        An answer that ends before its end comes without a count, and is paid for. Else who hangs up would have no
        budget.
        """
        if not reply.prompt_tokens:
            reply.prompt_tokens = round(len(msgspec.json.encode(asked)) / self._bytes_per_token)
        reply.completion_tokens = reply.completion_tokens or reply.pieces
        return reply

    def _broken(
        self, error: Exception | None, began_s: float, within_s: float | None, handle: "AskHandle"
    ) -> LargeModelError:
        """Note that an answer ended with `error`, or without its end, and return what to tell whoever asked."""
        if handle.is_stopped:  # who hung up were we
            return LargeModelError(UNWANTED)
        if time.monotonic() - began_s >= (SILENCE_S if within_s is None else min(SILENCE_S, within_s)):
            self._late(within_s)
            return LargeModelError("the large model said nothing in time", is_late=within_s is not None)
        if error is None or _is_cut(error):
            self._failed("an answer without an end")
            return LargeModelError(f"{self.url} hung up in the middle of its answer")
        what = self._without_key(str(error.__cause__ or error))
        if isinstance(error, _MALFORMED) and not isinstance(error, HTTPError):
            what = "what it sends is no chat completion"
        self._failed(what)
        return LargeModelError(f"{self.url} broke off: {what}")

    def status(self) -> dict[str, Any]:
        """Return where it is, and whether it can be reached."""
        return {
            "url": self.url,
            "model": self.label,
            "reachable": not self.problem,
            "problem": self.problem,
            "foreseen_s": round(self.foreseen_s(), 3),
        }

    def _look(self) -> None:
        while not self._is_closed:
            self._has_failed.wait()
            while not self._is_closed and (left_s := self._pause_end_s - time.monotonic()) > 0:
                time.sleep(min(left_s, LOOK_S))
            if self._is_closed:
                return
            try:
                answer = self._pool.request(
                    "GET",
                    self._base + "/models",
                    headers=self._headers,
                    timeout=CONNECT_S,
                    retries=False,
                    preload_content=False,
                )
                answer.close()  # whatever it says: somebody is there
            except (HTTPError, OSError) as error:
                self._failed(str(error.__cause__ or error))
                continue
            with self._lock:
                self._open_s = 0.0
                self._has_failed.clear()

    def _named(self, within_s: float | None) -> str:
        """Return the model's name there, asked for once."""
        if self._name:
            return self._name
        limit_s = min(CONNECT_S, within_s or CONNECT_S)
        response = self._request("GET", "/models", None, limit_s)
        with shut_at(time.monotonic() + limit_s, response):
            listed = msgspec.json.decode(response.read(MOST_CHARS)).get("data") or []
        names = [str(each["id"]) for each in listed]
        if len(names) != 1:
            raise LargeModelError(
                f"{self.url} has {counted(len(names), 'model')}; name one with the setting large_model"
            )
        self._name = names[0]
        return self._name

    def _asked(self, body: dict[str, Any], due_s: float | None) -> BaseHTTPResponse:
        """Send a chat completion. OpenAI's newer models know `max_tokens` by another name, and say so."""
        names = (NEW_LIMIT,) if self._knows_new_limit else (LIMIT, NEW_LIMIT)
        for name in names:
            spelt = {name if key == LIMIT else key: value for key, value in body.items()}
            try:
                response = self._post("/chat/completions", spelt, None if due_s is None else due_s - time.monotonic())
            except LargeModelError as error:
                if name == NEW_LIMIT or NEW_LIMIT not in str(error):
                    raise
                continue
            self._knows_new_limit = name == NEW_LIMIT
            return response
        raise AssertionError("the last name was tried")

    def _post(self, path: str, body: dict[str, Any], within_s: float | None) -> BaseHTTPResponse:
        return self._request("POST", path, msgspec.json.encode(body), within_s)

    def _request(self, method: str, path: str, body: bytes | None, within_s: float | None) -> BaseHTTPResponse:
        # Above 0, which urllib3 wants, where the last of the time has just gone.
        limit_s = None if within_s is None else max(within_s, LEAST_S)
        timeout = Timeout(total=limit_s, connect=CONNECT_S, read=SILENCE_S)
        response = self._pool.request(
            method,
            self._base + path,
            body=body,
            headers=self._headers,
            timeout=timeout,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        if response.status == OK:
            return response
        with shut_at(time.monotonic() + CONNECT_S, response):
            said = self._without_key(_refusal(response))
        # Who refuses one request does not refuse the next; who has too many or is broken is left alone for a while.
        if response.status == TOO_MANY or response.status >= 500 or response.status in (401, 403, 404):
            self._failed(f"HTTP {response.status}: {said}")
        raise LargeModelError(f"{self.url} refuses (HTTP {response.status}): {said}")

    def _without_key(self, text: str) -> str:
        """Return what an endpoint said without the key, which some repeat where they do not know it."""
        return text.replace(self._key, "…") if self._key else text

    def _late(self, within_s: float | None) -> None:
        """Note an answer that did not come: one that had little time says how long answers take, and no more."""
        if within_s is not None and within_s < SILENCE_S:
            with self._lock:
                self._took_s.append(within_s)
        else:
            self._failed(f"silent for {SILENCE_S:g} s")

    def _failed(self, why: str) -> None:
        with self._lock:
            pause_s = min(PAUSE_S * 2**self._failures, MOST_PAUSE_S)
            self._failures = min(self._failures + 1, 10)
            self._pause_end_s = time.monotonic() + pause_s
            self._open_s = math.inf if self._is_watched else self._pause_end_s
            self.problem = why[:200]
            self._has_failed.set()


class AskHandle:
    """Ends one `ask` from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._response: BaseHTTPResponse | None = None
        self.is_stopped = False

    def holding(self, response: BaseHTTPResponse) -> "_Held":
        """Keep `response` while it is read; raises LargeModelError where it is wanted no more."""
        with self._lock:
            if self.is_stopped:
                response.close()
                raise LargeModelError(UNWANTED)
            self._response = response
        return _Held(self, response)

    def stop(self) -> None:
        with self._lock:
            self.is_stopped = True
            if self._response is not None:
                with suppress(Exception):  # it may have ended by itself
                    cast(Any, self._response).shutdown()

    def release(self) -> None:
        with self._lock:
            self._response = None


class _Held:
    def __init__(self, handle: AskHandle, response: BaseHTTPResponse) -> None:
        self._handle, self._response = handle, response

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._handle.release()
        self._response.close()


def _is_cut(error: Exception) -> bool:
    """Whether a reply ended before its end, as HTTP tells it."""
    return isinstance(error, IncompleteRead) or isinstance(error.__cause__, IncompleteRead)


def _refusal(response: BaseHTTPResponse) -> str:
    """Return the reason of a refusal; never what was asked."""
    with suppress(msgspec.MsgspecError, HTTPError):
        return refusal(msgspec.json.decode(response.read(1 << 16)))[:200]
    return "no reason given"
