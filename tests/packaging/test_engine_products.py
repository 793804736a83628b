"""llama.cpp as packages have it multiplies 8-bit weights rightly, with each of its kernels that fit this processor."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLOSE = 1e-6
"""Scales are powers of two and bytes whole numbers: what differs is how floats add up."""
MENDED = {"haswell", "skylakex", "icelake", "alderlake", "zen4"}
"""Kernels in which `packaging/patches/x86_64/rows-in-lanes.patch` multiplies."""


@pytest.fixture(scope="module")
def products(engine: Path) -> dict[str, dict[str, Any]]:
    """Return what each kernel made of rows that no tile divides, long rows, and few and many columns."""
    command = [sys.executable, "-m", "tests.support.weight_products", engine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found
    return {f"{kind}: {shape}": each for kind, shapes in found.items() for shape, each in shapes.items()}


def test_products_are_exact_whatever_the_shape_and_the_kernel(products: dict[str, dict[str, Any]]) -> None:
    assert not {name: each for name, each in products.items() if not each["apart"] < CLOSE}


def test_a_column_comes_out_the_same_alone_and_beside_others(products: dict[str, dict[str, Any]]) -> None:
    assert not {name for name, each in products.items() if name.split(":")[0] in MENDED and not each["alike"]}
