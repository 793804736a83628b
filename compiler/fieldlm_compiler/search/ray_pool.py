"""Ray, candidates on a cluster: each is written and measured by one task, on whatever node has room.

Nodes share no file system. Full weights and statistics go through the object store in pieces, and each node keeps them
by their digest, so they travel to it once. What comes back is the mixture itself and what it diverges text by text;
where reading would have stopped is worked out here. So a bundle has the same bytes whoever made its candidates.
"""

import contextlib
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import errors
from fieldlm.core.errors import EngineError, FieldlmError, UnavailableError
from fieldlm.core.logs import logger
from fieldlm.core.terminal import progress
from fieldlm.formats.bundle import CacheTypes
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.ray_cluster import Sent, check_packages, held, keep_interrupt, last_line, send
from fieldlm_compiler.search.searchable import shareable
from fieldlm_compiler.verify import divergence as measuring

log = logger(__name__)

MOST_TRIES = 3
# How long a cluster may be silent before it is asked whether it still has a node that could do the work.
ASK_S = 10.0
# Beside twice the weights: what a step's interpreter, its logits and its buffers hold.
SPARE_BYTES = 500 << 20
LOST = ("NodeDiedError", "ObjectLostError", "OutOfMemoryError", "WorkerCrashedError")


class Flight:
    """Some mixtures on their way through the cluster; nothing is sent before a result is asked for."""

    def __init__(
        self,
        full: Path,
        statistics: Path,
        mixtures: Sequence[Mapping[str, str]],
        windows: Sequence[Sequence[int]],
        examples: Sequence[tuple[list[int], list[int]]],
        *,
        caches: Sequence[CacheTypes | None],
        needs: Mapping[str, str],
    ) -> None:
        self._ray: Any = import_module("ray")
        self._files = [full, *sorted(path for path in statistics.iterdir() if path.name != "stage.json")]
        self._mixtures = list(zip(mixtures, caches, strict=True))
        self._told = dict[int, dict[str, Any]]()
        self._texts, self._needs = (windows, examples), dict(needs)
        self._memory = 2 * full.stat().st_size + SPARE_BYTES
        self._refs: list[Any] = []

    def write(self, at: int, target: Path) -> Ran:
        """Write mixture number `at` to `target`; the answer is a Size, time and memory are the node's."""
        told = self._result(at)
        with target.open("wb") as file:
            file.write(told["mixture"])
        return Ran(value=told["size"], seconds=told["write"][0], peak_mb=told["write"][1])

    def measure(self, max_kl: float | None) -> Ran:
        """Return one Measured for each mixture, as `measure.measure` does."""
        told = [self._result(at) for at in range(len(self._mixtures))]
        value = msgspec.to_builtins(measuring.together([each["found"] for each in told], max_kl))
        seconds, peaks = zip(*(each["read"] for each in told), strict=True)
        return Ran(value=value, seconds=sum(seconds), peak_mb=max(peaks))

    def _result(self, at: int) -> dict[str, Any]:
        if at in self._told:
            return self._told[at]
        try:
            if not self._refs:
                self._launch()
            with progress(f"mixture {at + 1} of {len(self._mixtures)} on the cluster"), keep_interrupt() as check:
                told = self._landed(at, check)
            if "error" in told:
                raise getattr(errors, told["error"])(told["message"])
        except BaseException:
            self._cancel()
            raise
        self._told[at] = told
        return told

    def _launch(self) -> None:
        self._check_room()
        with progress("hand full weights and statistics to the cluster"):
            self._sent = tuple(send(self._ray, path) for path in self._files)
        self._refs = [self._submit(types, cache) for types, cache in self._mixtures]

    def _submit(self, types: Mapping[str, str], cache: CacheTypes | None) -> Any:
        # Ray's own retries are silent; these are told.
        task = self._ray.remote(try_mixture).options(
            num_cpus=1, memory=self._memory, max_retries=0, scheduling_strategy="SPREAD"
        )
        return task.remote(self._sent, dict(types), cache, self._texts, self._needs)

    def _landed(self, at: int, check: Callable[[], None]) -> dict[str, Any]:
        """Wait for mixture number `at`; a node that is lost on the way costs another try elsewhere."""
        lost = tuple(getattr(self._ray.exceptions, name) for name in LOST)
        tries = 1
        while True:
            try:
                return self._ray.get(self._refs[at], timeout=ASK_S)
            except self._ray.exceptions.GetTimeoutError:
                check()
                self._check_room()
            except self._ray.exceptions.RayError as error:
                if not isinstance(error, lost) or tries == MOST_TRIES:
                    raise EngineError(f"the cluster could not try a mixture: {last_line(error)}") from error
                tries += 1
                log.warning(
                    f"  note: the node with mixture {at + 1} was lost; it is tried elsewhere ({tries} of {MOST_TRIES})"
                )
                self._refs[at] = self._submit(*self._mixtures[at])

    def _check_room(self) -> None:
        """Raise UnavailableError when no node could ever take a task: Ray would wait without a word."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        workers = [each for each in alive if each.get("CPU", 0) >= 1]
        if not any(each.get("memory", 0) >= self._memory for each in workers):
            most = max((each.get("memory", 0) for each in workers), default=0) / 1e6
            raise UnavailableError(
                f"no node of the cluster can take a candidate: it needs a processor and {self._memory / 1e6:.0f} MB, "
                f"the largest of {len(workers)} with processors has {most:.0f} MB; add a larger one"
            )

    def _cancel(self) -> None:
        for ref in self._refs:
            with contextlib.suppress(Exception):
                self._ray.cancel(ref, force=True)


def try_mixture(
    sent: Sequence[Sent],
    types: Mapping[str, str],
    cache: CacheTypes | None,
    texts: tuple[Sequence[Any], Sequence[Any]],
    needs: Mapping[str, str],
) -> dict[str, Any]:
    """Write the mixture `types` and measure it on `texts`. Runs on a node; a user's mistake comes back as an answer."""
    import numpy as np

    try:
        check_packages(needs)
        with tempfile.TemporaryDirectory(prefix="fieldlm-") as name:
            folder = Path(name)
            full, *_ = [held(each, folder) for each in sent]
            target = folder / f"mixture{full.suffix}"
            wrote = shareable(full).write(full, folder, types, target)
            read = measuring.measure_one(full, target, *texts, cache=cache)
            mixture = np.fromfile(target, np.uint8)
    except FieldlmError as error:
        return {"error": type(error).__name__, "message": f"{socket.gethostname()}: {error}"}
    return {
        "mixture": mixture,
        "size": wrote.value,
        "found": read.value,
        "write": (wrote.seconds, wrote.peak_mb),
        "read": (read.seconds, read.peak_mb),
    }
