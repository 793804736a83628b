"""Hot swap of generations. A switch disturbs no running answer: what it uses stays loaded until it ends.

Where memory does not hold two bases, the new one takes the old one's place: requests that come are held back, those
that run end, the old base is freed and the new one loaded; whoever was held back is answered then.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fieldlm.core.errors import EngineError, FieldlmError, UnavailableError
from fieldlm.engines import (
    DEFAULT_OPTIONS,
    DEFAULT_TERMS,
    Engine,
    EngineOptions,
    RunningAnswer,
    Sampling,
    Schedule,
    open_engine,
)
from fieldlm.formats.bundle import NO_MODEL, Bundle, Manifest
from fieldlm.hardware.heap import trim
from fieldlm.inference.chat_template import question

DRAIN_S = 300.0  # for running answers to end; the longest on the slowest board takes less
LOOK_S = 0.02
Release = Callable[[], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Serving:
    """A loaded generation: the bundle, the engine that holds its base, and the adapter to switch on there."""

    bundle: Bundle
    engine: Engine
    adapter: str | None
    name: str = ""
    """What requests call it by; "" for the name that its bundle has."""
    is_beside: bool = False
    """Whether it is beside the device's own model, so that updates, adapters and a large model do not concern it."""
    task_adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where the bundle has several adapters: by their names there, what the engine calls each."""
    task_adapter: str = ""
    """Which of them `adapter` is, where a request's task, or the request, has chosen."""

    @property
    def called(self) -> str:
        """The model's name as a request spells it."""
        return self.name or self.bundle.manifest.model.name

    @property
    def is_asleep(self) -> bool:
        """Whether this only stands for what was freed."""
        return isinstance(self.engine, _Evicted)


class Generations:
    """The generation that answers, those that still finish, and one that may be loaded beside. Safe from any thread.

    It can sleep: nothing is loaded then, and requests wait until it wakes. With `asleep` it begins so. `name` is what
    requests call it by, "" for its bundle's; `is_beside` says that it is not the device's own model.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions = DEFAULT_OPTIONS,
        *,
        name: str = "",
        asleep: bool = False,
        is_beside: bool = False,
    ) -> None:
        self.parallel = options.parallel
        self.used_s = time.monotonic()
        """When a request last began or ended here."""
        self._name = name
        self._is_beside = is_beside
        self._options = options
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._leases: Counter[Serving] = Counter()
        self._loaded: list[Serving] = []
        self._current: Serving | None = None
        self._is_held = self._is_asleep = asleep
        self._is_draining = False
        self._is_closed = False
        _read_beside(bundle)
        self._current = self._stand_in(bundle, None) if asleep else self.load(bundle)
        if asleep:
            self._loaded.append(self._current)

    @property
    def is_held(self) -> bool:
        """Whether new requests have to wait, because a generation takes another one's place."""
        return self._is_held

    @property
    def is_asleep(self) -> bool:
        """Whether nothing is loaded until `wake`."""
        return self._is_asleep

    @property
    def is_used(self) -> bool:
        """Whether a request runs here."""
        with self._lock:
            return any(self._leases.values())

    @property
    def is_closed(self) -> bool:
        """Whether all was freed for good; what fails then is no fault of a model."""
        return self._is_closed

    @property
    def current(self) -> Serving:
        """The generation that new requests get."""
        assert self._current, "a generation is loaded before anybody asks"
        return self._current

    @contextmanager
    def lease(self) -> Generator[Serving]:
        """Yield the current generation; it stays loaded until the block ends, whatever is switched meanwhile.

        Never waits: while requests are held back, what is yielded describes the generation that was and answers nobody.
        """
        with self._lock:
            serving = self.current
            self._leases[serving] += 1
        try:
            yield serving
        finally:
            self._give_back(serving)

    def try_lease(self) -> tuple[Serving, Release] | None:
        """Return the current generation and what gives it back; None while requests are held back."""
        with self._lock:
            if self._is_held or self._is_draining:
                return None
            serving = self.current
            self._leases[serving] += 1
            self.used_s = time.monotonic()
        return serving, lambda: self._end_use(serving)

    def _end_use(self, serving: Serving) -> None:
        self.used_s = time.monotonic()
        self._give_back(serving)

    def _give_back(self, serving: Serving) -> None:
        with self._lock:
            self._leases[serving] -= 1
            release = self._retire_if_unused(serving)
        release()

    def load(self, bundle: Bundle) -> Serving:
        """Load `bundle` beside what runs: only its adapter where the same base is in memory, else a second engine.

        Raises EngineError, BundleError or MissingDependencyError; what runs is untouched then.
        """
        with self._loading:
            return self._load(bundle)

    def switch(self, serving: Serving) -> None:
        """Give `serving` to new requests; the generation before is freed when its last answer ends."""
        with self._lock:
            assert serving in self._loaded, "only a loaded generation can be switched to"
            before, self._current = self.current, serving
            self._is_held = self._is_asleep = False
            release = self._retire_if_unused(before)
        release()

    def discard(self, serving: Serving) -> None:
        """Free a generation that was loaded and is not switched to."""
        with self._lock:
            assert serving is not self._current, "the generation that answers cannot be discarded"
            release = self._retire_if_unused(serving)
        release()

    def evict(self, *, within_s: float = DRAIN_S) -> None:
        """Free what runs, to make room for another: requests that come wait until `switch`, or `wake`.

        Raises UnavailableError when the running answers do not end in time; the generation answers on then.
        """
        with self._lock:
            # Who evicts says what is loaded next, and when.
            self._is_held, self._is_asleep = True, False
        try:
            self._drain(within_s)
        except UnavailableError:
            self._is_held = False
            raise
        self._rest()

    def restore(self) -> None:
        """Let the generation answer again that `clear` freed."""
        self.switch(self.load(self.current.bundle))

    def drain(self, on: bool) -> None:
        """Hold requests back, or no longer, so that `try_sleep` finds nobody; those that run go on."""
        self._is_draining = on

    def try_sleep(self) -> bool:
        """Free everything until `wake`; False while somebody uses it, or while a generation takes another's place."""
        if not self._loading.acquire(blocking=False):
            return False
        try:
            with self._lock:
                before = self.current
                if self._is_held or self._is_closed or self._loaded != [before] or self._leases[before]:
                    return False
                self._is_held = self._is_asleep = True
                self._current = self._stand_in(before.bundle, before)
                self._loaded = [self._current]
                del self._leases[before]
            before.engine.close()
            trim()
        finally:
            self._loading.release()
        return True

    def wake(self, prepare: Callable[[Serving], None] = lambda _: None) -> None:
        """Load what sleeps, have it prepared and let it answer.

        Raises what `load` and `prepare` raise; it sleeps on then.
        """
        serving = self.load(self.current.bundle)
        try:
            prepare(serving)
        except BaseException:
            self.discard(serving)
            raise
        if self._is_asleep:
            self.switch(serving)
        else:  # an update was quicker
            self.discard(serving)

    def _stand_in(self, bundle: Bundle, before: Serving | None) -> Serving:
        if before is not None:
            return Serving(
                bundle=bundle,
                engine=_Evicted(before.engine.context, before.engine.stop_tokens),
                adapter=before.adapter,
                name=self._name,
                is_beside=self._is_beside,
                task_adapters=before.task_adapters,
            )
        context = min(self._options.context or bundle.manifest.model.context, bundle.manifest.model.context)
        return Serving(
            bundle=bundle,
            engine=_Evicted(context, frozenset()),
            adapter=None,
            name=self._name,
            is_beside=self._is_beside,
            task_adapters={each.name: each.name for each in bundle.manifest.task_adapters},
        )

    def _drain(self, within_s: float) -> None:
        end_s = time.monotonic() + within_s
        while self._busy():
            if time.monotonic() > end_s:
                raise UnavailableError(f"answers still run after {within_s:.0f} s; the update is tried again later")
            time.sleep(LOOK_S)

    def _busy(self) -> bool:
        with self._lock:
            return any(count > 0 for serving, count in self._leases.items() if serving in self._loaded)

    def _rest(self) -> None:
        """Free everything; what stands in its place knows its name and nothing else."""
        asleep = self._stand_in(self.current.bundle, self.current)
        with self._lock:
            self._loaded.append(asleep)
            self._current = asleep
        self._free([each for each in self._loaded if each is not asleep])

    def _free(self, servings: list[Serving]) -> None:
        with self._lock:
            self._loaded = [each for each in self._loaded if each not in servings]
        for engine in {id(serving.engine): serving.engine for serving in servings}.values():
            engine.close()

    def close(self) -> None:
        """Cancel what runs and free everything."""
        with self._lock:
            self._is_closed = True
            engines = {id(serving.engine): serving.engine for serving in self._loaded}
            self._loaded.clear()
        for engine in engines.values():
            engine.close()

    def _load(self, bundle: Bundle) -> Serving:
        _read_beside(bundle)
        base = self._hold_base(bundle)
        if not bundle.adapter_paths:
            return base
        try:
            loaded = load_adapters(base.engine, bundle, self._adapter_name(bundle))
            serving = Serving(
                bundle=bundle,
                engine=base.engine,
                adapter=next(iter(loaded.values())),
                name=self._name,
                is_beside=self._is_beside,
                task_adapters=loaded if bundle.manifest.task_adapters else {},
            )
            with self._lock:
                self._loaded.append(serving)
        finally:
            self.discard(base)
        return serving

    def _hold_base(self, bundle: Bundle) -> Serving:
        """Return `bundle`'s base without its adapter, on an engine that has it already or on a new one."""
        with self._lock:
            awake = (each for each in self._loaded if not each.is_asleep)
            engine = next((s.engine for s in awake if _same_base(s.bundle.manifest, bundle.manifest)), None)
            if engine is not None:
                return self._hold(bundle, engine)
        engine = open_engine(bundle, self._options)
        with self._lock:
            return self._hold(bundle, engine)

    def _hold(self, bundle: Bundle, engine: Engine) -> Serving:
        serving = Serving(bundle=bundle, engine=engine, adapter=None, name=self._name, is_beside=self._is_beside)
        self._loaded.append(serving)
        return serving

    def _adapter_name(self, bundle: Bundle) -> str:
        """The generation's name, with a number where it is loaded already."""
        with self._lock:
            taken = {serving.adapter for serving in self._loaded}
        names = (f"{bundle.generation}.{i}" if i else bundle.generation for i in range(len(taken) + 1))
        return next(name for name in names if name not in taken)

    def _retire_if_unused(self, serving: Serving) -> Release:
        """Take `serving` out when nobody needs it; return what frees it, to be called without the lock."""
        if serving is self._current or self._leases[serving] or serving not in self._loaded:
            return _nothing
        del self._leases[serving]
        self._loaded.remove(serving)
        if not any(other.engine is serving.engine for other in self._loaded):
            return serving.engine.close
        names = list(serving.task_adapters.values()) or [name for name in (serving.adapter,) if name]
        return lambda: _drop_adapters(serving.engine, names)


class _Evicted:
    """Stands for an engine that was freed until another takes its place."""

    def __init__(self, context: int, stop_tokens: frozenset[int]) -> None:
        self.context = context
        self.stop_tokens = stop_tokens

    def tokenize(self, text: str) -> list[int]:
        raise self._error()

    def least_tokens(self, text: str) -> int:
        raise self._error()

    def detokenize(self, tokens: Sequence[int]) -> str:
        raise self._error()

    def vocabulary(self) -> Sequence[bytes]:
        raise self._error()

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> RunningAnswer:
        raise self._error()

    def load_adapter(self, name: str, path: Path) -> None:
        raise self._error()

    def drop_adapter(self, name: str) -> None:
        raise self._error()

    def memory_mb(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...

    def _error(self) -> EngineError:
        return EngineError("the model sleeps, or another generation is being loaded")


def load_adapters(engine: Engine, bundle: Bundle, key: str) -> dict[str, str]:
    """Load all adapters of `bundle`; return what the engine calls each by its name in the bundle, the default first.

    The default is called `key`, others `key:NAME`. Raises EngineError, or BundleError for a classifier or a router that
    cannot be read; none of them is loaded then.
    """
    _read_beside(bundle)
    loaded: dict[str, str] = {}
    try:
        for name, path in bundle.adapter_paths.items():
            called = f"{key}:{name}" if loaded else key
            engine.load_adapter(called, path)
            loaded[name] = called
    except BaseException:
        with suppress(FieldlmError):
            _drop_adapters(engine, list(loaded.values()))
        raise
    return loaded


def _read_beside(bundle: Bundle) -> None:
    """Read what is asked before the model, here and not at the first request, which must not fail or wait for it."""
    _ = bundle.classifier, bundle.router


def _drop_adapters(engine: Engine, names: Sequence[str]) -> None:
    for name in names:
        engine.drop_adapter(name)


def canary_prompt(bundle: Bundle) -> str:
    """Return what `canary` asks; its template is compiled then, which takes no weights."""
    return question(bundle, "Hello")


def canary(serving: Serving) -> None:
    """Raise EngineError unless `serving` answers one token to its real system prompt, which is warm afterwards.

    Where there is no model, there is nothing to ask.
    """
    if serving.bundle.manifest.engine == NO_MODEL:
        return
    prompt = serving.engine.tokenize(canary_prompt(serving.bundle))
    answer = serving.engine.start(prompt, Sampling(max_tokens=1), adapter=serving.adapter)
    last = list(answer)[-1]
    if last.outcome not in ("stop", "length"):
        raise EngineError(f"{serving.bundle.generation} does not answer: {last.error or last.outcome}")


def _same_base(one: Manifest, other: Manifest) -> bool:
    """Whether two bundles differ at most in what is loaded beside the base, which has one cache."""
    return (one.base, one.cache) == (other.base, other.cache)


def _nothing() -> None:
    pass
