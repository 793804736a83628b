"""What fieldlm is measured against, made from what is public: `make anchors`.

llama-server and llama-bench are built out of the source distribution of the very llama-cpp-python that is installed,
with the flags it was built with (CMAKE_ARGS, which the Makefile sets), so that both sides run the same kernels.
onnxruntime-genai is installed from PyPI beside the environment, never into it. All of it lies in the user's cache; a
build that was interrupted goes on where it was.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.catalogue.pip import pip_download
from fieldlm.core.errors import EngineError, FieldlmError, InputError, MissingDependencyError, UnavailableError
from fieldlm.core.files import cache_root, canonical_json, sha256_bytes, sha256_file, whole_folder, write_whole
from fieldlm.core.logs import logger, to_terminal
from fieldlm.core.terminal import progress
from fieldlm.hardware.cores import physical_cores
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.llama_toolchain import SDISTS
from fieldlm_compiler.pipeline.stages import lock

log = logger(__name__)

TARGETS = ("llama-server", "llama-bench")
# No web page, no TLS, nothing fetched while it builds; the libraries lie beside the programs, wherever both are moved.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)  # fmt: skip
UNUSED = ("docs", "media", "models", "tests", "benches", "gguf-py")  # of the source: half of its bytes
GENAI = "onnxruntime-genai==0.18.0"
DONE = "anchor.json"
STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished build was made of."""

    release: str
    sdist_sha256: str
    flags: tuple[str, ...]
    compiler: str


def anchors_root() -> Path:
    return cache_root() / "anchors"


def llama_tool(name: str) -> Path:
    """Return the program `name`, built for the installed llama-cpp-python; the newest when there are several.

    Raises MissingPartError while there is none.
    """
    found = sorted(anchors_root().glob(f"llama.cpp-{version('llama-cpp-python')}-*/{DONE}"), key=_written)
    if not found:
        raise MissingDependencyError(
            f"{name} of llama.cpp {version('llama-cpp-python')} is not built; run: make anchors"
        )
    return found[-1].parent / "bin" / name


def genai_overlay() -> Path:
    """Return the folder to put on PYTHONPATH for onnxruntime-genai; raises MissingPartError while there is none."""
    folder = anchors_root() / GENAI.replace("==", "-")
    if not folder.is_dir():
        raise MissingDependencyError(f"{GENAI} is not installed beside the environment; run: make anchors")
    return folder


def build_llama(cmake_args: str) -> Path:
    """Build the programs with the flags in `cmake_args`, or take those that were; return their folder."""
    made = Built(
        release=version("llama-cpp-python"),
        sdist_sha256=SDISTS.get(version("llama-cpp-python"), ""),
        flags=(*OPTIONS, *shlex.split(cmake_args)),
        compiler=_compiler(),
    )
    folder = anchors_root() / f"llama.cpp-{made.release}-{sha256_bytes(canonical_json(made))[:12]}"
    with lock(folder.with_name(f".{folder.name}.lock")):
        if (folder / DONE).exists():
            log.info(f"  ✓ {', '.join(TARGETS)}: {folder / 'bin'}")
            return folder
        source, build = folder / "source", folder / "build"
        if not source.exists():
            with whole_folder(source) as aside:
                unpack(_sdist(made), aside)
        run_step(
            ["cmake", "-S", str(source), "-B", str(build), *_generator(), *made.flags], build, "configure llama.cpp"
        )
        run_step(["cmake", "--build", str(build), "--target", *TARGETS], build, "build llama-server and llama-bench")
        _keep_programs(folder, build)
        write_whole(folder / DONE, canonical_json(made))
    return folder


def unpack(sdist: Path, into: Path) -> None:
    """Write what llama.cpp is built from out of `sdist` to `into`."""
    llama_toolchain.unpack(sdist, into, wanted=lambda top: top not in UNUSED, needs="CMakeLists.txt")


def install_genai() -> Path:
    """Install onnxruntime-genai beside the environment, or take what is there; return its folder."""
    folder = anchors_root() / GENAI.replace("==", "-")
    with lock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            with whole_folder(folder) as aside, progress(f"install {GENAI} beside the environment"):
                _pip_install(GENAI, aside)
    log.info(f"  ✓ {GENAI}: {folder}")
    return folder


def _pip_install(requirement: str, into: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(into), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip said nothing"]
        raise UnavailableError(
            f"pip cannot install {requirement}: {errors[-1].strip()}; check the index (pip config list)"
        )


def _sdist(made: Built) -> Path:
    """Return the source distribution, fetched into the cache and checked against the compiler's pin."""
    if not made.sdist_sha256:
        raise MissingDependencyError(f"no source distribution is pinned for llama-cpp-python {made.release}")
    folder = anchors_root() / f"sdist-{made.release}"
    if not folder.exists():
        with whole_folder(folder) as aside:
            pip_download(f"llama-cpp-python=={made.release}", aside, "--no-binary", "llama-cpp-python")
    (sdist,) = folder.iterdir()
    if (found := sha256_file(sdist)) != made.sdist_sha256:
        raise InputError(f"{sdist} has SHA-256 {found}, expected {made.sdist_sha256}; remove it, check your pip index")
    return sdist


def _compiler() -> str:
    """Return the first line of what the C++ compiler says about itself."""
    name = os.environ.get("CXX", "c++")
    if not shutil.which(name) or not shutil.which("cmake"):
        raise MissingDependencyError("building llama-server needs cmake and a C++ compiler; install both and run again")
    return subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def _generator() -> tuple[str, ...]:
    return ("-G", "Ninja") if shutil.which("ninja") else ()


def run_step(command: Sequence[str], build: Path, name: str) -> None:
    """Run one step of the build with its output in a log, and show how far it is."""
    build.mkdir(parents=True, exist_ok=True)
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(physical_cores()), **os.environ}
    last: list[str] = []
    with (
        progress(name) as line,
        (build / "anchors.log").open("a") as written,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as child,
    ):
        assert child.stdout, "a pipe was asked for"
        for text in child.stdout:
            written.write(text)
            last = [*last[-9:], text.strip()]
            if found := STEP.match(text):
                line.total = int(found[2] or 100)
                line.update(int(found[1]))
    if child.returncode != 0:
        why = next((text for text in last if "rror" in text), last[-1] if last else "it said nothing")
        raise EngineError(f"{name} failed: {why} (log: {build / 'anchors.log'}); run the same command again")


def _keep_programs(folder: Path, build: Path) -> None:
    """Move programs and libraries out of the build, and remove the rest: it is ten times their size."""
    shutil.rmtree(folder / "bin", ignore_errors=True)
    os.replace(build / "bin", folder / "bin")
    shutil.rmtree(build)
    shutil.rmtree(folder / "source")


def _written(path: Path) -> float:
    return path.stat().st_mtime


def facts(name: str = DONE) -> dict[str, Any]:
    """Return what the anchors are made of, for a report."""
    return msgspec.json.decode((llama_tool("llama-server").parents[1] / name).read_bytes())


def main() -> int:
    to_terminal()
    try:
        folder = build_llama(os.environ.get("CMAKE_ARGS", ""))
        overlay = install_genai()
    except FieldlmError as error:
        log.info(f"anchors: {error}")
        return error.exit_code
    print(folder / "bin", overlay, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
