"""Build hook of both wheels, for what depends on the host: URLs, and a README whose links work on PyPI.

A build reads the address from $GITHUB_REPOSITORY, as GitHub's runners set it, or from the clone's remote `origin`.
Built without either, a wheel has no URLs, and a link of its README to a file beside it is that file's name.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"\[([^\]\[]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
HOST = re.compile(r"(?:https://|git@|ssh://git@)([\w.-]+)[/:]([\w.-]+/[\w.-]+?)(?:\.git)?/?")


class HostedMetadata(MetadataHookInterface):
    """Fills in `readme` and `urls`, which pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        home = address(os.environ.get("GITHUB_REPOSITORY", ""), root)
        below = "compiler/" if metadata["name"] == "fieldlm-compiler" else ""
        text = hosted((root / "README.md").read_text(encoding="utf-8"), home, below)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls(home)


def address(repository: str, root: Path) -> str:
    """Return where the project is hosted, "" where nobody knows: a build without git, or with a remote on a disk."""
    if repository:
        return f"https://github.com/{repository}"
    try:
        command = ["git", "-C", str(root), "remote", "get-url", "origin"]
        remote = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
    match = HOST.fullmatch(remote)
    return f"https://{match[1]}/{match[2]}" if match else ""


def urls(home: str) -> dict[str, str]:
    """Return the links that PyPI shows beside a project."""
    if not home:
        return {}
    main = f"{home}/blob/main"
    return {
        "Homepage": home,
        "Documentation": f"{main}/docs/index.md",
        "Changelog": f"{main}/CHANGELOG.md",
        "Issues": f"{home}/issues",
        "Security": f"{main}/SECURITY.md",
    }


def hosted(text: str, home: str, below: str) -> str:
    """Return a README, which lies `below` the project's root, with links that work elsewhere."""

    def linked(match: re.Match[str]) -> str:
        words, path = match[1], os.path.normpath(below + match[2].partition("#")[0])
        if home:
            return f"[{words}]({home}/blob/main/{path}{match[2][match[2].find('#') :] if '#' in match[2] else ''})"
        return words if words == path else f"{words} (`{path}`)"

    return LINK.sub(linked, text)
