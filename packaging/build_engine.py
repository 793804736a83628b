"""Build the wheel of llama-cpp-python that runs on every processor of an architecture, and print its path.

llama.cpp can hold its kernels once for each kind of processor, as libraries of which the best is loaded when it starts
(`runtime/fieldlm/engines/llama_kernels.py`). Its source lists more kinds than devices have, and some that a compiler
cannot build: GCC 12 miscompiles AMX tiles and knows no SME. So the list in its source is cut to the kinds named here,
and what no device opens (the parts for its own programs, and for images) is not built at all. `patches/` says what else
is changed, and why. The wheel is kept in the user's cache under a name that tells what it was made of.
"""

import argparse
import base64
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "packaging" / "requirements.lock"
PATCHES = ROOT / "packaging" / "patches"
"""What llama.cpp is built with beside its own source, for `every` architecture and for one; each says why, and what it
measured."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names of architectures → the kernel's."""
KERNELS = {
    # From 2008 on (numpy needs as much), 2011, 2013 (and Zen to Zen 3), servers of 2017, 2019, 2021 (N100 too), Zen 4.
    "x86_64": ("sse42", "sandybridge", "haswell", "skylakex", "icelake", "alderlake", "zen4"),
    # Cortex-A53 and A72, those with dot products (A55, A76, A78), with SVE and int8 matrices, and with SVE2.
    "aarch64": ("armv8.0_1", "armv8.2_2", "armv8.6_1", "armv8.6_2"),
}
"""Kinds of processors by architecture, as llama.cpp calls them."""
OPTIONS = (
    "-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON", "-DLLAVA_BUILD=OFF",
    # Beside the other libraries, which they find there.
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)  # fmt: skip
KIND = re.compile(r"^ *ggml_add_cpu_backend_variant\(([\w.]+).*\n", re.MULTILINE)
LIBRARY = re.compile(r"llama_cpp/lib/lib(?P<name>[\w.-]+?)\.so(?P<version>[.\d]*)")
OPENED = ("ggml", "llama", "mtmd")
"""Libraries that Python opens, as `libNAME.so`; the others, and ggml, are opened by these, as `libNAME.so.0`."""
LOADED = ("ggml", "ggml-base", "ggml-cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the wheel, or take the one that was built of the same, and print its path."""
    arguments = argparse.ArgumentParser(description="Build llama-cpp-python for every processor of an architecture.")
    add_options(arguments)
    arguments.add_argument(
        "--built", action="store_true", help="build nothing; print the options with which pip takes one that is built"
    )
    given = arguments.parse_args(argv)
    print(*built_options(given.arch) if given.built else [engine_wheel(given.arch)])
    return 0


def add_options(arguments: argparse.ArgumentParser) -> None:
    """Add the options that say which processors a package is for."""
    arguments.add_argument(
        "--arch",
        type=lambda name: MACHINES.get(name, name),
        choices=tuple(KERNELS),
        default=platform.machine(),
        help="architecture of the device: amd64 or arm64; this machine's unless given",
    )
    arguments.add_argument(
        "--cpu",
        choices=("every", "native"),
        default="every",
        help="every: one build for all processors of the architecture; native: as CMAKE_ARGS say, for this one",
    )


def sources(given: argparse.Namespace) -> list[str | Path]:
    """Return the options with which pip takes llama.cpp for the processors in `given`; builds it where it has to."""
    if given.cpu == "every":
        return ["--find-links", engine_wheel(given.arch).parent, *foreign_wheels(given.arch)]
    if given.arch != platform.machine():
        raise SystemExit(f"--cpu native is this machine's processor, which is not of {given.arch}; leave it out")
    # What pip keeps of an earlier build may have been made with other CMAKE_ARGS.
    return ["--no-cache-dir"]


def built_options(machine: str) -> list[str]:
    """Return the options with which pip takes the wheel for `machine` that is in the cache; none where none is."""
    try:
        return ["--find-links", str(engine_wheel(machine, builds=False).parent)]
    except (OSError, KeyError):  # not built; no compiler, by which it is named; a machine that has none
        return []


def engine_wheel(machine: str, *, builds: bool = True) -> Path:
    """Return the wheel for every processor of `machine`; without `builds` raises FileNotFoundError unless it is built.

    It is in the cache from then on.
    """
    requirement, options = pinned(), (*OPTIONS, *compiler_options(machine))
    mended = [patch.read_text() for patch in patches(machine)]
    made_of = [requirement, *KERNELS[machine], *options, compiler_version(options), *mended]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "fieldlm" / "engines"
    folder = cache / f"{machine}-{digest}"
    if not (builds or folder.exists()):
        raise FileNotFoundError(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as part:
                wheel = build(requirement, machine, options, Path(part))
                (Path(part) / "whole").mkdir()
                wheel.rename(Path(part) / "whole" / wheel.name)
                (Path(part) / "whole").rename(folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build(requirement: str, machine: str, options: Sequence[str], part: Path) -> Path:
    """Compile the source that `requirement` names in the empty folder `part`; return the wheel, slim and named."""
    (part / "requirement").write_text(requirement)
    fetched = ["download", "--no-deps", "--no-binary=:all:", "--dest", part, "--requirement", part / "requirement"]
    run_pip(*fetched)
    (sdist,) = part.glob("*.tar.gz")
    (part / "source").mkdir()
    subprocess.run(["tar", "-xf", sdist, "-C", part / "source", "--strip-components=1"], check=True)
    cut(part / "source", KERNELS[machine])
    mend(part / "source", patches(machine))
    print(f"compiling llama.cpp for {', '.join(KERNELS[machine])}; this takes several minutes, once", file=sys.stderr)
    run_pip(
        "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", part, part / "source", CMAKE_ARGS=shlex.join(options)
    )
    (wheel,) = part.glob("*.whl")
    wheel = wheel.rename(wheel.with_name(re.sub(r"linux_\w+\.whl$", f"linux_{machine}.whl", wheel.name)))
    slim(wheel)
    return wheel


def cut(source: Path, kernels: Sequence[str]) -> None:
    """Have the source in `source` build `kernels` only, and nothing for llama.cpp's own programs."""
    path = source / "vendor/llama.cpp/ggml/src/CMakeLists.txt"
    text = path.read_text()
    if unknown := set(kernels) - set(KIND.findall(text)):
        raise SystemExit(f"llama.cpp knows no kernels for {', '.join(sorted(unknown))}; see {path}")
    path.write_text(KIND.sub(lambda line: line[0] if line[1] in kernels else "", text))
    path = source / "CMakeLists.txt"
    text, count = re.subn(r"set\(LLAMA_BUILD_COMMON ON CACHE", "set(LLAMA_BUILD_COMMON OFF CACHE", path.read_text())
    if count != 1:
        raise SystemExit(f"{path} does not say whether the common parts are built")
    path.write_text(text)


def patches(machine: str) -> list[Path]:
    """Return the patches for `machine` in their order."""
    return [patch for folder in ("every", machine) for patch in sorted((PATCHES / folder).glob("*.patch"))]


def mend(source: Path, changes: Sequence[Path]) -> None:
    """Apply the patches `changes` to the source in `source`; ends the program where one does not fit."""
    # A repository that the cache may lie in has nothing to do with it.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(source.resolve().parent)}
    for change in changes:
        command = ["git", "apply", change.resolve()]
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{change.name} does not fit this llama.cpp; mend or remove it: {done.stderr.strip()}")


def slim(wheel: Path) -> None:
    """Write `wheel` anew without what is there twice, and without headers; its tag becomes that of its name."""
    part = wheel.with_suffix(".part")
    tag = "-".join(wheel.stem.split("-")[-3:])
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines: list[str] = []
        for each in old.infolist():
            if each.filename == record or not is_needed(each.filename):
                continue
            data = old.read(each)
            if each.filename.endswith(".dist-info/WHEEL"):
                data = re.sub(rb"(?m)^Tag: .*$", f"Tag: {tag}".encode(), data)
            new.writestr(each, data, zipfile.ZIP_DEFLATED)
            # PEP 427: path, digest in URL-safe base64 without padding, size.
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{each.filename},sha256={digest},{len(data)}\n")
        new.writestr(record, "".join([*lines, f"{record},,\n"]))
    part.replace(wheel)


def is_needed(name: str) -> bool:
    """Say whether a device opens the file `name` of the wheel."""
    if name.startswith(("lib/", "include/", "bin/")):
        return False
    found = LIBRARY.fullmatch(name)
    if not found:
        return True
    plain, version = found["name"], found["version"]
    is_known = plain in OPENED or plain in LOADED
    is_kernel = plain.startswith("ggml-cpu-")  # opened by a search for lib*.so
    wanted = {"": plain in OPENED or not is_known, ".0": plain in LOADED or not (is_known or is_kernel)}
    return wanted.get(version, False)


def pinned() -> str:
    """Return the line of the lock that names the source of llama-cpp-python and its digest."""
    found = re.search(r"^llama-cpp-python==\S+ \\\n +--hash=\S+$", LOCK.read_text(), re.MULTILINE)
    assert found, "packaging/requirements.lock pins llama-cpp-python"
    return found[0] + "\n"


def compiler_options(machine: str) -> tuple[str, ...]:
    """Return what CMake has to know to build for `machine` here; ends the program where no compiler does."""
    if machine == platform.machine():
        return ()
    compilers = {language: f"{machine}-linux-gnu-{name}" for language, name in (("C", "gcc"), ("CXX", "g++"))}
    if missing := [name for name in compilers.values() if not shutil.which(name)]:
        debian = next(name for name, each in MACHINES.items() if each == machine)
        raise SystemExit(
            f"building for {machine} here needs {' and '.join(missing)}; run: apt install crossbuild-essential-{debian}"
        )
    named = (f"-DCMAKE_{language}_COMPILER={name}" for language, name in compilers.items())
    return ("-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}", *named)


def tool(machine: str, name: str) -> str:
    """Return how `cc` or another tool is called here that makes programs for `machine`; ends where there is none."""
    compiler_options(machine)
    is_native = machine == platform.machine()
    return name if is_native else f"{machine}-linux-gnu-{'gcc' if name == 'cc' else name}"


def compiler_version(options: Iterable[str]) -> str:
    """Return the first line of what the C++ compiler says about itself."""
    named = [option.partition("=")[2] for option in options if option.startswith("-DCMAKE_CXX_COMPILER=")]
    compiler = named[0] if named else os.environ.get("CXX", "c++")
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.partition("\n")[0]


def foreign_wheels(machine: str) -> list[str | Path]:
    """Return pip's options that take wheels for `machine`, and no other, where this is another kind of machine."""
    if machine == platform.machine():
        return []
    minor, libc = sys.version_info.minor, int(platform.libc_ver()[1].split(".")[1])
    tags = [f"linux_{machine}", *(f"manylinux_2_{each}_{machine}" for each in range(17, libc + 1))]
    options = [f"--platform={tag}" for tag in [*tags, f"manylinux2014_{machine}"]]
    abis = [f"--abi={abi}" for abi in (f"cp3{minor}", "abi3", "none")]
    return [*options, *abis, "--implementation=cp", f"--python-version=3.{minor}", "--only-binary=:all:"]


def run_pip(*arguments: str | Path, **environment: str) -> None:
    """Run this environment's pip; what it has to say is on the terminal."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, check=True, env=os.environ | environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
