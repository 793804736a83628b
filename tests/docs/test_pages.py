"""The documentation: its reference is whole, its links lead somewhere, its commands are commands.

No mkdocs is needed here: `make docs`, which `.ci/run` runs, builds the site strictly and looks at every link once more.
"""

import posixpath
import re
import shlex
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import fieldlm
from docs import hooks, reference
from fieldlm.api import chat_request, parameters
from fieldlm.cli.main import COMMANDS, main
from fieldlm.core.config import SETTINGS
from fieldlm.formats.profile import profile_names

ROOT = Path(__file__).parents[2]
WRITTEN = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / file for file in hooks.OUTSIDE.values())]
}
"""Pages that people write, by their path in a checkout."""
WITHOUT_FIELDS = {
    *(f"POST /api/{name}" for name in ("pull", "push", "create", "copy", "blobs/{digest}")),  # refused: updates do it
    "POST /api/embeddings",  # as /api/embed, which says so
    "POST /v1/responses/{rest:path}",  # refused: nothing is kept
    "POST /v1/fieldlm/command",  # an Envelope, which MQTT carries, too
}
SAME = re.compile(r"\b(question|request|seed|temperature|always|each time|0 is)\b.*\bsame\s+(answer|way)\b", re.DOTALL)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INSTALL = re.compile(r"\b(?:pip|pipx|uv tool|uv pip) install ([^`\n]+)")
NAMED = ("-r", "--requirement", "-c", "--constraint", "-f", "--find-links", "-i", "--index-url", "--group")
"""Options of pip that a word belongs to."""
LINK = re.compile(r"""\]\((?![a-z]+:)([^)\s]+)(?: "([^"]*)")?\)""")
"""Where a link leads, and its title: the page of the reference that it leads to on the site."""


@cache
def generated(page: str) -> str:
    return reference.PAGES[page]()


def site() -> dict[str, str]:
    """Return the Markdown of every page of the site, by its path there."""
    pages = {path.removeprefix("docs/"): text for path, text in WRITTEN.items() if hooks.is_page(path)}
    pages |= {page: WRITTEN[file] for page, file in hooks.OUTSIDE.items()}
    pages |= {page: generated(page) for page in reference.PAGES}
    return {page: hooks.for_site(text, page) for page, text in pages.items()}


def anchors(text: str) -> set[str]:
    """Return what one can link to in a page: its headings, as GitHub and mkdocs both spell them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_the_reference_has_every_command_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    page = generated("reference/commands.md")
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        options = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", capsys.readouterr().out)) - {"--help"}
        part = page[page.index(f"\n### {name}\n") :].split("\n### ")[1]
        assert options <= set(re.findall(r"`(--[a-z0-9-]+)`", part)) | {"--"}, name


def test_the_reference_has_every_parameter_with_what_is_done_with_it() -> None:
    page = generated("reference/api.md")
    honoured, rest = page.split("\n## Refused by name\n")
    refused, harmless = rest.split("\n## Harmless\n")
    bodies = reference.requests()
    posted = {f"{how} {path}" for path, methods in reference.routes().items() for how in {"POST", "PUT"} & {*methods}}
    assert posted - WITHOUT_FIELDS == set(bodies)
    for kind in bodies.values():
        assert {f"| `{name}` |" for name in kind.__struct_fields__} <= set(re.findall(r"\| `\w+` \|", honoured)), kind
    assert all(f"| `{name}` | {why} |" in refused for name, why in parameters.REFUSED.items())
    assert all(f"`{name}`" in harmless for name in parameters.HARMLESS)


def test_the_reference_has_every_profile_setting_and_public_name() -> None:
    assert set(re.findall(r"^## (.*)$", generated("reference/profiles.md"), re.MULTILINE)) == set(profile_names())
    assert set(re.findall(r"^\| `(\w+)` ", WRITTEN["docs/settings.md"], re.MULTILINE)) == set(SETTINGS)
    shown = set(re.findall(r"^::: (\S+)$", generated("reference/python.md"), re.MULTILINE))
    for path in shown:
        holder, _, name = path.rpartition(".")
        assert hasattr(import_module(holder), name), path
    assert {path.rpartition(".")[2] for path in shown} >= set(fieldlm.__all__)


def test_the_reference_has_every_format_field_by_field() -> None:
    page = generated("reference/formats.md")
    modules = {path.stem for path in (ROOT / "runtime/fieldlm/formats").glob("*.py")}
    structs: dict[str, type[msgspec.Struct]] = {}
    for name in modules - {"__init__"}:
        structs |= {kind.__name__: kind for kind in reference.structs_of(import_module(f"fieldlm.formats.{name}"))}
    assert set(structs) <= set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    for name, kind in structs.items():
        part = page[page.index(f"\n### {name}\n") :].split("\n##")[1]
        assert all(f"| `{field}` |" in part for field in kind.__struct_fields__), name


@pytest.mark.parametrize("page", WRITTEN)
def test_every_link_of_a_page_in_a_checkout_leads_somewhere(page: str) -> None:
    for link, title in LINK.findall(CODE.sub("", WRITTEN[page])):
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert (ROOT / target).exists(), f"{link} is not there in a checkout that nothing was built in"
        assert {anchor} <= {"", *(anchors((ROOT / target).read_text()) if anchor else ())}, link
        made, _, part = title.partition("#")
        assert {made} <= {"", *reference.PAGES}, title
        assert {part} <= {"", *(anchors(generated(made)) if part else ())}, title


def test_every_link_of_the_site_leads_to_a_page_and_its_heading() -> None:
    pages = site()
    for page, text in pages.items():
        for link, title in LINK.findall(CODE.sub("", text)):
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            assert not title, f"{page} → {link}"
            assert target in pages, f"{page} → {link}"
            assert {anchor} <= {"", *anchors(pages[target])}, f"{page} → {link}"


def test_every_page_stands_once_in_the_navigation() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(site())


@cache
def options_of(command: str) -> frozenset[str]:
    parser = reference.parser_of(command)
    return frozenset(option for action in parser._actions for option in action.option_strings)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("page", [page for page in WRITTEN if page != "CHANGELOG.md"])
def test_a_command_of_a_page_is_one_and_has_the_options_that_it_is_given(page: str) -> None:
    text = WRITTEN[page].replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?(fieldlm [a-z].*)$", text, re.MULTILINE)
    spans = re.findall(r"`(fieldlm [a-z][^`]*)`", re.sub(r"\s*\n\s*", " ", CODE.sub("", text)))
    for line in [*lines, *spans]:
        words = shlex.split(line, comments=True)
        assert words[1] in COMMANDS, line
        given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert given <= options_of(words[1]) | {"--help"}, line


def test_the_same_answer_is_promised_with_repeatable_alone() -> None:
    texts = [*WRITTEN.values(), chat_request.__doc__ or ""]
    texts += [reference.parser_of(command).format_help() for command in ("run", "chat")]
    texts += [page.read_text() for page in (ROOT / "runtime/fieldlm/api/static").glob("*.*")]
    sentences = [sentence for text in texts for sentence in re.split(r"(?<=\.)\s|\n\s*\n|\n\|", text)]
    promises = [sentence for sentence in sentences if SAME.search(sentence)]
    assert promises
    assert [each for each in promises if "repeatable" not in each] == []


@cache
def on_the_index() -> frozenset[str]:
    """Return the packages that this project takes from the index itself; its own are not there."""
    named: list[Any] = []
    for path in ("pyproject.toml", "compiler/pyproject.toml"):
        given = tomllib.loads((ROOT / path).read_text())
        lists = [given["project"].get("dependencies", []), *given["project"].get("optional-dependencies", {}).values()]
        named += [each for some in [*lists, *given.get("dependency-groups", {}).values()] for each in some]
    names = {re.split(r"[^\w.-]", each)[0].lower() for each in named if isinstance(each, str)}
    return frozenset(names - {"fieldlm", "fieldlm-compiler"})


@pytest.mark.parametrize("page", WRITTEN)
def test_what_a_page_installs_is_in_the_checkout_or_on_the_index(page: str) -> None:
    for command in INSTALL.findall(WRITTEN[page]):
        words = shlex.split(command, comments=True)
        if "--no-index" in words:
            continue
        given = [word for before, word in zip(["", *words], words, strict=False) if before not in NAMED]
        names = [word for word in given if not word.startswith(("-", ".", "/", "<"))]
        assert {re.split(r"[^\w.-]", name)[0].lower() for name in names} <= on_the_index(), command
