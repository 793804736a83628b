"""The pinned requirements of the device half are those that pyproject.toml declares, and every file has its hash."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def pinned() -> dict[str, list[tuple[str, str]]]:
    """Return of each package the versions that are pinned, with what follows them; uv pins one for each Python."""
    text = (ROOT / "packaging/requirements.lock").read_text()
    found: dict[str, list[tuple[str, str]]] = {}
    for name, version, rest in re.findall(r"^([\w.-]+)==(\S+)((?:.*\\\n)+.*)$", text, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append((version, rest))
    return found


def test_what_is_declared_is_pinned_within_its_range() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    known = pinned()
    for requirement in map(Requirement, declared):
        versions = [version for version, _ in known.get(canonicalize_name(requirement.name), [])]
        again = f"{requirement}; pinned: {versions}; write it again with the command in packaging/requirements.lock"
        assert versions, again
        assert all(requirement.specifier.contains(version) for version in versions), again


def test_every_pin_has_hashes() -> None:
    lines = (ROOT / "packaging/requirements.lock").read_text().splitlines()
    pins = [line for line in lines if "==" in line and not line.startswith((" ", "#"))]
    assert len(pins) == sum(map(len, pinned().values()))
    assert all("--hash=sha256:" in rest for versions in pinned().values() for _, rest in versions)
