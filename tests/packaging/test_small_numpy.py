"""A package's numpy multiplies with a BLAS of its own: what it gives is right, however the numbers lie in memory."""

import ctypes
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.debian_root import ROOT
from tests.support.packed import packaging_module

TYPES: dict[str, Any] = {"s": np.float32, "d": np.float64, "c": np.complex64, "z": np.complex128}
ROWS, COLUMNS = 101, 102
PLAIN, TURNED, CONJUGATED = 111, 112, 113
UPPER, LOWER = 121, 122
SIZES = ((1, 1, 1), (3, 5, 2), (2, 66, 35), (65, 3, 70))
# Whole numbers, so that no order of summing rounds; integers, which numpy multiplies without a BLAS, are the truth.
MULTIPLY = """
import itertools, sys
import numpy as np
draw = np.random.default_rng(5).integers
sizes = (1, 2, 33, 70)
tried = 0
for kind, n, k, m in itertools.product('fdFD', sizes, sizes, sizes):
    def drawn(*shape):
        whole = draw(-4, 5, shape)
        return whole.astype(complex) + 1j * draw(-4, 5, shape) if kind in 'FD' else whole
    def times(x, y):
        if kind in 'fd':
            return x @ y
        a, b, c, d = (part.astype(int) for part in (x.real, x.imag, y.real, y.imag))
        return (a @ c - b @ d) + 1j * (a @ d + b @ c)
    a, b = drawn(n, k), drawn(k, m)
    for left, right in itertools.product((np.ascontiguousarray, np.asfortranarray, lambda x: x.repeat(2, 1)[:, ::2],
                                          lambda x: x[::-1].copy()[::-1]), repeat=2):
        x, y = left(a.astype(kind)), right(b.astype(kind))
        assert np.array_equal(x @ y, times(a, b)), (kind, n, k, m)
        assert np.array_equal(np.dot(x[0], y[:, 0]), times(a[:1], b[:, :1])[0, 0])
        assert np.array_equal(np.vdot(x[0], y[:, 0]), times(a[:1].conj(), b[:, :1])[0, 0])
        assert np.array_equal(x @ y[:, 0], times(a, b[:, :1])[:, 0])
        assert np.array_equal(x[0] @ y, times(a[:1], b)[0])
        assert np.array_equal(x @ x.T, times(a, a.T))
        assert np.array_equal(x.T @ x, times(a.T, a))
        tried += 1
assert np.array_equal(np.zeros((2, 0)) @ np.zeros((0, 3)), np.zeros((2, 3)))
assert np.isnan(np.array([[np.nan, 1]]) @ np.ones((2, 1))).all()
assert np.linalg.norm([3.0, 4.0]) == 5
assert np.allclose(np.cov([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]]), [[1.0, 1.5], [1.5, 7 / 3]])
assert np.isclose(np.corrcoef([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])[0, 1], -1)
held = {line.split()[-1] for line in open('/proc/self/maps') if 'blas' in line}
print(tried, np.__file__, *held)
"""


@pytest.fixture(scope="module")
def small_numpy() -> Any:
    """Return the module that makes numpy small."""
    return packaging_module("small_numpy")


@pytest.fixture(scope="module")
def blas(small_numpy: Any, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("blas") / "blas.so"
    subprocess.run(
        ["cc", *small_numpy.FLAGS, "-Wall", "-Wextra", "-Werror", "-o", built, small_numpy.SOURCE], check=True
    )
    return ctypes.CDLL(str(built))


def test_numpy_as_a_package_has_it_multiplies_right(small_numpy: Any, tmp_path: Path) -> None:
    here = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (here / name).exists():
            shutil.copytree(here / name, tmp_path / "packages" / name, ignore=shutil.ignore_patterns("tests", "*.pyc"))
    before = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    small_numpy.make_small(tmp_path / "packages", platform.machine(), tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "packages"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MULTIPLY], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tried, *libraries = done.stdout.split()
    assert int(tried) == 4 * 4**3 * 16
    assert all(path.startswith(str(tmp_path)) for path in libraries)
    after = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert after < before * 0.6


def test_a_numpy_with_another_library_keeps_its_own(
    small_numpy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = tmp_path / "numpy/_core/_multiarray_umath.cpython.so"
    core.parent.mkdir(parents=True)
    core.with_suffix(".c").write_text("int numbers;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", core, core.with_suffix(".c")], check=True)
    (tmp_path / "numpy.libs").mkdir()
    small_numpy.make_small(tmp_path, platform.machine(), tmp_path)
    assert "numpy keeps its BLAS, since it brings 0 libraries called OpenBLAS, not one" in capsys.readouterr().err
    assert (tmp_path / "numpy.libs").exists()


LEFT_OUT = r"(fft|polynomial|testing|f2py|distutils|matlib)\b"
LACKING = re.compile(
    rf"""
    \b(np|numpy)\.(linalg\.(?!norm\b|LinAlgError\b)|polyfit\b|poly\b|poly1d\b|roots\b|matrix\b|asmatrix\b|bmat\b|{LEFT_OUT})
    | \bimport\s+numpy\.(linalg\b|{LEFT_OUT})
    | \bfrom\s+numpy\.({LEFT_OUT})
    | \bfrom\s+numpy\.linalg\S*\s+import\s+(?!norm\s*$)
    | \bfrom\s+numpy\s+import\b[^\n(]*(\([^)]*)?\b(linalg|polyfit|poly|poly1d|roots|matrix|asmatrix|bmat|{LEFT_OUT})\b
    | \.multivariate_normal\b
    """,
    re.VERBOSE | re.MULTILINE,
)
"""What ends in numpy.linalg's LAPACK or in a part that is left out; `cov`, `corrcoef`, `kron` and `einsum` do not."""


def test_the_device_half_calls_nothing_that_a_packages_numpy_lacks() -> None:
    calling = [path for path in (ROOT / "runtime").rglob("*.py") if LACKING.search(path.read_text())]
    assert calling == []


@pytest.mark.parametrize(
    "code",
    [
        "np.linalg.solve(a, b)",
        "numpy.linalg.svd(a)",
        "from numpy.linalg import solve",
        "from numpy.linalg import norm, solve",
        "from numpy import linalg",
        "from numpy import array, linalg as la",
        "from numpy import (\n    array,\n    linalg,\n)",
        "from numpy import polyfit",
        "import numpy.linalg as la",
        "import numpy.fft",
        "from numpy.fft import rfft",
        "from numpy.polynomial.polynomial import polyval",
        "np.polyfit(x, y, 1)",
        "np.roots(a)",
        "np.poly(a)",
        "np.poly1d(a).r",
        "np.matrix(a).I",
        "np.fft.fft(a)",
        "np.testing.assert_equal(a, b)",
        "rng.multivariate_normal(mean, cov)",
    ],
)
def test_a_call_that_a_packages_numpy_lacks_is_seen(code: str) -> None:
    assert LACKING.search(code)


def test_what_a_packages_numpy_has_may_be_called() -> None:
    for code in (
        "np.linalg.norm(a)", "from numpy.linalg import norm", "except np.linalg.LinAlgError:", "np.polyval(a, 2)",
        "np.corrcoef(a, b)", "np.cov(a)", "from numpy.typing import NDArray",
        "from numpy import array, float32\nlinalg = 1",
    ):  # fmt: skip
        assert not LACKING.search(code), code


def drawn(letter: str, *shape: int) -> NDArray[Any]:
    """Return small whole numbers of the type, so that nothing is rounded."""
    draw = np.random.default_rng(len(shape) + sum(shape)).integers
    whole = draw(-4, 5, shape).astype(TYPES[letter])
    return whole + np.asarray(1j * draw(-4, 5, shape), TYPES[letter]) if letter in "cz" else whole


def given(letter: str, number: complex) -> Any:
    """Return a number as BLAS takes it: itself where it is real, where it lies where it is complex."""
    if letter in "cz":
        return np.array([number], TYPES[letter]).ctypes.data_as(ctypes.c_void_p)
    return (ctypes.c_float if letter == "s" else ctypes.c_double)(number.real)


def place(numbers: NDArray[Any]) -> ctypes.c_void_p:
    return numbers.ctypes.data_as(ctypes.c_void_p)


def turned(matrix: NDArray[Any], turn: int) -> NDArray[Any]:
    return matrix if turn == PLAIN else matrix.T if turn == TURNED else matrix.conj().T


def laid(matrix: NDArray[Any], order: int) -> tuple[NDArray[Any], int]:
    """Return the matrix row by row or column by column, and how far apart its rows or columns begin."""
    held = np.ascontiguousarray(matrix) if order == ROWS else np.asfortranarray(matrix)
    return held, max(1, matrix.shape[1 if order == ROWS else 0])


def long(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


@pytest.mark.parametrize("letter", TYPES)
def test_matrices_are_multiplied_however_they_lie(blas: ctypes.CDLL, letter: str) -> None:
    gemm = getattr(blas, f"scipy_cblas_{letter}gemm64_")
    turns = (PLAIN, TURNED, CONJUGATED)
    for (m, n, k), order, first, second in itertools.product(SIZES, (ROWS, COLUMNS), turns, turns):
        a, b = (
            drawn(letter, *((m, k) if first == PLAIN else (k, m))),
            drawn(letter, *((k, n) if second == PLAIN else (n, k))),
        )
        for alpha, beta in ((1, 0), (2, 3)):
            c = np.full((m, n), np.nan if beta == 0 else 1, TYPES[letter], order="C" if order == ROWS else "F")
            (held_a, lead_a), (held_b, lead_b) = laid(a, order), laid(b, order)
            shape = (order, first, second, long(m), long(n), long(k), given(letter, alpha))
            gemm(
                *shape,
                place(held_a),
                long(lead_a),
                place(held_b),
                long(lead_b),
                given(letter, beta),
                place(c),
                long(laid(c, order)[1]),
            )
            expected = alpha * np.einsum("ij,jk->ik", turned(a, first), turned(b, second)) + beta
            assert np.array_equal(c, expected), (letter, m, n, k, order, first, second)


@pytest.mark.parametrize("letter", TYPES)
def test_vectors_are_multiplied_however_they_lie(blas: ctypes.CDLL, letter: str) -> None:
    gemv, axpy = (getattr(blas, f"scipy_cblas_{letter}{name}64_") for name in ("gemv", "axpy"))
    for (m, n, _), order, turn, step in itertools.product(
        SIZES, (ROWS, COLUMNS), (PLAIN, TURNED, CONJUGATED), (1, 2, -1, -3)
    ):
        a = drawn(letter, m, n)
        held, lead = laid(a, order)
        matrix = turned(a, turn)
        long_x, long_y = drawn(letter, matrix.shape[1] * abs(step)), np.ones(matrix.shape[0] * abs(step), TYPES[letter])
        x = long_x[:: abs(step)][:: -1 if step < 0 else 1]
        shape = (order, turn, long(m), long(n), given(letter, 2), place(held), long(lead))
        gemv(*shape, place(long_x), long(step), given(letter, 3), place(long_y), long(step))
        y = long_y[:: abs(step)][:: -1 if step < 0 else 1]
        assert np.array_equal(y, 2 * np.einsum("ij,j->i", matrix, x) + 3)
        sums = np.ones_like(long_x)
        axpy(long(x.size), given(letter, 2), place(long_x), long(step), place(sums), long(step))
        assert np.array_equal(sums[:: abs(step)][:: -1 if step < 0 else 1], 2 * x + 1)
        assert sums.sum() == 2 * x.sum() + sums.size


@pytest.mark.parametrize("letter", TYPES)
def test_half_of_a_square_is_written(blas: ctypes.CDLL, letter: str) -> None:
    syrk = getattr(blas, f"scipy_cblas_{letter}syrk64_")
    for (n, k, _), order, half, turn in itertools.product(SIZES, (ROWS, COLUMNS), (UPPER, LOWER), (PLAIN, TURNED)):
        a = drawn(letter, *((n, k) if turn == PLAIN else (k, n)))
        held, lead = laid(a, order)
        c = np.full((n, n), 1, TYPES[letter], order="C" if order == ROWS else "F")
        syrk(
            order,
            half,
            turn,
            long(n),
            long(k),
            given(letter, 2),
            place(held),
            long(lead),
            given(letter, 3),
            place(c),
            long(n),
        )
        whole = 2 * np.einsum("ij,jk->ik", turned(a, turn), turned(a, turn).T) + 3
        written = np.triu(np.ones((n, n), bool)) if half == UPPER else np.tril(np.ones((n, n), bool))
        assert np.array_equal(c, np.where(written, whole, 1))
