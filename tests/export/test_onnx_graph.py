"""Passes over a graph, on graphs small enough to read."""

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fieldlm_compiler.export.onnx_graph import join_products

WIDTHS = {"gate": 6, "up": 6, "other": 3}


def model() -> ModelProto:
    """x is multiplied by three matrices; one of the products is multiplied once more."""
    rng = np.random.default_rng(0)
    shapes = {name: (4, width) for name, width in WIDTHS.items()} | {"down": (6, 2)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}/out"], f"/{name}/MatMul") for name in WIDTHS]
    nodes.append(helper.make_node("MatMul", ["gate/out", "down"], ["down/out"], "/down/MatMul"))
    outputs = ["up/out", "other/out", "down/out"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(asked: ModelProto) -> Sequence[NDArray[np.float32]]:
    x = np.random.default_rng(1).normal(size=(1, 5, 4)).astype(np.float32)
    session = ort.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    return cast(Sequence[NDArray[np.float32]], session.run(None, {"x": x}))


def test_products_of_one_input_are_computed_as_one_and_stay_what_they_were() -> None:
    plain, joined = model(), model()
    join_products(joined)
    assert Counter(node.op_type for node in joined.graph.node) == {"MatMul": 2, "Split": 1}
    assert {weight.name for weight in joined.graph.initializer}.isdisjoint(WIDTHS), "no weight is stored twice"
    for before, after in zip(run(plain), run(joined), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-6)


def test_queries_keys_and_values_go_to_the_attention_as_one() -> None:
    asked = model()
    products = [node.output[0] for node in asked.graph.node[:3]]
    attention = helper.make_node(
        "GroupQueryAttention", [*products, "past"], ["up/out"], "fused", domain="com.microsoft"
    )
    del asked.graph.output[1:]
    asked.graph.node[1].output[0] = products[1] = attention.input[1] = "up/product"
    asked.graph.node.append(attention)
    join_products(asked)
    assert [node.op_type for node in asked.graph.node] == ["MatMul", "GroupQueryAttention"]
    assert list(asked.graph.node[1].input) == [asked.graph.node[0].output[0], "", "", "past"]
