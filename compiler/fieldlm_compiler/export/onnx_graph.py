"""ONNX graph passes: they turn the graph Optimum exports into the one the engine runs fast (docs/onnx-graph.md).

Every pass changes the model in place and knows the graph only by the names that the exporter derives from the modules
of the checkpoint. A pass that does not find what it knows leaves the model as it is and says so.
"""

import json
import math
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
TO_THE_END = 2**63 - 1

Floats = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the fused attention has to know: heads, the scale of the scores, cosines and sines per position."""

    layers: int
    heads: int
    kv_heads: int
    scale: float
    cosines: Floats
    sines: Floats


def keep_last_logits(model: ModelProto) -> None:
    """Compute logits for the last position alone: the head is a third of a small model's work per token."""
    graph = model.graph
    head = next(node for node in graph.node if "logits" in node.output)
    constants = {"last/start": [-1], "last/end": [TO_THE_END], "last/axis": [1]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    )
    last = helper.make_node("Slice", [head.input[0], *constants], ["last/hidden"], "last/Slice")
    head.input[0] = "last/hidden"
    graph.node.insert(list(graph.node).index(head), last)
    output = next(output for output in graph.output if output.name == "logits")
    output.type.tensor_type.shape.dim[1].dim_value = 1


def fuse_attention(model: ModelProto, attention: Attention) -> bool:
    """Put one GroupQueryAttention in place of each layer's rotary embedding, cache, mask and softmax.

    The key-value cache then is one buffer per layer that the operator writes in place, where the exported graph copies
    the whole cache at every token. Returns False, with `model` untouched, when a layer lacks a projection it needs.
    """
    graph = model.graph
    named = {node.name: node for node in graph.node}
    layers = [_projections(named, layer) for layer in range(attention.layers)]
    if not all(layers):
        return False
    outputs = {output.name for output in graph.output if output.name.startswith("present.")}
    replaced = [node for node in graph.node if not outputs.isdisjoint(node.output)]
    for layer, projections in enumerate(layers):
        _fuse_layer(graph, layer, projections, attention)
    for node in replaced:
        graph.node.remove(node)
    _prepend(graph, _lengths())
    graph.initializer.append(numpy_helper.from_array(attention.cosines, "rotary/cos"))
    graph.initializer.append(numpy_helper.from_array(attention.sines, "rotary/sin"))
    _import_microsoft(model)
    prune(model)
    _share_cache_dimensions(graph)
    return True


def _projections(named: dict[str, NodeProto], layer: int) -> list[NodeProto]:
    """Return the nodes that end q, k and v of `layer`, and the one that begins o; nothing when one is missing."""
    prefix = f"/model/layers.{layer}/self_attn"
    # A projection with a bias ends in an Add. Norms on q and k would sit behind it and be lost: leave such a layer.
    if any(name.startswith((f"{prefix}/q_norm", f"{prefix}/k_norm")) for name in named):
        return []
    found = [named.get(f"{prefix}/{p}_proj/Add") or named.get(f"{prefix}/{p}_proj/MatMul") for p in "qkv"]
    found.append(named.get(f"{prefix}/o_proj/MatMul"))
    return [node for node in found if node is not None] if None not in found else []


def _fuse_layer(graph: GraphProto, layer: int, projections: list[NodeProto], attention: Attention) -> None:
    *inputs, out = projections
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    present = [f"present.{layer}.{part}" for part in ("key", "value")]
    name = f"/model/layers.{layer}/self_attn/GroupQueryAttention"
    fused = helper.make_node(
        "GroupQueryAttention",
        [*(node.output[0] for node in inputs), *past, "lengths/last", "lengths/total", "rotary/cos", "rotary/sin"],
        [f"{name}_output_0", *present],
        name,
        domain=MICROSOFT,
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        scale=attention.scale,
        do_rotary=1,
    )
    out.input[0] = fused.output[0]
    graph.node.insert(list(graph.node).index(out), fused)


def join_products(model: ModelProto) -> None:
    """Multiply what several matrices are applied to once, by all of them side by side: queries, keys and values; gates.

    A product rounds its input to int8 and gathers the threads anew, which is much of a small model's token.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    beside: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and len(weights[node.input[1]].dims) == 2:
            beside.setdefault(node.input[0], []).append(node)
    for nodes in beside.values():
        if len(nodes) > 1:
            _join(graph, nodes, [numpy_helper.to_array(weights[node.input[1]]) for node in nodes])
    prune(model)


def _join(graph: GraphProto, nodes: list[NodeProto], weights: list[Floats]) -> None:
    first = nodes[0]
    name = f"{first.name}/joined"
    joined = helper.make_node("MatMul", [first.input[0], f"{name}/weight"], [f"{name}/output"], name)
    side_by_side = numpy_helper.from_array(np.concatenate(weights, axis=1), f"{name}/weight")
    # Whoever gives it another type has to know whose weights these are.
    widths = [weight.shape[1] for weight in weights]
    side_by_side.doc_string = json.dumps({node.name: width for node, width in zip(nodes, widths, strict=True)})
    graph.initializer.append(side_by_side)
    outputs = [node.output[0] for node in nodes]
    place = list(graph.node).index(first)
    attention = next((node for node in graph.node if list(node.input[:3]) == outputs), None)
    if attention is not None and attention.op_type == "GroupQueryAttention":
        # It takes queries, keys and values as one.
        attention.input[0], attention.input[1], attention.input[2] = joined.output[0], "", ""
    else:
        graph.initializer.append(numpy_helper.from_array(np.array(widths, np.int64), f"{name}/widths"))
        parts = helper.make_node("Split", [joined.output[0], f"{name}/widths"], outputs, f"{name}/Split", axis=-1)
        graph.node.insert(place, parts)
    graph.node.insert(place, joined)
    for node in nodes:
        graph.node.remove(node)


def _lengths() -> list[NodeProto]:
    """Return nodes that count the attention mask: index of the last key per sequence, and the longest total."""
    axis = numpy_helper.from_array(np.array([1], np.int64))
    one = numpy_helper.from_array(np.array([1], np.int32))
    return [
        helper.make_node("Constant", [], ["lengths/axis"], "lengths/axis", value=axis),
        helper.make_node("Constant", [], ["lengths/one"], "lengths/one", value=one),
        helper.make_node("ReduceSum", ["attention_mask", "lengths/axis"], ["lengths/sum"], "lengths/sum", keepdims=0),
        helper.make_node("Cast", ["lengths/sum"], ["lengths/sum32"], "lengths/sum32", to=TensorProto.INT32),
        helper.make_node("Sub", ["lengths/sum32", "lengths/one"], ["lengths/last"], "lengths/last"),
        helper.make_node("Shape", ["attention_mask"], ["lengths/shape"], "lengths/shape", start=1, end=2),
        helper.make_node("Squeeze", ["lengths/shape"], ["lengths/width"], "lengths/width"),
        helper.make_node("Cast", ["lengths/width"], ["lengths/total"], "lengths/total", to=TensorProto.INT32),
    ]


def _prepend(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)


def _import_microsoft(model: ModelProto) -> None:
    if all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def _share_cache_dimensions(graph: GraphProto) -> None:
    """Say in the graph that past and present are one buffer of fixed capacity."""
    for value in [*graph.input, *graph.output]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[2].dim_param = "capacity"


def prune(model: ModelProto) -> None:
    """Drop nodes, initializers and inputs that no output depends on."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for attribute in node.attribute for inner in attribute.g.node for name in inner.input)
    _replace(graph.node, list(reversed(kept)))
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    _replace(graph.input, [value for value in graph.input if value.name in needed])
    del graph.value_info[:]


def share_constants(model: ModelProto) -> None:
    """Keep one of all constants that are equal: a traced model has each of its few once a layer and more."""
    graph = model.graph
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Constant":
            same[node.output[0]] = first.setdefault(node.attribute[0].SerializeToString(), node.output[0])
        else:
            _replace(node.input, [same.get(name, name) for name in node.input])
    prune(model)


def _replace(field: MutableSequence[T], values: list[T]) -> None:
    del field[:]
    field.extend(values)


def count_floats(model: ModelProto) -> int:
    """Return how many weights the model has, the rotary tables left out."""
    tables = ("rotary/cos", "rotary/sin")
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.name not in tables]
    return sum(math.prod(tensor.dims) for tensor in floats)


def untie_head(model: ModelProto) -> int:
    """Give a head that reads the transposed embedding a weight of its own, so that it can be quantised.

    Returns the width of the embedding, 0 when the head is not tied to it.
    """
    graph = model.graph
    head = next(node for node in graph.node if "logits" in node.output)
    turned = next((node for node in graph.node if head.input[1] in node.output and node.op_type == "Transpose"), None)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if turned is None or turned.input[0] not in weights:
        return 0
    own = np.ascontiguousarray(numpy_helper.to_array(weights[turned.input[0]]).T)
    graph.initializer.append(numpy_helper.from_array(own, "lm_head.weight"))
    head.input[1] = "lm_head.weight"
    prune(model)
    return own.shape[0]


def tie_embedding(model: ModelProto, *, bits: int, block_size: int) -> None:
    """Read the embedding from the quantised head's own blocks: the largest table of a small model is stored once.

    The model's head must be the embedding transposed, and its rows whole blocks.
    """
    graph = model.graph
    head = next(node for node in graph.node if node.op_type == "MatMulNBits" and node.name.startswith("/lm_head/"))
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.name.endswith("embed_tokens/Gather"))
    weights = {tensor.name: tensor for tensor in graph.initializer}
    blocks, scales = (weights[name] for name in head.input[1:3])
    rows = blocks.dims[0]
    shapes = {"embedding/blocks": [rows, -1], "embedding/scales": [rows, -1]}
    nodes: list[NodeProto] = []
    for (name, shape), tensor in zip(shapes.items(), (blocks, scales), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}/shape"))
        nodes.append(helper.make_node("Reshape", [tensor.name, f"{name}/shape"], [name], name))
    lookup = helper.make_node(
        "GatherBlockQuantized",
        ["embedding/blocks", gather.input[1], "embedding/scales"],
        list(gather.output),
        gather.name,
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=block_size,
        bits=bits,
    )
    graph.node.remove(gather)
    _prepend(graph, [*nodes, lookup])
    prune(model)
