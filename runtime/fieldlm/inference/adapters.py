"""LoRA adapters, many on one base, one chosen by each request (`model: base:adapter`).

An adapter is a bundle of the same base in a folder that bears its name. It is loaded and dropped while answers run;
those that use it end as they began. Adapters in one bundle are there with it; a request that names none has the one of
its task (`routed`).
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fieldlm.core.errors import ConflictError, FieldlmError, InputError, NotFoundError
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.task_adapters import MOST, NAME
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.router import task_adapter_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen(Serving):
    """A generation with an adapter that a request chose by `name`."""


class Shelf:
    """The adapters that requests may choose. Safe from any thread."""

    def __init__(self, live: Generations, folder: Path) -> None:
        self._live = live
        self._folder = folder
        self._lock = threading.Lock()
        self._chosen: dict[str, Chosen] = {}

    def load(self, name: str) -> Chosen:
        """Load the adapter in the folder `name`; raises NotFoundError, ConflictError or InputError."""
        if not NAME.fullmatch(name):
            raise InputError(f"an adapter's name is letters, digits, - and _; {name!r} is not")
        # Its digests are checked before anybody waits for the lock.
        bundle = self._open(name)
        with self._lock, self._live.lease() as serving:
            found = self._chosen.get(name)
            if found is not None and found.engine is serving.engine:
                raise ConflictError(f"the adapter {name!r} is loaded; drop it first")
            if len(self._chosen) >= MOST:
                raise ConflictError(f"{MOST} adapters are loaded; drop one first")
            self._chosen[name] = made = _load(name, bundle, serving)
            return made

    def drop(self, name: str) -> None:
        """Forget the adapter; its memory is free when the last answer that uses it has ended."""
        with self._lock:
            chosen = self._chosen.pop(name, None)
        if chosen is None:
            raise self._missing(name)
        _free(chosen)

    def find(self, serving: Serving, name: str) -> Chosen:
        """Return the adapter `name` on the engine of `serving`; after an update to a like base it is loaded again."""
        with self._lock:
            chosen = self._chosen.get(name)
            if chosen is None:
                raise self._missing(name)
            if chosen.engine is not serving.engine:
                del self._chosen[name]
                _free(chosen)
                chosen = self._chosen[name] = _load(name, chosen.bundle, serving)
            return chosen

    def has(self, name: str) -> bool:
        """Whether the adapter `name` is loaded."""
        with self._lock:
            return name in self._chosen

    def all(self) -> list[Chosen]:
        with self._lock:
            return list(self._chosen.values())

    def _open(self, name: str) -> Bundle:
        folder = self._folder / name
        if not folder.is_dir():
            raise NotFoundError(f"there is no bundle in {folder}")
        try:
            return open_bundle(folder)
        except FieldlmError as error:
            raise InputError(f"{name!r} cannot be loaded: {error}") from error

    def _missing(self, name: str) -> NotFoundError:
        known = ", ".join(self._chosen) or "none"
        return NotFoundError(f"the adapter {name!r} is not loaded; loaded: {known}")


def _load(name: str, bundle: Bundle, serving: Serving) -> Chosen:
    path = bundle.path("adapter")
    if path is None or bundle.manifest.base != serving.bundle.manifest.base:
        raise InputError(f"{name!r} is no adapter for {serving.called} as it runs here")
    key = f"{name}@{bundle.generation}"
    try:
        serving.engine.load_adapter(key, path)
    except FieldlmError as error:
        raise InputError(f"{name!r} cannot be loaded: {error}") from error
    label = f"{serving.called}:{name}"
    return Chosen(bundle=bundle, engine=serving.engine, adapter=key, name=label)


def routed(serving: Serving, messages: Sequence[Mapping[str, Any]], *, task: str = "") -> Serving:
    """Return `serving` with the adapter for a conversation's task, where its bundle has several and none was named.

    `task` is what the client calls the task.
    """
    if not serving.task_adapters or serving.task_adapter:
        return serving
    name = task_adapter_of(serving.bundle, messages, task=task)
    return replace(serving, adapter=serving.task_adapters[name], task_adapter=name)


def named(serving: Serving, adapter: str) -> Chosen | None:
    """Return `serving` with the `adapter` that a request names, where its bundle has several, and that among them."""
    if adapter not in serving.task_adapters:
        return None
    return Chosen(
        bundle=serving.bundle,
        engine=serving.engine,
        adapter=serving.task_adapters[adapter],
        name=f"{serving.called}:{adapter}",
        task_adapters=serving.task_adapters,
        task_adapter=adapter,
    )


def _free(chosen: Chosen) -> None:
    # The engine is gone when another base has taken its place.
    with contextlib.suppress(FieldlmError):
        assert chosen.adapter is not None, "an adapter has a name"
        chosen.engine.drop_adapter(chosen.adapter)
