"""What tests share: the real small model, and a bundle around it."""

import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.core.logs import TREE
from fieldlm.formats.bundle import Bundle
from tests.support import material

pytest_plugins = ["tests.support.schedule", "tests.support.workshop_fixtures"]

# A shell that runs the tests in the background has SIGINT ignored, by them and by all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
