"""What happened becomes records: consent is applied, text redacted and the customer's id hashed before the spool.

Modes: `off` records nothing, `metrics` numbers only, `redacted` text of sessions with consent after redaction, `full`
the same text as it was. Knows nothing of HTTP: whatever has the fields of `Exchange` can be recorded.
"""

import functools
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import msgspec

from fieldlm.formats.files import disk_errors, sync_folder
from fieldlm.formats.record import Kind, Record, Stream
from fieldlm.runtime.redact import names_in, redact, redact_messages
from fieldlm.runtime.spool import Spool
from fieldlm.runtime.spool_database import RESPONSES, Answered

Mode = Literal["off", "metrics", "redacted", "full"]
TEXT_CHARS = 16_384
"""Longer texts lose their middle: both ends are kept."""
PROMPT_CHARS = 65_536
LABEL_CHARS = 128
OLDEST_CLOCK_MS = 1_735_689_600_000
"""2025-01-01: a clock before it was never set."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Timings(Protocol):
    """Where an answer's time went."""

    @property
    def cached_tokens(self) -> int: ...
    @property
    def queue_s(self) -> float: ...
    @property
    def margin(self) -> float: ...


class Exchange(Protocol):
    """One request and its answer, as the server saw it."""

    @property
    def id(self) -> str: ...
    @property
    def generation(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def messages(self) -> Any: ...
    @property
    def answer(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def timings(self) -> Timings: ...
    @property
    def started_wall_s(self) -> float: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def ttft_s(self) -> float | None: ...
    @property
    def session(self) -> str | None: ...
    @property
    def consent(self) -> str | None: ...
    @property
    def route(self) -> str | None: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class Recorder:
    """Writes exchanges, feedback and events into a spool. Every method is quick and safe from any thread."""

    def __init__(self, spool: Spool, *, device: str, mode: Mode, salt: bytes) -> None:
        self.spool = spool
        self.device = device
        self.mode = mode
        self.salt = salt
        self._boot = _BOOT.read_text()[:8] if _BOOT.exists() else ""
        self._answered: OrderedDict[str, tuple[Answered, frozenset[str]]] = OrderedDict()
        self._lock = threading.Lock()

    def exchange(self, exchange: Exchange) -> None:
        """Record one exchange; its text only with consent, in mode `redacted` or `full`."""
        consent = _label(exchange.consent)
        answered = Answered(generation=exchange.generation, session=self._hash(exchange.session), consent=consent)
        has_text = bool(consent) and self.mode in ("redacted", "full")
        names = _names(exchange) if has_text else frozenset[str]()
        self._know(exchange.id, answered, names)
        self._append(
            "gen",
            "generation",
            wall_ms=int(exchange.started_wall_s * 1000),
            generation=answered.generation,
            model=_label(exchange.model),
            response=_label(exchange.id),
            session=answered.session,
            consent=consent,
            route=_label(exchange.route),
            outcome=_label(exchange.outcome),
            prompt_tokens=exchange.prompt_tokens,
            completion_tokens=exchange.completion_tokens,
            cached_tokens=exchange.timings.cached_tokens,
            queue_ms=_ms(exchange.timings.queue_s),
            ttft_ms=_ms(exchange.ttft_s),
            duration_ms=_ms(exchange.duration_s),
            margin=round(float(exchange.timings.margin), 2),
            prompt=self._prompt(exchange.messages, names) if has_text else "",
            answer=self._text(exchange.answer, consent, names),
        )

    def feedback(self, response: str, rating: str | None, correction: str | None) -> bool:
        """Record what a customer thought of a response; False when this device gave no such response, or forgot it.

        The correction travels as text does: with the consent that the exchange had.
        """
        known = self._find(response)
        if known is None:
            return False
        answered, names = known
        self._append(
            "fb",
            "feedback",
            generation=answered.generation,
            response=_label(response),
            session=answered.session,
            consent=answered.consent,
            rating=_label(rating),
            correction=self._text(correction or "", answered.consent, names),
            # Without consent the text stays here, but that there was one is worth knowing.
            detail={"corrected": "yes"} if correction is not None else {},
        )
        return True

    def update(self, event: str, **detail: object) -> None:
        """Record a step of an update; it goes to the disk at once."""
        self._append("ota", "update", detail={"event": event} | _details(detail))

    def system(self, event: str, **detail: object) -> None:
        """Record something about the device itself."""
        self._append("sys", "system", detail={"event": event} | _details(detail))

    def _append(self, stream: Stream, kind: Kind, **fields: Any) -> None:
        if self.mode == "off":
            return
        wall_ms = time.time_ns() // 1_000_000
        mono_ms = time.monotonic_ns() // 1_000_000
        started_ms = fields.pop("wall_ms", wall_ms)
        self.spool.append(
            Record(
                device=self.device,
                stream=stream,
                kind=kind,
                wall_ms=started_ms,
                mono_ms=mono_ms - (wall_ms - started_ms),
                boot=self._boot,
                clock_ok=wall_ms > OLDEST_CLOCK_MS,
                **fields,
            )
        )

    def _hash(self, session: str | None) -> str:
        if not session:
            return ""
        return hmac.new(self.salt, session.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]

    def _text(self, text: str, consent: str, names: frozenset[str]) -> str:
        if not consent or self.mode not in ("redacted", "full"):
            return ""
        return _clip(redact(text, names=names) if self.mode == "redacted" else text)

    def _prompt(self, messages: Any, names: frozenset[str]) -> str:
        """Return the messages as JSON, without the oldest ones after the first when they are too long together."""
        kept: list[Any] = [_clip_all(message) for message in messages]
        if self.mode == "redacted":
            kept = [_redact(message, names) for message in kept]
        while len(text := msgspec.json.encode(kept).decode()) > PROMPT_CHARS and len(kept) > 1:
            del kept[1 if len(kept) > 2 else 0]
        return text

    def _know(self, response: str, answered: Answered, names: frozenset[str]) -> None:
        with self._lock:
            self._answered[_label(response)] = (answered, names)
            while len(self._answered) > RESPONSES:
                self._answered.popitem(last=False)

    def _find(self, response: str) -> tuple[Answered, frozenset[str]] | None:
        """Look in memory, which also has the names to redact, then in the spool, which survives a restart."""
        with self._lock:
            known = self._answered.get(_label(response))
        if known:
            return known
        stored = self.spool.response(_label(response))
        return (stored, frozenset()) if stored else None


def load_salt(path: Path) -> bytes:
    """Return the device's secret for hashing sessions, made at the first call; only its owner can read it."""
    with disk_errors(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        return path.read_bytes()


def _names(exchange: Exchange) -> frozenset[str]:
    """Return the names that the customer's own words and the answer hold; a system prompt names nobody."""
    told = [text for m in exchange.messages if not _is_system(m) for text in _texts(m)]
    return names_in("\n".join([*told, exchange.answer]))


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and cast(dict[str, Any], message).get("role") == "system"


def _redact(message: Any, names: frozenset[str]) -> Any:
    if _is_system(message):
        return _redact_system(msgspec.json.encode(message))
    return redact_messages(message, names=names)


@functools.lru_cache(maxsize=32)
def _redact_system(message: bytes) -> Any:
    # The same few kilobytes stand in front of every request.
    return redact_messages(msgspec.json.decode(message))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in cast(dict[str, Any], value).values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _texts(item)


def _clip_all(value: Any) -> Any:
    if isinstance(value, str):
        return _clip(value)
    if isinstance(value, dict):
        return {str(key): _clip_all(item) for key, item in cast(dict[Any, Any], value).items()}
    return [_clip_all(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def _clip(text: str) -> str:
    """Return `text` without lone surrogates, which no UTF-8 can hold, and without its middle when it is too long."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= TEXT_CHARS:
        return text
    return f"{text[: TEXT_CHARS // 2]} … {text[-TEXT_CHARS // 2 :]}"


def _label(text: str | None) -> str:
    return (text or "").encode("utf-8", "replace").decode()[:LABEL_CHARS]


def _ms(seconds: float | None) -> float:
    return round(float(seconds or 0.0) * 1000, 1)


def _details(detail: dict[str, object]) -> dict[str, str]:
    return {key: _clip(str(value)) for key, value in detail.items()}
