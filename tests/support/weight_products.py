"""8-bit weights times columns, as llama.cpp's kernels multiply them: `python -m tests.support.weight_products FOLDER`.

Weights and columns are drawn so that they are exact in ggml's blocks of 8 bits (Q8_0), and the products can be told
beforehand. Printed as JSON: by kernel in FOLDER that fits this processor, and by shape, how far the product is from
that, of its largest number (`apart`), and whether each column alone comes to the same bits (`alike`).
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fieldlm.engines.llama_kernels import kernels_in

F32, Q8_0, BLOCK = 0, 8, 32
# Rows of weights, numbers in a row, columns: tiles of 16 and 8 rows with some left over, rows of more than 64 blocks,
# more than 64 columns, and numbers of columns that no tile divides.
SHAPES = (
    (16, 32, 5), (40, 96, 7), (35, 576, 12), (192, 576, 6), (24, 2144, 13), (48, 4224, 17), (64, 96, 70), (21, 64, 131),
    (16, 64, 2), (32, 576, 4),
)  # fmt: skip


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """ggml and one kind of its kernels, with two threads."""

    def __init__(self, folder: Path, kind: str) -> None:
        # By this name the kernels ask for it.
        self._base = ctypes.CDLL(str(folder / "libggml-base.so.0"), mode=ctypes.RTLD_GLOBAL)
        self._ggml = ctypes.CDLL(str(folder / "libggml.so.0"))
        registry = self._call("ggml_backend_load", str(folder / f"libggml-cpu-{kind}.so").encode())
        assert registry, f"{kind} does not fit this processor"
        self._backend = self._call(
            "ggml_backend_dev_init", self._call("ggml_backend_reg_dev_get", registry, ctypes.c_size_t(0)), None
        )
        set_threads = self._call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_set_n_threads")
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(set_threads)(self._backend, 2)

    def product(self, weights: bytes, shape: tuple[int, int, int], columns: Any) -> Any:
        """Return columns × rows, floats, of `weights` (rows in Q8_0) and `columns` (columns × numbers, floats)."""
        rows, numbers, count = shape
        self._base.ggml_init.argtypes, self._base.ggml_init.restype = [InitParams], ctypes.c_void_p
        context = self._base.ggml_init(InitParams(1 << 20, None, True))
        w = self._call("ggml_new_tensor_2d", context, Q8_0, ctypes.c_int64(numbers), ctypes.c_int64(rows))
        x = self._call("ggml_new_tensor_2d", context, F32, ctypes.c_int64(numbers), ctypes.c_int64(count))
        y = self._call("ggml_mul_mat", context, w, x)
        graph = self._call("ggml_new_graph", context)
        self._call("ggml_build_forward_expand", graph, y)
        buffer = self._call("ggml_backend_alloc_ctx_tensors", context, self._backend)
        for tensor, data in ((w, weights), (x, columns.astype(np.float32).tobytes())):
            self._call("ggml_backend_tensor_set", tensor, data, ctypes.c_size_t(0), ctypes.c_size_t(len(data)))
        assert self._call("ggml_backend_graph_compute", self._backend, graph) in (0, None)
        found = np.empty((count, rows), np.float32)
        self._call(
            "ggml_backend_tensor_get", y, ctypes.c_void_p(found.ctypes.data), ctypes.c_size_t(0),
            ctypes.c_size_t(found.nbytes),
        )  # fmt: skip
        self._call("ggml_backend_buffer_free", buffer)
        self._call("ggml_free", context)
        return found

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function that takes and returns pointers, or nothing."""
        library = self._ggml if hasattr(self._ggml, name) else self._base
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        return function(
            *[ctypes.c_void_p(each) if isinstance(each, int) and each > 1 << 16 else each for each in arguments]
        )


def drawn(rng: np.random.Generator, rows: int, numbers: int, *, low: int) -> tuple[Any, Any]:
    """Return rows of whole numbers from `low` to 127, the largest 127 in each block, and the scale of each block."""
    values = rng.integers(low, 128, (rows, numbers // BLOCK, BLOCK))
    values[:, :, 0] = 127
    return values, (2.0 ** rng.integers(-8, -3, (rows, numbers // BLOCK))).astype(np.float16)


def compared(ggml: Ggml, shape: tuple[int, int, int]) -> dict[str, Any]:
    rows, numbers, count = shape
    rng = np.random.default_rng(rows * numbers + count)
    # ggml writes no -128 itself; files from elsewhere may have it.
    w, w_scales = drawn(rng, rows, numbers, low=-128)
    x, x_scales = drawn(rng, count, numbers, low=-127)
    blocks = np.concatenate([w_scales[:, :, None].view(np.int8), w.astype(np.int8)], axis=2).tobytes()
    columns = (x * x_scales[:, :, None].astype(np.float64)).reshape(count, numbers)
    exact = columns @ (w * w_scales[:, :, None].astype(np.float64)).reshape(rows, numbers).T
    found = ggml.product(blocks, shape, columns)
    alone = [ggml.product(blocks, (rows, numbers, 1), column[None]) for column in columns]
    return {
        "apart": float(np.max(np.abs(found - exact)) / np.max(np.abs(exact))),
        "alike": bool(np.array_equal(found, np.concatenate(alone))),
    }


def main(folder: Path) -> None:
    kinds = [kind for kind, score in kernels_in(folder).items() if score]
    print(json.dumps({kind: _by_shape(Ggml(folder, kind)) for kind in kinds}))


def _by_shape(ggml: Ggml) -> dict[str, dict[str, Any]]:
    return {" × ".join(map(str, shape)): compared(ggml, shape) for shape in SHAPES}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
