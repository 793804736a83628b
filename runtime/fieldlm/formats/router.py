"""The router: which recurring task a request is, told from its words alone, in well under a millisecond.

Words, pairs of words and groups of 3 to 5 letters are hashed into 2^14 places (feature hashing: Weinberger et al., ICML
2009, arXiv:0902.2206); a linear classifier over them, 8 bits a weight, gives each task a chance. A request whose best
chance is below `least` is of no task that is known: that much the chances of its own examples were, when each was
judged by a classifier that had not seen it.

    router.npz    weights [tasks, 2^14] int8, scales and biases [tasks], and the tasks' ids and names
"""

import io
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldlm.core.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

PLACES = 1 << 14
NAME = "router.npz"
LETTERS = range(3, 6)
MOST_CHARS = 2000
"""Of a request; what is longer is told by its beginning and its end."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False, kw_only=True)
class Router:
    """`weights` [tasks, PLACES], `scales` and `biases` [tasks]; `least` is the least chance of a known task."""

    tasks: tuple[str, ...]
    names: tuple[str, ...]
    weights: "npt.NDArray[np.int8]"
    scales: "Floats"
    biases: "Floats"
    least: float

    def chances(self, text: str) -> "Floats":
        """Return the chance of each task [tasks]; they add up to 1."""
        import numpy as np

        places, values = features(text)
        scores = self.weights[:, places].astype(np.float32) @ values * self.scales + self.biases
        raised = np.exp(scores - scores.max())
        return raised / raised.sum()

    def best(self, text: str) -> tuple[str, float]:
        """Return the id of the task that `text` is most likely, known or not, and its chance."""
        chances = self.chances(text)
        best = int(chances.argmax())
        return self.tasks[best], float(chances[best])

    def task(self, text: str) -> str | None:
        """Return the id of the task that `text` is, None where it is none that is known."""
        task, chance = self.best(text)
        return task if chance >= self.least else None

    def name(self, task: str) -> str:
        return dict(zip(self.tasks, self.names, strict=True)).get(task, task)

    def packed(self) -> bytes:
        """Return the file; the same router gives the same bytes."""
        import numpy as np

        out = io.BytesIO()
        np.savez_compressed(
            out,
            allow_pickle=False,
            tasks=np.array(self.tasks),
            names=np.array(self.names),
            weights=self.weights,
            scales=self.scales,
            biases=self.biases,
            least=np.float32(self.least),
        )
        return out.getvalue()


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what a conversation's router is asked about: what the user said last."""
    said = questions_of(messages)
    return said[-1] if said else ""


def questions_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the user said in each turn of a conversation, "" where that was not text alone."""
    said = (message.get("content") for message in messages if message.get("role") == "user")
    return [text if isinstance(text, str) else "" for text in said]


def read_router(path: Path) -> Router:
    """Load a file that `Router.packed` made; raises BundleError for what is none."""
    import numpy as np

    found = read_arrays(path, ("tasks", "names", "weights", "scales", "biases", "least"), what="router")
    tasks, names = (tuple(map(str, found[part].ravel())) for part in ("tasks", "names"))
    check_head(found, len(tasks), what=f"{path} is no router")
    least = found["least"]
    if len(names) != len(tasks) or least.shape != () or least.dtype.kind != "f" or not np.isfinite(least):
        raise BundleError(f"{path} is no router: its names or its threshold do not fit; make it again")
    weights, scales, biases = (found[part] for part in ("weights", "scales", "biases"))
    return Router(tasks=tasks, names=names, weights=weights, scales=scales, biases=biases, least=float(least))


def read_arrays(path: Path, names: Sequence[str], *, what: str) -> "dict[str, npt.NDArray[Any]]":
    """Return the arrays `names` of an .npz file; raises BundleError where it is no `what` that holds them."""
    import numpy as np

    try:
        found: Any = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not hasattr(found, "files"):
            raise ValueError("it is one array alone")
        with found:
            return {name: np.asarray(found[name]) for name in names}
    # What zipfile and numpy raise for bytes that are damaged, and for compression and headers that they do not know.
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} is no {what}: {error}; fetch or make it again") from error


def check_head(found: "Mapping[str, npt.NDArray[Any]]", count: int, *, what: str) -> None:
    """Raise BundleError, beginning with `what`, unless these are the weights, scales and biases of `count` classes."""
    import numpy as np

    weights, scales, biases = (found[part] for part in ("weights", "scales", "biases"))
    shapes = (weights.shape, scales.shape, biases.shape)
    if not count or shapes != ((count, PLACES), (count,), (count,)) or weights.dtype != np.int8:
        raise BundleError(f"{what}: its parts have the shapes {shapes} for {count} classes; make it again")
    if not all(part.dtype.kind == "f" and np.isfinite(part).all() for part in (scales, biases)):
        raise BundleError(f"{what}: its scales or biases are no numbers; make it again")


def features(text: str) -> "tuple[npt.NDArray[np.int64], Floats]":
    """Return the places of a text's features, ascending, and their values, which have length 1 together."""
    import numpy as np

    counts: Counter[int] = Counter()
    words = _WORD.findall(_folded(text))
    for word, after in zip(words, [*words[1:], ""], strict=False):
        counts[_place(f"w {word}")] += 1
        if after:
            counts[_place(f"p {word} {after}")] += 1
        counts.update(_groups(word))
    if not counts:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    places = np.array(sorted(counts), np.int64)
    values = np.sqrt(np.array([counts[int(place)] for place in places], np.float32))
    return places, (values / np.linalg.norm(values)).astype(np.float32)


@lru_cache(maxsize=4096)
def _groups(word: str) -> tuple[int, ...]:
    spelt = f" {word} "
    return tuple(_place(spelt[i : i + size]) for size in LETTERS for i in range(len(spelt) - size + 1))


def _folded(text: str) -> str:
    if len(text) > MOST_CHARS:
        text = f"{text[: MOST_CHARS // 2]} {text[-MOST_CHARS // 2 :]}"
    return unicodedata.normalize("NFKC", text).casefold()


def _place(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", "replace")) % PLACES
