"""How a model itself writes calls, as its chat template says: what a call that must come is held to.

The template is asked: it writes a conversation in which two tools were called, and what stands around names and
arguments there is the model's own spelling. It counts only where the reader of answers reads it back. A few templates
describe calls in words and write none; they are known by a mark. All else is spelt as Hermes models began.
"""

import json
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fieldlm.core.errors import FieldlmError
from fieldlm.engines import Engine
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.call_spellings import MARKS
from fieldlm.inference.chat_template import ChatTemplate, special_tokens, template_of
from fieldlm.inference.tool_calls import CLOSE, OPEN, Call, CallReader


@dataclass(frozen=True)
class ArgumentStyle:
    """How the arguments of a call are written: one after the other, unless they are JSON as a whole.

    `part` holds KEY and VALUE. Texts stand between `quote`s; without any they are written as they are.
    """

    name: str
    part: str
    between: str = ""
    quote: str = ""
    never: tuple[str, ...] = ()
    """What a text that is written as it is cannot hold: a reader would take it for the end."""

    def spelt(self, given: dict[str, str]) -> str:
        """Return texts as arguments."""
        if self.name == "json":
            return json.dumps(given)
        parts = [
            self.part.replace("KEY", key).replace("VALUE", f"{self.quote}{text}{self.quote}")
            for key, text in given.items()
        ]
        return self.between.join(parts)


_XML_ENDS = (
    "<parameter", "</parameter>", "</function>", "</invoke>", "</tool_call>", "</seed:tool_call>",
    "</minimax:tool_call>", "</function_calls>", "<｜DSML｜parameter", "</｜DSML｜parameter>", "</｜DSML｜invoke>",
)  # fmt: skip
_DSML = "<｜DSML｜"  # DeepSeek V3.2 and 4
_PAIR_ENDS = ("<arg_key>", "</arg_value>", "</tool_call>")
JSON = ArgumentStyle("json", "")
PYTHON = ArgumentStyle("python", "KEY=VALUE", ", ", '"')  # LFM2, Llama 4
_GEMMA_ENDS = ("<escape>", "<start_function_call>", "<end_function_call>")
GEMMA = ArgumentStyle("gemma", "KEY:VALUE", ",", "<escape>", _GEMMA_ENDS)  # FunctionGemma
STYLES = (
    JSON,
    ArgumentStyle("xml", "<parameter=KEY>\nVALUE\n</parameter>\n", never=_XML_ENDS),  # Qwen3-Coder, Nemotron 3
    ArgumentStyle("xml", "<parameter=KEY>VALUE</parameter>\n", never=_XML_ENDS),  # Seed-OSS
    ArgumentStyle("xml", '<parameter name="KEY">VALUE</parameter>\n', never=_XML_ENDS),  # MiniMax, OLMo 3
    ArgumentStyle("xml", '<param name="KEY">VALUE</param>', never=("</param>", "</function>")),  # MiniCPM 5
    ArgumentStyle("xml", f'{_DSML}parameter name="KEY" string="true">VALUE</{_DSML[1:]}parameter>\n', never=_XML_ENDS),
    ArgumentStyle("pairs", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", never=_PAIR_ENDS),  # GLM 4.5
    ArgumentStyle("pairs", "<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>", never=_PAIR_ENDS),  # GLM 4.7
    PYTHON,
    ArgumentStyle("python", "KEY=VALUE", ", ", "'"),
    GEMMA,
    ArgumentStyle("gemma", "KEY:VALUE", ",", '<|"|>', ('<|"|>', "<|tool_call>", "<tool_call|>")),  # Gemma 4
)


@dataclass(frozen=True)
class CallFormat:
    """What stands around the names and arguments of calls. `between` None: this model makes one call at a time."""

    opens: str
    after_name: str
    closes: str
    between: str | None = None
    style: ArgumentStyle = JSON

    @property
    def mark(self) -> str:
        """What tells its calls from a text: the mark that they begin with, else their first character."""
        found = [mark for mark in MARKS if self.opens.startswith(mark)]
        return max(found, key=len, default=self.opens[:1])

    def spelt(self, calls: Sequence[tuple[str, dict[str, str]]]) -> str:
        """Return calls as the model writes them; for texts that need no escape."""
        each = [f"{name}{self.after_name}{self.style.spelt(given)}" for name, given in calls]
        return f"{self.opens}{(self.between or '').join(each)}{self.closes}"


_HEAD, _MIDDLE = '{"name": "', '", "arguments": '
HERMES = CallFormat(
    f"{OPEN}\n{_HEAD}", _MIDDLE, f"}}\n{CLOSE}", between=f"}}\n{CLOSE}\n{OPEN}\n{_HEAD}"
)  # fmt: skip
"""The spelling of a template that has none of its own, and of what another has no words for."""
_LFM2 = CallFormat("<|tool_call_start|>[", "(", ")]<|tool_call_end|>", between="), ", style=PYTHON)
_FUNCTION_GEMMA = CallFormat(
    "<start_function_call>call:", "{", "}<end_function_call>",
    between="}<end_function_call><start_function_call>call:", style=GEMMA,
)  # fmt: skip
_TOLD: tuple[tuple[str, CallFormat], ...] = (
    ("<|tool_call_start|>", _LFM2),
    ("<|tool_list_start|>", _LFM2),
    ("List of tools: [", _LFM2),
    ("<start_function_declaration>", _FUNCTION_GEMMA),
    ("<|/tool_call|>", CallFormat(f"<|tool_call|>[{_HEAD}", _MIDDLE, "}]<|/tool_call|>", f"}}, {_HEAD}")),  # Phi-4 mini
    ("<|/tool|>", CallFormat(f"<|tool_call|>[{_HEAD}", _MIDDLE, "}]<|/tool_call|>", f"}}, {_HEAD}")),
    ("<|tool_call|>", CallFormat(f"<|tool_call|>[{_HEAD}", _MIDDLE, "}]", f"}}, {_HEAD}")),  # Granite 3
    ("<TOOLCALL>", CallFormat(f"<TOOLCALL>[{_HEAD}", _MIDDLE, "}]</TOOLCALL>", f"}}, {_HEAD}")),  # Nemotron Nano
)
"""By a mark in it, how the calls of a template look that writes none."""

_NAMES = ("go_there", "stop_now")
_GIVEN = ({"place": "lift"}, {"why": "fire"})
_SCHEMAS = {
    name: {"properties": {key: {"type": "string"} for key in given}} for name, given in zip(_NAMES, _GIVEN, strict=True)
}
_WORD = "zebra"
_UNFINISHED = re.compile(r"[<\[][^>\]]*\Z")
"""A mark that two texts begin in common and go on with in different ways."""
_OF_IDS = ("call00000", "functions.{}:0")
"""Mistral wants nine letters or digits; Kimi's say what is called. One for all calls: who reads them makes others."""

# Words that are one token in some model: a control token, which has no text, and is said as what it stands for.
TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_calls>", "</tool_calls>", "<function_call>", "</function_call>",
    "<TOOLCALL>", "</TOOLCALL>", "<minimax:tool_call>", "</minimax:tool_call>", "<seed:tool_call>", "</seed:tool_call>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
    "<|tool_call_argument_begin|>", "<|tool_call_start|>", "<|tool_call|>", "<|/tool_call|>",
    "<|tools_prefix|>", "<|tools_suffix|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|action_start|>", "<|action_end|>",
    "<|plugin|>", "<start_function_call>", "<end_function_call>", "<escape>", "<|tool_call>", "<tool_call|>", '<|"|>',
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]",
    "<|python_tag|>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip

_said: "weakref.WeakKeyDictionary[Engine, tuple[tuple[int, str], ...]]" = weakref.WeakKeyDictionary()
# By the bundle, too: one of an adapter may have another template on the same engine.
_formats: "weakref.WeakKeyDictionary[Engine, dict[str, CallFormat]]" = weakref.WeakKeyDictionary()
_finding = threading.Lock()


def said_tokens(engine: Engine) -> tuple[tuple[int, str], ...]:
    """Return the control tokens of calls that `engine` has, and what each stands for."""
    with _finding:
        found = _said.get(engine)
        if found is None:
            ids = [(engine.tokenize(text), text) for text in TOKENS]
            found = tuple((one[0], text) for one, text in ids if len(one) == 1 and not engine.detokenize(one))
            _said[engine] = found
        return found


def call_format(bundle: Bundle, engine: Engine) -> CallFormat:
    """Return how the model of `bundle`, which `engine` computes, writes calls. Asked once, then known."""
    from jinja2 import TemplateError

    template = template_of(bundle)
    try:
        if template is None or not template.knows_tools:
            return HERMES
    except TemplateError:  # `render` says what is wrong with it
        return HERMES
    with _finding:
        known = _formats.setdefault(engine, {})
        found = known.get(bundle.id)
    if found is None:
        ends = [
            text
            for text in special_tokens(bundle).control
            if text in template.source and engine.stop_tokens.issuperset(engine.tokenize(text))
        ]
        found = known[bundle.id] = format_of(template, ends)
    return found


def format_of(template: ChatTemplate, ends: Sequence[str] = ()) -> CallFormat:
    """Return how `template` writes calls; `ends` are texts of tokens that end an answer."""
    for ids in _OF_IDS:
        for as_text in (False, True):
            one, two = (_written(template, count, ids, as_text, ends) for count in (1, 2))
            two = two.replace(f"{_NAMES[1]}:1", f"{_NAMES[1]}:0")  # Kimi counts
            for style in STYLES if one else ():
                if found := _derived(one, two, style):
                    return found
    return next((found for mark, found in _TOLD if mark in template.source), HERMES)


def _written(template: ChatTemplate, count: int, ids: str, as_text: bool, ends: Sequence[str]) -> str:
    """Return what an answer of so many calls is in `template`; empty where it refuses them."""
    calls = [
        {
            "id": ids.format(_NAMES[i]),
            "type": "function",
            "function": {"name": _NAMES[i], "arguments": json.dumps(_GIVEN[i]) if as_text else _GIVEN[i]},
        }
        for i in range(count)
    ]
    asked = {"role": "user", "content": "Go."}
    tools = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", **schema}}}
        for name, schema in _SCHEMAS.items()
    ]
    try:
        plain = template.render([asked, {"role": "assistant", "content": _WORD}], tools=tools, asks=False)
        text = template.render(
            [asked, {"role": "assistant", "content": "", "tool_calls": calls}], tools=tools, asks=False
        )
    except FieldlmError:
        return ""
    before, _, after = plain.rpartition(_WORD)
    # Templates may begin an answer of calls in another way than one of words.
    same = next((i for i, pair in enumerate(zip(before, text, strict=False)) if pair[0] != pair[1]), len(before))
    text = text[len(_UNFINISHED.sub("", before[:same])) :]
    if after and text.endswith(after):
        text = text.removesuffix(after)
    for end in ends:
        text = text.partition(end)[0]
    text = text.strip()
    if _is_read(text, count):
        return text
    # What is thought before a call, and what comes back behind it, is none of it.
    at, mark = min(((text.find(mark), mark) for mark in MARKS if mark in text), default=(0, ""))
    end = text.rfind(MARKS[mark]) + len(MARKS[mark]) if mark and MARKS[mark] in text else len(text)
    return text[at:end]


def _derived(one: str, two: str, style: ArgumentStyle) -> CallFormat | None:
    """Return the format in which `one` is one call and `two` are two; None where this is not the style."""
    spelt = style.spelt(_GIVEN[0])
    opens, _, rest = one.partition(_NAMES[0])
    after_name, found, closes = rest.partition(spelt)
    if not found or _NAMES[0] in rest:
        return None
    single = CallFormat(opens, after_name, closes, style=style)
    if not _is_read(one, 1):
        return None
    head = f"{opens}{_NAMES[0]}{after_name}{spelt}"
    between, found, _ = two.removeprefix(head).partition(f"{_NAMES[1]}{after_name}{style.spelt(_GIVEN[1])}")
    if not two.startswith(head) or not found or not _is_read(two, 2):
        return single
    several = CallFormat(opens, after_name, closes, between=between, style=style)
    return several if several.spelt(list(_calls(2))) == two else single


def _calls(count: int) -> Iterator[tuple[str, dict[str, str]]]:
    return zip(_NAMES[:count], _GIVEN[:count], strict=True)


def _is_read(text: str, count: int) -> bool:
    """Whether a reader finds in `text` the first `count` calls and nothing else."""
    reader = CallReader(frozenset(_NAMES), schemas=_SCHEMAS)
    pieces = [*reader.push(text), *reader.finish()]
    found: list[tuple[str, Any]] = [
        (piece.name, json.loads(piece.arguments)) for piece in pieces if isinstance(piece, Call)
    ]
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    return found == list(_calls(count)) and not said.strip()
