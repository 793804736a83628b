"""llama.cpp, for GGUF bundles: memory and the roofline of decoding (bytes read for each token) by the header alone."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from fieldlm.core.logs import logger
from fieldlm.engines import Engine, EngineFacts, EngineOptions, Reading, SpecialTokens
from fieldlm.engines.llama_layout import Layout, layout_of
from fieldlm.engines.memory_plan import PREFILL_ALONE, NoRoomError, plan, row_bytes
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.gguf import Header, Strings, read_header
from fieldlm.formats.profile import Profile

log = logger(__name__)

LEAST_CONTEXT = 1024
"""Tokens; with fewer, a conversation is over before it has begun."""
GGUF_CONTROL = 3
"""`LLAMA_TOKEN_TYPE_CONTROL` of llama.h, as `tokenizer.ggml.token_type` says it."""


class LlamaKind:
    """An EngineKind."""

    cache_type = "f16"

    def open(self, bundle: Bundle, options: EngineOptions) -> Engine:
        """See `EngineKind.open`. Where nobody says how long the context is, it is what memory allows."""
        from fieldlm.engines import llama

        header = _shared_header(bundle.need("base"))
        try:
            return llama.open(bundle, options, header)
        except NoRoomError as error:
            if options.context is not None or error.context < LEAST_CONTEXT:
                raise
            log.warning(
                f"{bundle.manifest.model.name} gets {error.context} tokens of context: memory has no room for more"
            )
            return llama.open(bundle, replace(options, context=error.context), header)

    def preload(self) -> None:
        from fieldlm.engines import llama, llama_api

        assert llama, "imported"
        llama_api.start_backend()

    def facts(self) -> EngineFacts:
        from fieldlm.engines.binding.c_api import binding_version
        from fieldlm.engines.llama_api import api, built_with_amx, log
        from fieldlm.engines.llama_devices import devices

        layers = log.offloaded[0] if log.offloaded else 0
        gpus = ", ".join(f"{d.name} ({d.description})" for d in devices() if d.name != "CPU")
        return EngineFacts(
            version=f"llama-cpp-python-{binding_version()}",
            system=api.llama_print_system_info().decode(),
            batch=PREFILL_ALONE,
            repacks=not built_with_amx(),
            gpu=gpus if layers else "",
            gpu_layers=layers,
        )

    def foreseen_mb(
        self, bundle: Bundle, *, context: int, parallel: int, isa: Sequence[str] = (), profile: Profile | None = None
    ) -> float | None:
        need = plan(
            read_header(bundle.need("base")),
            context=context,
            parallel=parallel,
            batch=PREFILL_ALONE + parallel,
            isa=isa,
            layout=layout_of(profile, bundle.manifest.cache),
        )
        return need.total + sum(file.size for file in bundle.manifest.files if file.role == "adapter") / 1e6

    def reading(self, bundle: Bundle, profile: Profile | None = None) -> Reading:
        header, adapter = read_header(bundle.need("base")), bundle.path("adapter")
        weights = _read_weights(header) + (_tensor_bytes(adapter) if adapter else 0)
        return Reading(
            weights=weights, kv_of_token=_kv_bytes(header, layout_of(profile, bundle.manifest.cache)), is_exact=True
        )

    def weight_bytes(self, bundle: Bundle) -> int:
        return _tensor_bytes(bundle.need("base"))

    def special_tokens(self, bundle: Bundle) -> SpecialTokens:
        return _from_gguf(bundle.need("base"), bundle.id)


KIND = LlamaKind()


_shared = dict[tuple[Path, int, int, int], Header]()


def _shared_header(path: Path) -> Header:
    """Return the header of the weights at `path`, which the engine and the special tokens are made of at a start.

    Whoever is first reads it and leaves it for the other: it is megabytes, and nobody keeps it.
    """
    try:
        at = path.stat()
    except OSError:
        return read_header(path)  # which says what is wrong
    key = (path, at.st_ino, at.st_size, at.st_mtime_ns)
    if (found := _shared.pop(key, None)) is not None:
        return found
    found = read_header(path)
    _shared.clear()
    _shared[key] = found
    return found


def _tensor_bytes(path: Path) -> int:
    return sum(tensor.size for tensor in read_header(path).tensors.values())


def _read_weights(header: Header) -> int:
    """Sum what a step touches: of an embedding that is not the head too, one row, which is nothing."""
    tied = "output.weight" not in header.tensors
    return sum(tensor.size for name, tensor in header.tensors.items() if tied or name != "token_embd.weight")


def _kv_bytes(header: Header, layout: Layout) -> int:
    """Return the bytes of one token's keys and values in `layout`; 0 when the header does not say their shape."""
    heads_at = _number(header, "attention.head_count")
    layers, width = _number(header, "block_count"), _number(header, "embedding_length")
    if not (layers and width and heads_at):
        return 0
    head = width // heads_at
    keys = _number(header, "attention.key_length") or head
    values = _number(header, "attention.value_length") or head
    kv_heads = _value(header, "attention.head_count_kv")
    total_heads = sum(cast(list[int], kv_heads)) if isinstance(kv_heads, list) else layers * int(kv_heads or heads_at)
    return total_heads * (row_bytes(keys, layout.key_type) + row_bytes(values, layout.value_type))


def _value(header: Header, key: str) -> Any:
    return header.metadata.get(f"{header.architecture}.{key}")


def _number(header: Header, key: str) -> int:
    value = _value(header, key)
    return value if isinstance(value, int) else 0


@lru_cache(maxsize=8)
def _from_gguf(base: Path, _bundle_id: str) -> SpecialTokens:
    metadata = _shared_header(base).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type")

    def text(name: str) -> str:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[token] if isinstance(tokens, Strings) and token is not None and token < len(tokens) else ""

    # SentencePiece models want a BOS unless their file says otherwise.
    default = metadata.get("tokenizer.ggml.model") == "llama"
    control = [i for i, kind in enumerate(cast(list[int], kinds)) if kind == GGUF_CONTROL] if kinds else []
    return SpecialTokens(
        bos=text("bos"),
        eos=text("eos"),
        adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", default)),
        control=tuple(tokens.pick(control)) if isinstance(tokens, Strings) else (),
    )
