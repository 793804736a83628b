"""What the layout promises: imports point one way, two halves in one namespace, files and functions of fair size."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "formats": ROOT / "runtime/fieldlm/formats",
    "runtime": ROOT / "runtime/fieldlm/runtime",
    "compiler": ROOT / "compiler/fieldlm/compiler",
    "feedback": ROOT / "compiler/fieldlm/feedback",
    "demo": ROOT / "compiler/fieldlm/demo",
}
# part → what it may import of ours, besides itself
ALLOWED = {
    "formats": (),
    "runtime": ("fieldlm.formats",),
    "compiler": ("fieldlm.formats", "fieldlm.runtime"),
    "feedback": ("fieldlm.formats", "fieldlm.runtime.terminal"),
    "demo": ("fieldlm.formats", "fieldlm.runtime", "fieldlm.compiler", "fieldlm.feedback"),
}
HEAVY = {"torch", "transformers", "onnx", "pandas", "sklearn", "pyarrow", "duckdb", "peft", "accelerate", "safetensors"}
MOST_LINES = {"file": 450, "function": 60}
SOURCES = sorted(path for folder in PARTS.values() for path in folder.rglob("*.py"))
CHECKED = [*SOURCES, *sorted(p for top in ("tests", "benchmarks", "packaging") for p in (ROOT / top).rglob("*.py"))]


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


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_one_way(part: str) -> None:
    allowed = (f"fieldlm.{part}", *ALLOWED[part])
    for path in PARTS[part].rglob("*.py"):
        wrong = [m for m in imports(path) if is_within(m, ("fieldlm",)) and not is_within(m, allowed)]
        assert not wrong, f"{name_of(path)} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("part", ["formats", "runtime"])
def test_the_device_half_imports_nothing_heavy(part: str) -> None:
    for path in PARTS[part].rglob("*.py"):
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
    for path in [*PARTS["formats"].rglob("*.py"), *PARTS["runtime"].rglob("*.py")]:
        wrong = {module.partition(".")[0] for module in imports(path)} - known
        assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}, which pyproject.toml does not name"


@pytest.mark.parametrize("folder", ["runtime/fieldlm", "compiler/fieldlm", "packaging"])
def test_no_init_file_hides_the_other_half(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_both_halves_are_one_version() -> None:
    light, heavy = toml("pyproject.toml")["project"], toml("compiler/pyproject.toml")["project"]
    assert light["version"] == heavy["version"]
    assert f"fieldlm == {light['version']}" in heavy["dependencies"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_ships_its_types(part: str) -> None:
    assert (PARTS[part] / "py.typed").exists()


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


@pytest.mark.parametrize("path", CHECKED, ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MOST_LINES["file"]
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    for function in functions:
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= MOST_LINES["function"], f"{function.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_tests_use_the_real_thing_or_a_simulator(path: Path) -> None:
    assert not [module for module in imports(path) if is_within(module, ("unittest.mock", "mock", "pytest_mock"))]
