"""What tests share: the real small model, and a bundle around it."""

from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support import material

pytest_plugins = ["tests.support.workshop_fixtures"]


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    return material.smollm2_gguf()


@pytest.fixture(scope="session")
def base_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return material.tiny_bundle(tmp_path_factory.mktemp("bundle") / "base")
