"""Which generation answers now. A switch disturbs no running answer: what it uses stays loaded until it ends."""

import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import EngineError
from fieldlm.runtime.engines import Engine, Sampling, open_engine
from fieldlm.runtime.template import render

Release = Callable[[], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Serving:
    """A loaded generation: the bundle, the engine that holds its base, and the adapter to switch on there."""

    bundle: Bundle
    engine: Engine
    adapter: str | None


class Live:
    """The generation that answers, those that still finish, and one that may be loaded beside. Safe from any thread."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        most_threads: int | None = None,
        context: int | None = None,
        parallel: int = 4,
    ) -> None:
        self.parallel = parallel
        self._threads = threads
        self._most_threads = most_threads
        self._context = context
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._leases: Counter[Serving] = Counter()
        self._loaded: list[Serving] = []
        self._current: Serving | None = None
        self._current = self.load(bundle)

    @property
    def current(self) -> Serving:
        """The generation that new requests get."""
        assert self._current, "a generation is loaded before anybody asks"
        return self._current

    @contextmanager
    def lease(self) -> Generator[Serving]:
        """Yield the current generation; it stays loaded until the block ends, whatever is switched meanwhile."""
        with self._lock:
            serving = self.current
            self._leases[serving] += 1
        try:
            yield serving
        finally:
            with self._lock:
                self._leases[serving] -= 1
                release = self._retire_if_unused(serving)
            release()

    def load(self, bundle: Bundle) -> Serving:
        """Load `bundle` beside what runs: only its adapter where the same base is in memory, else a second engine.

        Raises EngineError, BundleError or MissingPartError; what runs is untouched then.
        """
        with self._loading:
            return self._load(bundle)

    def switch(self, serving: Serving) -> None:
        """Give `serving` to new requests; the generation before is freed when its last answer ends."""
        with self._lock:
            assert serving in self._loaded, "only a loaded generation can be switched to"
            before, self._current = self.current, serving
            release = self._retire_if_unused(before)
        release()

    def discard(self, serving: Serving) -> None:
        """Free a generation that was loaded and is not switched to."""
        with self._lock:
            assert serving is not self._current, "the generation that answers cannot be discarded"
            release = self._retire_if_unused(serving)
        release()

    def close(self) -> None:
        """Cancel what runs and free everything."""
        with self._lock:
            engines = {id(serving.engine): serving.engine for serving in self._loaded}
            self._loaded.clear()
        for engine in engines.values():
            engine.close()

    def _load(self, bundle: Bundle) -> Serving:
        base = self._hold_base(bundle)
        path = bundle.path("adapter")
        if path is None:
            return base
        try:
            name = self._adapter_name(bundle)
            base.engine.load_adapter(name, path)
            serving = Serving(bundle=bundle, engine=base.engine, adapter=name)
            with self._lock:
                self._loaded.append(serving)
        finally:
            self.discard(base)
        return serving

    def _hold_base(self, bundle: Bundle) -> Serving:
        """Return `bundle`'s base without its adapter, on an engine that has it already or on a new one."""
        with self._lock:
            engine = next((s.engine for s in self._loaded if _same_base(s.bundle, bundle)), None)
            if engine is not None:
                return self._hold(bundle, engine)
        engine = open_engine(
            bundle,
            threads=self._threads,
            most_threads=self._most_threads,
            context=self._context,
            parallel=self.parallel,
        )
        with self._lock:
            return self._hold(bundle, engine)

    def _hold(self, bundle: Bundle, engine: Engine) -> Serving:
        serving = Serving(bundle=bundle, engine=engine, adapter=None)
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
        name = serving.adapter
        return (lambda: serving.engine.drop_adapter(name)) if name else _nothing


def canary(serving: Serving) -> None:
    """Raise EngineError unless `serving` answers one token to its real system prompt, which is warm afterwards."""
    prompt = serving.engine.tokenize(render(serving.bundle, [{"role": "user", "content": "Hello"}]))
    answer = serving.engine.start(prompt, Sampling(max_tokens=1), adapter=serving.adapter)
    last = list(answer)[-1]
    if last.outcome not in ("stop", "length"):
        raise EngineError(f"{serving.bundle.generation} does not answer: {last.error or last.outcome}")


def _same_base(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles differ at most in what is loaded beside the base."""

    def base(bundle: Bundle) -> list[str]:
        return sorted(file.sha256 for file in bundle.manifest.files if file.role in ("base", "tokenizer"))

    return one.manifest.engine == other.manifest.engine and base(one) == base(other)


def _nothing() -> None:
    pass
