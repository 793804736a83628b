"""llama.cpp bindings: its C API with Python types, and nothing decided here.

Only the low-level binding is used (`binding.c_api`). What llama.cpp logs is not printed; its complaint becomes the
error's text (`binding.log`).
"""

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError
from fieldlm.core.interrupts import heeding_interrupts
from fieldlm.engines import SEAM
from fieldlm.engines.binding import calls
from fieldlm.engines.binding.c_api import load_binding
from fieldlm.engines.binding.log import Log
from fieldlm.engines.llama_kernels import load_kernels
from fieldlm.engines.llama_layout import DEFAULT_LAYOUT, Layout
from fieldlm.engines.prompt_lookup import MOST_ROWS
from fieldlm.engines.sampling import Floats
from fieldlm.engines.special_texts import SpecialText, SpecialTexts, TokenLength, byte_of_character
from fieldlm.hardware.huge_pages import huge_pages
from fieldlm.hardware.processor import check_processor

# OpenMP reads this when it is loaded: how often a thread looks whether the others are done before it sleeps, at each of
# a thousand barriers a token. Sleeping is cheap, waking up is not. SmolLM2-135M Q8_0 on two cores over HTTP, tokens/s
# with 3000 spins and with 200000: one client 127 and 136, where llama-server gives 123; 4 and 8 clients alike. Beside a
# busy process `CoreWatch` leaves one thread, which meets nobody (107 and 107); two that were asked for lose a tenth.
# But who never sleeps leaves nothing to an update that is rehearsed on idle processors.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

check_processor()

api = load_binding()
Pointer = Any

FLASH_ATTENTION = {
    None: api.LLAMA_FLASH_ATTN_TYPE_AUTO,
    False: api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    True: api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}
ABORTED = 2
NO_ROOM = 1
NAMED_ENDS = (
    api.llama_vocab_eos, api.llama_vocab_eot, api.llama_vocab_fim_pad, api.llama_vocab_fim_rep, api.llama_vocab_fim_sep
)  # fmt: skip
UNKNOWN = object()
"""Adapters that are no single one."""

log = Log(api)
_backend = threading.Lock()


def start_backend() -> None:
    """Have llama.cpp find its kernels and devices, and log to us; once more does no harm.

    Raises EngineError where it has none for this processor.
    """
    with _backend, heeding_interrupts():
        api.llama_log_set(log.callback, ctypes.c_void_p())
        load_kernels()
        api.llama_backend_init()


def _load(path: Path, params: Any) -> Pointer:
    """Load a model so that Ctrl-C ends it: in the main thread a callback of the library would swallow the interrupt."""
    is_wanted = threading.Event()
    is_wanted.set()

    def go_on(_share: float, _data: object) -> bool:
        return is_wanted.is_set()

    callback = params.progress_callback = api.llama_progress_callback(go_on)
    assert callback, "kept until the load is over"
    if threading.current_thread() is not threading.main_thread():
        return api.llama_model_load_from_file(str(path).encode(), params)
    with ThreadPoolExecutor(1, "load") as thread:
        loading = thread.submit(api.llama_model_load_from_file, str(path).encode(), params)
        try:
            return loading.result()
        except BaseException:
            is_wanted.clear()
            if not loading.exception() and (model := loading.result()):
                api.llama_model_free(model)
            raise


def built_with_amx() -> bool:
    """Whether this build would repack weights for AMX tiles.

    GCC 12 drops the stores of the tile configuration that llama.cpp's AMX kernels load (the intrinsic declares 8 of its
    64 bytes), and the first prompt ends the process. No board of ours has AMX, so such a build does without repacking.
    """
    return b"AMX_INT8 = 1" in api.llama_print_system_info()


class LlamaWeights:
    """A loaded model and its vocabulary, freed when the last who holds it lets go.

    Who makes it holds it, and so does each context on it; a thread may be tokenising while all closes. The collector
    has no say: engines and their threads refer to each other in circles, and hundreds of megabytes would wait for it.
    """

    def __init__(self, path: Path, layout: Layout = DEFAULT_LAYOUT) -> None:
        start_backend()
        params = api.llama_model_default_params()
        # Read unless mapping is asked for: repacked tensors would be in memory twice, and a file that is cut short
        # while it serves would end the process.
        params.load_mode = api.LLAMA_LOAD_MODE_MMAP if layout.is_mapped else api.LLAMA_LOAD_MODE_NONE
        params.n_gpu_layers = layout.gpu_layers
        params.use_extra_bufts = not built_with_amx()
        # The log first: what others load while this waits for it is not this one's memory.
        with log.listening() as self.sizes, huge_pages() as log.on_buffer:
            self.model: Pointer = _load(path, params)
            if not self.model:
                raise EngineError(f"{path} cannot be loaded: {log.reason()}")
            self.offloaded = log.offloaded
        self._free = weakref.finalize(self, api.llama_model_free, self.model)
        self._free.atexit = False
        self._holders, self._lock = 1, threading.Lock()
        self._vocab: Pointer = api.llama_model_get_vocab(self.model)
        self.vocabulary: int = api.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}

    def hold(self) -> None:
        """Keep the model in memory until `release`; raises EngineError when it is gone."""
        with self._lock:
            if not self._holders:
                raise EngineError("the engine is closed")
            self._holders += 1

    def release(self) -> None:
        """Let go; the last one frees the model."""
        with self._lock:
            self._holders -= 1
            is_last = not self._holders
        if is_last:
            self._free()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._free.alive

    @contextmanager
    def _held(self) -> Generator[None]:
        self.hold()
        try:
            yield
        finally:
            self.release()

    @property
    def trained_context(self) -> int:
        return api.llama_model_n_ctx_train(self.model)

    @property
    def keeps_positions(self) -> bool:
        """Whether the memory of a sequence can be cut at any position; a recurrent state cannot."""
        return not (api.llama_model_is_recurrent(self.model) or api.llama_model_is_hybrid(self.model))

    @functools.cached_property
    def _marked(self) -> dict[int, int]:
        """The attributes of all tokens that are no plain text: the one look over the vocabulary that a start takes."""
        if api.llama_vocab_type(self._vocab) == api.LLAMA_VOCAB_TYPE_NONE:
            return {}
        attributes = calls.keeping(api.llama_vocab_get_attr, ctypes.c_int, ctypes.c_void_p, ctypes.c_int32)
        wanted = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_USER_DEFINED | api.LLAMA_TOKEN_ATTR_UNKNOWN
        with self._held():
            kinds = map(functools.partial(attributes, self._vocab), range(self.vocabulary))
            return {token: kind for token, kind in enumerate(kinds) if kind & wanted}

    def ends(self) -> frozenset[int]:
        """Return the tokens that end an answer.

        llama.cpp makes control tokens of those that it knows by their text; the others are those that the file names.
        """
        text = ctypes.create_string_buffer(16)
        has_eom = api.llama_model_meta_val_str(self.model, b"tokenizer.ggml.eom_token_id", text, len(text)) > 0
        named = [function(self._vocab) for function in NAMED_ENDS] + ([int(text.value)] if has_eom else [])
        return frozenset(token for token in (*self._marked, *named) if api.llama_vocab_is_eog(self._vocab, token))

    @functools.cached_property
    def _specials(self) -> SpecialTexts | None:
        """The tokens that are cut out here; None for a kind of tokenizer whose order nobody checked."""
        if api.llama_vocab_type(self._vocab) not in (api.LLAMA_VOCAB_TYPE_SPM, api.LLAMA_VOCAB_TYPE_BPE):
            return None
        with self._held():
            text, left, right = api.llama_vocab_get_text, api.LLAMA_TOKEN_ATTR_LSTRIP, api.LLAMA_TOKEN_ATTR_RSTRIP
            return SpecialTexts(
                SpecialText(text(self._vocab, token), token, bool(kind & left), bool(kind & right))
                for token, kind in self._marked.items()
            )

    @functools.cached_property
    def length(self) -> TokenLength:
        """How much text a token can stand for."""
        if self._specials is None or self._specials.shrinks:
            return TokenLength()
        with self._held():
            text = calls.keeping(api.llama_vocab_get_text, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int32)
            texts = [text(self._vocab, token) for token in range(self.vocabulary)]
        # A byte is a character of its own here, and in SentencePiece a space has three bytes: never too short.
        longest = max(map(len, texts))
        if api.llama_vocab_type(self._vocab) == api.LLAMA_VOCAB_TYPE_SPM:
            return TokenLength(longest)
        spelt = frozenset(texts)
        lost = (byte for character, byte in byte_of_character().items() if character.encode() not in spelt)
        return TokenLength(longest, b"".join(lost))

    def tokenize(self, text: str) -> list[int]:
        return [token for piece in text.split(SEAM) for token in self._whole(piece.encode())]

    def _whole(self, data: bytes) -> list[int]:
        if self._specials is None:
            return self._tokenize(data)
        pieces = self._specials.split(data)
        return [token for piece in pieces for token in ([piece] if isinstance(piece, int) else self._tokenize(piece))]

    def _tokenize(self, data: bytes) -> list[int]:
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        with self._held():
            count: int = api.llama_tokenize(self._vocab, data, len(data), tokens, room, False, True)
            if count < 0:
                tokens = (ctypes.c_int32 * -count)()
                count = api.llama_tokenize(self._vocab, data, len(data), tokens, -count, False, True)
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """Return the bytes of `token`; special tokens have none."""
        found = self._pieces.get(token)
        if found is None:
            with self._held():
                found = self._pieces[token] = self._spell(token)
        return found

    def _spell(self, token: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count: int = api.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


class LoraAdapter:
    """A LoRA loaded beside the weights. Its identity, not its name, says which sequences it has touched."""

    def __init__(self, weights: LlamaWeights, path: Path) -> None:
        with log.listening() as self.sizes:
            self.handle: Pointer = api.llama_adapter_lora_init(weights.model, str(path).encode())
            if not self.handle:
                raise EngineError(f"{path} cannot be loaded as an adapter: {log.reason()}")

    def close(self) -> None:
        api.llama_adapter_lora_free(self.handle)


class Batch:
    """Tokens for one decode, in arrays that llama.cpp reads in place."""

    def __init__(self, room: int) -> None:
        self.count = 0
        integers = ctypes.c_int32 * room
        self._token, self._position, self._sequence = integers(), integers(), integers()
        self._wanted = (ctypes.c_int8 * room)()
        self._ones = integers(*[1] * room)
        first = ctypes.addressof(self._sequence)
        self._rows = (ctypes.POINTER(ctypes.c_int32) * (room + 1))()
        for i in range(room):
            self._rows[i] = ctypes.cast(first + 4 * i, ctypes.POINTER(ctypes.c_int32))
        self.struct = api.llama_batch(0, self._token, None, self._position, self._ones, self._rows, self._wanted)

    def clear(self) -> None:
        self.count = self.struct.n_tokens = 0

    def add(
        self, tokens: Sequence[int], *, sequence: int, position: int, want_last: bool, want_all: bool = False
    ) -> int:
        """Append `tokens` at `position` of `sequence`; return the row of the last one."""
        count = len(tokens)
        start, end = self.count, self.count + count
        self._token[start:end] = tokens
        self._position[start:end] = range(position, position + count)
        self._sequence[start:end] = [sequence] * count
        self._wanted[start:end] = [want_all] * count
        self._wanted[end - 1] = want_last or want_all
        self.count = self.struct.n_tokens = end
        return end - 1


class Context:
    """The memory of all sequences, and the one place that computes. Used by one thread, but for `abort`."""

    def __init__(
        self,
        weights: LlamaWeights,
        *,
        cells: int,
        sequences: int,
        batch: int,
        ubatch: int,
        threads: int,
        prefill_threads: int,
        layout: Layout = DEFAULT_LAYOUT,
    ) -> None:
        params = api.llama_context_default_params()
        params.type_k, params.type_v = layout.key_type, layout.value_type
        params.flash_attn_type = FLASH_ATTENTION[layout.flash_attention]
        params.n_ctx = cells
        params.n_batch, params.n_ubatch = batch, ubatch
        params.n_seq_max = sequences
        # One row of logits per sequence and step, or of one sequence and its draft: for every token of a batch it would
        # be 50 MB.
        params.n_outputs_max = max(sequences, MOST_ROWS)
        params.n_threads, params.n_threads_batch = threads, prefill_threads
        # One buffer for all sequences, so that a shared prefix is stored and read once; else cells are positions.
        params.kv_unified = not layout.has_own_cells
        # The callback runs hundreds of times a token: C's strlen over a flag keeps Python out of it.
        self._flag = ctypes.create_string_buffer(2)
        self._weights = weights
        strlen = ctypes.CDLL(None).strlen
        params.abort_callback = ctypes.cast(strlen, api.ggml_abort_callback)
        params.abort_callback_data = ctypes.addressof(self._flag)
        with log.listening() as self.sizes:
            self._context: Pointer = api.llama_init_from_model(weights.model, params)
            if not self._context:
                raise EngineError(f"no context of {cells} tokens for this model: {log.reason()}")
        weights.hold()
        self._most = self._now = threads, prefill_threads
        self._memory: Pointer = api.llama_get_memory(self._context)
        self._row_of = calls.row_of(api)
        self._row_type = ctypes.c_float * weights.vocabulary
        self._rows: dict[int, Floats] = {}
        self._adapter: object = None
        self._has_own_cells = layout.has_own_cells
        self._by_sequence = calls.adapters_by_sequence(api)
        self.mixes_adapters: bool = self._by_sequence(self._context, None, 0) == 0
        """Whether one decode computes sequences with different adapters."""

    def close(self) -> None:
        api.llama_free(self._context)
        self._weights.release()

    def limit_threads(self, free: int) -> None:
        """Compute the next decodes with so many threads at most."""
        threads, prefill_threads = self._most
        now = min(threads, free), min(prefill_threads, free)
        if now != self._now:
            api.llama_set_n_threads(self._context, *now)
            self._now = now

    def allow(self) -> None:
        """Forget an `abort` that came too late for its decode."""
        self._flag[0] = b"\0"

    def abort(self) -> None:
        """Make the decode that runs now return ABORTED soon, from any thread; on a GPU it runs to its end."""
        self._flag[0] = b"\1"

    def decode(self, batch: Batch) -> int:
        """Compute `batch`: 0 done, NO_ROOM, ABORTED, or negative. Unless 0, none of its tokens are remembered."""
        return api.llama_decode(self._context, batch.struct)

    def logits(self, row: int) -> Floats:
        """Return the logits of `row` of the last batch, in place: valid until the next decode."""
        address = self._row_of(self._context, row)
        view = self._rows.get(address)
        if view is None:
            view = self._rows[address] = cast(
                NDArray[np.float32], np.ctypeslib.as_array(self._row_type.from_address(address))
            )
        return view

    def use(self, adapter: LoraAdapter | None) -> None:
        """Switch `adapter` on for the next decodes, or none."""
        if adapter is self._adapter:
            return
        if adapter is None:
            api.llama_set_adapters_lora(self._context, None, 0, None)
        else:
            handles = (api.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
            api.llama_set_adapters_lora(self._context, handles, 1, (ctypes.c_float * 1)(1.0))
        self._adapter = adapter

    def use_by_sequence(self, adapters: Mapping[int, LoraAdapter | None]) -> None:
        """Switch on for the next decode, all of whose rows are wanted, the adapter of each sequence; others have none.

        Only where `mixes_adapters`.
        """
        handles = (api.llama_adapter_lora_p_ctypes * (1 + max(adapters)))()
        for sequence, adapter in adapters.items():
            handles[sequence] = adapter.handle if adapter else None
        self._by_sequence(self._context, handles, len(handles))
        self._adapter = UNKNOWN

    def cut(self, sequence: int, position: int = 0) -> bool:
        """Forget `sequence` from `position` on; False when this memory cannot be cut there."""
        return api.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def state(self, sequence: int) -> bytes:
        """Return what `sequence` remembers, for `restore` in a context made alike."""
        size: int = api.llama_state_seq_get_size(self._context, sequence)
        data = (ctypes.c_uint8 * size)()
        written: int = api.llama_state_seq_get_data(self._context, data, size, sequence)
        return bytes(data)[:written]

    def restore(self, sequence: int, state: bytes) -> bool:
        """Let the empty `sequence` remember `state`; False when llama.cpp refuses it."""
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return api.llama_state_seq_set_data(self._context, data, len(state), sequence) > 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Let the empty sequence `target` begin with the first `length` tokens of `source`, if need be in a copy."""
        if not self._has_own_cells:
            api.llama_memory_seq_cp(self._memory, source, target, 0, length)
        elif self.restore(target, self.state(source)):
            self.cut(target, length)
