"""What the layout promises: who may import whom, no circles, rooms, files and functions of fair size."""

import ast
import functools
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVICE, WORKSHOP = ROOT / "runtime/fieldlm", ROOT / "compiler/fieldlm_compiler"
# Room → the rooms that it may import, besides itself, core and formats. Each line names only rooms of lines above it.
ROOMS: dict[str, str] = {
    "core": "",
    "formats": "",
    "hardware": "",
    "network": "hardware",
    "blobs": "hardware network",
    "catalogue": "hardware network blobs",
    "engines": "hardware",
    "inference": "hardware engines catalogue",
    "telemetry": "hardware network",
    "escalation": "hardware network engines inference telemetry",
    "control": "hardware network",
    "bench": "hardware network engines",
    "updates": "hardware network engines inference blobs",
    "api": "hardware network engines inference escalation",
    "device": "hardware network engines inference telemetry escalation blobs catalogue control updates api",
    "cli": "hardware network engines inference telemetry catalogue control bench updates device",
}
WORKSHOP_ROOMS: dict[str, str] = {
    "pipeline": "catalogue",
    "checkpoints": "hardware engines inference catalogue pipeline",
    "export": "hardware engines inference pipeline checkpoints",
    "verify": "hardware engines inference pipeline checkpoints export",
    "search": "hardware engines inference bench pipeline checkpoints export verify",
    "targets": "hardware engines inference bench catalogue pipeline checkpoints export verify search",
    "compile": "hardware engines inference bench pipeline checkpoints export verify search",
    "repository": "network blobs export",
    "collect": "network",
    "learn": "hardware network engines inference telemetry pipeline checkpoints export collect",
    "fleet": "network collect",
    "rounds": "hardware engines inference pipeline checkpoints verify compile repository collect learn",
    "demo": " ".join([*ROOMS, "checkpoints compile repository collect learn fleet"]),
}
HEAVY = {"torch", "transformers", "onnx", "pandas", "sklearn", "pyarrow", "duckdb", "peft", "accelerate", "safetensors"}
IMPORTED_AS = {
    "backports.zstd": "backports",
    "pyyaml": "yaml",
    "llama_cpp_python": "llama_cpp", "opentelemetry_exporter_otlp_proto_http": "opentelemetry", "paho_mqtt": "paho",
    "protobuf": "google", "scikit_learn": "sklearn",
}  # fmt: skip
TOOLCHAIN = {"optimum"}  # lives in an environment of its own, which the workshop makes
MOST_LINES = {"file": 450, "function": 60}
MOST_FILES = 20
SOURCES = sorted(path for folder in (DEVICE, WORKSHOP) for path in folder.rglob("*.py"))
CHECKED = [*SOURCES, *sorted(p for top in ("tests", "benchmarks", "packaging") for p in (ROOT / top).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(DEVICE.parent if path.is_relative_to(DEVICE) else WORKSHOP.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}
PACKAGES = {DEVICE.name: ROOMS, WORKSHOP.name: WORKSHOP_ROOMS}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Yield every module that `path` imports anywhere; `from a import b` counts as a.b, because b may be a module."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def toml(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


@functools.cache
def ours(path: Path) -> set[str]:
    """Return the modules of ours that `path` imports; a string that names one, whole or with a function, counts.

    The table of commands names those of both halves and imports the one that is asked for, if it is installed.
    """
    if path == DEVICE / "cli/main.py":
        return {module for name in imports(path) if (module := _nearest(name))}
    tree = parsed(path)
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    named = (module for text in strings if "." in (module := text.partition(":")[0]) and module in MODULES)
    return {module for name in [*imports(path), *named] if (module := _nearest(name))} - {module_of(path)}


def _nearest(name: str) -> str:
    """Return the module that `name` is or lies in, "" for what is not ours."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> tuple[str, str]:
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return package, "cli" if room == "__main__" else room


def test_a_room_imports_only_what_the_table_allows() -> None:
    wrong: list[str] = []
    for module, path in MODULES.items():
        package, room = room_of(module)
        if not room:
            continue
        allowed = {room, "core", *(() if room == "core" else ("formats",)), *PACKAGES[package][room].split()}
        for other in ours(path):
            half, there = room_of(other)
            if there and (there not in allowed or (half != package and package == DEVICE.name)):
                wrong.append(f"{module} must not import {other}")
    assert not wrong


def test_each_room_stands_in_the_table_above_those_that_import_it() -> None:
    above: set[str] = set()
    for rooms in PACKAGES.values():
        for room, allowed in rooms.items():
            assert set(allowed.split()) <= above, room
            above.add(room)
    for folder, rooms in ((DEVICE, ROOMS), (WORKSHOP, WORKSHOP_ROOMS)):
        assert {path.name for path in folder.iterdir() if (path / "__init__.py").exists()} == set(rooms)


def test_no_two_files_import_each_other_in_a_circle() -> None:
    waiting = {module: ours(path) for module, path in MODULES.items()}
    while free := {module for module, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert not waiting


def test_a_room_has_a_size_at_which_one_finds_things() -> None:
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in SOURCES}}
    assert max(sizes.values()) <= MOST_FILES, max(sizes, key=lambda folder: sizes[folder])


def test_a_class_name_means_one_thing() -> None:
    homes = defaultdict[str, list[str]](list)
    for path in SOURCES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name_of(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_the_device_half_imports_nothing_heavy() -> None:
    for path in DEVICE.rglob("*.py"):
        wrong = [module for module in imports(path) if module.partition(".")[0] in HEAVY]
        assert not wrong, f"{name_of(path)} must not import {', '.join(wrong)}"


def declared(pyproject: str) -> set[str]:
    """Return the names under which one imports what a half declares, extras and all."""
    project = toml(pyproject)["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {re.split(r"[<>=!~\[; ]", line)[0].replace("-", "_") for line in lines}
    return names | {IMPORTED_AS[name] for name in names & IMPORTED_AS.keys()}


def test_a_half_imports_only_what_it_declares() -> None:
    light = declared("pyproject.toml") | set(sys.stdlib_module_names) | {"compression"}  # from Python 3.14 on
    for folder, known in ((DEVICE, light), (WORKSHOP, light | declared("compiler/pyproject.toml") | TOOLCHAIN)):
        for path in folder.rglob("*.py"):
            wrong = {module.partition(".")[0] for module in imports(path)} - known - {folder.name}
            assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}, which pyproject.toml does not name"


@pytest.mark.parametrize(("half", "pyproject"), [(".", "pyproject.toml"), ("./compiler", "compiler/pyproject.toml")])
def test_a_new_clone_installs_every_extra_that_its_tests_use(half: str, pyproject: str) -> None:
    installed = re.search(rf"-e '{re.escape(half)}\[([a-z,]+)\]'", (ROOT / "Makefile").read_text())
    assert installed is not None
    assert set(installed[1].split(",")) == set(toml(pyproject)["project"]["optional-dependencies"])


def test_both_halves_are_one_version() -> None:
    light, heavy = toml("pyproject.toml")["project"], toml("compiler/pyproject.toml")["project"]
    assert light["version"] == heavy["version"]
    assert f"fieldlm == {light['version']}" in heavy["dependencies"]


def test_both_halves_ship_their_types() -> None:
    assert (DEVICE / "py.typed").exists()
    assert (WORKSHOP / "py.typed").exists()


def test_every_file_can_be_read_in_one_sitting() -> None:
    wrong: list[str] = []
    for path in CHECKED:
        source = path.read_text()
        if source.count("\n") > MOST_LINES["file"]:
            wrong.append(f"{name_of(path)} has {source.count(chr(10))} lines")
        functions = (n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        for function in functions:
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MOST_LINES["function"]:
                wrong.append(f"{name_of(path)}: {function.name} has {lines} lines")
    assert not wrong


def test_tests_use_the_real_thing_or_a_simulator() -> None:
    mocks = ("unittest.mock", "mock", "pytest_mock")
    wrong = [name_of(p) for p in CHECKED if [module for module in imports(p) if is_within(module, mocks)]]
    assert not wrong


def test_tests_and_benchmarks_share_only_the_helpers_of_tests() -> None:
    """Scripts stay thin: what they and tests need lies in tests/support. tests/benchmarks tests the scripts."""
    may_import = {
        "benchmarks": ("benchmarks", "tests.support"),
        "tests/support": ("tests.support",),
        "tests/benchmarks": ("tests", "benchmarks"),
        "tests": ("tests",),
    }
    wrong: list[str] = []
    for path in CHECKED:
        folder = next((folder for folder in may_import if path.is_relative_to(ROOT / folder)), "")
        crossing = [module for module in imports(path) if is_within(module, ("tests", "benchmarks"))]
        wrong += [f"{name_of(path)}: {each}" for each in crossing if not is_within(each, may_import.get(folder, ()))]
    assert not wrong


def test_no_test_is_skipped_and_no_assertion_has_a_way_out() -> None:
    """What is missing fails, or its cases are not made; `assert this or that` hides a fault in this behind that."""
    wrong: list[str] = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            is_skip = isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "importorskip", "xfail")
            is_loose = (
                isinstance(node, ast.Assert) and isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or)
            )
            if is_skip or is_loose:
                wrong.append(f"{name_of(path)}:{getattr(node, 'lineno', 0)}")
    assert not wrong


def test_every_background_thread_of_the_device_half_has_a_supervisor() -> None:
    raw = re.compile(r"threading\.(Thread|Timer)\(|_thread\.start_new")
    wrong = [name_of(p) for p in DEVICE.rglob("*.py") if p != DEVICE / "core/tasks.py" and raw.search(p.read_text())]
    assert not wrong, "Tasks.start of fieldlm.core.tasks names it, joins it and counts its crashes"


def test_who_reads_json_that_may_be_anything_expects_that_it_nests_without_end() -> None:
    wrong: list[str] = []
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            caught = ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
            if re.search(r"msgspec\.(MsgspecError|DecodeError)", caught) and not re.search(
                r"RecursionError|_MALFORMED", caught
            ):
                wrong.append(f"{name_of(path)}:{getattr(node, 'lineno', 0)}")
    assert not wrong, "msgspec raises RecursionError for it, which is none of its own"
