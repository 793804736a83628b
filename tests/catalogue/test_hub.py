"""hf: names, against a server that answers as the hub does: which file, resumed, checked, and whose key goes where."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.catalogue import hub as client
from fieldlm.catalogue.download import PIECE_BYTES
from fieldlm.catalogue.hub import HubFile, Lfs, choose
from fieldlm.catalogue.model_cache import find, models_folder, pull, remove
from fieldlm.core.errors import InputError, NoSpaceError, TrustError, UnavailableError
from tests.support.hub_server import Hub, hub

NAME = "hf:org/model"
FILE = "model-Q4_K_M.gguf"
DATA = bytes(range(256)) * 20_000  # 5 MB
FIELDLM = [sys.executable, "-c", "import sys; from fieldlm.cli.main import main; sys.exit(main())"]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("fieldlm.catalogue.download.WAIT_S", 0.0)
    with hub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        made.files = {"README.md": b"# a model", FILE: DATA, "model-Q8_0.gguf": DATA * 2}
        yield made


def listing(*names: str) -> list[HubFile]:
    return [HubFile(name, lfs=Lfs("0" * 64, 1)) for name in names]


def test_a_repository_with_several_files_gives_the_usual_type_and_keeps_it(served: Hub) -> None:
    model = pull(NAME)
    assert (model.file, model.size, model.path.read_bytes()) == (FILE, len(DATA), DATA)
    sent = served.sent
    assert pull(NAME) == model == find(NAME)
    assert served.sent == sent
    assert not any((models_folder() / ".fetch").glob("*/*"))


def test_a_file_is_named_by_its_path_or_by_its_type(served: Hub) -> None:
    assert pull(f"{NAME}:model-Q8_0.gguf").path.read_bytes() == DATA * 2
    assert pull(f"{NAME}@main:q4_k_m").file == FILE


@pytest.mark.parametrize(
    ("names", "wanted", "problem"),
    [
        (["README.md", "model.safetensors"], "", "has no GGUF file; make a bundle of it: fieldlm compile hf:org/model"),
        (["a-Q5_0.gguf", "a-Q6_K.gguf"], "", "names no one GGUF file; add :FILE, one of a-Q5_0.gguf, a-Q6_K.gguf"),
        (["a-Q5_0.gguf", "b-Q5_0.gguf"], "Q5_0", "names no one GGUF file"),
        (["a-Q5_0.gguf"], "Q4_0", "names no one GGUF file; add :FILE, one of a-Q5_0.gguf"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "", "is in parts"),
    ],
)
def test_what_is_no_one_file_is_said_with_the_names_there_are(names: list[str], wanted: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        choose(listing(*names), wanted, NAME)


def test_a_projector_for_images_is_not_taken_for_the_model() -> None:
    assert choose(listing("mmproj-F16.gguf", "model-F16.gguf"), "", NAME).path == "model-F16.gguf"


def test_a_connection_that_breaks_is_taken_up_where_it_broke(served: Hub) -> None:
    served.cut_after = 30 * PIECE_BYTES
    assert pull(NAME).path.read_bytes() == DATA
    assert served.sent == len(DATA)
    assert [each.partition("-")[0] for each in served.ranges] == [
        f"bytes={start * 30 * PIECE_BYTES}" for start in range(3)
    ]


def test_a_fetch_that_was_given_up_goes_on_in_the_next_call(served: Hub) -> None:
    served.cut_after = 20 * PIECE_BYTES
    part = pull_some(served)
    assert 0 < part < len(DATA)
    served.cut_after = None
    assert pull(NAME).path.read_bytes() == DATA
    assert served.sent == len(DATA)


def pull_some(served: Hub) -> int:
    """Fetch a first piece in a process that is killed after it; return the bytes that are here."""
    script = (
        "import os\n"
        "from fieldlm.catalogue import download, model_cache\n"
        "download.FRUITLESS = 1\n"
        "append = download._append\n"
        "def once(*args):\n"
        "    try:\n"
        "        append(*args)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), 9)\n"
        "download._append = once\n"
        f"model_cache.pull({NAME!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == -9
    (part,) = (models_folder() / ".fetch").glob("*/.*.part")
    assert part.stat().st_size == served.sent
    return part.stat().st_size


def test_ctrl_c_ends_it_at_once_and_what_has_come_stays(served: Hub) -> None:
    served.cut_after, served.hangs = 20 * PIECE_BYTES, True
    command = subprocess.Popen([*FIELDLM, "pull", NAME], stderr=subprocess.PIPE, text=True)
    try:
        until_s = time.monotonic() + 60
        while not any(part.stat().st_size for part in models_folder().glob(".fetch/*/.*.part")):
            assert command.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.05)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
    finally:
        command.kill()
    assert command.returncode == 130
    assert err.splitlines()[-1] == "fieldlm pull: stopped; run the same command again to go on"
    assert "Traceback" not in err
    served.cut_after, served.hangs = None, False
    assert pull(NAME).path.read_bytes() == DATA
    assert int(served.ranges[-1].removeprefix("bytes=").partition("-")[0]) > 0


def test_bytes_that_are_not_those_of_the_hubs_digest_are_thrown_away(served: Hub) -> None:
    served.sha256[FILE] = "a" * 64
    with pytest.raises(TrustError, match="its source says aaaa"):
        pull(NAME)
    assert find(NAME) is None
    assert not list(models_folder().rglob("*.part"))


def test_a_key_opens_what_is_gated_and_is_not_told_to_where_the_files_lie(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.token = "hf_secret"
    with pytest.raises(InputError, match=r"does not show it to you \(401\); check the name, and HF_TOKEN"):
        pull(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert pull(NAME).path.read_bytes() == DATA
    assert set(served.keys_at_files) == {""}


def test_what_cannot_be_fetched_is_one_line(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the hub has no model org/other at main"):
        pull("hf:org/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="HF_HUB_OFFLINE is set"):
        pull(NAME)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(client, "CONNECT_S", 1.0)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UnavailableError, match=r"the hub http://127\.0\.0\.1:9 does not answer: Connection refused; try"
    ):
        pull(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub")
    with pytest.raises(InputError, match="want an http"):
        pull(NAME)


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_mb(path: Path) -> int:
        return 1

    monkeypatch.setattr("fieldlm.core.files.free_mb", one_mb)
    with pytest.raises(NoSpaceError, match=r"needs 5\.1 MB and 1 MB are free"):
        pull(NAME)
    assert served.sent == 0


def test_what_is_removed_is_gone_and_cannot_be_removed_again(served: Hub) -> None:
    first = pull(NAME)
    assert remove(NAME) == [first]
    assert find(NAME) is None
    with pytest.raises(InputError, match="is not in the cache"):
        remove(NAME)


def test_the_commands_fetch_list_and_remove(served: Hub) -> None:
    def said(*arguments: str) -> str:
        done = subprocess.run([*FIELDLM, *arguments], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(said("list", "--json"))["models"][0]["path"] is None
    (fetched,) = json.loads(said("pull", NAME, "--json"))
    assert Path(fetched["path"]).read_bytes() == served.files[FILE]
    assert json.loads(said("rm", NAME, "--json")) == {"removed": [NAME], "freed_mb": 5.1}
    done = subprocess.run([*FIELDLM, "rm", NAME], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
