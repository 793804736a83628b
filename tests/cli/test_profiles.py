"""`fieldlm profiles` lists, shows and refuses."""

import json
from pathlib import Path

import pytest

from fieldlm.cli.profiles import main
from fieldlm.formats.profile import profile_folder, profile_names


def test_all_profiles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in profile_names())


def test_a_profile_is_shown_with_the_source_of_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jetson-orin-nano-8gb"]) == 0
    shown = capsys.readouterr().out
    assert "memory.bandwidth_gb_s" in shown
    assert "paiml/realizar 120" in shown
    assert "MAXN_SUPER" in shown
    assert "picocluster-claw.com" in shown


def test_a_profile_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "rpi5-8gb"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["memory"]["bandwidth_gb_s"] == 17.0
    assert len(document["sha256"]) == 64


def test_the_shipped_profiles_pass_the_lint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lint"]) == 0
    assert "impossible" not in capsys.readouterr().out


def test_an_impossible_profile_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dream-board.toml"
    text = (profile_folder() / "rpi5-8gb.toml").read_text()
    path.write_text(text.replace('id = "rpi5-8gb"', 'id = "dream-board"').replace("value = 6000", "value = 60000"))
    assert main(["--lint", str(path)]) == 1
    assert "✗ memory.model_budget_mb = 60000 does not fit" in capsys.readouterr().out
