"""A sweep on a Ray cluster is the sweep on one machine: the same table, the same choice, nothing twice."""

import json
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.tune import main
from fieldlm_compiler.learn.tuning.ray_sweep import lay_down
from tests.support import tiny_models
from tests.support.ray_nodes import PATIENCE_S, Node, one_node

COMMAND = "import sys; from fieldlm.cli.main import main; sys.exit(main(sys.argv[1:]))"
BROKEN = """
import sys
from pathlib import Path
from fieldlm.cli.main import main
from fieldlm_compiler.learn import tune

def broken(*_, **__):
    with Path({tries!r}).open("a") as file:
        print("tried", file=file)
    raise ZeroDivisionError("a fault of the trainer")

tune.tune = broken
sys.exit(main(sys.argv[1:]))
"""
FLAT, AS_FLAT, STEEP = "1e-9", "1e-8", "1e-2"


@pytest.fixture(scope="module")
def cluster() -> Generator[tuple[str, Node]]:
    with one_node() as node:
        yield node


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.to_tune(tmp_path_factory.mktemp("ray-sweep"))


def command(folder: Path, out: Path, *more: str, rates: str = f"{FLAT},{AS_FLAT},{STEEP}") -> list[str]:
    asked = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(out)]
    return [
        *asked,
        "--precision",
        "float32",
        "--device",
        "cpu",
        "--epochs",
        "8",
        "--sweep",
        f"learning-rate={rates}",
        *more,
    ]


def run(arguments: list[str], program: str = COMMAND) -> subprocess.CompletedProcess[str]:
    """Run `fieldlm tune` in a process of its own: Ray leaves threads behind in the one that joins a cluster."""
    asked = [sys.executable, "-c", program, "tune", *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def trials(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(each["recipe"], each["is_taken"]) for each in document["sweep"]["trials"]]


def test_the_same_table_and_choice_as_on_one_machine_and_nothing_is_tuned_twice(
    cluster: tuple[str, Node], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, node = cluster
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(command(folder, here, "--json")) == 0
    alone = json.loads(capsys.readouterr().out)
    # One that was stopped after its first adapter: what lies there is not tuned again.
    first = tmp_path / ".there.sweep" / "00"
    assert main([*command(folder, first, "--json")[:-3], "--learning-rate", FLAT, "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    ran = run(command(folder, there, "--ray", address, "--json"))
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert trials(document) == trials(alone)
    assert [each["is_taken"] for each in document["sweep"]["trials"]] == [False, False, True]
    # How many threads a node has changes the last digits.
    assert [each["loss"] for each in document["sweep"]["trials"]] == pytest.approx(
        [each["loss"] for each in alone["sweep"]["trials"]], abs=0.05
    )
    assert document["sweep"]["trials"][0]["seconds"] == kept["seconds"]
    assert document["recipe"] == alone["recipe"]
    assert document["inputs_sha256"] == alone["inputs_sha256"]
    assert (there / "adapter_model.safetensors").is_file()
    # It says where its base lies here, and not where it lay on the node.
    configs = [json.loads((out / "adapter_config.json").read_bytes()) for out in (here, there)]
    assert configs[1]["base_model_name_or_path"] == configs[0]["base_model_name_or_path"]
    assert {path.name for path in there.iterdir()} == {path.name for path in here.iterdir()}
    assert [path.name for path in tmp_path.glob(".*")] == [], "nothing is left beside"
    assert node.has("cache/fieldlm/nodes/*"), "it had a copy of its own"
    # Asked again, it is there, whether or not a cluster is.
    again = run(command(folder, there, "--ray", "127.0.0.1:1", "--json"))
    assert (again.returncode, json.loads(again.stdout)) == (0, document)


def test_a_mistake_of_a_trial_comes_home_as_one_line(cluster: tuple[str, Node], folder: Path, tmp_path: Path) -> None:
    """Whether the weights to begin at are this model's is seen by who has it in memory."""
    start = tiny_models.tiny_adapter(tmp_path / "start", folder / "checkpoint")
    weights = start / "adapter_model.safetensors"
    save_file({name.replace(".layers.0.", ".layers.9."): each for name, each in load_file(weights).items()}, weights)
    asked = ["--ray", cluster[0], "--from", str(start), "--rank", "4"]
    ran = run(command(folder, tmp_path / "out", *asked, rates=STEEP))
    assert ran.returncode == 2, ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert socket.gethostname() in last
    assert last.endswith("which this model or recipe does not")
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_trainer_is_not_tried_again(cluster: tuple[str, Node], folder: Path, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    program = BROKEN.format(tries=str(tries))
    ran = run(command(folder, tmp_path / "out", "--ray", cluster[0], rates=STEEP), program)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.strip().splitlines()[-1].endswith("a fault of the trainer")
    assert "Traceback" not in ran.stderr
    assert tries.read_text() == "tried\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ray", "ray://127.0.0.1:1"], "is a client's address, and a sweep needs this machine as a node"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1 ("),
        (["--ray", "nowhere"], "--ray nowhere is no address of a cluster; give HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(arguments: list[str], line: str, folder: Path, tmp_path: Path) -> None:
    ran = run(command(folder, tmp_path / "out", *arguments))
    assert ran.returncode != 0
    assert line in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_a_sweep_there_is_nothing_to_share_out(folder: Path, tmp_path: Path) -> None:
    asked = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--ray shares out the adapters of a sweep: name values with --sweep"):
        main([*asked, "--ray", "auto"])


def test_an_adapter_is_laid_down_as_if_it_was_tuned_here(tmp_path: Path) -> None:
    files = {
        "adapter_config.json": b'{"base": "/node/tmp/checkpoint"}',
        "adapter_model.safetensors": b"/node/tmp/checkpoint",
    }
    lay_down({"files": files, "checkpoint": "/node/tmp/checkpoint"}, tmp_path / "out", tmp_path / "model")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_bytes()) == {"base": str(tmp_path / "model")}
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == b"/node/tmp/checkpoint"
