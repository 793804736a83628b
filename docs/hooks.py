"""mkdocs hooks: the pages that the code writes, those that lie outside docs/, and links that hold on the site, too."""

import os
import posixpath
import re
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [folder for each in (".", "runtime", "compiler") if (folder := str(ROOT / each)) not in sys.path]
from docs.reference import PAGES  # noqa: E402  # found where the line above says

OUTSIDE = {
    "project/architecture.md": "ARCHITECTURE.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
    "project/packaging.md": "packaging/README.md",
    "project/adaptors.md": "packaging/adaptors/README.md",
}
"""Pages of the site by the files that they are; those stand where one looks for them in a checkout."""
LINK = re.compile(r"""\[([^\]\[]+)\]\((?![a-z]+:)([^)#\s]*)(#[^)\s]*)?(?: "(reference/[^"#]+)(#[^"]+)?")?\)""")
"""A link, whose title may be the page of the reference that it leads to on the site: in a checkout there is none."""
FENCE = re.compile(r"^```(bash|python) (run|serve)$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    file = import_module("mkdocs.structure.files").File  # who tests and types the code has no mkdocs
    for page, make in PAGES.items():
        files.append(file.generated(config, page, content=make()))
    for page, source in OUTSIDE.items():
        files.append(file.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Write links and code blocks as the site needs them."""
    return for_site(markdown, page.file.src_uri)


def for_site(markdown: str, page: str) -> str:
    """Return a page's Markdown for the site: what a test runs is plain code there, and links lead to pages of it.

    A link to a file that is no page is its name, since the site may be read without the checkout.
    """
    source = OUTSIDE.get(page, f"docs/{page}")

    def linked(match: re.Match[str]) -> str:
        words, path, anchor, made, part = match[1], match[2], match[3] or "", match[4], match[5] or ""
        if made:
            return f"[{words}]({os.path.relpath(made, posixpath.dirname(page) or '.')}{part})"
        if not path:
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = page_of(wanted)
        if target is None:
            return f"`{wanted}`" if words in (wanted, path) else f"{words} (`{wanted}`)"
        return f"[{words}]({os.path.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(linked, FENCE.sub(r"```\1", markdown))


def page_of(path: str) -> str | None:
    """Return the site's page for a path of the checkout, None where there is none."""
    if is_page(path):
        return path.removeprefix("docs/")
    return next((page for page, file in OUTSIDE.items() if path == file), None)


def is_page(path: str) -> bool:
    return path.startswith("docs/") and path.endswith(".md") and not path.startswith("docs/examples/")


def on_post_build(config: Any) -> None:
    """Raise ValueError when a page leads nowhere, or asks another machine for a part of itself."""
    folder = Path(config["site_dir"])
    pages = {path: _Page(path) for path in folder.rglob("*.html")}
    wrong: list[str] = []
    for path, page in pages.items():
        wrong += [f"{path.name} loads {part} from elsewhere" for part in page.parts if re.match(r"(https?:)?//", part)]
        for link in page.links:
            if path.name == "404.html" or re.match(r"[a-z]+:|//", link):
                continue  # the page of what is not there is written for the root of a server
            place, _, anchor = link.partition("#")
            target = (path.parent / unquote(place)).resolve() if place else path
            if not target.is_file() or (anchor and target in pages and unquote(anchor) not in pages[target].ids):
                wrong.append(f"{path.relative_to(folder)} leads to {link}, which is not there")
    if wrong:
        raise ValueError("\n".join(wrong))


class _Page(HTMLParser):
    """What a page leads to, what it loads, and what one can lead to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.parts: list[str] = []
        self.ids = {"", "__skip"}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "link", "img", "iframe", "source"):
            self.parts += [given[name] for name in ("src", "href") if name in given]
