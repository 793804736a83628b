"""Update progress: its steps as they happen, and in the end how it came out."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, Protocol

import msgspec

from fieldlm.blobs.fetch import BlobSource
from fieldlm.blobs.sources import StoppedError
from fieldlm.core.errors import (
    BundleError,
    EngineError,
    FieldlmError,
    GateError,
    InputError,
    NoSpaceError,
    TrustError,
    UnavailableError,
)
from fieldlm.formats.release import Offer, Release
from fieldlm.formats.shadow import ShadowFigures
from fieldlm.updates.gates import TrialMeasurements

Outcome = Literal["updated", "current", "refused", "rolled-back", "failed"]
PAST = {
    "check": "checked", "fetch": "fetched", "verify": "verified", "rehearse": "rehearsed", "load": "loaded",
    "probe": "probed", "shadow": "shadowed",
    "switch": "switched", "observe": "observed", "commit": "committed",
}  # fmt: skip
REASONS: dict[type[Exception], str] = {
    UnavailableError: "link", NoSpaceError: "space", TrustError: "trust", BundleError: "bundle", EngineError: "engine",
    GateError: "gate", InputError: "input", OSError: "disk",
}  # fmt: skip


class OnEvent(Protocol):
    """Where the steps of an update are told; details are words and numbers as text."""

    def __call__(self, event: str, **detail: str) -> None: ...


class UpdateStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an update: when it began, counted from the start of the update, and how long it took."""

    step: str
    at_s: float
    took_s: float


class UpdateResult(msgspec.Struct, frozen=True, kw_only=True):
    """How an update ended. `bytes_fetched` is everything read from the repository, metadata included."""

    outcome: Outcome
    reason: str = ""
    detail: str = ""
    seq: int = 0
    generation: str = ""
    bytes_fetched: int = 0
    bytes_bundle: int = 0
    measured: TrialMeasurements | None = None
    weights_of: str = ""
    """The generation whose very model it is, so that only what differs was tried; empty for another model."""
    timeline: tuple[UpdateStep, ...] = ()


class UpdateState(msgspec.Struct, frozen=True, kw_only=True):
    """What an updater is doing. `runs` counts the updates that have ended; `last` is the latest of them.

    `shadow` is how the candidate does that is in the shadow, or how the last one did.
    """

    running: bool
    step: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    runs: int = 0
    last: UpdateResult | None = None
    shadow: ShadowFigures | None = None

    @property
    def has_given_way(self) -> bool:
        """Whether the last update gave way to one that has not ended yet."""
        return self.running and self.last is not None and self.last.reason == StoppedError.reason


class UpdateRun:
    """One update: what it is doing, what it took, what it found."""

    def __init__(self, tell: OnEvent, *, is_asked: bool = True) -> None:
        self.tell = tell
        self.is_asked = is_asked
        self.source: BlobSource | None = None
        self.release: Release | None = None
        self.offer = Offer()
        self.measured: TrialMeasurements | None = None
        self.weights_of = ""
        self.step = ""
        self.done = self.total = 0
        self._began_s = time.monotonic()
        self._moments = list[UpdateStep]()

    @contextmanager
    def doing(self, step: str) -> Generator[dict[str, str]]:
        """Time one step and, when it went well, tell it, with what the block has put into what it was given."""
        told = dict[str, str]()
        self.step, began_s = step, time.monotonic()
        try:
            yield told
        finally:
            took_s = time.monotonic() - began_s
            self._moments.append(UpdateStep(step=step, at_s=round(began_s - self._began_s, 4), took_s=round(took_s, 4)))
        moved = self.source.moved if self.source else 0
        self.tell(f"update.{PAST[step]}", took_ms=f"{took_s * 1000:.0f}", bytes=str(moved), **self.known(), **told)

    def known(self) -> dict[str, str]:
        """Return which release it is about, once that is known."""
        return {"seq": str(self.release.seq), "bundle": self.release.bundle[:12]} if self.release else {}

    def moved(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def result(self, outcome: Outcome, *, reason: str = "", detail: str = "") -> UpdateResult:
        return UpdateResult(
            outcome=outcome,
            reason=reason,
            detail=detail,
            seq=self.release.seq if self.release else 0,
            generation=self.release.bundle[:12] if self.release else "",
            bytes_fetched=self.source.moved if self.source else 0,
            bytes_bundle=self.release.size if self.release else 0,
            measured=self.measured,
            weights_of=self.weights_of,
            timeline=tuple(self._moments),
        )


def reason_of(error: Exception) -> str:
    """Return the word for programs: the error's own, or what kind of thing went wrong."""
    own = getattr(error, "reason", None) if isinstance(error, FieldlmError) else None
    if isinstance(own, str):
        return own
    return next((word for kind, word in REASONS.items() if isinstance(error, kind)), "crash")
