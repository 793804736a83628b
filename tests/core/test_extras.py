"""What a hint tells one to install can be installed: packages by their own names."""

import tomllib
from pathlib import Path

import pytest

from fieldlm.core.extras import install_command

ROOT = Path(__file__).parents[2]
EXTRAS = [
    (project["name"], extra, lines)
    for path in ("pyproject.toml", "compiler/pyproject.toml")
    for project in [tomllib.loads((ROOT / path).read_text())["project"]]
    for extra, lines in project["optional-dependencies"].items()
    if lines
]


@pytest.mark.parametrize(("distribution", "extra", "lines"), EXTRAS)
def test_a_hint_names_the_packages_that_an_extra_adds(distribution: str, extra: str, lines: list[str]) -> None:
    command = install_command(distribution, extra)
    assert command == "pip install " + " ".join(f"'{line}'" for line in sorted(lines))


def test_of_what_is_not_known_the_extra_is_named() -> None:
    assert install_command("fieldlm", "llama") == "pip install 'fieldlm[llama]'"
    assert install_command("no-such-package", "x") == "pip install 'no-such-package[x]'"
