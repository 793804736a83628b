"""Every page that the workshop draws, by axe-core: light and dark, on a desk and 320 pixels wide, and by keyboard."""

from typing import Any

import pytest
from playwright.sync_api import Browser, Route

from tests.support.browser import DESK, NARROW, faults, overflow, unreachable
from tests.support.sample_pages import pages

PAGES = ("fleet", "device", "rollout", "running rollout", "report", "explain", "round", "rounds", "bench", "comparison")
WHERE = "http://pages.test"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return pages(tmp_path_factory.mktemp("bundle"), str)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, NARROW], ids=["desk", "narrow"])
@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_it(
    browser: Browser, drawn: dict[str, str], name: str, scheme: Any, size: tuple[int, int]
) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url.removeprefix(WHERE))
        is_page = route.request.url == f"{WHERE}/"
        route.fulfill(content_type="text/html" if is_page else "text/javascript", body=drawn[name] if is_page else "")

    page.route("**/*", answer)
    page.goto(f"{WHERE}/")
    assert (faults(page), overflow(page), unreachable(page)) == ([], 0, set())
    assert set(asked) <= {"/", "/live.js"}, "nothing is fetched from elsewhere"
    page.close()
