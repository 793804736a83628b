"""Every command that a message or a help names for the next step can be typed as it stands.

What a message fills in is taken as one word, and what a word may be (a folder, a number) is not looked at.
"""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import fieldlm
import fieldlm_compiler
from fieldlm.cli.main import COMMANDS, load
from fieldlm.core.errors import InputError
from fieldlm.core.terminal import parser_of

HINT = re.compile(r"(?:^|: )(fieldlm [a-z]+\b(?:(?!; |, or |, then|, see|, unless| [>#] |: fieldlm ).)*)")
# What a command asks for beside what its parser does.
ASKED_FOR = {
    "keys rotate": ("name", "to"),
    "keys revoke": ("name", "to"),
    "keys sign": ("to",),
    "release promote": ("profile",),
    "release pull": ("profile",),
    "rollout start": ("to",),
    "rollout watch": ("to",),
}
SENTENCES = {
    "fieldlm serve sets a damaged one aside and goes on",
    "fieldlm fleet",  # a page's title
}


def folders() -> list[Path]:
    return [Path(module.__file__ or "").parent for module in (fieldlm, fieldlm_compiler)]


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module but its docstrings; what is filled in is FILLED."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in parts | docs:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "FILLED" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def hints() -> list[str]:
    """Return the commands in the texts of both packages that stand at their beginning or behind a colon."""
    found = set[str]()
    for folder in folders():
        for path in folder.rglob("*.py"):
            for text in texts(ast.parse(path.read_text())):
                found |= {match[1].strip() for match in HINT.finditer(text)}
    return sorted(found - SENTENCES)


HINTS = hints()


def given(command: str, words: list[str]) -> argparse.Namespace:
    parser = parser_of(load(command))
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        action.type = None
    return parser.parse_args(words)


def test_there_are_hints() -> None:
    assert len(HINTS) > 60
    assert {hint.split()[1] for hint in HINTS} >= {"compile", "serve", "keys", "publish", "rollout"}


@pytest.mark.parametrize("hint", HINTS)
def test_a_command_that_is_named_can_be_typed(hint: str) -> None:
    _, command, *words = shlex.split(hint.removesuffix("…").replace("[--", "--").rstrip(".)` ]"))
    assert command in COMMANDS
    try:
        args = given(command, words)
    except InputError as error:
        pytest.fail(f"{hint}: {error}")
    verb = " ".join([command, *words[:1]])
    for name in ASKED_FOR.get(verb, ()):
        assert getattr(args, name), f"{hint} lacks {name}"
