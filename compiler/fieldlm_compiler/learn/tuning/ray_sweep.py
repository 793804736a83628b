"""A sweep on a Ray cluster: each recipe is a trial of Ray Tune, on whatever node has a GPU, or its processors, free.

Nodes share no file system: the checkpoint, the examples and what else an adapter is made of go through the object
store, and an adapter comes home as soon as it is done. There it lies where the sweep on one machine would have laid it,
so that one which was stopped goes on, and the table and the choice are made of the same folders.

No trial is ended before the others, as ASHA would: which recipe is the best is said by whole tunings, as without Ray.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fieldlm.core import errors
from fieldlm.core.errors import EngineError, FieldlmError, InputError, MissingDependencyError, UnavailableError
from fieldlm.core.extras import install_advice
from fieldlm.core.files import whole_folder, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.terminal import progress
from fieldlm.core.wording import counted
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe
from fieldlm_compiler.learn.tuning.sweep import Swept, Wanted
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.ray_cluster import Sent, check_packages, connected, held, keep_interrupt, last_line, send

log = logger(__name__)

MOST_LOST = 2
"""How often a trial whose node is lost begins again elsewhere."""
NEEDED = ("fieldlm-compiler", "peft", "transformers")
"""What a node has in the same version; PyTorch is another build where there is a GPU."""
DATA = ("train.jsonl", "eval.jsonl", "dataset.json")
# Ctrl-C ends the sweep, as it does on one machine; Tune would go on and save a state that nobody reads.
QUIET = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
NAMES_PLACES = (".json", ".md")
"""Files of an adapter that say where its base lay."""


class Tune(Protocol):
    """What makes one adapter."""

    def __call__(
        self,
        checkpoint: Path,
        dataset: Path,
        out: Path,
        recipe: TrainingRecipe,
        *,
        start: Path | None,
        blocks: Path | None,
    ) -> dict[str, Any]:
        """Tune one adapter into `out`, as `learn.tune.tune` does."""
        ...


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """What every adapter of a sweep is made of, beside its recipe."""

    checkpoint: Path
    dataset: Path
    start: Path | None = None
    blocks: Path | None = None

    def files(self) -> dict[str, list[Path]]:
        """Return the files that a node needs, by what they are."""
        return {
            "checkpoint": _files(self.checkpoint.iterdir()),
            "dataset": _files(self.dataset / name for name in DATA),
            "start": _files(self.start.iterdir()) if self.start else [],
            "blocks": [self.blocks] if self.blocks else [],
        }


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file())


def check_cluster(address: str | None, asked: Sequence[Swept]) -> None:
    """Raise InputError where there is no sweep to share out, or `address` is a client's; None is no cluster.

    Adapters come home through a node of the cluster, which a client's machine is not.
    """
    if address is not None and not asked:
        raise InputError("--ray shares out the adapters of a sweep: name values with --sweep NAME=VALUE,VALUE")
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"--ray {address} is a client's address, and a sweep needs this machine as a node of the cluster: "
            "join it with ray start --address=HOST:PORT, and give HOST:PORT or auto"
        )


def tune_on_cluster(address: str, tune: Tune, of: SweepInputs, wanted: Wanted) -> None:
    """Have the cluster at `address` tune an adapter of each recipe that is `wanted` into its folder here.

    Raises the error of the first that could not be tuned, when all others are there; MissingDependencyError without Ray
    Tune, UnavailableError where no cluster answers or has room.
    """
    if not wanted:
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with connected(address), tempfile.TemporaryDirectory(prefix="fieldlm-") as aside:
        ray, ray_tune = import_module("ray"), _ray_tune()
        resources = _resources(ray, any(recipe.device != "cpu" for recipe, _ in wanted))
        with progress("hand the model and the examples to the cluster"):
            sent = {part: [send(ray, path) for path in paths] for part, paths in of.files().items()}
        post = _post(ray)
        trial = ray_tune.with_parameters(
            tune_one,
            tune=tune,
            sent=sent,
            recipes=[recipe for recipe, _ in wanted],
            needs=installed(NEEDED),
            post=post,
        )

        def take(number: int) -> dict[str, Any] | None:
            return ray.get(post.take.remote(number))

        arrivals = _arrivals(ray_tune)(wanted, take, of.checkpoint)
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trial, resources),
            param_space={"number": ray_tune.grid_search(list(range(len(wanted))))},
            tune_config=ray_tune.TuneConfig(reuse_actors=False),
            run_config=ray_tune.RunConfig(
                name="sweep",
                storage_path=aside,
                callbacks=[arrivals],
                verbose=0,
                failure_config=ray_tune.FailureConfig(max_failures=MOST_LOST),
            ),
        )
        with progress(f"tune {counted(len(wanted), 'adapter')} on the cluster"), keep_interrupt():
            _fit(tuner, arrivals.failed)


def _ray_tune() -> Any:
    """Return the module; raises MissingDependencyError where a part of it is missing."""
    try:
        found = import_module("ray.tune")
    except ImportError as error:
        why = (str(error).strip().splitlines() or ["it is not there"])[0][:200]
        advice = install_advice("fieldlm-compiler", "ray")
        raise MissingDependencyError(f"--ray needs Ray Tune ({why}); {advice}") from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    return found


def _fit(tuner: Any, failed: Sequence[FieldlmError]) -> None:
    """Run the trials; raises the error of the first that failed."""
    try:
        results = tuner.fit()
    except Exception as error:
        raise EngineError(f"the cluster could not tune: {last_line(error)}") from error
    if failed:
        raise failed[0]
    if results.errors:
        raise EngineError(f"the cluster could not tune every recipe: {last_line(results.errors[0])}")


def _resources(ray: Any, may_use_gpu: bool) -> dict[str, float]:
    """Return what one trial takes: a GPU where there is one, else all processors of the smallest node that has any.

    Raises UnavailableError where no node has a processor: Ray would wait without a word.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = [each for each in alive if each.get("CPU", 0) >= 1]
    if not workers:
        raise UnavailableError(f"none of the cluster's {counted(len(alive), 'node')} has a processor for a tuning")
    if may_use_gpu and any(each.get("GPU", 0) >= 1 for each in workers):
        return {"cpu": 1, "gpu": 1}
    return {"cpu": min(each["CPU"] for each in workers)}


class Post:
    """Where adapters wait to be taken home: an actor on this machine's node."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, Any]] = {}

    def leave(self, number: int, outcome: dict[str, Any]) -> None:
        self._kept[number] = outcome

    def take(self, number: int) -> dict[str, Any] | None:
        return self._kept.pop(number, None)


def _post(ray: Any) -> Any:
    strategies: Any = import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Post).options(num_cpus=0, scheduling_strategy=here).remote()


def _arrivals(ray_tune: Any) -> Any:
    """Return the class of what takes an adapter home when its trial has ended."""

    class Arrivals(ray_tune.Callback):
        def __init__(self, wanted: Wanted, take: Callable[[int], dict[str, Any] | None], checkpoint: Path) -> None:
            self._wanted, self._take, self._checkpoint = wanted, take, checkpoint
            self.failed: list[FieldlmError] = []

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            number = trial.config["number"]
            outcome = self._take(number)
            if outcome is None:
                self.failed.append(EngineError(f"adapter {number + 1} did not come home; run the same command again"))
            elif "error" in outcome:
                self.failed.append(getattr(errors, outcome["error"])(outcome["message"]))
            else:
                lay_down(outcome, self._wanted[number][1], self._checkpoint)
                log.info(f"  {len(outcome['files'])} files of adapter {number + 1} came home")

    return Arrivals


def lay_down(outcome: dict[str, Any], out: Path, checkpoint: Path) -> None:
    """Write the adapter of an `outcome` to `out`, as if it had been tuned here on `checkpoint`."""
    with whole_folder(out) as folder:
        for name, data in outcome["files"].items():
            if name.endswith(NAMES_PLACES):
                data = data.replace(outcome["checkpoint"].encode(), str(checkpoint).encode())  # noqa: PLW2901
            write_whole(folder / name, data)


def tune_one(
    config: dict[str, Any],
    *,
    tune: Tune,
    sent: dict[str, list[Sent]],
    recipes: Sequence[TrainingRecipe],
    needs: dict[str, str],
    post: Any,
) -> None:
    """Tune the recipe of number `config["number"]` on this node, and leave the adapter in the post.

    An error is left there, too, where it would be the same at a second try. What may be the node's own (no room on its
    disk or in its memory, a connection, what Ray lost) is tried again.
    """
    ray: Any = import_module("ray")
    ray_tune: Any = import_module("ray.tune")
    number = config["number"]
    try:
        check_packages(needs)
        with tempfile.TemporaryDirectory(prefix="fieldlm-") as name:
            parts = {part: _laid(files, Path(name) / part) for part, files in sent.items()}
            out = Path(name) / "adapter"
            tune(
                parts["checkpoint"],
                parts["dataset"],
                out,
                recipes[number],
                start=parts["start"] if sent["start"] else None,
                blocks=parts["blocks"] / sent["blocks"][0].name if sent["blocks"] else None,
            )
            files = {path.name: path.read_bytes() for path in _files(out.iterdir())}
        outcome = {"files": files, "checkpoint": str(parts["checkpoint"])}
    except FieldlmError as error:
        outcome = {"error": type(error).__name__, "message": f"{socket.gethostname()}: {error}"}
    except Exception as error:
        lost = import_module("ray.exceptions").RayError, import_module("torch").OutOfMemoryError
        if isinstance(error, (*lost, OSError, MemoryError)):
            raise
        log.exception("this tuning failed")  # the node's own log has the stack
        said = (str(error).splitlines() or [""])[0][:300]
        outcome = {
            "error": EngineError.__name__,
            "message": f"{socket.gethostname()}: {type(error).__name__}: {said}",
        }
    ray.get(post.leave.remote(number, outcome))
    ray_tune.report({"number": number})


def _laid(files: Sequence[Sent], folder: Path) -> Path:
    folder.mkdir()
    for each in files:
        held(each, folder)
    return folder
