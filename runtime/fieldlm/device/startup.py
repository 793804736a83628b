"""Startup, beside importing the server: check the files, load the generation, have its first answer.

All of it is work for the disk and for C, and takes about as long as the imports do.
"""

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fieldlm.core.config import Config
from fieldlm.core.errors import BundleError, EngineError, FieldlmError, InputError
from fieldlm.core.logs import logger
from fieldlm.core.tasks import Tasks
from fieldlm.core.timing import within
from fieldlm.core.urls import shown
from fieldlm.formats.bundle import NO_MODEL, Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm.hardware.limits import LIVE
from fieldlm.updates.journal import Journal, journal_of, release_folder
from fieldlm.updates.slots import Slots

if TYPE_CHECKING:
    from fieldlm.engines import EngineOptions
    from fieldlm.inference.generations import Generations
    from fieldlm.inference.warmup import UnreadyReason

log = logger(__name__)

HANG = 75
"""The exit code, EX_TEMPFAIL, of a device whose load hangs: whatever started it starts it again, with what worked."""


class Start:
    """A device's slots and what it serves of them, in a thread of its own until `wait` returns them.

    `name` is what requests call its model by, "" for what the bundle calls it.
    """

    def __init__(self, config: Config, profile: Profile, folder: Path | None, *, name: str = "") -> None:
        if folder is not None:
            check_profile(folder, profile)
        self._config = config
        self._profile = profile
        self._name = name
        self._slots = Slots(config.state)
        self.tasks = Tasks()
        """The device's, since the first answer is asked for before there is one."""
        self._thread = ThreadPoolExecutor(1, "start")
        checked = self._thread.submit(self._check, folder)
        # While files are read and hashed: what their engine and their first answer need of Python.
        with suppress(Exception):  # whatever is missing or broken, who loads says it
            self._preload(folder)
        self._made = self._thread.submit(lambda: self._serve(checked.result()))

    def wait(self) -> tuple[Slots, "Generations", "UnreadyReason"]:
        """Return the slots, what is loaded of them, and why it does not answer yet.

        Raises what `Slots.factory`, `Slots.boot` and `Live` raise.
        """
        made = self._made.result()
        self._thread.shutdown(wait=False)
        return self._slots, *made

    def close(self) -> None:
        """Take down what was made, when it is made."""
        self._thread.shutdown(cancel_futures=True)
        if not self._made.cancelled() and not self._made.exception():
            self._made.result()[0].close()
        self._slots.close()

    def _preload(self, folder: Path | None) -> None:
        """Do here what runs Python, so that hardly anything but C is left to the thread, which works beside this one.

        Two threads that run Python wait for each other more than they work: imports beside a load took longer than
        after it.
        """
        from fieldlm.engines import engine_kind
        from fieldlm.inference.generations import canary_prompt
        from fieldlm.inference.warmup import warm

        assert warm, "imported"
        bundle = open_bundle(folder, digests=False) if folder else self._slots.current()
        engine_kind(bundle.manifest.engine).preload(bundle)
        canary_prompt(bundle)

    def _check(self, folder: Path | None) -> Bundle:
        if folder is not None:
            check_unproved(open_bundle(folder, digests=False), self._slots, self._config)
            self._slots.factory(folder)
        bundle = self._slots.boot()
        check_unproved(bundle, self._slots, self._config)
        if bundle.manifest.engine == NO_MODEL and not self._config.large:
            raise InputError(f"{self._config.state} holds no model; name one, or the large one with --large URL")
        return bundle

    def _serve(self, bundle: Bundle) -> tuple["Generations", "UnreadyReason"]:
        from fieldlm.inference.prompt_snapshots import Snapshots
        from fieldlm.inference.warmup import warm

        live = self._load(bundle)
        return live, warm(live, Snapshots(self._config.state / "kv"), self.tasks)

    def _load(self, bundle: Bundle) -> "Generations":
        """Load what the slots name; an update that cannot be loaded gives way to what worked before it."""
        while True:
            try:
                with self._limit(bundle):
                    return self._open(bundle)
            except EngineError as error:
                status = self._slots.status()
                if status.current == status.factory:
                    raise
                log.warning(f"generation {bundle.generation} cannot be loaded ({error}); going back")
                self._slots.rollback(f"engine: {error}")
                bundle = self._slots.boot()

    def _limit(self, bundle: Bundle) -> AbstractContextManager[None]:
        """Return what ends a load that takes too long, where another generation may take its place.

        With nothing to go back to, a slow device would end it again and again; what started it has a limit of its own.
        """
        from fieldlm.updates.rehearsal import patience_s

        status = self._slots.status()
        is_only = status.current == status.factory
        return nullcontext() if is_only else within(patience_s(bundle), exit_hung)

    def _open(self, bundle: Bundle) -> "Generations":
        from fieldlm.inference.generations import Generations

        return Generations(bundle, options_for(self._config, self._profile, bundle), name=self._name)


def options_for(config: Config, profile: Profile, bundle: Bundle) -> "EngineOptions":
    """Return how `bundle` is loaded on this device."""
    from fieldlm.engines import EngineOptions
    from fieldlm.hardware.cores import physical_cores

    return EngineOptions(
        threads=config.threads or None,
        most_threads=max(1, min(profile.cpu.decode_threads, physical_cores())),
        most_prefill_threads=max(1, min(profile.cpu.prefill_threads or profile.cpu.decode_threads, physical_cores())),
        context=context_of(config, profile, bundle),
        parallel=config.parallel or profile.runtime.parallel,
        profile=profile,
        repeatable=config.repeatable,
    )


def context_of(config: Config, profile: Profile, bundle: Bundle) -> int:
    """Return the tokens that one answer to `bundle` may have with its prompt."""
    return config.context or min(profile.gguf.context, bundle.manifest.model.context)


def check_unproved(bundle: Bundle, slots: Slots, config: Config) -> None:
    """Raise InputError where the unproved `bundle` would take the place of what was proved, or be what updates rest on.

    It may be served, from a state folder of its own. Nothing in it says that it answers as it should: an update that
    fails would go back to it, and a device in the field that is started with it would be without its bundle.
    """
    if bundle.manifest.is_proved:
        return
    from fieldlm.control.owner_commands import read_owner

    name, owner = bundle.manifest.model.name, read_owner(config.state)
    repository = config.repository or (owner.repository if owner else "")
    if repository and bundle.manifest.engine == NO_MODEL:
        raise InputError(
            f"updates from {shown(repository)} need a bundle to go back to, and there is no small model here yet; "
            "name a bundle beside --large, or leave --repository out"
        )
    if repository:
        raise InputError(
            f"{name} is unproved, and updates from {shown(repository)} need a bundle to go back to; compile it, "
            "or serve it without --repository from another --state"
        )
    try:
        current = slots.current()
    except FieldlmError:
        return  # there is none
    if current.manifest.is_proved:
        raise InputError(
            f"{name} is unproved and would take the place of {current.manifest.model.name} ({current.generation}) in "
            f"{config.state}; serve it from a folder of its own: --state FOLDER"
        )


def exit_hung() -> None:
    log.warning("a generation does not finish loading; starting again with what worked before")
    os._exit(HANG)


def detected_profile(config: Config, folder: Path | None, root: Path = LIVE) -> Profile:
    """Return the profile that fits this machine; of those that fit, the one that its bundle was compiled for.

    The bundle is the one in `folder`, else what the state folder holds. So a device stays what it is, and goes on with
    its bundle and its updates, when a later fieldlm knows a profile that fits it better.
    """
    from fieldlm.hardware.detect import detect

    return detect(root, made_for=_made_for(config, folder)).best


def _made_for(config: Config, folder: Path | None) -> str:
    """Return the profile of the bundle that is to be served; "" where there is none yet."""
    # What is damaged is told, or set aside, when it is opened to be served.
    with suppress(FieldlmError, sqlite3.Error):
        if folder is None:
            journal = Journal(journal_of(config.state), read_only=True)
            try:
                folder = release_folder(config.state, journal.slot("current"))
            finally:
                journal.close()
        return open_bundle(folder, digests=False).manifest.profile
    return ""


def check_profile(folder: Path, profile: Profile) -> None:
    """Raise BundleError when the bundle in `folder` was compiled for another kind of device."""
    manifest = open_bundle(folder, digests=False).manifest
    made_for = manifest.profile
    if manifest.is_proved and made_for != profile.id:
        raise BundleError(
            f"{folder} was compiled for {made_for}, this device is {profile.id}; compile it again with "
            f"--profile {profile.id}, or say --profile {made_for} if that is what this device is"
        )
