"""Local models: those that a device serves beside its own. Updates, adapters and the large model are not for them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fieldlm.core.config import Config
from fieldlm.core.errors import InputError
from fieldlm.core.logs import logger
from fieldlm.device.startup import check_profile, options_for
from fieldlm.formats.bundle import MANIFEST, Bundle, open_bundle
from fieldlm.formats.profile import Profile

if TYPE_CHECKING:
    from fieldlm.core.tasks import Tasks
    from fieldlm.inference.generations import Generations, Serving
    from fieldlm.inference.model_pool import ModelPool, PooledModel

NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})=(?P<model>.+)", re.DOTALL)
log = logger(__name__)


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model as it was asked for: what it is to be called, "" for its own name, and what it is."""

    name: str
    source: str

    def open(self) -> Bundle:
        """Return its bundle, fetched or made where it has to be, without reading its weights.

        What nobody has proved is said to be so.
        """
        if (Path(self.source) / MANIFEST).is_file():
            return open_bundle(Path(self.source), digests=False)
        from fieldlm.catalogue.opening import advice, open_model

        bundle = open_model(self.source)
        if not bundle.manifest.is_proved:
            log.warning(advice(bundle, self.source))
        return bundle


def named_models(sources: Iterable[str]) -> list[NamedModel]:
    """Return the models that `sources` name, in order: each MODEL or NAME=MODEL, or a folder of models, by name."""
    return [each for source in sources for each in _named(source)]


def _named(source: str) -> Iterator[NamedModel]:
    found = None if Path(source).exists() else NAMED.fullmatch(source)
    model = found["model"] if found else source
    inside = [] if found else models_in(Path(model))
    if inside:
        yield from (NamedModel(name="", source=str(path)) for path in inside)
    else:
        yield NamedModel(name=found["name"] if found else "", source=model)


def models_in(folder: Path) -> list[Path]:
    """Return the bundles and `.gguf` files in a folder that is no bundle itself, by name."""
    if not folder.is_dir() or (folder / MANIFEST).exists():
        return []
    return sorted(
        path for path in folder.iterdir() if (path / MANIFEST).is_file() or (path.suffix == ".gguf" and path.is_file())
    )


class LocalModels:
    """The local models of one device, opened and checked before anything is loaded."""

    def __init__(self, models: Sequence[NamedModel], config: Config, profile: Profile) -> None:
        """Open all of them.

        Raises what `open_model` raises, and BundleError for one that is for another kind of device.
        """
        self._config = config
        self._profile = profile
        self._bundles: list[tuple[str, Bundle]] = []
        for model in models:
            bundle = model.open()
            check_profile(bundle.folder, profile)
            self._bundles.append((model.name, bundle))

    def pool(self, live: "Generations", tasks: "Tasks") -> "ModelPool":
        """Return the device's own model, which is loaded, and the local ones, which are not.

        Raises InputError where two have one name, or what is to be pinned is not here.
        """
        from fieldlm.inference.model_pool import ModelPool, PooledModel, foreseen_mb

        config, own = self._config, live.current.bundle
        if not self._bundles and not config.sleep_after:
            return ModelPool.alone(live)
        options = options_for(config, self._profile, own)
        first = PooledModel(
            live,
            need_mb=foreseen_mb(own, options),
            prepare=self._prepare(config.state / "kv"),
        )
        pool = ModelPool(
            first,
            [self._pooled(name, bundle) for name, bundle in self._bundles],
            budget_mb=float(config.models_mb or self._profile.memory.model_budget_mb),
            sleep_after_s=float(config.sleep_after),
            tasks=tasks,
        )
        try:
            pool.pin(config.pinned)
        except InputError:
            pool.close()
            raise
        return pool

    def _pooled(self, name: str, bundle: Bundle) -> "PooledModel":
        from fieldlm.inference.generations import Generations
        from fieldlm.inference.model_pool import PooledModel, foreseen_mb

        own = bundle.manifest.model.name
        options = options_for(self._config, self._profile, bundle)
        return PooledModel(
            Generations(bundle, options, name=name or own, asleep=True, is_beside=True),
            name=name or own,
            need_mb=foreseen_mb(bundle, options),
            prepare=self._prepare(self._config.state / "kv" / bundle.generation),
            # What was fetched or made of a file here was read to its end when it was.
            check=(lambda: open_bundle(bundle.folder)) if bundle.manifest.is_proved else None,
        )

    def _prepare(self, folder: Path) -> Callable[["Serving"], None]:
        from fieldlm.inference.generations import canary
        from fieldlm.inference.prompt_snapshots import LEAST_TOKENS, Snapshots, system_tokens

        snapshots = Snapshots(folder)

        def prepare(serving: "Serving") -> None:
            """Give the model its system prompt's keys and values back, which are computed and kept the first time."""
            if snapshots.restore(serving) or len(system_tokens(serving)) < LEAST_TOKENS:
                return
            canary(serving)
            snapshots.save(serving)

        return prepare


class OwnModel:
    """The device's own model as its updater sees it: a model beside it sleeps before memory is short for an update."""

    def __init__(self, pool: "ModelPool") -> None:
        self._pool = pool
        live = pool.own.live
        self.evict, self.restore, self.switch, self.discard = live.evict, live.restore, live.switch, live.discard

    @property
    def current(self) -> "Serving":
        return self._pool.own.live.current

    def load(self, bundle: Bundle) -> "Serving":
        """See `Generations.load`."""
        from fieldlm.engines.memory_plan import NoRoomError

        while True:
            try:
                return self._pool.own.live.load(bundle)
            except NoRoomError:
                if not self._pool.sleep_another():
                    raise
