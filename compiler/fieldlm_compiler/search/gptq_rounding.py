"""GPTQ rounding, which repairs itself: what one column loses, the columns after it make up for.

Rounded one by one, weights lose what they lose. But inputs go together, so an error in one column can be undone in
others: after a column is rounded, its error is spread over the columns not rounded yet, in the proportions that change
the outputs least (E. Frantar et al., GPTQ, ICLR 2023). ggml's own kernel chooses the scales of each block for the
weights as they stand by then; only the codes are chosen here. The file is like any other: the device pays nothing.
"""

from typing import Any, cast

import numpy as np

from fieldlm_compiler.export.ggml import Bytes, Floats, Kind, dequantize, quantize
from fieldlm_compiler.search.ggml_blocks import GRIDS, Grid, nearest

# Share of the mean variance that every input is given on top: text that calibration did not see moves them too.
DAMPING = 0.01


def factor(covariance: Floats, damping: float = DAMPING) -> Floats:
    """Return the upper Cholesky factor [columns, columns] of the inverse of the damped `covariance`.

    Its row i says how an error in column i is best spread over the columns after it; 1 / its squared diagonal is what
    an error in column i costs when the columns after it have made up for it.
    """
    from scipy.linalg import lapack

    matrix = covariance.astype(np.float64)
    mean = float(np.mean(np.diag(matrix))) or 1.0
    matrix = matrix / mean + damping * np.eye(len(matrix))
    # With the order of the columns turned round, the factor of the inverse is the inverse of the factor.
    lower = np.linalg.cholesky(matrix[::-1, ::-1])
    inverse, failed = cast(Any, lapack).dtrtri(lower, lower=1)
    assert not failed, "a damped covariance has an inverse"
    return np.ascontiguousarray(inverse[::-1, ::-1], np.float32)


def round_rows(rows: Floats, to: Kind, upper: Floats) -> Bytes:
    """Return `rows` [n, columns] as blocks of type `to`, rounded for inputs whose `factor` is `upper`.

    Types whose codes are not known here are rounded a block at a time, the errors carried from block to block.
    """
    # Columns lie one after the other in memory: everything below works on one column of all rows.
    left = np.ascontiguousarray(rows.T, np.float32)
    importance = (1.0 / np.square(np.diag(upper))).astype(np.float32)
    blocks: list[Bytes] = []
    for start in range(0, len(left), to.block):
        end = start + to.block
        current = left[start:end].copy()
        plain = quantize(current.T, to, importance[start:end])
        grid = GRIDS.get(to.name)
        if grid is None:
            error = _whole_block(current, dequantize(plain, to).T, upper[start:end, start:end])
        else:
            plain, error = _column_by_column(current, plain, grid, upper[start:end, start:end])
        blocks.append(plain)
        left[end:] -= upper[start:end, end:].T @ error
    return np.concatenate(blocks, axis=1)


def _column_by_column(current: Floats, plain: Bytes, grid: Grid, upper: Floats) -> tuple[Bytes, Floats]:
    """Choose the codes of one block [columns, rows] within the scales of `plain`; return blocks and scaled errors."""
    codes, error = choose_codes(current, grid.levels, *grid.scales(plain), upper)
    return grid.pack(plain, codes), error


def choose_codes(current: Floats, levels: Floats, scale: Floats, offset: Floats, upper: Floats) -> tuple[Bytes, Floats]:
    """Choose a code for each weight of `current` [columns, rows], one column after the other; `current` is used up.

    A code stands for levels[code] · scale + offset, both [groups, rows]. Returns codes and scaled errors, as current.
    """
    group = len(current) // len(scale)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.empty(current.shape, np.uint8)
    error = np.empty_like(current)
    for at, column in enumerate(current):
        part = at // group
        codes[at] = nearest(levels, (column - offset[part]) * inverse[part])
        error[at] = (column - (levels[codes[at]] * scale[part] + offset[part])) / upper[at, at]
        current[at + 1 :] -= upper[at, at + 1 :, None] * error[at]
    return codes, error


def _whole_block(current: Floats, rounded: Floats, upper: Floats) -> Floats:
    """Return the scaled errors of a block that was rounded at once."""
    error = np.linalg.solve(upper.T.astype(np.float64), (current - rounded).astype(np.float64))
    return error.astype(np.float32)
