"""`fieldlm serve` with several models as a process: from the command line, a folder and settings; after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli import ps
from fieldlm.cli.broker import free_port
from fieldlm.core.errors import InputError
from fieldlm.core.files import link_or_copy
from fieldlm.device.local_models import NamedModel, named_models
from fieldlm.formats.bundle import Bundle
from tests.support import material
from tests.support.served_process import wait_until_ready

PROFILE = "generic-x86-64-avx2"
FIELDLM = str(Path(sys.executable).with_name("fieldlm"))
OWN = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def bundle(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, compiled for PROFILE."""
    return material.compiled_for(base_bundle, PROFILE, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one GGUF file, and what is none."""
    folder = tmp_path_factory.mktemp("shelf")
    link_or_copy(material.smollm2_gguf(), folder / "small.gguf")
    (folder / "notes.txt").write_text("nothing")
    return folder


@contextmanager
def serving(port: int, *arguments: str) -> Generator["subprocess.Popen[str]"]:
    command = [FIELDLM, "serve", *arguments, "--port", str(port), "--profile", PROFILE, "--threads", "1"]
    command += ["--context", "512", "--no-discovery"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", child)
        yield child
    finally:
        child.kill()
        child.communicate()


def shown(port: int, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Return what `fieldlm ps` says of each model."""
    assert ps.main(["--url", f"http://127.0.0.1:{port}", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    return {row["id"]: row["fieldlm"] for row in listed}


def told(port: int) -> set[tuple[str, str]]:
    """Return which models the metrics and the status name, and where."""
    import httpx

    url = f"http://127.0.0.1:{port}"
    found = set(re.findall(r'^(fieldlm_model_awake|fieldlm_generation_info){.*model="([^"]*)"', httpx.get(
        f"{url}/metrics").text, re.MULTILINE))  # fmt: skip
    for path in ("/status", "/v1/fieldlm/status"):
        assert httpx.get(url + path).json()["model"] == "mine", path
    assert {row["name"] for row in httpx.get(f"{url}/api/tags").json()["models"]} >= {"mine:latest"}
    return found


def said(port: int, model: str) -> tuple[int, Any]:
    import httpx

    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=120)
    return answer.status_code, answer.json()


def test_bundles_files_and_folders_are_served_side_by_side_and_again_after_a_kill(
    bundle: Path, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, state = free_port(), str(tmp_path / "state")
    models = (f"mine={bundle}", f"second={shelf / 'small.gguf'}", str(shelf))
    with serving(port, *models, "--state", state, "--models-mb", "400", "--pinned", "mine") as child:
        rows = shown(port, capsys)
        names = set(rows)
        third = (names - {"mine", "second"}).pop()
        assert len(names) == 3
        assert (rows["mine"]["state"], rows["mine"]["pinned"], rows["mine"]["aliases"]) == ("awake", True, [OWN])
        assert (rows["second"]["state"], rows[third]["state"]) == ("asleep", "asleep")
        status, answer = said(port, "second")
        assert (status, answer["model"]) == (200, "second")
        assert said(port, third)[0] == 200
        rows = shown(port, capsys)
        assert (rows["mine"]["state"], rows["second"]["state"], rows[third]["state"]) == ("awake", "asleep", "awake")
        assert {said(port, name)[1]["model"] for name in ("mine", OWN, "")} == {"mine"}, "by its bundle's name as well"
        assert told(port) == {("fieldlm_model_awake", "mine"), ("fieldlm_model_awake", "second"),
            ("fieldlm_model_awake", third), ("fieldlm_generation_info", "mine")}  # fmt: skip
        assert ps.main(["--url", f"http://127.0.0.1:{port}"]) == 0
        table = capsys.readouterr().out
        assert all(word in table for word in ("mine", "second", third, "asleep", "pinned", "never")), table
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with serving(port, *models, "--state", state, "--models-mb", "400"):
        rows = shown(port, capsys)
        assert {name: row["state"] for name, row in rows.items()} == {
            "mine": "awake", "second": "asleep", third: "asleep"
        }  # fmt: skip
        assert said(port, "second")[0] == 200


def test_a_model_that_sleeps_after_a_while_wakes_for_who_asks(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with serving(port, str(bundle), "--state", str(tmp_path / "state"), "--sleep-after", "1"):
        while shown(port, capsys)[OWN]["state"] != "asleep":
            pass
        assert shown(port, capsys)[OWN]["memory_mb"] == {}
        status, answer = said(port, OWN)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")


def test_two_models_of_one_name_are_told_apart_before_anything_is_served(bundle: Path, tmp_path: Path) -> None:
    command = [FIELDLM, "serve", str(bundle), str(bundle), "--state", str(tmp_path / "state"), "--profile", PROFILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "two models are called" in done.stderr
    assert "NAME=MODEL" in done.stderr


def test_what_is_asked_for_is_a_model_a_name_for_one_or_a_folder_of_them(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert named_models(["smollm2", "chat=smollm2", f"x={shelf}"]) == [
        NamedModel(name="", source="smollm2"),
        NamedModel(name="chat", source="smollm2"),
        NamedModel(name="x", source=str(shelf)),
    ]
    assert named_models([str(shelf)]) == [NamedModel(name="", source=str(shelf / "small.gguf"))]
    assert named_models([str(tmp_path / "a=b"), "pypi:x==1"])[0].name == ""
    with pytest.raises(InputError):
        NamedModel(name="", source="smolm2").open()
