"""Fixtures that need the device half alone: the real small model, a bundle around it, and what is logged."""

from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.core.logs import TREE
from fieldlm.formats.bundle import Bundle
from tests.support import material


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    return material.smollm2_gguf()


@pytest.fixture(scope="session")
def base_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return material.tiny_bundle(tmp_path_factory.mktemp("bundle") / "base")


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
