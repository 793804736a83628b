"""The system's Chromium, and axe-core on the pages that it shows."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files

from playwright.sync_api import Browser, Page, sync_playwright

DESK, NARROW = (1280, 900), (320, 700)
MINOR = {"minor", None}
_AXE = files("axe_playwright_python").joinpath("axe.min.js")


@contextmanager
def chromium() -> Generator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "these tests need Chromium; run: apt-get install chromium"
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()


def faults(page: Page) -> list[str]:
    """Return what axe-core finds moderate or worse, one line an element; a page's own policy does not bind it."""
    context = page.context.new_cdp_session(page)
    tree = context.send("Page.getFrameTree")
    world = context.send("Page.createIsolatedWorld", {"frameId": tree["frameTree"]["frame"]["id"], "worldName": "axe"})
    where = {"contextId": world["executionContextId"], "awaitPromise": True, "returnByValue": True}
    context.send("Runtime.evaluate", {"expression": _AXE.read_text(), **where})
    asked = "axe.run(document, {resultTypes: ['violations', 'passes']}).then(r => JSON.parse(JSON.stringify(r)))"
    answer = context.send("Runtime.evaluate", {"expression": asked, **where})
    context.detach()
    assert "exceptionDetails" not in answer, answer
    found = answer["result"]["value"]
    assert len(found["passes"]) > 5, "axe-core looked at nothing"
    return [
        f"{each['impact']} {each['id']}: {node['html'][:120]} {(node.get('failureSummary') or '')[:200]}"
        for each in found["violations"]
        if each["impact"] not in MINOR
        for node in each["nodes"]
    ]


def overflow(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def unreachable(page: Page, most: int = 400) -> set[str]:
    """Return what can be clicked and is not reached with the Tab key, and what takes the focus without showing it."""
    wanted = page.evaluate(
        """() => { let n = 0; const kinds = 'a[href], button, input, select, textarea, summary';
        for (const e of document.querySelectorAll(kinds))
        if (e.checkVisibility({visibilityProperty: true}) && !e.disabled) e.dataset.stop = ++n; return n; }"""
    )
    page.evaluate("document.activeElement.blur()")
    seen: set[str] = set()
    unmarked: set[str] = set()
    for _ in range(min(most, 3 * wanted + 20)):
        page.keyboard.press("Tab")
        stop, html, is_marked = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
            const isMarked = s.outlineStyle !== 'none' || e === document.body;
            return [e.dataset.stop ?? '', e.outerHTML.slice(0, 90), isMarked]; }"""
        )
        seen.add(stop)
        if not is_marked:
            unmarked.add(f"no focus is seen on {html}")
    missed = {str(number) for number in range(1, wanted + 1)} - seen
    return unmarked | {
        page.locator(f"[data-stop='{each}']").first.evaluate("e => e.outerHTML")[:120] for each in missed
    }
