"""Whatever comes from outside is text on every page, and no page fetches or runs anything but its own script."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.sample_pages import pages

ATTACK = "\"'><img src=x onerror=alert(1)><script>alert(1)</script></style></svg></title>{{ 7 * 7 }}&amp;"
KNOWN = {
    "a", "b", "button", "circle", "code", "div", "form", "g", "h1", "h2", "header", "html", "i", "input", "label",
    "li", "link", "main", "meta", "option", "p", "path", "polyline", "rect", "script", "section", "select", "span",
    "style", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "ul",
}  # fmt: skip
PAGES = ("fleet", "device", "rollout", "running rollout", "report", "explain", "round", "rounds", "bench", "comparison")


class Seen(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes = set[str]()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", PAGES)
def test_a_hostile_word_in_every_field_is_text_and_changes_no_element(tmp_path: Path, name: str) -> None:
    plain, attacked = Seen(pages(tmp_path, str)[name]), Seen(pages(tmp_path, lambda word: word + ATTACK)[name])
    assert attacked.tags == plain.tags
    assert attacked.tags.keys() <= KNOWN
    assert attacked.attributes == plain.attributes
    assert not {each for each in attacked.attributes if each.startswith("on")}
    assert attacked.text.count(ATTACK) > 5, "it is shown as it was written: neither evaluated nor escaped twice"
    assert "49" not in set(attacked.text.split()) - set(plain.text.split())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_in_itself_and_has_the_one_stylesheet(tmp_path: Path, name: str) -> None:
    page = pages(tmp_path, str)[name]
    assert all(link.startswith("/") or link == "data:," for link in Seen(page).links), "only other pages of the fleet"
    scripts = {"fleet": '<script src="/live.js" ', "device": '<script src="/live.js" ', "running rollout": "<script>"}
    assert page.count("<script") == page.count(scripts.get(name, "<no script>"))
    for word in ("http://", "https://", "@import", "url("):
        assert word not in page
    assert page.count("<style>") == 1
    assert "prefers-color-scheme: dark" in page
