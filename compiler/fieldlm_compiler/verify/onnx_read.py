"""Logits of an ONNX graph behind every token of a text at once: the device's session, its own products.

The graph that is shipped computes the head for the last token alone. Here that one cut is taken out again, in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fieldlm.engines.onnx import PAST, session_of
from fieldlm_compiler.export.ggml import Floats

LAST = "last/hidden"  # what `exporters.onnx_graph.keep_last_logits` puts in front of the head


class OnnxReader:
    """One graph that reads texts of up to `room` tokens and says its logits for each."""

    def __init__(self, path: Path, room: int, threads: int) -> None:
        from fieldlm.hardware.cores import physical_cores

        model = onnx.load(path, load_external_data=False)
        cut = next(node for node in model.graph.node if LAST in node.output)
        whole = cut.input[0]
        for node in model.graph.node:
            node.input[:] = [whole if name == LAST else name for name in node.input]
        model.graph.node.remove(cut)
        del model.graph.output[1:]
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "read"
        self._session = session_of(path, threads or physical_cores(), graph=model.SerializeToString())
        self._inputs: dict[str, Any] = {value.name: value.shape for value in self._session.get_inputs()}
        self._is_shared = any(node.op_type == "GroupQueryAttention" for node in model.graph.node)
        self._room = room

    def read(self, tokens: Sequence[int], start: int) -> Floats:
        """Return the logits [tokens - start, vocabulary] after each token from `start` on."""
        count = len(tokens)
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
        }
        cells = self._room if self._is_shared else 0
        for name, shape in self._inputs.items():
            if name.startswith(PAST):
                feeds[name] = np.zeros((1, shape[1], cells, shape[3]), np.float32)
        found: Any = self._session.run(["logits"], {name: feeds[name] for name in self._inputs})
        return found[0][0, start:]
