"""The kiosk story, short: every arrow real, too few examples to learn from."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SHORT = ("--sentences", "70", "--held-out", "8", "--epochs", "0.3")


def demo(folder: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("fieldlm")), "demo", "--folder", str(folder), *SHORT]


def stages(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "stages").glob("*.json")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A story that was interrupted while customers were talking, and then told to its end."""
    folder = tmp_path_factory.mktemp("story")
    said = folder / "first.log"
    with said.open("w") as log:
        child = subprocess.Popen(demo(folder), stderr=log, stdout=log, start_new_session=True)
    deadline_s = time.monotonic() + 600
    traffic = folder / "stages" / "traffic.jsonl"
    while not traffic.exists() or not traffic.read_text():
        assert child.poll() is None, said.read_text()
        assert time.monotonic() < deadline_s, said.read_text()
        time.sleep(0.2)
    # Like Ctrl-C, which a process started in the background would not hear.
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) == 130, said.read_text()
    assert "traffic" not in stages(folder)
    done = subprocess.run(demo(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "second.out").write_text(done.stdout)
    (folder / "second.err").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_an_interrupted_story_goes_on_where_it_stopped(folder: Path) -> None:
    assert "Compile the base model for this device: done before" in (folder / "second.err").read_text()


def test_how_long_it_takes_is_said_first_and_of_what_was_interrupted_only_what_was_measured(
    folder: Path, report: dict[str, Any]
) -> None:
    first, second = (folder / "first.log").read_text(), (folder / "second.err").read_text()
    assert first.index("minutes in all") < first.index("Compile the base model")
    assert "minutes are left" in second
    assert [stage["name"] for stage in report["stages"] if stage["resumed"]] == ["traffic"]
    assert "at least: it was interrupted" in (folder / "second.out").read_text()
    assert report["foreseen_s"] > 0


def test_the_report_has_what_it_draws(report: dict[str, Any]) -> None:
    assert len(report["tune"]["losses"]) == report["tune"]["steps"] > 0
    asked = report["after"]["functions"].values()
    assert sum(total for _, total in asked) == report["after"]["total"] == 8
    assert report["before"]["total"] == 4
    assert sum(report["redacted"].values()) > 0


def test_every_record_made_on_the_device_is_in_the_store_once(report: dict[str, Any]) -> None:
    telemetry = report["telemetry"]
    assert telemetry["streams"]["gen"]["produced"] == telemetry["streams"]["gen"]["stored"] >= 76
    assert telemetry["streams"]["fb"]["produced"] == telemetry["streams"]["fb"]["stored"] >= 70
    assert telemetry["gaps"] == telemetry["doubled"] == 0
    assert telemetry["outage_s"] > 0


def test_no_request_fails_while_the_device_takes_the_update(report: dict[str, Any]) -> None:
    update = report["update"]
    assert update["failed"] == 0
    answered_by = {generation for _, _, generation in update["answers"]}
    assert len(answered_by) == 2, "customers were served by the old and by the new generation"
    assert update["generation"] in answered_by


def test_the_update_moves_the_adapter_and_not_the_base(report: dict[str, Any]) -> None:
    update = report["update"]
    assert update["fetched_bytes"] < update["bundle_bytes"] / 8
    assert update["fetched_bytes"] >= update["adapter_bytes"]


def test_the_steps_of_the_update_came_home(report: dict[str, Any]) -> None:
    names = [step["name"] for step in report["update"]["steps"]]
    assert names[-1] == "committed"
    assert {"fetched", "verified", "loaded", "probed", "switched"} <= set(names)


def test_words_without_consent_and_personal_details_stay_on_the_device(folder: Path) -> None:
    from fieldlm_compiler.collect.parquet import Store

    with Store(folder / "store", read_only=True) as store:
        rows = store.query("SELECT consent, prompt, answer, correction FROM records")
    assert any(row["prompt"] for row in rows)
    for row in rows:
        text = f"{row['prompt']}{row['answer']}{row['correction']}"
        if not row["consent"]:
            assert not text
        assert "@example.com" not in text
        assert "4111 1111" not in text
        assert "555-01" not in text


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "src=" not in page
    assert page.count("href=") == page.count('href="data:,"') == 1, "an empty icon, so that none is asked for"
    assert "<script" not in page


def test_a_story_that_is_told_is_not_told_again(folder: Path) -> None:
    done = subprocess.run([*demo(folder), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["update"]["failed"] == 0
    assert done.stderr.count("done before") == len(stages(folder))


def test_another_size_does_not_mix_with_a_told_story(folder: Path) -> None:
    other = [argument if argument != "70" else "71" for argument in demo(folder)]
    done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--fresh" in done.stderr
    assert done.stderr.count("\n") == 1
