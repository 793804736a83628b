"""Completion at the Tab key: the script is read by a real bash, which is then asked as the Tab key asks it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fieldlm.cli.main import COMMANDS, main

TAB = """
source "$1"; shift
spec=$(complete -p fieldlm)
function=${spec#*-F }; function=${function%% *}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$function fieldlm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "fieldlm.bash"
    command = [sys.executable, "-m", "fieldlm", "completion", "bash"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


def completed(script: Path, *words: str, where: Path | None = None) -> list[str]:
    command = ["bash", "--norc", "-c", TAB, "bash", str(script), "fieldlm", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_every_command(script: Path) -> None:
    assert set(completed(script, "")) >= set(COMMANDS)
    assert set(completed(script, "comp")) == {"compile", "completion"}


def test_bash_completes_the_options_of_a_command(script: Path) -> None:
    assert completed(script, "run", "--te") == ["--temperature"]
    assert completed(script, "publish", "--time") == ["--timestamp-days"]
    assert "--rank" in completed(script, "tune", "--")


def test_bash_completes_values_that_are_known_and_files(script: Path, tmp_path: Path) -> None:
    assert "rpi5-8gb" in completed(script, "compile", "--profile", "rpi5")
    (tmp_path / "a-model.gguf").write_text("")
    assert completed(script, "run", "a-mod", where=tmp_path) == ["a-model.gguf"]


@pytest.mark.parametrize(("shell", "head"), [("zsh", "#compdef fieldlm"), ("fish", "complete -c fieldlm")])
def test_there_is_a_script_for_zsh_and_fish(shell: str, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert head in said
    assert all(name in said for name in COMMANDS)
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"].strip() == said.strip()
