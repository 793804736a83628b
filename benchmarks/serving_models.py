"""The row of several models: three in the memory of one and a half, each woken in turn, against its plain load."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.serving_rows import Figure, Job, alternate, ratio
from benchmarks.serving_sides import Server, Setting, fieldlm_server
from fieldlm.bench.result import interval
from fieldlm.core.errors import EngineError
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import load_profile
from fieldlm.inference.generations import Generations, canary
from fieldlm.inference.model_pool import foreseen_mb

NAMES = ("one", "two", "three")
SHARE = 1.5  # of the memory that one takes


def several(job: Job) -> list[Figure]:
    """From a request for a model that sleeps to its first token, another one put to sleep for it, against a load.

    The load is in a process that has nothing else to do, and is over with the model's first token, too. Every model is
    of files of its own, which the system has in its page cache on both sides.
    """
    setting = job.setting
    bundles = [_copy(setting.bundle, setting.folder / "several" / name) for name in NAMES]
    options = _options(setting)
    need_mb = foreseen_mb(setting.bundle, options)
    beside = [f"{name}={bundle.folder}" for name, bundle in zip(NAMES[1:], bundles[1:], strict=True)]
    most = ["--models-mb", str(round(SHARE * need_mb))]
    resident: list[float] = []

    def plain_s(turn: int) -> float:
        started_s = time.monotonic()
        live = Generations(bundles[turn % len(bundles)], options)
        try:
            canary(live.current)
            return time.monotonic() - started_s
        finally:
            live.close()

    with fieldlm_server(setting) as alone:
        _ask(alone, setting.bundle.manifest.model.name)
        alone_mb = alone.rss_mb()
    with fieldlm_server(setting, "fieldlm-several", *beside, *most, bundle=bundles[0]) as server:
        names = (setting.bundle.manifest.model.name, *NAMES[1:])
        for name in (*names[1:], names[0]):  # the first time their digests are checked, too
            _ask(server, name)
        ours, theirs = alternate(job, [_wake(server, names, resident), plain_s])
    share = interval([mb / alone_mb for mb in resident])
    return [
        ratio("wake-up of one of three models / its plain load", ours, theirs, 1.2, at_least=False),
        Figure(
            what="resident memory with three models / with one",
            value=share,
            bound=SHARE,
            at_least=False,
            ours=tuple(resident),
            theirs=(alone_mb,),
        ),
    ]


def _wake(server: Server, names: tuple[str, ...], resident: list[float]) -> Callable[[int], float]:
    def wake(turn: int) -> float:
        # The first of them is awake when the server has started.
        seconds = _ask(server, names[(turn + 2) % len(names)])
        resident.append(server.rss_mb())
        return seconds

    return wake


def _ask(server: Server, name: str) -> float:
    """Return the seconds until the first token of the model `name`."""
    found = server.chat({"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
    if not found.tokens:
        raise EngineError(f"{name} said nothing")
    return found.first_s


def _options(setting: Setting) -> EngineOptions:
    profile = load_profile(setting.bundle.manifest.profile)
    context = min(setting.context, setting.bundle.manifest.model.context)
    return EngineOptions(threads=setting.threads or None, context=context, parallel=setting.parallel, profile=profile)


def _copy(bundle: Bundle, folder: Path) -> Bundle:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.folder, folder)
    return open_bundle(folder)
