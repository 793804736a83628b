"""Fixtures that need the device half alone: the real small model, a bundle around it, and what is logged."""

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fieldlm.core.logs import TREE
from fieldlm.formats.bundle import Bundle
from tests.support import material

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from fieldlm.inference.generations import Generations


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    return material.smollm2_gguf()


@pytest.fixture(scope="session")
def base_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return material.tiny_bundle(tmp_path_factory.mktemp("bundle") / "base")


@pytest.fixture(scope="module")
def live(base_bundle: Bundle) -> Generator["Generations"]:
    from fieldlm.engines import EngineOptions
    from fieldlm.inference.generations import Generations

    made = Generations(base_bundle, EngineOptions(threads=1, context=256, parallel=2))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(live: "Generations") -> Generator[str]:
    """Where `live` is served, to anybody."""
    from fieldlm.api.app import make_app
    from fieldlm.network.http_server import listening

    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Generator["Browser"]:
    from tests.support.browser import chromium  # not on every machine that runs tests

    with chromium() as made:
        yield made


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Generator[pytest.LogCaptureFixture]:
    """What fieldlm logs in this test, whether or not the command line has taken it over before."""
    level, propagates = TREE.level, TREE.propagate
    TREE.addHandler(caplog.handler)
    TREE.setLevel("INFO")
    TREE.propagate = False
    yield caplog
    TREE.removeHandler(caplog.handler)
    TREE.setLevel(level)
    TREE.propagate = propagates
