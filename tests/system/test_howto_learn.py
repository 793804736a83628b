"""The commands under "Train" in docs/howto/learn.md run in their order, with a store that customers filled, a small
model and a bundle of it in the place of the page's names."""

import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.cli.broker import EmbeddedBroker
from fieldlm.formats.bundle import open_bundle
from fieldlm_compiler.repository.publish import newest_release
from tests.support.usage import CONSENT, Usage, sentences

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "learn.md"
BLOCK = re.compile(r"^```bash\n(fieldlm curate .*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def broker(tmp_path: Path) -> Generator[EmbeddedBroker]:
    made = EmbeddedBroker(port=0, folder=tmp_path)
    made.start()
    yield made
    made.stop()


def run(script: str, folder: Path) -> None:
    more = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "FIELDLM_KEYS": str(folder / "keys")}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_the_block_that_trains_ends_with_a_release(tiny_folder: Path, broker: EmbeddedBroker, tmp_path: Path) -> None:
    page = PAGE.read_text()
    (block,) = BLOCK.findall(page[page.index("## Train") :])
    assert f"--consent {CONSENT}" in block
    store = Usage(tmp_path / "store")
    said = [(words, task) for task in ("order", "book") for words in sentences(task)]
    store.customers(said, prefix="a")
    run(f"fieldlm compile '{tiny_folder}' --quant Q8_0 --out base", tmp_path)
    names = {"MODEL": f"'{tiny_folder}'", "BUNDLE": "base", "datasets/ID": "datasets/*", "mqtt://127.0.0.1": broker.url}
    for name, stand_in in names.items():
        assert name in block, "as the page calls it"
        block = block.replace(name, stand_in)
    run(block, tmp_path)
    tuned = open_bundle(tmp_path / "tuned")
    assert tuned.manifest.file("adapter")
    assert tuned.manifest.parent == open_bundle(tmp_path / "base").id
    found = newest_release(tmp_path / "repository", tuned.manifest.profile)
    assert found is not None
