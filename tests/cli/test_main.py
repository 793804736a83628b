"""The command itself: its list is whole and light; with --json every command answers with a document, errors too."""

import ast
import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fieldlm.cli.main import COMMANDS, GROUPS, load, main, usage
from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError

ROOT = Path(__file__).parents[2]
PATHS = (Path, options.existing, options.existing_file, options.existing_folder, options.new_folder, options.new_file)
# What computes, stores, renders or serves; none of it is needed to say what a command takes.
HEAVY = {
    *("numpy", "scipy", "sklearn", "torch", "transformers", "peft", "ray", "onnx", "onnxruntime", "gguf", "llama_cpp"),
    *("llguidance", "tokenizers", "safetensors", "pyarrow", "duckdb", "deltalake", "confluent_kafka", "jinja2", "yaml"),
    *("starlette", "uvicorn", "iotcore"),
}
LIGHT = """\
import sys
class NoWorkshop:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'fieldlm_compiler':
            raise ModuleNotFoundError(name)
sys.path_importer_cache.clear()
sys.path[:] = [path for path in sys.path if not path.rstrip('/').endswith('compiler')]
sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in str(finder)]
"""


def source_of(command: str) -> Path:
    spec = find_spec(COMMANDS[command][0])
    assert spec
    assert spec.origin
    return Path(spec.origin)


def test_every_module_that_runs_a_command_is_in_the_table() -> None:
    mains = {
        path
        for half in ("runtime/fieldlm", "compiler/fieldlm_compiler")
        for path in (ROOT / half).rglob("*.py")
        if "terminal.parser(" in path.read_text() and path.name != "main.py"
    }
    assert {source_of(command) for command in COMMANDS} == mains


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_main_that_knows_its_own_name(command: str) -> None:
    tree = ast.parse(source_of(command).read_text())
    calls = (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "terminal.parser"
    )
    assert [ast.literal_eval(call.args[0]) for call in calls] == [command]
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def test_the_list_names_every_command_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert listed == usage()
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert sorted(names) == sorted(COMMANDS)
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)
    assert [line for line in listed.splitlines() if line in GROUPS] == list(GROUPS)
    assert all(len(line) <= 80 for line in listed.splitlines())


def test_the_list_imports_no_command() -> None:
    script = "import sys; from fieldlm.cli.main import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    ours = {name for name in loaded if name.partition(".")[0] in ("fieldlm", "fieldlm_compiler")}
    assert ours == {"fieldlm", "fieldlm.cli", "fieldlm.cli.main", "fieldlm.core", "fieldlm.core.errors"}
    assert not loaded & {"numpy", "msgspec", "argparse", "importlib.metadata"}


def test_an_unknown_command_is_answered_by_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serf"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "did you mean 'serve'?" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_flag_is_one_line_and_with_json_a_document(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--no-such-flag"]) == 2
    plain = capsys.readouterr()
    assert plain.out == ""
    assert plain.err.splitlines()[-1].startswith(f"fieldlm {command}: ")
    assert f"fieldlm {command} --help" in plain.err
    assert main([command, "--no-such-flag", "--json"]) == 2
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert (error["kind"], error["exit_code"]) == ("InputError", 2)
    assert said.err == f"fieldlm {command}: {error['message']}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_default_that_says_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(command)(["--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--json" in said
    for nothing in ("(default: None)", "(default: )", "(default: False)", "(default: [])", "(default: '')"):
        assert nothing not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_in_80_columns_and_ends_with_examples_that_parse(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = terminal.parser_of(load(command)).format_help()
    assert [line for line in said.splitlines() if len(line) > 80] == []
    examples = said.partition("\nexamples:\n")[2].splitlines()
    assert examples
    assert any(f"fieldlm {command}" in line for line in examples)
    for line in examples:
        assert line.startswith("  ")
        words = shlex.split(line.partition("  #")[0].partition(" > ")[0])
        name, *rest = words[words.index("fieldlm") + 1 :]
        parser = terminal.parser_of(load(name))
        for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
            action.type = action.type if action.option_strings and action.type not in PATHS else None
        parser.parse_args(rest)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_that_takes_a_tenth_of_a_second(command: str) -> None:
    ran = "import sys, contextlib\nfrom fieldlm.cli.main import main\n"
    ran += "with contextlib.suppress(SystemExit):\n  main(sys.argv[1:])"
    script = f"{ran}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, command, "--help"], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "fieldlm" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["run", "smollm2", "--temprature", "1"], "--temperature"),
        (["detect", "--sysrot=/"], "--sysroot"),
        (["run", "smolm2", "hi"], "smollm2"),
        (["doctor", "--profile", "rpi5-8g"], "rpi5-8gb"),
        (["comple", "x"], "compile"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else given,
)
def test_a_mistyped_word_is_answered_by_the_one_that_was_meant(
    argv: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean" in line
    assert near in line


def test_options_may_stand_between_the_arguments() -> None:
    parser = terminal.parser("x", "y")
    parser.add_argument("model")
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("--seed")
    for argv in (["m", "p", "--seed", "1"], ["m", "--seed", "1", "p"], ["--seed", "1", "m", "p"]):
        args = parser.parse_args(argv)
        assert (args.model, args.prompt, args.seed) == ("m", "p", "1")
    assert parser.parse_args(["m", "--seed", "1", "--", "--p"]).prompt == "--p"


def test_version_says_both_halves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fieldlm"] == found["fieldlm-compiler"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fieldlm {found['fieldlm']}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_does_something_with_json(command: str) -> None:
    tree = ast.parse(source_of(command).read_text())
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "json"]
    assert read, f"{command} parses --json and never looks at it"


def test_an_abbreviated_flag_is_refused() -> None:
    parser = terminal.parser("x", "y")
    parser.add_argument("--threads")
    with pytest.raises(InputError, match="--thr"):
        parser.parse_args(["--thr", "1"])


def test_the_package_says_its_version_and_reads_it_when_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "import sys\nbefore = set(sys.modules)\nimport fieldlm\nfound = set(sys.modules) - before\n"
        "assert found == {'fieldlm'}, found\nprint(fieldlm.__version__)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fieldlm {said}"


def test_a_device_without_the_workshop_lists_its_commands_and_says_what_to_install() -> None:
    script = f"{LIGHT}\nfrom fieldlm.cli.main import main\nmain(['--help'])\nsys.exit(main(['compile', 'x', '--json']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install ./compiler" in done.stderr
    listed, _, error = done.stdout.partition("{")
    marked = {line.split()[0].rstrip("*") for line in listed.splitlines() if line.startswith("  ") and "*" in line}
    assert marked == {name for name, (module, _) in COMMANDS.items() if module.startswith("fieldlm_compiler.")}
    assert json.loads("{" + error)["error"]["kind"] == "MissingDependencyError"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_says_what_it_is(command: str) -> None:
    calls = [node for node in ast.walk(ast.parse(source_of(command).read_text())) if isinstance(node, ast.Call)]
    added = [call for call in calls if ast.unparse(call.func).endswith(".add_argument")]
    without = [ast.unparse(call.args[0]) for call in added if "help" not in {word.arg for word in call.keywords}]
    assert not without


def test_an_error_behind_an_interrupt_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: list[str]) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("save_nargs")  # as argparse does, where it is interrupted

    monkeypatch.setattr("fieldlm.cli.main.load", {"chat": command}.get)
    assert main(["chat"]) == 130
    assert capsys.readouterr().err == "fieldlm chat: stopped\n"


def test_an_error_of_its_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(argv: list[str]) -> int:
        raise AttributeError("wrong")

    monkeypatch.setattr("fieldlm.cli.main.load", {"chat": command}.get)
    with pytest.raises(AttributeError, match="wrong"):
        main(["chat"])
