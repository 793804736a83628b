"""Docstrings name errors that there are."""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ERROR = re.compile(r"\b[A-Z]\w*Errors?\b")


def test_errors_in_docstrings_are_classes_that_the_code_knows() -> None:
    files = [*(ROOT / "runtime/fieldlm").rglob("*.py"), *(ROOT / "compiler/fieldlm_compiler").rglob("*.py")]
    trees = {file: ast.parse(file.read_bytes()) for file in files}
    known = {name for tree in trees.values() for name in names(tree)} | set(vars(builtins))
    said = {(error.removesuffix("s"), file) for file, tree in trees.items() for error in ERROR.findall(texts(tree))}
    assert len(said) > 100
    assert not {f"{file.relative_to(ROOT)}: {error}" for error, file in said if error not in known}


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ClassDef | ast.alias):
            yield node.name


def texts(tree: ast.AST) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))
