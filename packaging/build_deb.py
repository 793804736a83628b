"""Build dist/fieldlm_VERSION_ARCH.deb: the light half as a virtual environment at its final path, /opt/fieldlm.

The stages, in order: install, slim, make_small (numpy), link_libraries, strip, finish, add_debian_files, pack. Run it
with the Python of the project's own environment: the package then carries the very versions that the tests ran with,
and needs the same Python minor on the device, or brings it (`own_python.py`). llama.cpp in it is for every processor of
the architecture (`build_engine.py`), or as it is built for this one. Knows nothing of what fieldlm does;
`packaging/deb/` holds what is Debian's.
"""

import argparse
import compileall
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import build_engine
import compact
import debian
import own_python
import small_numpy

ROOT = Path(__file__).resolve().parents[1]
DEB = ROOT / "packaging" / "deb"
MINOR = debian.MINOR
ARCHITECTURES = {machine: name for name, machine in build_engine.MACHINES.items()}
BROUGHT = ("python3", "libc6", "libgomp1", "libstdc++6")
"""What a package with a Python of its own depends on no more."""
# What llama.cpp calls an instruction set, and how /proc/cpuinfo calls it.
CPU_FLAGS = {
    "AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8", "NEON": "asimd", "FP16_VA": "asimdhp", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm",
    "SVE": "sve", "SVE2": "sve2", "SME": "sme",
}  # fmt: skip
UNUSED = (
    "bin", "include", "lib",  # the llama-cpp-python wheel spills its CMake install tree here
    "llama_cpp/server",  # its own server, for which it needs more
    "cffi", "pycparser", "pycparser-*.dist-info",  # cryptography opens _cffi_backend alone
    "zeroconf/**/*.so",  # the same modules compiled: 3 MB for a packet now and then
    "urllib3/contrib/emscripten",  # for browsers
    "**/tests", "**/test_data", "**/test_*.py", "**/conftest.py", "numpy/**/include", "**/*.pyi", "**/*.pxd", "**/*.a",
    "*.dist-info/direct_url.json", "*.dist-info/RECORD", "*.dist-info/REQUESTED",
)  # fmt: skip
"""What no device needs, and what names the build machine's paths, as patterns."""
WITH_SOURCES = ("fieldlm", "zeroconf", "shtab")
"""Modules that lie there as they were written, too: ours, for who reads a traceback; others, by their licence."""
ZIP = "modules.zip"
"""What lies beside the packages that have more than modules; a .pth of its name has Python look into it."""
LAUNCHER = """\
#!/opt/fieldlm/bin/python3 -I
import sys

from fieldlm.__main__ import main

sys.exit(main())
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the package and print its path."""
    arguments = argparse.ArgumentParser(description="Build the Debian package of the light half.")
    arguments.add_argument("--work", type=Path, default=ROOT / "build" / "deb", help="emptied, then staged into")
    arguments.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the package")
    arguments.add_argument(
        "--with-python", action="store_true", help="bring a Python and a C library, for systems with others"
    )
    build_engine.add_options(arguments)
    given = arguments.parse_args(argv)
    work, options = given.work.resolve(), build_engine.sources(given)
    shutil.rmtree(work, ignore_errors=True)
    home = work / "home"
    packages = home / "lib" / f"python{MINOR}" / "site-packages"
    install(packages, options)
    slim(packages)
    flags = cpu_flags(packages) if given.cpu == "native" else []
    small_numpy.make_small(packages, given.arch, work)
    link_libraries(packages / "llama_cpp" / "lib")
    compact.strip(packages, given.arch)
    finish(home, packages)
    architecture = ARCHITECTURES[given.arch]
    if given.with_python:
        own_python.bring(home, packages, work, architecture)
        gather_python(home)
    (home / "cpu-flags").write_text(" ".join(flags) + "\n")
    add_debian_files(work)
    print(pack(work, given.out.resolve(), architecture, brings_python=given.with_python))
    return 0


def install(packages: Path, options: Sequence[str | Path]) -> None:
    """Put this checkout's light half and what it needs into `packages`, in the versions installed here.

    `options` are pip's, and say for which processors.
    """
    packages.mkdir(parents=True)
    constraints, wheels = packages / "constraints.txt", packages / "wheels"
    constraints.write_text(installed_versions(sys.executable))
    # Apart: of another machine pip takes wheels only.
    build_engine.run_pip("wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
    (half,) = wheels.glob("fieldlm-*.whl")
    build_engine.run_pip("install", "--no-compile", "--target", packages, "--constraint", constraints, *options, half)
    constraints.unlink()
    shutil.rmtree(wheels)


def installed_versions(python: str | Path) -> str:
    """Return the versions that are installed for `python`, a line each, and never the file that one came from.

    That file may be gone, or be for this machine alone.
    """
    command = [sys.executable, "-m", "pip", "--python", python, "list", "--exclude-editable", "--format=freeze"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def slim(packages: Path) -> None:
    """Remove what no device needs: headers, tests, stubs, a second copy of llama.cpp, and the build machine's paths."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def link_libraries(folder: Path) -> None:
    """Keep one file of each shared library in `folder`; its other names become links, as its makers meant them."""
    for full in folder.glob("*.so.*.*.*"):
        plain, major = full.name.partition(".so")[0] + ".so", ".".join(full.name.split(".")[:3])
        for name in (plain, major):
            (folder / name).unlink()
            (folder / name).symlink_to(full.name)


def finish(home: Path, packages: Path) -> None:
    """Make `home` a virtual environment of Debian's own Python, compiled, with the command in its bin folder."""
    compiled(packages, home)
    compact.keep_compiled(packages, WITH_SOURCES)
    compact.gather(packages, compact.plain(packages), packages / ZIP, int(source_date()))
    (packages / ZIP).with_suffix(".pth").write_text(f"{ZIP}\n")
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {MINOR}\n")
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"/usr/bin/python{MINOR}")
    (home / "bin" / "fieldlm").write_text(LAUNCHER)


def gather_python(home: Path) -> None:
    """Compile the modules of the Python that `home` brings, and put them into the zip file that it looks into first."""
    modules = home / "python" / "lib" / f"python{MINOR}"
    compiled(modules, home)
    compact.keep_compiled(modules)
    names = {path.name for path in modules.iterdir()} - set(own_python.LANDMARKS)
    compact.gather(modules, names, modules.parent / f"python{MINOR.replace('.', '')}.zip", int(source_date()))


def compiled(folder: Path, home: Path) -> None:
    """Compile the modules in `folder`, which lies in `home`."""
    # A path baked into the compiled files must not name the build machine. Unchecked: the package manager vouches for
    # them, so that nothing is written under /opt at run time.
    compileall.compile_dir(
        folder,
        quiet=2,
        stripdir=str(home),
        prependdir="/opt/fieldlm",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def add_debian_files(work: Path) -> None:
    """Put unit, settings and scripts beside the staged tree; give everything the mode and the time it ships with."""
    shutil.copy(ROOT / "LICENSE", work)
    for path in DEB.iterdir():
        shutil.copy(path, work)
    time_s = int(source_date())
    for path in work.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        os.utime(path, (time_s, time_s), follow_symlinks=False)


def pack(work: Path, out: Path, architecture: str, *, brings_python: bool) -> Path:
    """Have nfpm write the package from the staged tree; returns its path."""
    target = out / f"fieldlm_{version('fieldlm')}_{architecture}{'_with-python' if brings_python else ''}.deb"
    out.mkdir(parents=True, exist_ok=True)
    if brings_python:
        depend_on_less(work / "nfpm.yaml")
    nfpm = Path(sysconfig.get_path("scripts")) / "nfpm"
    command = [nfpm, "package", "--packager", "deb", "--config", "nfpm.yaml", "--target", target]
    settings = {
        "ARCH": architecture,
        "VERSION": version("fieldlm"),
        "PYTHON": MINOR,
        "NEXT_PYTHON": f"3.{sys.version_info.minor + 1}",
        "LIBC": platform.libc_ver()[1],
        "SOURCE_DATE_EPOCH": source_date(),
    }
    subprocess.run(command, check=True, cwd=work, env=os.environ | settings, stdout=sys.stderr)
    return target


def depend_on_less(path: Path) -> None:
    """Have the package ask for nothing that it brings, and be read by the dpkg of Debian 11, which knows no zstd."""
    lines = path.read_text().splitlines(keepends=True)
    ours = tuple(f"  - {name}" for name in BROUGHT)
    text = "".join(line for line in lines if not line.startswith(ours))
    path.write_text(text.replace("compression: zstd", "compression: gzip"))


def cpu_flags(packages: Path) -> list[str]:
    """Return the CPU flags, as in /proc/cpuinfo, that the staged llama.cpp was compiled for.

    llama-cpp-python builds for the machine it is built on; on a lesser one it would die of an illegal instruction. The
    device looks at them before it loads the library (`hardware/processor.py`). The machine that installs the package
    does not: it may be making an image.
    """
    script = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    # -S: the staged llama.cpp must answer, not the one installed here
    command = [sys.executable, "-S", "-c", script]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(packages)}
    ).stdout
    features = (feature.partition("=") for feature in answer.replace("|", ":").split(":"))
    return [CPU_FLAGS[name.strip()] for name, _, on in features if name.strip() in CPU_FLAGS and on.strip() == "1"]


def source_date() -> str:
    """Return the seconds since 1970 on every file: the commit's, so that the same commit gives the same bytes."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
