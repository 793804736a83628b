"""Optimum's ONNX exporter with the Transformers 4 it needs, beside an environment that stays on Transformers 5.

It is installed once, without dependencies and checked against pinned digests, into the user's cache, and only ever
used by child processes that have it on PYTHONPATH; torch, numpy and onnx come from the main environment.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fieldlm.core.errors import UnavailableError
from fieldlm.core.files import cache_root, disk_errors, sha256_bytes, whole_folder
from fieldlm.core.terminal import progress
from fieldlm_compiler.pipeline.stages import lock

# requirement → SHA-256 of its wheels; tokenizers has one per platform: Linux x86-64 and aarch64, macOS arm64 and x86-64
PINS = {
    "optimum==2.1.0": ("bc3af32e1236a9b2c2ca1d27ed9d3ab1b6591e24c6bcd47f9671a8198a30ea88",),
    "optimum-onnx==0.1.0": ("0301ec7a6ec5c77a57581e9970d380a6dc104bdb8f15b282e05af40d829c2eda",),
    "transformers==4.57.6": ("4c9e9de11333ddfe5114bc872c9f370509198acf0b87a832a0ab9458e2bd0550",),
    "tokenizers==0.22.2": (
        "369cc9fc8cc10cb24143873a0d95438bb8ee257bb80c71989e3ee290e8d72c67",
        "2249487018adec45d6e3554c71d46eb39fa8ea67156c640f7513eb26f318cec7",
        "1e418a55456beedca4621dbab65a318981467a2b188e982a23e117f115ce5001",
        "544dd704ae7238755d790de45ba8da072e9af3eea688f698b137915ae959281c",
    ),
    "huggingface_hub==0.36.2": ("48f0c8eac16145dfce371e9d2d7772854a4f591bcb56c9cf548accf531d54270",),
}
DIGEST = "tree.sha256"
# What pip writes differently on every machine, and what Python writes when it runs.
LOCAL_NAMES = {"bin", "__pycache__", "RECORD", "INSTALLER", "REQUESTED", "direct_url.json", DIGEST}


def optimum() -> Path:
    """Return the folder to put on PYTHONPATH, installed on first use.

    Raises UnavailableError when pip cannot fetch the pinned wheels or they are not what was pinned.
    """
    requirements = "".join(_requirement(name, digests) for name, digests in PINS.items())
    folder = cache_root() / "toolchains" / f"optimum-2.1.0-{sha256_bytes(requirements.encode())[:12]}"
    with disk_errors(folder), lock(folder.with_name(f".{folder.name}.lock")):
        if not (folder / DIGEST).exists():
            with whole_folder(folder) as aside, progress("install the Optimum toolchain"):
                _install(requirements, aside)
                (aside / DIGEST).write_text(tree_sha256(aside))
    return folder


def optimum_sha256() -> str:
    """Return the digest over the files of the installed toolchain, as recorded when it was installed."""
    return (optimum() / DIGEST).read_text()


def tree_sha256(folder: Path) -> str:
    """Return one digest over the relative path and content of every file in `folder` that is the same everywhere."""
    total = hashlib.sha256()
    for name, path in sorted(_lasting(folder)):
        total.update(f"{name}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _lasting(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        inner = path.relative_to(folder)
        if path.is_file() and LOCAL_NAMES.isdisjoint(inner.parts):
            yield inner.as_posix(), path


def _requirement(name: str, digests: tuple[str, ...]) -> str:
    return " ".join([name, *(f"--hash=sha256:{digest}" for digest in digests)]) + "\n"


def _install(requirements: str, into: Path) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="fieldlm-", suffix=".txt") as pinned:
        pinned.write(requirements)
        pinned.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", "--target", str(into)]
        done = subprocess.run(
            [*command, *options, "--requirement", pinned.name], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip said nothing"]
        raise UnavailableError(f"pip cannot install Optimum: {errors[-1].strip()}; check the index (pip config list)")
