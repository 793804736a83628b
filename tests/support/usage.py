"""Usage of a small device, for rounds of learning: customers who ask and correct, and a model that can learn from it.

The model knows a few words and five names from a world of its own, where none means another, so that a LoRA of seconds
learns which words mean which name.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file

from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.open import open_sink
from tests.support import tiny_models

CONSENT = "kiosk-2026"
FORMS = (
    "please {} now", "could you {} today", "{}", "i want you to {}", "hello, {}", "{} again", "just {} for me",
    "hey {} quickly", "now {} please", "{} and thanks", "today {}", "{} for me please", "i want to {}", "hello {} now",
)  # fmt: skip
WORDS = {
    "order": ("bring a tea", "bring a latte", "bring the soup", "bring some bread", "bring water"),
    "book": ("book a table", "book seats", "book the corner", "book a room", "book for friday"),
    "hours": ("say when you open", "say when you close", "say the hours", "say your times", "say sunday hours"),
    "lights": ("dim the lamp", "dim it", "dim the light", "dim the room", "dim all of it"),
    "music": ("play a song", "play jazz", "play the radio", "play some music", "play it"),
}


def base_model(folder: Path) -> Path:
    """Write the model that knows words and names, and not which belongs to which."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _base_files().items():
        (folder / name).write_bytes(data)
    return folder


@cache
def _base_files() -> dict[str, bytes]:
    """Return the files of that model by their names: it is taught once in a process."""
    with TemporaryDirectory(prefix="fieldlm-base-") as folder:
        return {path.name: path.read_bytes() for path in _taught(Path(folder)).iterdir()}


def _taught(folder: Path) -> Path:
    _soften(tiny_models.tiny_llama(folder, seed=3))
    rng = random.Random(5)
    known = sorted({word for said in WORDS.values() for each in said for word in each.split()})
    rows: list[dict[str, Any]] = []
    for name in [name for name in WORDS for _ in range(20)]:
        two = " ".join(rng.sample(known, 2))
        said = rng.choice(FORMS).format(rng.choice((f"{two} {name}", f"{name} {two}")))
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": call(name)}]
        rows.append({"messages": messages})
    return tiny_models.teach(folder, rows, steps=250)


def _soften(folder: Path) -> None:
    """Undo the sharp attention of the small Llama, which makes of roundings other answers."""
    path = folder / "model.safetensors"
    tensors = {
        name: each / 4 if "q_proj" in name or "k_proj" in name else each for name, each in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def call(name: str) -> str:
    return json.dumps({"name": name})


def sentences(task: str, *, seed: int = 1) -> Iterator[str]:
    """Yield what is said in a task, in an order by chance, nothing twice."""
    said = [form.format(words) for form, words in itertools.product(FORMS, WORDS[task])]
    yield from random.Random(seed).sample(said, len(said))


class Usage:
    """A store that a device fills. Every request is a record, and every correction another."""

    def __init__(self, folder: Path | str, device: str = "kiosk-1") -> None:
        self.folder = folder
        self._common: dict[str, Any] = {"device": device, "epoch": 1}
        self._seq = {"gen": 0, "fb": 0}
        self._ids = "chatcmpl-" if device == "kiosk-1" else f"chatcmpl-{device}-"

    def customers(
        self,
        said: Sequence[tuple[str, str]],
        *,
        prefix: str,
        each: int = 2,
        corrected: bool = True,
        worded: bool = True,
        **fields: Any,
    ) -> None:
        """Let customers say `said`, pairs of words and the right name, `each` of them in turn; and correct answers.

        Of a correction that is not `worded` nothing but that there was one is known.
        """
        generations: list[Record] = []
        feedback: list[Record] = []
        for at, (words, name) in enumerate(said):
            messages = [{"role": "user", "content": words}]
            plain: dict[str, Any] = {
                "stream": "gen", "kind": "generation", "seq": self._next("gen"), "session": f"{prefix}{at // each}",
                "response": f"{self._ids}{self._seq['gen']}", "consent": CONSENT, "outcome": "stop",
                "prompt": json.dumps(messages), "answer": call("music"), "prompt_tokens": 30, "completion_tokens": 8,
                "wall_ms": 1_790_000_000_000 + self._seq["gen"], "generation": "0123456789ab",
            }  # fmt: skip
            made = Record(**self._common | plain | fields)
            generations.append(made)
            told: dict[str, Any] = {"detail": {"corrected": "yes"}} if corrected else {"rating": "up"}
            told |= {"correction": call(name)} if corrected and worded else {}
            told |= self._common | {"stream": "fb", "kind": "feedback", "response": made.response}
            feedback.append(Record(**told, seq=self._next("fb")))
        with open_sink(str(self.folder)) as store:
            store.append([block.parse(block.encode(records)) for records in (generations, feedback) if records])

    def forget(self, *sessions: str) -> None:
        """Let customers ask to be forgotten."""
        asked = [
            Record(**self._common, stream="fb", seq=self._next("fb"), kind="forget", session=each) for each in sessions
        ]
        with open_sink(str(self.folder)) as store:
            store.append([block.parse(block.encode(asked))])
            store.tidy(finish=True)

    def _next(self, stream: str) -> int:
        self._seq[stream] += 1
        return self._seq[stream]
