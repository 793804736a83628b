"""Embeddings, texts as vectors: the hidden states that the model itself computes, their mean over the tokens of a text.

A context of its own on the weights that serve, made for one text and freed after it: a device that is seldom asked for
vectors does not hold memory for them. Texts go through in pieces, so that answers beside them are not held up long.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from fieldlm.core.errors import EngineError
from fieldlm.core.interrupts import heeding_interrupts
from fieldlm.engines.llama_api import Batch, LlamaWeights, LoraAdapter, api
from fieldlm.engines.sampling import Floats

PIECE = 64  # tokens a step: what a running answer waits between two tokens
CELL_STEP = 256  # llama.cpp rounds the cells of its cache up to this


class Embedding:
    """One text on its way to a vector. For the engine's thread alone."""

    def __init__(
        self, weights: LlamaWeights, tokens: Sequence[int], *, adapter: LoraAdapter | None, threads: int
    ) -> None:
        params = api.llama_context_default_params()
        params.n_ctx = -(-len(tokens) // CELL_STEP) * CELL_STEP
        params.n_batch = params.n_ubatch = PIECE
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = api.LLAMA_POOLING_TYPE_NONE
        with heeding_interrupts():
            self._context = api.llama_init_from_model(weights.model, params)
        if not self._context:
            raise EngineError(f"no memory for the vectors of {len(tokens)} tokens")
        if adapter is not None:
            handles = (api.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
            api.llama_set_adapters_lora(self._context, handles, 1, (ctypes.c_float * 1)(1.0))
        weights.hold()
        self._weights = weights
        self._tokens = tokens
        self._width: int = api.llama_model_n_embd(weights.model)
        self._batch = Batch(PIECE)
        self._sum = np.zeros(self._width, np.float64)
        self._done = 0

    def step(self) -> bool:
        """Compute the next piece; False when there is none left."""
        piece = self._tokens[self._done : self._done + PIECE]
        if not piece:
            return False
        self._batch.clear()
        for i, token in enumerate(piece):
            self._batch.add([token], sequence=0, position=self._done + i, want_last=True)
        if status := api.llama_decode(self._context, self._batch.struct):
            raise EngineError(f"llama.cpp cannot compute this text (code {status})")
        for i in range(len(piece)):
            self._sum += np.ctypeslib.as_array(api.llama_get_embeddings_ith(self._context, i), (self._width,))
        self._done += len(piece)
        return True

    def vector(self) -> Floats:
        """Return the mean as a vector of length 1, or zeros when nothing was computed."""
        if not self._done:
            return self._sum.astype(np.float32)
        length = float(np.linalg.norm(self._sum))
        if not np.isfinite(length) or not length:
            raise EngineError("the model's hidden states are not numbers; its weights are damaged")
        return (self._sum / length).astype(np.float32)

    def close(self) -> None:
        api.llama_free(self._context)
        self._weights.release()
