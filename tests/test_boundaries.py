"""What the layout promises: who may import whom, no circles, rooms, files and functions of fair size."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICE, WORKSHOP = ROOT / "runtime/fieldlm", ROOT / "compiler/fieldlm_compiler"
# Room → the rooms that it may import, besides itself, core and formats. Each line names only rooms of lines above it.
ROOMS: dict[str, str] = {
    "core": "",
    "formats": "",
    "hardware": "",
    "network": "hardware",
    "engines": "hardware",
    "inference": "hardware engines",
    "telemetry": "hardware network",
    "blobs": "hardware network",
    "control": "hardware network",
    "bench": "hardware engines",
    "updates": "hardware network engines inference blobs",
    "api": "hardware network engines inference",
    "device": "hardware network engines inference telemetry blobs control updates api",
    "cli": "hardware network engines inference telemetry control bench updates device",
}
WORKSHOP_ROOMS: dict[str, str] = {
    "pipeline": "",
    "checkpoints": "hardware engines inference pipeline",
    "export": "hardware engines inference pipeline checkpoints",
    "verify": "hardware engines inference pipeline checkpoints export",
    "search": "hardware engines inference bench pipeline checkpoints export verify",
    "compile": "hardware engines inference bench pipeline checkpoints export verify search",
    "repository": "blobs",
    "collect": "network",
    "learn": "collect",
    "fleet": "collect",
    "demo": " ".join([*ROOMS, "checkpoints compile repository collect learn fleet"]),
}
HEAVY = {"torch", "transformers", "onnx", "pandas", "sklearn", "pyarrow", "duckdb", "peft", "accelerate", "safetensors"}
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


def imports(path: Path) -> Iterator[str]:
    """Yield every module that `path` imports anywhere; `from a import b` counts as a.b, because b may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def toml(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


def ours(path: Path) -> set[str]:
    """Return the modules of ours that `path` imports; a string that names one, whole or with a function, counts."""
    tree = ast.parse(path.read_text())
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
    return package, rest.partition(".")[0]


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


def test_the_device_half_imports_nothing_heavy() -> None:
    for path in DEVICE.rglob("*.py"):
        wrong = [module for module in imports(path) if module.partition(".")[0] in HEAVY]
        assert not wrong, f"{name_of(path)} must not import {', '.join(wrong)}"


def test_the_device_half_imports_only_what_it_declares() -> None:
    project = toml("pyproject.toml")["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[<>=!~\[; ]", line)[0].replace("-", "_") for line in declared} | {"fieldlm"}
    modules = {"llama_cpp_python": "llama_cpp", "paho_mqtt": "paho"}
    known = {modules.get(name, name) for name in names} | set(sys.stdlib_module_names)
    for path in DEVICE.rglob("*.py"):
        wrong = {module.partition(".")[0] for module in imports(path)} - known
        assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}, which pyproject.toml does not name"


def test_both_halves_are_one_version() -> None:
    light, heavy = toml("pyproject.toml")["project"], toml("compiler/pyproject.toml")["project"]
    assert light["version"] == heavy["version"]
    assert f"fieldlm == {light['version']}" in heavy["dependencies"]


def test_both_halves_ship_their_types() -> None:
    assert (DEVICE / "py.typed").exists()
    assert (WORKSHOP / "py.typed").exists()


def test_every_command_leads_to_a_file() -> None:
    for half in ("pyproject.toml", "compiler/pyproject.toml"):
        for command, target in toml(half)["project"]["entry-points"]["fieldlm.commands"].items():
            module, function = target.split(":")
            path = (ROOT / half).parent / ("runtime" if half == "pyproject.toml" else ".") / module.replace(".", "/")
            source = path.with_suffix(".py")
            assert source.exists(), f"fieldlm {command} leads to {name_of(source)}, which does not exist"
            assert re.search(rf"^def {function}\(", source.read_text(), re.MULTILINE), (
                f"{name_of(source)}: no {function}"
            )


def test_every_file_can_be_read_in_one_sitting() -> None:
    wrong: list[str] = []
    for path in CHECKED:
        source = path.read_text()
        if source.count("\n") > MOST_LINES["file"]:
            wrong.append(f"{name_of(path)} has {source.count(chr(10))} lines")
        functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        for function in functions:
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MOST_LINES["function"]:
                wrong.append(f"{name_of(path)}: {function.name} has {lines} lines")
    assert not wrong


def test_tests_use_the_real_thing_or_a_simulator() -> None:
    mocks = ("unittest.mock", "mock", "pytest_mock")
    wrong = [name_of(p) for p in CHECKED if [module for module in imports(p) if is_within(module, mocks)]]
    assert not wrong
