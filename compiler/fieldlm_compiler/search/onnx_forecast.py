"""Forecast for ONNX: what a mixture will weigh, hold in memory and answer a second, before it is written."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fieldlm.engines.memory_plan import MemoryPlan
from fieldlm.formats.bundle import CacheTypes
from fieldlm.formats.profile import Profile
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.export.onnx_graph import MICROSOFT
from fieldlm_compiler.pipeline.child import call
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.onnx_blocks import WHOLE, nbits
from fieldlm_compiler.search.onnx_weights import opened
from fieldlm_compiler.search.searchable import Foreseen

MB = 1e6
# A product this large is read from memory, as a model's are, and not from a cache.
TIMED_WEIGHTS = 1 << 24
TIMED_ROUNDS = 7


class OnnxForesight:
    """The graph `full` with other types: what it would be on a device with `profile`.

    `tokens_per_s` is what full weights give here. A token's time changes by what its products take, each type timed
    here once.
    """

    def __init__(self, full: Artefact, profile: Profile, tokens_per_s: float, stages: Stages) -> None:
        self._full, self._profile, self._stages = full, profile, stages
        self._tokens_per_s = tokens_per_s
        self._weights = opened(full.base)
        self._ns: dict[str, float] = {}

    def foresee(self, types: Mapping[str, str], cache: CacheTypes | None = None) -> Foreseen:
        """Return what the mixture `types` will be; its cache has the graph's own type."""
        level = self._profile.onnx.accuracy_level
        size = self._full.tokenizer_bytes + self._weights.size_bytes(types, level)
        kv = self._weights.token_bytes * self._context * self._profile.runtime.parallel
        ram = MemoryPlan(weights=(size - self._full.tokenizer_bytes) / MB, kv=kv / MB, compute=0.0, loading=0.0)
        return Foreseen(bytes=size, ram=ram, tokens_per_s=self._speed(types))

    @property
    def _context(self) -> int:
        return min(self._profile.gguf.context, self._weights.context)

    def _speed(self, types: Mapping[str, str]) -> float:
        """Return tokens a second for one answer."""
        self._ns = self._ns or self._timed()
        counts = {name: math.prod(self._weights.shape(name)) for name in types if self._weights.is_product(name)}
        before_ns = sum(count * self._ns[WHOLE] for count in counts.values())
        after_ns = sum(count * self._ns[types[name]] for name, count in counts.items())
        # What is no product takes what it took. A model that fits a cache was faster than its products are foreseen.
        return 1e9 / (max(1e9 / self._tokens_per_s - before_ns, 0.0) + after_ns)

    def _timed(self) -> dict[str, float]:
        kinds = {way.name for name in self._weights.names for way in self._weights.ways(name, ())}
        asked: dict[str, Any] = {
            "types": sorted(kinds),
            "level": self._profile.onnx.accuracy_level,
            "engine": installed(("onnxruntime",)),
        }

        def make(_: object) -> Any:
            return call(time_products, what="time a product of every type")(
                types=asked["types"],
                accuracy_level=asked["level"],
            )

        _, made = self._stages.run("timed-products", asked, make)
        return made.value


def time_products(types: Sequence[str], accuracy_level: int) -> dict[str, float]:
    """Return the nanoseconds that one weight of each of `types` takes in a token. Runs in a child process."""
    return {name: _time(name, 1024, accuracy_level) for name in types}


def _time(name: str, columns: int, accuracy_level: int) -> float:
    import onnxruntime as ort

    from fieldlm.hardware.cores import physical_cores

    rows = TIMED_WEIGHTS // columns
    if name == WHOLE:
        weights = [np.ones((columns, rows), np.float32)]
        node = helper.make_node("MatMul", ["x", "0"], ["y"])
    else:
        to = nbits(name)
        blocks = columns // to.block
        weights = [
            np.ones((rows, blocks, to.block * to.bits // 8), np.uint8),
            np.ones(rows * blocks, np.float32),
            *([] if to.is_symmetric else [np.ones(rows * to.zero_bytes(blocks), np.uint8)]),
        ]
        about = {"K": columns, "N": rows, "bits": to.bits, "block_size": to.block, "accuracy_level": accuracy_level}
        inputs = ["x", *map(str, range(len(weights)))]
        node = helper.make_node("MatMulNBits", inputs, ["y"], domain=MICROSOFT)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in about.items())
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, rows])],
        [numpy_helper.from_array(each, str(at)) for at, each in enumerate(weights)],
    )
    sets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    model = helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((1, 1, columns), np.float32)}
    spent_s: list[float] = []
    for _ in range(TIMED_ROUNDS):
        began_s = time.perf_counter()
        session.run(None, feeds)
        spent_s.append(time.perf_counter() - began_s)
    return float(np.median(spent_s)) * 1e9 / TIMED_WEIGHTS
