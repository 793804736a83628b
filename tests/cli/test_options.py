"""Options and files of every command: what is wrong is refused in one line, before any work, whatever the command."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli.main import COMMANDS, load, main
from fieldlm.core import options, terminal
from fieldlm.core.config import SETTINGS
from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.engines import EngineOptions, Sampling, open_engine
from fieldlm.engines.sampling import check_sampling
from fieldlm.formats.bundle import Bundle

PATHS = (Path, options.existing, options.existing_file, options.existing_folder, options.new_folder, options.new_file)
NO_NUMBERS = ("x", "", "nan", "1e999", "-1e999", "9" * 21, "-9223372036854775809", "0x10")


class _Built(Exception):
    """Carries the parser out of a command."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def numbers_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.Action]:
    """Return the arguments of `command` that are converted to something else than a path."""

    def stop(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise _Built(parser)

    with monkeypatch.context() as patch:
        patch.setattr(terminal.Parser, "parse_known_args", stop)
        with pytest.raises(_Built) as built:
            load(command)([])
    actions: list[argparse.Action] = built.value.parser._actions  # pyright: ignore[reportPrivateUsage]
    return [action for action in actions if action.type is not None and action.type not in PATHS]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2, argv
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"fieldlm {argv[0]}: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_takes_a_number_without_a_range(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for action in numbers_of(command, monkeypatch):
        assert action.type not in (int, float), f"{action.dest}: take options.whole or options.real"
        if not action.option_strings:
            continue
        for value in NO_NUMBERS:
            line = refused([command, f"{action.option_strings[0]}={value}"], capsys)
            assert action.option_strings[0] in line
            assert repr(value) in line
            assert "want a" in line


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "B", "x", "--threads", "100000"],
        ["run", "B", "x", "--threads", "-1"],
        ["run", "B", "x", "--threads", "513"],
        ["run", "B", "x", "--context", "99999999"],
        ["run", "B", "x", "--temperature", "-1"],
        ["run", "B", "x", "--temperature", "5"],
        ["run", "B", "x", "--seed", "18446744073709551616"],
        ["run", "B", "x", "--max-tokens", "0"],
        ["chat", "--max-tokens", "0"],
        ["bench", "B", "--threads", "100000"],
        ["bench", "B", "--repetitions", "0"],
        ["tune", "--rank", "0"],
        ["tune", "--epochs", "0"],
        ["tune", "--batch", "0"],
        ["tune", "--learning-rate", "-1"],
        ["cluster", "E", "--seed", "-1"],
        ["evaluate", "E", "--clients", "0"],
        ["fleet", "S", "--serve", "--port", "-1"],
        ["broker", "--port", "65536"],
        ["devices", "--timeout", "-1"],
        ["logs", "self", "--lines", "0"],
        ["compile", "M", "--max-kl", "0"],
        ["curate", "S", "--eval-share", "1.5"],
        ["rollout", "start", "--every", "0"],
    ],
    ids=" ".join,
)
def test_a_number_out_of_its_range_is_named_with_the_range(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(argv, capsys)
    assert argv[-2] in line
    assert repr(argv[-1]) in line


@pytest.mark.parametrize(("setting", "value"), [("port", "-1"), ("threads", "100000"), ("context", "99999999")])
def test_a_setting_that_is_out_of_its_range_is_one_line(
    setting: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setting in SETTINGS
    assert f"{setting} is '{value}'" in refused(["serve", f"--{setting}", value], capsys)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["adopt", "http://127.0.0.1:1", "--root", "BINARY"], "is not text in UTF-8"),
        (["adopt", "http://127.0.0.1:1", "--root", "MISSING"], "does not exist"),
        (["evaluate", "BINARY", "--url", "http://127.0.0.1:1"], "line 1 of"),
        (["evaluate", "BROKEN", "--url", "http://127.0.0.1:1"], "line 1 of"),
        (["evaluate", "LIST", "--url", "http://127.0.0.1:1"], "line 1 of"),
        (["evaluate", "ODD", "--url", "http://127.0.0.1:1"], "line 1 of"),
        (["evaluate", "NOTHING", "--url", "http://127.0.0.1:1"], "has no examples"),
        (["policy", "BINARY", "--out", "OUT"], "is no policy"),
        (["compile", "M", "--profile", "generic-x86-64-avx2", "--calibration", "MISSING"], "does not exist"),
        (["compile", "M", "--profile", "generic-x86-64-avx2", "--calibration", "BINARY"], "is not text"),
        (["compile", "M", "--profile", "generic-x86-64-avx2", "--calibration", "NOTHING"], "is empty"),
        (["compile", "M", "--profile", "generic-x86-64-avx2", "--task", "BROKEN"], "is not JSON"),
        (["compile", "M", "--profile", "generic-x86-64-avx2", "--task", "ODD"], "has no answer"),
        (["compile", "M", "--profile", "generic-x86-64-avx2", "--task", "NOTHING"], "has no examples"),
        (["compile", "M", "--out", "BINARY"], "is no folder"),
        (["compile", "M", "--merge", "MISSING"], "does not exist"),
        (["tune", "MISSING", "--dataset", "FOLDER", "--out", "OUT"], "does not exist"),
        (["tune", "FOLDER", "--dataset", "FOLDER", "--out", "OUT"], "fieldlm dataset"),
        (["tune", "FOLDER", "--dataset", "FOLDER", "--out", "BINARY"], "is no folder"),
        (["publish", "B", "--to", "s3://bucket/x"], "is a URL"),
        (["release", "show", "--to", "BINARY"], "is no folder"),
        (["detect", "--sysroot", "MISSING"], "does not exist"),
        (["run", "BINARY", "x"], "is not a GGUF file"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_file_that_cannot_be_used_is_one_line_before_any_work(
    argv: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "BINARY").write_bytes(bytes(range(255, 127, -1)))
    (tmp_path / "BROKEN").write_text('{"messages": [')
    (tmp_path / "LIST").write_text("[1]\n")
    (tmp_path / "ODD").write_text(json.dumps({"messages": [{"role": "user"}, {"tool_calls": [1]}]}))
    (tmp_path / "NOTHING").write_text("")
    monkeypatch.chdir(tmp_path)
    assert what in refused(argv, capsys)


@pytest.mark.parametrize("argv", [["compile", "M", "--calibration", "/nonexistent"], ["tune", ".", "--dataset", "."]])
def test_a_path_is_refused_before_pytorch_is_imported(argv: list[str], tmp_path: Path) -> None:
    ran = "import sys; from fieldlm.cli.main import main; rc = main(sys.argv[1:]); print(rc, 'torch' in sys.modules)"
    asked = [sys.executable, "-c", ran, *argv, "--out", str(tmp_path / "out")]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "2 False\n"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": "1"},
        {"top_p": 5.0},
        {"min_p": -0.1},
        {"top_k": -1},
        {"max_tokens": 2.5},
        {"max_tokens": True},
        {"seed": 10**20},
        {"stop": "abc"},
        {"stop": (1,)},
        {"logit_bias": {7: -1.0}},
        {"logit_bias": (7,)},
    ],
    ids=str,
)
def test_a_program_gets_the_same_ranges_and_the_wrong_value_named(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError) as refusal:
        check_sampling(Sampling(**wrong), 100)
    assert str(refusal.value).startswith(f"{name} is {value!r}, want ")


@pytest.mark.parametrize("wrong", [{"threads": 100_000}, {"threads": 0}, {"context": 2**31}, {"parallel": 0}], ids=str)
def test_an_engine_is_not_opened_with_what_would_end_the_process(base_bundle: Bundle, wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(FieldlmError, match=f"{name} is {value}, want a whole number"):
        open_engine(base_bundle, EngineOptions(**wrong))
