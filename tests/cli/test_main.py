"""The command itself: its list is whole and light; with --json every command answers with a document, errors too."""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fieldlm.cli.main import COMMANDS, GROUPS, load, main, usage
from fieldlm.core import terminal
from fieldlm.core.errors import InputError

ROOT = Path(__file__).parents[2]
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


def test_an_unknown_command_is_answered_by_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serf"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "did you mean 'serve'?" in said.err
    assert all(command in said.err for command in COMMANDS)


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
def test_every_command_does_something_with_json(command: str) -> None:
    tree = ast.parse(source_of(command).read_text())
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "json"]
    assert read, f"{command} parses --json and never looks at it"


def test_an_abbreviated_flag_is_refused() -> None:
    parser = terminal.parser("x", "y")
    parser.add_argument("--threads")
    with pytest.raises(InputError, match="--thr"):
        parser.parse_args(["--thr", "1"])


def test_a_device_without_the_workshop_lists_its_commands_and_says_what_to_install() -> None:
    script = f"{LIGHT}\nfrom fieldlm.cli.main import main\nmain(['--help'])\nsys.exit(main(['compile', 'x', '--json']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install fieldlm-compiler" in done.stderr
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
