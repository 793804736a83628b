"""The chat template, messages in and prompt text out: as the model's authors wrote it, in a sandbox.

Knows nothing of tokens and engines. The prompt is written out with its special tokens, the BOS among them where the
template puts one; `Engine.tokenize` adds none, so there is never a second.
"""

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fieldlm.core.errors import BundleError, InputError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.gguf import Strings, read_header
from fieldlm.inference.tool_calls import as_text, described

Message = dict[str, Any]


class SpecialTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The texts of the tokens a template may name, and whether plain text begins with the first of them."""

    bos: str = ""
    eos: str = ""
    adds_bos: bool = False


def render(bundle: Bundle, messages: Sequence[Message], *, tools: Sequence[Message] | None = None) -> str:
    """Return the prompt that asks for the next message.

    The manifest's system prompt is put in front when `messages` has none. A template that knows no tools gets them as
    text: a system message that describes them, calls and their results as `tools` spells them. Raises InputError when
    the template refuses the messages (a role it does not know, two answers in a row), BundleError when the template
    itself is broken.
    """
    asked = list(messages)
    system = bundle.manifest.system_prompt
    if system and not any(message.get("role") in ("system", "developer") for message in asked):
        asked.insert(0, {"role": "system", "content": system})
    special = special_tokens(bundle)
    try:
        template = _template(bundle.need("template"), bundle.id)
        if not _knows_tools(bundle.need("template"), bundle.id):
            asked, tools = _without_tools(asked, tools), None
        return template.render(
            messages=asked, tools=tools, add_generation_prompt=True, bos_token=special.bos, eos_token=special.eos
        )
    except jinja2.TemplateSyntaxError as error:
        raise BundleError(f"the chat template is broken in line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise InputError(f"the model's chat template refuses these messages: {error}") from error


def opening(bundle: Bundle) -> str:
    """Return what text that goes in without a template begins with: the BOS for models that want one, else nothing."""
    special = special_tokens(bundle)
    return special.bos if special.adds_bos else ""


@lru_cache(maxsize=8)
def _template(path: Path, _bundle_id: str) -> jinja2.Template:
    return _environment().from_string(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=8)
def _knows_tools(path: Path, _bundle_id: str) -> bool:
    return "tools" in find_undeclared_variables(_environment().parse(path.read_text(encoding="utf-8")))


def _without_tools(messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Message]:
    plain = [as_text(message) for message in messages]
    if not tools:
        return plain
    system, rest = ([plain[0]["content"]], plain[1:]) if plain and plain[0]["role"] == "system" else ([], plain)
    return [{"role": "system", "content": "\n\n".join([*system, described(list(tools))])}, *rest]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    functions: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": time.strftime}
    environment.globals.update(functions)
    return environment


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As Transformers does it: no HTML escapes, keys in their order, spaces after separators."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def special_tokens(bundle: Bundle) -> SpecialTokens:
    """Return the special tokens: the manifest's `notes` say them (`bos_token`, `eos_token`), else the GGUF does."""
    notes = bundle.manifest.notes
    if "bos_token" in notes or "eos_token" in notes or bundle.manifest.engine != "llama":
        return SpecialTokens(
            bos=str(notes.get("bos_token") or ""),
            eos=str(notes.get("eos_token") or ""),
            adds_bos=bool(notes.get("add_bos_token", False)),
        )
    return _from_gguf(bundle.need("base"), bundle.id)


@lru_cache(maxsize=8)
def _from_gguf(base: Path, _bundle_id: str) -> SpecialTokens:
    metadata = read_header(base).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")

    def text(name: str) -> str:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[token] if isinstance(tokens, Strings) and token is not None and token < len(tokens) else ""

    # SentencePiece models want a BOS unless their file says otherwise.
    default = metadata.get("tokenizer.ggml.model") == "llama"
    return SpecialTokens(
        bos=text("bos"), eos=text("eos"), adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", default))
    )
