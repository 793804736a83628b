"""Make numpy in a package as small as a device needs it: without OpenBLAS, and without what builds and tests numpy.

numpy multiplies matrices with OpenBLAS, 28 MB of kernels and a Fortran library, which starts a thread for every core as
soon as numpy is imported. `blas.c` takes its place, under its name, with all that numpy's core calls. What else needs
it is numpy.linalg's LAPACK, which nothing on a device calls; it says so to who does.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import build_engine
import own_python

SOURCE = Path(__file__).with_name("blas.c")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fcx-limited-range", "-fPIC", "-shared", "-Wl,--build-id=none")
UNUSED = ("distutils", "f2py", "fft", "polynomial", "random/_examples", "testing", "_pyinstaller")
"""Parts of numpy that are imported when they are asked for, and that nothing on a device asks for."""
UNUSED_LIBRARIES = re.compile(r"(_simd|_\w*tests)\.")
"""What numpy's own tests import."""
OPENBLAS = re.compile(r"lib\w*openblas[\w.-]*\.so[.\d]*")
OPENBLAS_WITH = re.compile(r"lib(\w*openblas|gfortran|quadmath)")
CALLED = re.compile(r" U (\w*(?:blas|lapack)\w*)$", re.MULTILINE | re.IGNORECASE)
HELD = re.compile(r" T (\w+)$", re.MULTILINE)
NO_LAPACK = '''\
"""In the place of numpy's own: the package of fieldlm has no LAPACK, which nothing in it calls."""

_ilp64 = False


def __getattr__(name):
    raise AttributeError(f"numpy.linalg has no {name} here: the package of fieldlm brings numpy without LAPACK")
'''


def make_small(packages: Path, machine: str, part: Path) -> None:
    """Take from the numpy in `packages`, which is for `machine`, what no device needs; `part` is an empty folder."""
    numpy = packages / "numpy"
    for name in UNUSED:
        shutil.rmtree(numpy / name, ignore_errors=True)
    for path in list(numpy.rglob("*.so")):
        if UNUSED_LIBRARIES.match(path.name):
            path.unlink()
    (core,) = numpy.glob("_core/_multiarray_umath.*.so")
    if reason := why_not(core, packages / "numpy.libs"):
        print(f"numpy keeps its BLAS, since {reason}; see packaging/small_numpy.py", file=sys.stderr)
        return
    (name,) = blas_of(core)
    built = part / name
    command = [build_engine.tool(machine, "cc"), *FLAGS, f"-Wl,-soname,{name}", "-o", built, SOURCE]
    subprocess.run(command, check=True)
    held = set(HELD.findall(said("nm", "--dynamic", "--defined-only", built)))
    if missing := set(CALLED.findall(said("nm", "--dynamic", "--undefined-only", core))) - held:
        raise SystemExit(f"numpy calls {', '.join(sorted(missing))}, which packaging/blas.c does not have")
    shutil.rmtree(packages / "numpy.libs")
    (packages / "numpy.libs").mkdir()
    shutil.move(built, packages / "numpy.libs" / name)
    for path in (numpy / "linalg").glob("*.so"):
        path.unlink()
    (numpy / "linalg" / "_umath_linalg.py").write_text(NO_LAPACK)


def why_not(core: Path, libraries: Path) -> str:
    """Return why numpy's `core` cannot be given another BLAS than that in `libraries`; nothing where it can."""
    found = blas_of(core)
    if len(found) != 1 or not (libraries / found[0]).exists():
        return f"it brings {len(found)} libraries called OpenBLAS, not one"
    others = sorted(path.name for path in libraries.iterdir() if not OPENBLAS_WITH.match(path.name))
    return f"it brings {', '.join(others)}, too" if others else ""


def blas_of(core: Path) -> list[str]:
    """Return the names of the libraries that numpy's `core` multiplies with."""
    return [name for name in own_python.needed([core]) if OPENBLAS.fullmatch(name)]


def said(*command: str | Path) -> str:
    """Return what a program prints, in English."""
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
