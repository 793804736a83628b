"""The reference pages of the documentation, made from the code: commands, API, metrics, profiles, formats, Python.

`PAGES` has each page's path and the function that returns its Markdown. mkdocs asks for them through docs/hooks.py;
tests/docs asks for them, too, and needs no mkdocs. Nothing here is known of a command, a parameter or a field by name.
"""

# argparse keeps its arguments where only names of its own lead.
# pyright: reportPrivateUsage=false

import argparse
import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import cast

import msgspec
from msgspec import inspect as described
from starlette.routing import Route

import fieldlm
from fieldlm.api import parameters
from fieldlm.api.app import make_app
from fieldlm.api.chat_request import CompletionParams
from fieldlm.api.responses_request import OTHERS, ResponsesRequest
from fieldlm.cli.main import GROUPS, load
from fieldlm.cli.profiles import settings_of
from fieldlm.core import terminal
from fieldlm.formats.profile import load_profile, profile_names
from fieldlm.inference.generations import Generations

ROOT = Path(__file__).resolve().parents[1]
DEVICE = ROOT / "runtime/fieldlm"
PLAIN = {"Str": "text", "Bool": "true or false", "Any": "anything", "Raw": "anything"}
WIRE = (
    "bundle", "task_adapters", "probe", "confidence", "classifier", "release", "record", "block", "topics", "policy",
    "command", "profile", "growth", "kiosk", "shadow",
)  # fmt: skip
"""The modules of `fieldlm.formats` that say what other programs read and write."""
BODY = re.compile(r'"""((?:POST|PUT) /[^\s,:]+)')
BESIDE_THE_MODEL = (
    "fieldlm.inference.model.Answer",
    "fieldlm.inference.call_options.SamplingOptions",
    "fieldlm.inference.call_options.OpenOptions",
    "fieldlm.engines.Sampling",
    "fieldlm.engines.Schedule",
    "fieldlm.engines.Chunk",
    "fieldlm.engines.Timings",
    "fieldlm.inference.structured.IncompleteError",
    "fieldlm.core.errors",
)

COMMANDS_HEAD = """\
# Commands

`fieldlm COMMAND --help` says the same on a terminal. Every command ends with 0 when it is done, 1 when the answer is no
(a gate failed, a device refused), 2 when its use or its input is wrong, 75 when there is no answer
now (`verify --on-device` on a busy machine), 130 after Ctrl-C."""
REFUSED_HEAD = """\
## Refused by name

With status 400 and code `unsupported_parameter`, where the parameter asks for something. What one endpoint takes may be
refused at another."""
METRICS_HEAD = """\
# Metrics

`GET /metrics`, as Prometheus reads it. Labels stand in braces; a histogram has `_bucket`, `_sum` and `_count`."""
PROFILES_HEAD = """\
# Device profiles

`fieldlm detect` names the one that fits a machine; `fieldlm profiles NAME` shows it. `theory` is a data sheet's,
`measured` somebody's measurement, `policy` our choice; what nobody knows is absent. Where it has no number of cores,
threads and instructions are those of the machine that it is detected on, and where it has no size of memory, so is the
budget. [The fields](formats.md#profile) may stand in a file of your own, which goes wherever a name does."""
FORMATS_HEAD = """\
# Files and messages

What stands in bundles, repositories and spools, and what travels. ONNX graphs have [a page of their
own](../onnx-graph.md)."""
PYTHON_HEAD = """\
# Python

`from fieldlm import Model, AsyncModel`; everything else is imported from where it stands below."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the argument parser of a command."""
    return terminal.parser_of(load(command))


def commands() -> str:
    """Return the page of all commands, with every argument of each."""
    lines = [COMMANDS_HEAD]
    for group, names in GROUPS.items():
        lines += ["", f"## {group.capitalize()}"]
        for name, (module, text) in names.items():
            half = "Workshop half" if module.startswith("fieldlm_compiler") else "Device half"
            lines += ["", f"### {name}", "", f"{text[0].upper()}{text[1:]}. *{half}.*", ""]
            lines += _arguments(parser_of(name))
    return _page(lines)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield usage and arguments as `--help` has them."""
    formatter = terminal.HelpFormatter(prog=parser.prog, width=82)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield from ("```text", formatter.format_help().removeprefix("usage: ").rstrip(), "```", "")
    yield from _head("argument", "what it is")
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        default = action.dest.upper() if action.option_strings else action.dest
        metavar = formatter._metavar_formatter(action, default)(1)[0]
        takes = f" `{metavar}`" if action.option_strings and action.nargs != 0 else ""
        said = formatter._expand_help(action) if action.help else ""
        yield _row(f"{names}{takes}" if names else f"`{metavar}`", _text(said))
    if parser.epilog:
        yield from ("", "```bash", *(line.strip() for line in parser.epilog.splitlines()[1:]), "```")


def api() -> str:
    """Return the page of endpoints and request parameters: honoured, refused, harmless."""
    lines = ["# HTTP API", "", _of_module(parameters), "", "## Endpoints", "", *_head("path", "methods")]
    lines += [_row(f"`{path}`", " ".join(methods)) for path, methods in routes().items()]
    bodies = requests()
    for endpoint, kind in bodies.items():
        says = _text(inspect.cleandoc(kind.__doc__ or "").removeprefix(endpoint).lstrip(":., "))
        lines += ["", f"## {endpoint}", "", f"{says[:1].upper()}{says[1:]}".rstrip(), ""]
        own = _fields(kind)
        if issubclass(kind, CompletionParams):
            lines += ["[What three endpoints take](#what-three-endpoints-take), and:", ""]
            own = tuple(field for field in own if field not in _fields(CompletionParams))
        lines += _fields_table(own)
        if kind is ResponsesRequest:
            lines += ["", f"Refused here: {'; '.join(f'`{name}`: {why}' for name, why in OTHERS.items())}."]
    shared = _fields(CompletionParams)
    lines += ["", "## What three endpoints take", "", "Chat, responses and completions.", "", *_fields_table(shared)]
    lines += ["", "## Objects", "", "What stands inside those bodies."]
    for kind in _inside(list(bodies.values())):
        lines += ["", f"### {kind.__name__}", "", _text(inspect.cleandoc(kind.__doc__ or "")), ""]
        lines += _fields_table(_fields(kind))
    lines += ["", REFUSED_HEAD, "", *_head("parameter", "what to do instead", "not refused")]
    lines += [_row(f"`{name}`", parameters.REFUSED[name], _quiet(name)) for name in sorted(parameters.REFUSED)]
    lines += ["", "## Harmless", "", "Accepted, and change no word of an answer:", ""]
    lines += [", ".join(f"`{name}`" for name in sorted(parameters.HARMLESS)) + "."]
    return _page(lines)


def requests() -> dict[str, type[msgspec.Struct]]:
    """Return the bodies of requests by endpoint: the structs whose first words are a method and a path."""
    found: dict[str, type[msgspec.Struct]] = {}
    for path in sorted(DEVICE.rglob("*.py"), key=lambda path: ("api" not in path.parts, len(path.parts), path)):
        if BODY.search(path.read_text()):
            module = import_module(_module_of(path))
            for kind in structs_of(module, private=True):
                if said := BODY.search(f'"""{kind.__doc__}'):
                    found[said[1].rstrip(".")] = kind
    return found


def _inside(kinds: Sequence[type]) -> list[type]:
    """Return the structs that the fields of `kinds` hold, and those that theirs do."""
    found: dict[type, None] = {}

    def look(kind: described.Type) -> None:
        if isinstance(kind, described.StructType) and kind.cls not in found:
            found[kind.cls] = None
            for field in kind.fields:
                look(field.type)
        for inner in (*getattr(kind, "types", ()), *filter(None, [getattr(kind, "item_type", None)])):
            look(inner)

    for kind in kinds:
        for field in _fields(kind):
            look(field.type)
    return list(found)


def _quiet(name: str) -> str:
    return " ".join(f"`{msgspec.json.encode(value).decode()}`" for value in parameters.SAYS_NOTHING.get(name, ()))


def routes() -> dict[str, list[str]]:
    """Return every path that the server answers, with its methods: the app's own, and what the device adds to it."""
    nothing = cast(Generations, None)  # no request comes
    made = make_app(nothing, lambda _: None, ready=lambda: None)
    found = {route.path: sorted(route.methods or ()) for route in made.routes if isinstance(route, Route)}
    for path in sorted(set(DEVICE.rglob("*.py")) - set((DEVICE / "api").rglob("*.py"))):
        tree = ast.parse(path.read_text())
        words = {
            name.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for name in node.targets
            if isinstance(name, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Route":
                place = node.args[0]
                text = ast.unparse(place)
                if isinstance(place, ast.Constant):
                    route = str(place.value)
                else:  # a name of this function, or one of the module's
                    route = str(words[text] if text in words else attrgetter(text)(import_module(_module_of(path))))
                methods = [ast.literal_eval(word.value) for word in node.keywords if word.arg == "methods"]
                found[route] = sorted({*found.get(route, []), *(methods[0] if methods else ["GET"])})
    return {path: [method for method in found[path] if method != "HEAD"] for path in sorted(found)}


def metrics() -> str:
    """Return the page of what `GET /metrics` tells."""
    lines = [METRICS_HEAD, "", *_head("metric", "kind", "what it says")]
    for name, (kind, labels, says) in sorted(all_metrics().items()):
        lines.append(_row(f"`{name}{{{', '.join(labels)}}}`" if labels else f"`{name}`", kind, says))
    return _page(lines)


def all_metrics() -> dict[str, tuple[str, list[str], str]]:
    """Return every metric with its kind, labels and meaning.

    What is counted stands in the code as `Counter(name, meaning, labels)`; what is read when somebody asks is yielded
    as a name, its meaning, its labels with their values, and the value.
    """
    found: dict[str, tuple[str, list[str], str]] = {}
    for path in sorted(DEVICE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        dicts = {
            ast.unparse(node.targets[0]): node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Counter", "Histogram"):
                parts, kind = node.args, ast.unparse(node.func).lower()
            elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 4:
                parts, kind = node.value.elts[:3], "gauge"
            else:
                continue
            if len(parts) < 2:
                continue
            name, says, *labels = parts
            if isinstance(name, ast.Constant) and str(name.value).startswith("fieldlm_"):
                keys = [_words(dicts.get(ast.unparse(each), each)) for each in labels]
                whole = str(name.value).removesuffix("_total") + ("_total" if kind == "counter" else "")
                if kind == "gauge" and str(name.value).endswith("_total"):
                    whole, kind = str(name.value), "counter"
                found[whole] = (kind, keys[0] if keys else [], str(ast.literal_eval(says)))
    return found


def _words(node: ast.expr) -> list[str]:
    """Return the keys of a dict, or the items of a list, as they are written."""
    nodes = node.keys if isinstance(node, ast.Dict) else node.elts if isinstance(node, ast.List) else []
    return [str(ast.literal_eval(each)) for each in nodes if each]


def profiles() -> str:
    """Return the page of all device profiles; every number with its kind and source."""
    found = [load_profile(name) for name in profile_names()]
    lines = [PROFILES_HEAD, "", *_head("profile", "device", "engines", "weights")]
    lines += [_row(f"[`{p.id}`](#{p.id})", p.title, ", ".join(p.engines), p.gguf.default_quant) for p in found]
    for profile in found:
        lines += ["", f"## {profile.id}", "", f"{profile.title}.", "", *_head("setting", "value", "kind", "source")]
        lines += [_row(f"`{name}`", *rest) for name, *rest in settings_of(profile)]
        if profile.accelerators:
            lines += ["", *_head("GPU or NPU", "kind", "used", "source")]
            lines += [_row(a.name, a.kind, "yes" if a.used else "no", a.source) for a in profile.accelerators]
    return _page(lines)


def formats() -> str:
    """Return the page of files and messages that other programs read and write."""
    lines = [FORMATS_HEAD]
    for name in WIRE:
        module = import_module(f"fieldlm.formats.{name}")
        lines += ["", f"## {name.capitalize()}", "", f"`fieldlm.formats.{name}`", "", _of_module(module)]
        for kind in structs_of(module):
            docs = _docs_of_fields(kind)
            lines += ["", f"### {kind.__name__}", "", _text(inspect.cleandoc(kind.__doc__ or "")), ""]
            lines += _fields_table(_fields(kind), docs)
    return _page(lines)


def structs_of(module: ModuleType, *, private: bool = False) -> list[type[msgspec.Struct]]:
    """Return the public structs that a module defines, or all, in the order in which it does."""
    return [
        kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and (private or not name.startswith("_"))
        if kind.__module__ == module.__name__ and kind.__struct_fields__
    ]


def _docs_of_fields(kind: type) -> dict[str, str]:
    """Return the strings that stand below fields."""
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
    return {
        before.target.id: _text(node.value.value)
        for before, node in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def python() -> str:
    """Return the page of the Python API: directives that mkdocstrings fills."""
    names = sorted(fieldlm.__all__, key=len)
    paths = [f"{getattr(fieldlm, name).__module__}.{name}" for name in names]
    return _page([PYTHON_HEAD, *(f"\n::: {path}" for path in (*paths, *BESIDE_THE_MODEL))])


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/api.md": api,
    "reference/metrics.md": metrics,
    "reference/profiles.md": profiles,
    "reference/formats.md": formats,
    "reference/python.md": python,
}


def _page(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _text(text: str) -> str:
    """Return words as Markdown that shows them as they are."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", part) for part in parts)


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(DEVICE.parent).with_suffix("").parts)


def _of_module(module: ModuleType) -> str:
    """Return a module's docstring; its indented parts are code in Markdown, too."""
    return inspect.cleandoc(module.__doc__ or "")


def _fields(kind: type) -> tuple[described.Field, ...]:
    return cast(described.StructType, described.type_info(kind)).fields


def _fields_table(fields: Sequence[described.Field], docs: Mapping[str, str] | None = None) -> list[str]:
    rows = [(f"`{f.encode_name}`", _kind(f.type), _default(f), (docs or {}).get(f.name, "")) for f in fields]
    if not any(said for *_, said in rows):
        return [*_head("field", "what it may be", "default"), *(_row(*row[:3]) for row in rows)]
    return [*_head("field", "what it may be", "default", "what it is"), *(_row(*row) for row in rows)]


def _default(field: described.Field) -> str:
    if field.required:
        return "*required*"
    if field.default in (None, msgspec.NODEFAULT, msgspec.UNSET):
        return ""
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _kind(kind: described.Type) -> str:
    """Return a type in words, with its bounds."""
    match kind:
        case described.UnionType(types=types):
            said = " or ".join(_kind(each) for each in types if not isinstance(each, described.NoneType))
        case described.LiteralType(values=values):
            said = ", ".join(f"`{value}`" for value in values)
        case described.IntType() | described.FloatType():
            said = ("whole number" if isinstance(kind, described.IntType) else "number") + _bounds(kind)
        case described.StructType(cls=cls) | described.CustomType(cls=cls):
            said = cls.__name__
        case described.ListType(item_type=item) | described.VarTupleType(item_type=item):
            said = f"list of {_kind(item)}"
        case described.TupleType(item_types=items):
            said = f"list: {', '.join(_kind(item) for item in items)}"
        case described.DictType(value_type=value):
            said = f"object of {_kind(value)}"
        case _:
            name = type(kind).__name__.removesuffix("Type")
            said = PLAIN.get(name, name.lower())
    return said


def _bounds(kind: described.IntType | described.FloatType) -> str:
    least, most = (kind.ge if kind.ge is not None else kind.gt), (kind.le if kind.le is not None else kind.lt)
    above = "more than " if kind.gt is not None else ""
    if least is not None and most is not None:
        return f", {above}{least:g} to {most:g}"
    return f", {above or 'at least '}{least:g}" if least is not None else ""
