"""Bundles with several adapters, and routers that know a task by one word."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.files import link_or_copy
from fieldlm.formats.bundle import Bundle, describe, write_bundle
from fieldlm.formats.router import PLACES, Router, features
from fieldlm.formats.task_adapters import TaskAdapter
from tests.support.material import lora_gguf, tiny_bundle

TASKS = {"tea": ("t1",), "bill": ("t2",)}
"""The tasks of the adapters beside the first one, which is called `all`."""
DRINK, PAY, OTHER = "a tea please", "the bill please", "?!"
"""What the router of `word_router` takes for the first task, for the second, and for none."""


def word_router(words: Mapping[str, str] | None = None, least: float = 0.6) -> Router:
    """Return a router that knows each task by its word; `words` are by the tasks' ids."""
    words = words or {"t1": "tea", "t2": "bill", "t3": "weather"}
    weights = np.zeros((len(words), PLACES), np.int8)
    for place, word in enumerate(words.values()):
        weights[place, features(word)[0]] = 100
    return Router(
        tasks=tuple(words),
        names=tuple(f"about {word}" for word in words.values()),
        weights=weights,
        scales=np.full(len(words), 0.05, np.float32),
        biases=np.zeros(len(words), np.float32),
        least=least,
    )


def loras(folder: Path, *names: str) -> dict[str, Path]:
    """Write adapters that answer otherwise than the base, and than each other."""
    folder.mkdir(parents=True, exist_ok=True)
    return {name: lora_gguf(folder / f"{name}.gguf", seed=seed, scale=0.5) for seed, name in enumerate(names)}


def several(
    folder: Path,
    adapters: Mapping[str, Path],
    tasks: Mapping[str, tuple[str, ...]] = TASKS,
    *,
    router: Router | None = None,
    confidence: Mapping[str, bytes] | None = None,
    probe: bytes | None = None,
    system_prompt: str | None = None,
) -> Bundle:
    """Make a bundle of the small model with several `adapters`, the first for what is of no other one's `tasks`.

    `confidence` is the confidence.json of those that have one, by their names.
    """
    plain = tiny_bundle(folder, system_prompt=system_prompt)
    (folder / "router.npz").write_bytes((router or word_router()).packed())
    files = [("router.npz", "router")]
    for name, path in adapters.items():
        link_or_copy(path, folder / f"adapter-{name}.gguf")
        files.append((f"adapter-{name}.gguf", "adapter"))
    for name, content in (confidence or {}).items():
        (folder / f"confidence-{name}.json").write_bytes(content)
        files.append((f"confidence-{name}.json", "confidence"))
    if probe is not None:
        (folder / "probe.json").write_bytes(probe)
        files.append(("probe.json", "probe"))
    chosen = tuple(
        TaskAdapter(
            name=name,
            path=f"adapter-{name}.gguf",
            tasks=tuple(tasks.get(name, ())),
            confidence=f"confidence-{name}.json" if name in (confidence or {}) else None,
        )
        for name in adapters
    )
    manifest = msgspec.structs.replace(
        plain.manifest,
        files=(*plain.manifest.files, *(describe(folder, path, role) for path, role in files)),
        adapters=chosen,
        must_understand=("adapters",),
    )
    return write_bundle(folder, manifest, Ed25519PrivateKey.generate())
