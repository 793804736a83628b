"""A trial: a generation beside the one that answers, until it takes its place or is undone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Protocol, TypeVar

from fieldlm.engines.memory_plan import NoRoomError
from fieldlm.formats.bundle import Bundle
from fieldlm.inference import probe

Loaded = TypeVar("Loaded", bound=probe.LoadedModel)


class ServesGenerations(Protocol[Loaded]):
    """Which generation answers now."""

    @property
    def current(self) -> Loaded: ...
    def load(self, bundle: Bundle) -> Loaded: ...
    def evict(self) -> None: ...
    def restore(self) -> None: ...
    def switch(self, serving: Loaded) -> None: ...
    def discard(self, serving: Loaded) -> None: ...


class Trial(Generic[Loaded]):
    """One try. `is_replacing` once memory was too short for both: requests are held back until it is over."""

    def __init__(self, live: ServesGenerations[Loaded]) -> None:
        self.is_replacing = False
        self._live = live
        self._loaded: Loaded | None = None
        self._is_switched = False

    def load(
        self,
        bundle: Bundle,
        *,
        when_free: Callable[[], None] = lambda: None,
        limit: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Loaded:
        """Load `bundle` beside what runs or, once `when_free` returns, in its place where memory is short.

        Each load happens within a `limit`; waiting for people does not.
        """
        try:
            with limit():
                self._loaded = self._live.load(bundle)
        except NoRoomError:
            when_free()
            self._live.evict()
            self.is_replacing = True
            with limit():
                self._loaded = self._live.load(bundle)
        return self._loaded

    def switch(self, serving: Loaded) -> None:
        self._live.switch(serving)
        self._is_switched = True

    def undo(self, before: Bundle) -> None:
        """Let `before` answer again, and free what was loaded."""
        if self._is_switched:
            back = Trial(self._live)
            back.switch(back.load(before))
            return
        if self._loaded is not None:
            self._live.discard(self._loaded)
        if self.is_replacing:
            self._live.restore()
