"""How models spell tool calls: the marks around them, and what stands between, read into names and arguments.

Spellings are those of the models' own chat templates. Where a mark is one token it may be a control token, which is
never said: then what stands between is all there is, and the same readers know it.
"""

import ast
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

MARKS: dict[str, str] = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen, Granite 4, SmolLM3, GLM (with arg_key), Qwen3-Coder (with function=)
    "<tool_calls>": "</tool_calls>",  # Hunyuan, Jamba
    "<function_call>": "</function_call>",  # Granite 20B functioncalling
    "<function_calls>": "</function_calls>",  # OLMo 3, invoke
    "<tools>": "</tools>",  # Qwen2.5-Coder
    "<function=": "</function>",  # Llama 3.1, Functionary 3.1, Qwen3-Coder without its wrapper
    "<function name=": "</function>",  # MiniCPM 5
    "<invoke ": "</invoke>",
    "<minimax:tool_call>": "</minimax:tool_call>",
    "<seed:tool_call>": "</seed:tool_call>",
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron
    "<｜DSML｜function_calls>": "</｜DSML｜function_calls>",  # DeepSeek V3.2
    "<｜DSML｜tool_calls>": "</｜DSML｜tool_calls>",  # DeepSeek V4
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",  # DeepSeek V3, R1
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",  # Kimi K2
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4 mini; Granite 3, which ends it with the answer
    "<|tools_prefix|>": "<|tools_suffix|>",  # Apertus
    "<|START_ACTION|>": "<|END_ACTION|>",  # Command R7B
    "<|action_start|>": "<|action_end|>",  # InternLM
    "<start_function_call>": "<end_function_call>",  # FunctionGemma
    "<|tool_call>": "<tool_call|>",  # Gemma 4
    "```tool_code": "```",  # Gemma 3
    "```tool_call": "```",
    "[TOOL_CALLS]": "",  # Mistral, to the end of the answer
    "<|python_tag|>": "",  # Llama 3
    "functools[": "",  # Phi-4 mini, Firefunction
    "<<function>>": "",  # Gorilla
    "<|channel|>commentary to=": "<|call|>",  # gpt-oss
}
"""What begins calls, and what ends them; nothing: the answer does."""
IN_BODY = frozenset({"<function=", "<function name=", "<invoke ", "functools[", "<|channel|>commentary to="})
"""Marks that say a part of what is called."""

Asked = tuple[str, dict[str, Any]]
Schemas = Mapping[str, Mapping[str, Any]]
ESCAPE = "<escape>"
GEMMA4_ESCAPE = '<|"|>'
_NAME = r"[\w.-]{1,64}"
_DEEPSEEK, _KIMI = "<｜tool▁call▁begin｜>", "<|tool_call_begin|>"
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_FUNCTION = re.compile(rf"<function=({_NAME})>(.*?)(?:</function>|\Z)", re.DOTALL)
_INVOKE = re.compile(
    rf'<(?:｜DSML｜)?(?:invoke|function) name="({_NAME})">(.*?)(?:</(?:｜DSML｜)?(?:invoke|function)>|\Z)', re.DOTALL
)
_NAMED = re.compile(
    r'<(?:｜DSML｜)?param(?:eter)? name="([^"]+)"[^>]*>(.*?)(?:</(?:｜DSML｜)?param(?:eter)?>|\Z)', re.DOTALL
)  # fmt: skip
_KEYED = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_MISTRAL = re.compile(rf"\s*({_NAME})\s*(?:\[CALL_ID\]\w+)?\s*(?:\[ARGS\])?\s*(?={{)")
_HARMONY = re.compile(rf"<\|channel\|>commentary to=({_NAME})[^{{]*?<\|message\|>")
_GEMMA = re.compile(rf"\s*call:({_NAME})(?={{)")
_FENCES = ("```\n", "```json", "```python", "```tool_code", "```tool_call")
"""What may hold a call; any other code at the beginning of an answer is said as it comes."""
_FENCE = re.compile(
    r"^\s*(?:Action:\s*)?```(?:json|python|tool_code|tool_call)?\s*\n(.*?)\n?\s*(?:```\s*)?$", re.DOTALL
)


def asked_for(text: str, names: Collection[str], schemas: Schemas | None = None) -> list[Asked]:
    """Return the calls that `text` consists of, marks taken off; none when anything in it is no call of `names`.

    `schemas` of the arguments by name: where a spelling has no types, they say what is a text and what a number.
    """
    text = fence[1] if (fence := _FENCE.match(text)) else text
    for reader in _READERS:
        try:
            found = list(reader(text.strip(), names, schemas or {}))
        except (ValueError, RecursionError, MemoryError, KeyError):
            continue
        if found and all(name in names for name, _ in found):
            return found
    return []


def may_begin(text: str, names: Collection[str]) -> bool:
    """Whether an answer that begins with `text` may turn out to be a call that no mark stands before."""
    if text[0] in "{[":
        return True
    begins = [*_FENCES, *(f"call:{name}" for name in names)]
    begins += [f"{before}{name}{after}" for name in names for before in ("", "functions.") for after in "({[\n"]
    return any(text.startswith(begin) or begin.startswith(text) for begin in begins)


def _json(text: str, names: Collection[str], _: Schemas) -> Iterator[Asked]:
    decoder, text = json.JSONDecoder(), text.removeprefix("functools").removeprefix("<|plugin|>").strip()
    while text:
        value, end = decoder.raw_decode(text)
        for each in cast(list[Any], value) if isinstance(value, list) else [value]:
            yield _call(each, names)
        text = re.sub(r"^[\s;,]+", "", text[end:])


def _call(value: Any, names: Collection[str]) -> Asked:
    """Return what an object asks for; raises ValueError for one that asks for nothing."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    fields = cast(dict[str, Any], value)
    fields = fields["function"] if isinstance(fields.get("function"), dict) else fields
    if len(fields) == 1 and (only := next(iter(fields))) in names:
        return only, _object(fields[only])
    name = next((fields[key] for key in ("name", "tool_name", "function", "tool") if key in fields), None)
    keys = [key for key in ("arguments", "parameters", "args", "input") if key in fields]
    if not isinstance(name, str) or not keys:
        raise ValueError("no call")
    given = fields[keys[0]]
    return _known(name, names), _object(json.loads(given or "{}") if isinstance(given, str) else given)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("arguments that are no object")
    return cast(dict[str, Any], value)


def _known(name: str, names: Collection[str]) -> str:
    return name if name in names else name.removeprefix("functions.")


def _xml(text: str, names: Collection[str], schemas: Schemas) -> Iterator[Asked]:
    """`<function=NAME>` and `<invoke name="NAME">`, with parameters of their own, or JSON."""
    for call, parameter in ((_FUNCTION, _PARAMETER), (_INVOKE, _NAMED)):
        found = list(call.finditer(text))
        if not found or call.sub("", text).strip():
            continue
        for each in found:
            name, inner = each[1], each[2]
            if inner.strip().startswith("{"):
                yield name, _object(json.loads(inner))
                continue
            if parameter.sub("", inner).strip():
                raise ValueError("more than parameters")
            given = {part[1]: part[2] for part in parameter.finditer(inner)}
            yield name, {key: _typed(name, key, value, schemas) for key, value in given.items()}


def _keyed(text: str, _: Collection[str], schemas: Schemas) -> Iterator[Asked]:
    """GLM: the name, then pairs of `<arg_key>` and `<arg_value>`."""
    name, _, rest = text.partition("<arg_key>")
    rest = rest and "<arg_key>" + rest
    name = name.strip()
    if not re.fullmatch(_NAME, name) or _KEYED.sub("", rest).strip():
        raise ValueError("more than pairs")
    yield name, {part[1]: _typed(name, part[1], part[2], schemas) for part in _KEYED.finditer(rest)}


def _named_json(text: str, names: Collection[str], _: Schemas) -> Iterator[Asked]:
    """Mistral, GLM-4, Functionary, gpt-oss: the name, then the arguments as JSON."""
    decoder = json.JSONDecoder()
    text = text.replace("[TOOL_CALLS]", "\n").removeprefix(">>>")
    while text.strip():
        head = _HARMONY.match(text.strip())
        if head:
            text = text.strip()
        head = head or _MISTRAL.match(text)
        if head is None:
            raise ValueError("no name")
        value, end = decoder.raw_decode(text, head.end())
        yield _known(head[1], names), _object(value)
        text = text[end:].removeprefix("<|call|>").lstrip().removeprefix(">>>")


def _sectioned(text: str, names: Collection[str], _: Schemas) -> Iterator[Asked]:
    """DeepSeek and Kimi: each call in marks of its own within those of all."""
    mark, end = (_DEEPSEEK, "<｜tool▁call▁end｜>") if _DEEPSEEK in text else (_KIMI, "<|tool_call_end|>")
    before, *each = text.split(mark)
    if before.strip() or not each:
        raise ValueError("no section")
    for spelt in each:
        part = spelt.strip().removesuffix(end).strip().removeprefix("function<｜tool▁sep｜>")
        head = re.match(rf"({_NAME})(?::\d+)?(?:<｜tool▁sep｜>|<\|tool_call_argument_begin\|>|\s)", part)
        if head is None:
            raise ValueError("no name")
        inner = fence[1] if (fence := _FENCE.match(part[head.end() :])) else part[head.end() :]
        yield _known(head[1], names), _object(json.loads(inner))


def _python(text: str, names: Collection[str], schemas: Schemas) -> Iterator[Asked]:
    """LFM2, Llama 3.2, Gemma 3, OLMo 3: calls as Python has them, alone, in rows or in a list."""
    spelt = {f"call{i}_": name for i, name in enumerate(sorted(names, key=len, reverse=True)) if "-" in name}
    for stand_in, name in spelt.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}\(", f"{stand_in}(", text)
    # A backslash that begins no escape is one; Python would warn of it.
    text = re.sub(r"\\\\|\\(?![\\'\"abfnrtvxuU0-7\n])", r"\\\\", text)
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError("no Python") from error
    for statement in body:
        if not isinstance(statement, ast.Expr):
            raise ValueError("no expression")
        value = statement.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print":
            (value,) = value.args  # Gemma 3 likes to see what comes back
        for each in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(each, ast.Call):
                raise ValueError("no call")
            called = ast.unparse(each.func)
            name = _known(spelt.get(called, called.removesuffix(".call")), names)
            wanted = list(cast(Mapping[str, Any], schemas.get(name, {}).get("properties", {})))
            if len(each.args) > len(wanted) or any(part.arg is None for part in each.keywords):
                raise ValueError("arguments without names")
            given = dict(zip(wanted, map(_literal, each.args), strict=False))
            yield name, given | {str(part.arg): _literal(part.value) for part in each.keywords}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {str(_literal(key)): _literal(value) for key, value in zip(keys, values, strict=True) if key}
        case _:
            value = ast.literal_eval(node)
            if not isinstance(value, str | int | float | bool | None):
                raise ValueError("no JSON")
            # JSON writes what lies beyond U+FFFF as two halves, which Python keeps apart.
            return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value


def _gemma(text: str, names: Collection[str], schemas: Schemas) -> Iterator[Asked]:
    """FunctionGemma: `call:NAME{key:<escape>text<escape>,other:1}`; Gemma 4 has another escape."""
    at = 0
    text = text.replace(GEMMA4_ESCAPE, ESCAPE)
    for mark in ("<start_function_call>", "<end_function_call>", "<|tool_call>", "<tool_call|>"):
        text = text.replace(mark, " ")
    while text[at:].strip():
        head = _GEMMA.match(text, at)
        if head is None:
            raise ValueError("no call")
        value, at = _gemma_value(text, head.end())
        name = _known(head[1], names)
        yield name, {key: _retyped(name, key, part, schemas) for key, part in _object(value).items()}


def _gemma_value(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at `at`, and where it ends."""
    if text.startswith(ESCAPE, at):
        end = text.index(ESCAPE, at + len(ESCAPE))
        return text[at + len(ESCAPE) : end], end + len(ESCAPE)
    if text[at : at + 1] in ("{", "["):
        is_map, closer = text[at] == "{", "}" if text[at] == "{" else "]"
        items: dict[str, Any] = {}
        at += 1
        while text[at : at + 1] != closer:
            key = str(len(items))
            if is_map:
                colon = text.index(":", at)
                key, at = text[at:colon].strip().removeprefix(ESCAPE).removesuffix(ESCAPE), colon + 1
            items[key], at = _gemma_value(text, at)
            if text[at : at + 1] == ",":
                at += 1
            elif text[at : at + 1] != closer:
                raise ValueError("no end")
        return (items if is_map else list(items.values())), at + 1
    found = re.compile(r"[^,}\]]*").match(text, at)
    word = found[0].strip() if found else ""
    return _WORDS.get(word, _number(word)), at + len(found[0] if found else "")


def _number(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _typed(name: str, key: str, value: str, schemas: Schemas) -> Any:
    """Return what a value without a type means: a text where its schema says so, else JSON if it is."""
    value = value.removeprefix("\n").removesuffix("\n")
    kinds = _kinds(cast(Mapping[str, Any], schemas.get(name, {}).get("properties", {})).get(key))
    found = value if kinds == {"string"} else _WORDS.get(value.strip(), _number(value))
    return value if isinstance(found, str) or ("string" in kinds and not kinds & _KINDS[type(found)]) else found


def _kinds(schema: Any) -> set[str]:
    """Return the types that a schema names, in its alternatives too; none where it names none."""
    if not isinstance(schema, Mapping):
        return set()
    said = cast(Mapping[str, Any], schema)
    kinds = said.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(cast(list[str], kinds))
    values = [said["const"]] if "const" in said else cast(list[Any], said.get("enum", []))
    if not found and all(isinstance(value, str) for value in values):
        found = {"string"} if values else set[str]()
    return found.union(*(_kinds(part) for part in said.get("anyOf", [])))


def _retyped(name: str, key: str, value: Any, schemas: Schemas) -> Any:
    is_bare = isinstance(value, int | float | bool | None)
    return json.dumps(value) if is_bare and _is_text(name, key, schemas) else value


def _is_text(name: str, key: str, schemas: Schemas) -> bool:
    return _kinds(cast(Mapping[str, Any], schemas.get(name, {}).get("properties", {})).get(key)) == {"string"}


_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_KINDS: dict[type, set[str]] = {
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number", "integer"},
    type(None): {"null"},
    list: {"array"},
    dict: {"object"},
}
_READERS: tuple[Callable[[str, Collection[str], Schemas], Iterator[Asked]], ...] = (
    _json, _xml, _sectioned, _gemma, _named_json, _python, _keyed,
)  # fmt: skip
