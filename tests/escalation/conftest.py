"""What tests of a large and a small model have in common."""

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.material import tiny_bundle
from tests.support.pairs import Pair, Start, pair


@pytest.fixture
def start(tmp_path: Path, tiny_one: Bundle) -> Generator[Start]:
    """Start pairs; settings by their names without `large_`, the large model's ways by the names of LargeServer."""
    with ExitStack() as stack:

        def begin(*, bundle: Bundle = tiny_one, says: dict[str, Any] | None = None, **settings: Any) -> Pair:
            return stack.enter_context(pair(bundle, tmp_path, says or {}, settings))

        yield begin


@pytest.fixture(scope="module")
def tiny_one(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))
