"""A small world for update tests: bundles of a few hundred kilobytes, and a Live that loads nothing."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import EngineError
from fieldlm.engines import DEFAULT_TERMS, Chunk, Engine, RunningAnswer, Sampling, Schedule, Timings
from fieldlm.formats.bundle import FORMAT, Bundle, Manifest, ModelInfo, Recipe, Role, describe, write_bundle
from fieldlm.formats.release import Offer, Release
from fieldlm.formats.task_adapters import TaskAdapter
from fieldlm.updates.progress import UpdateResult
from fieldlm.updates.regression_monitor import Complaint
from fieldlm.updates.shadow import Shadow
from fieldlm.updates.slots import Slots
from fieldlm.updates.updater import Updater
from fieldlm_compiler.repository.publish import publish

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
BASE_BYTES = 3_300_000  # four chunks, the last one short


def noise(seed: str, size: int) -> bytes:
    """Return bytes that look like weights: the same for the same seed, without repetition."""
    return hashlib.shake_128(seed.encode()).digest(size)


def small_bundle(
    folder: Path,
    *,
    base: str = "base",
    base_bytes: int = BASE_BYTES,
    adapter: str = "",
    profile: str = "test",
    key: Ed25519PrivateKey = KEY,
) -> Bundle:
    """Make a bundle whose files are noise; the same `base` gives the same base file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.gguf").write_bytes(noise(base, base_bytes))
    (folder / "template.jinja").write_text(f"{{{{ messages }}}} {base}")
    files: list[tuple[str, Role]] = [("model.gguf", "base"), ("template.jinja", "template")]
    if adapter:
        (folder / "adapter.gguf").write_bytes(noise(adapter, 200_000))
        files.append(("adapter.gguf", "adapter"))
    manifest = Manifest(
        format=FORMAT,
        engine="llama",
        model=ModelInfo(
            name="noise",
            source="test",
            licence="none",
            architecture="none",
            parameters=0,
            context=128,
            source_sha256="0" * 64,
        ),
        profile=profile,
        profile_sha256="0" * 64,
        recipe=Recipe(quant="none", bits_per_weight=8),
        files=tuple(describe(folder, path, role) for path, role in files),
    )
    return write_bundle(folder, manifest, key)


def several_adapters(folder: Path, adapters: Mapping[str, str]) -> Bundle:
    """Make a bundle with several adapters, each of the noise that its seed gives; the first answers the rest."""
    bundle = small_bundle(folder)
    (folder / "router.npz").write_bytes(noise("router", 10_000))
    files = [("router.npz", "router")]
    for name, seed in adapters.items():
        (folder / f"{name}.gguf").write_bytes(noise(seed, 200_000))
        files.append((f"{name}.gguf", "adapter"))
    manifest = msgspec.structs.replace(
        bundle.manifest,
        files=(*bundle.manifest.files, *(describe(folder, path, role) for path, role in files)),
        adapters=tuple(TaskAdapter(name=name, path=f"{name}.gguf", tasks=(f"task-{name}",)) for name in adapters),
        must_understand=("adapters",),
    )
    return write_bundle(folder, manifest, KEY)


class OneWord:
    """An answer that is one chunk."""

    def __init__(self, text: str) -> None:
        self.timings = Timings()
        self._text = text

    def __iter__(self) -> Iterator[Chunk]:
        yield Chunk(text=self._text, tokens=(1,), outcome="stop")

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        for chunk in self:
            receive(chunk)

    def cancel(self) -> None: ...


class EngineSimulator:
    """Answers every prompt with one word."""

    context = 128
    stop_tokens: frozenset[int] = frozenset()

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def least_tokens(self, text: str) -> int:
        return 0

    def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode()

    def vocabulary(self) -> Sequence[bytes]:
        return [bytes([token]) for token in range(256)]

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> RunningAnswer:
        del prompt, sampling, adapter, terms
        return OneWord("yes")

    def load_adapter(self, name: str, path: Path) -> None: ...
    def drop_adapter(self, name: str) -> None: ...
    def memory_mb(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


@dataclass(frozen=True)
class ServingSimulator:
    """A generation that is loaded in name only."""

    bundle: Bundle
    engine: Engine
    adapter: str | None = None
    task_adapters: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class LiveSimulator:
    """Switches like the real one, and remembers how it came to where it is."""

    current: ServingSimulator
    story: list[str] = field(default_factory=list[str])
    breaks_at_load: Exception | None = None

    def load(self, bundle: Bundle) -> ServingSimulator:
        self.story.append(f"load {bundle.generation}")
        if self.breaks_at_load and bundle.id != self.current.bundle.id:
            raise self.breaks_at_load
        for file in bundle.manifest.files:
            if not (bundle.folder / file.path).is_file():
                raise EngineError(f"{file.path} is missing")
        return ServingSimulator(bundle, EngineSimulator())

    def evict(self) -> None:
        self.story.append(f"clear {self.current.bundle.generation}")

    def restore(self) -> None:
        self.story.append(f"wake {self.current.bundle.generation}")

    def switch(self, serving: ServingSimulator) -> None:
        self.story.append(f"switch {serving.bundle.generation}")
        self.current = serving

    def discard(self, serving: ServingSimulator) -> None:
        self.story.append(f"discard {serving.bundle.generation}")


def simulated_live(bundle: Bundle) -> LiveSimulator:
    return LiveSimulator(ServingSimulator(bundle, EngineSimulator()))


@dataclass
class Site:
    """A device that runs its factory bundle, and the folders of a publisher beside it."""

    folder: Path
    slots: Slots
    live: LiveSimulator
    base: Bundle
    events: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def publish(self, bundle: Bundle, offer: Offer | None = None) -> Release:
        return publish(bundle.folder, self.repository, keys=self.keys, offer=offer)

    def updater(
        self,
        *,
        probe_score: float = 1.0,
        complaint: str | None = None,
        shadow: Shadow[ServingSimulator] | None = None,
    ) -> Updater[ServingSimulator]:
        return Updater(
            self.slots,
            self.live,
            repository=str(self.repository),
            trust=self.keys / "root.json",
            on_event=lambda event, **detail: self.events.append((event, detail)),
            probe_score=lambda serving: probe_score,
            complaint=lambda generation, before: Complaint(reason="errors", detail=complaint) if complaint else None,
            shadow=shadow,
        )

    def update(self) -> UpdateResult:
        return self.updater().check_and_update()


def update_and_die(
    state: Path, repository: Path, root: Path, log: Path, fatal: int | str, *, has_come_up: bool = False
) -> None:
    """Boot and update as a process of its own, and kill it right after the step of that number or name."""
    with log.open("a") as steps:

        def on_step(step: str) -> None:
            print(step, file=steps, flush=True)
            if fatal in (len(log.read_text().split()), step):
                os.kill(os.getpid(), signal.SIGKILL)

        slots = Slots(state, on_step=on_step)
        live = simulated_live(slots.boot())
        if has_come_up:
            slots.up()
        updater = Updater(slots, live, repository=str(repository), trust=root, probe_score=lambda serving: 1.0)
        updater.check_and_update()


def make_site(folder: Path, base: Bundle) -> Site:
    """Start a device in `folder` with `base` as its factory bundle; the caller closes its slots."""
    slots = Slots(folder / "state")
    slots.factory(base.folder)
    return Site(folder, slots, simulated_live(slots.boot()), base)
