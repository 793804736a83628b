"""The border to ggml's kernels, and rounding that repairs itself."""

import numpy as np
import pytest

from fieldlm_compiler.export.ggml import Floats, dequantize, kind, quantize
from fieldlm_compiler.search.ggml_blocks import GRIDS, nearest
from fieldlm_compiler.search.gptq_rounding import factor, round_rows

COLUMNS = 256


@pytest.fixture(scope="module")
def inputs() -> Floats:
    """Inputs that go together, as a model's do: 1024 of 256 numbers, mixed from 48."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(1024, 48)) @ rng.normal(size=(48, COLUMNS)) + rng.normal(size=(1024, COLUMNS))
    return mixed.astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> Floats:
    return np.random.default_rng(1).normal(size=(24, COLUMNS)).astype(np.float32)


@pytest.mark.parametrize("name", GRIDS)
def test_the_scales_and_codes_of_a_block_are_ggmls_own(name: str, weights: Floats) -> None:
    """Codes read off the grid and packed again spell, with the block's own scales, what ggml reads."""
    to, grid = kind(name), GRIDS[name]
    block = quantize(weights[:, : to.block], to)
    wanted = dequantize(block, to).T
    scale, offset = (np.repeat(each, to.block // len(each), axis=0) for each in grid.scales(block))
    codes = nearest(grid.levels, np.divide(wanted - offset, scale, out=np.zeros_like(wanted), where=scale != 0))
    np.testing.assert_allclose(grid.levels[codes] * scale + offset, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dequantize(grid.pack(np.zeros_like(block) | block, codes), to).T, wanted)
    other = np.random.default_rng(2).integers(0, len(grid.levels), codes.shape, np.uint8)
    np.testing.assert_allclose(
        dequantize(grid.pack(block, other), to).T, grid.levels[other] * scale + offset, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", GRIDS)
def test_repaired_rounding_loses_less_than_ggmls_with_the_same_inputs_known(
    name: str, weights: Floats, inputs: Floats
) -> None:
    to = kind(name)
    covariance = (inputs.T @ inputs / len(inputs)).astype(np.float32)

    def loss(rounded: Floats) -> float:
        return float(np.square(inputs @ (rounded - weights).T).mean())

    plain = dequantize(quantize(weights, to, np.diag(covariance).astype(np.float32)), to)
    repaired = dequantize(round_rows(weights, to, factor(covariance)), to)
    assert loss(repaired) < 0.8 * loss(plain)


def test_weights_of_nothing_stay_nothing() -> None:
    rows = np.zeros((3, COLUMNS), np.float32)
    for name in GRIDS:
        assert not dequantize(round_rows(rows, kind(name), factor(np.eye(COLUMNS, dtype=np.float32))), kind(name)).any()
