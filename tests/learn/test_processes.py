"""Several processes tune as one would: they share each batch, one of them writes, and if one ends, all end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples
from fieldlm_compiler.learn.tune import main, tune
from fieldlm_compiler.learn.tuning.adapted_model import with_adapter
from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss
from fieldlm_compiler.learn.tuning.processes.team import Team, is_member, is_quiet
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe, alpha_of
from fieldlm_compiler.learn.tuning.tuning_state import TuningRun
from tests.support import tiny_models
from tests.support.waiting import wait_until

LONG_S = 300.0
"""For two processes that import PyTorch beside busy neighbours."""
SIZES = (1, 9, 2, 14, 3, 1, 6, 1)


def rows() -> list[dict[str, Any]]:
    """Return eight conversations whose answers differ much in length, some with an answer that was wrong."""
    said = [
        {
            "messages": [
                {"role": "user", "content": f"{size} of {number}"},
                {"role": "assistant", "content": "tea and cake " * size},
            ]
        }
        for number, size in enumerate(SIZES)
    ]
    return [row | ({"rejected": "no soup"} if number % 3 == 0 else {}) for number, row in enumerate(said)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_models.tiny_llama(folder / "checkpoint")
    (folder / "data").mkdir()
    for name in ("train", "eval"):
        tiny_models.write_lines(folder / "data" / f"{name}.jsonl", rows())
    return folder


def words(folder: Path, out: Path, *more: str) -> list[str]:
    base = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(out), "--device", "cpu"]
    return [*base, "--precision", "float32", "--rank", "4", "--batch", "4", *more]


def as_asked(epochs: float, **more: Any) -> TrainingRecipe:
    """Return the recipe that `words` with `--epochs` ask for."""
    asked: dict[str, Any] = {"rank": 4, "alpha": alpha_of(4, "lora"), "batch": 4, "epochs": epochs}
    return TrainingRecipe(**asked, precision="float32", device="cpu", **more)


@contextmanager
def running(argv: list[str], said: Path) -> Generator["subprocess.Popen[bytes]"]:
    """Run `fieldlm tune` until the block ends; what it says goes to `said`."""
    command = [sys.executable, "-m", "fieldlm", "tune", *argv]
    with said.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def children(process: "subprocess.Popen[bytes]") -> dict[int, int]:
    """Return the process ids of the processes that `process` started to tune, by their ranks."""
    found: dict[int, int] = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        try:
            held = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(each.removeprefix(b"RANK=")): int(pid) for each in held if each.startswith(b"RANK=")}
    return found


def steps_began(said: Path) -> bool:
    return "  tune …" in said.read_text(errors="replace")


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_a_batch_add_up_to_its_loss_and_gradients(folder: Path, count: int, weight: float) -> None:
    train = folder / "data" / "train.jsonl"
    examples = read_examples(train, folder / "checkpoint", 512, in_pairs=weight > 0).examples
    torch.manual_seed(0)
    model: Any = with_adapter(folder / "checkpoint", as_asked(1.0))
    own = [each for each in model.parameters() if each.requires_grad]
    with torch.no_grad():
        for each in own:
            each.normal_(std=0.1)
    loss = AnswerLoss(model, is_packed=False)

    def step(batch: list[TokenizedExample]) -> tuple[float, list[float], list[torch.Tensor]]:
        model.zero_grad()
        value, worst = loss.mean_and_worst(batch, weight, whole=examples)
        value.backward()
        return float(value.detach()), worst, [each.grad.clone() for each in own]

    whole = step([*examples])
    shares = [Team(rank, count).share([example.work for example in examples]) for rank in range(count)]
    assert sorted(at for share in shares for at in share) == list(range(len(examples)))
    parts = [step([examples[at] for at in share]) for share in shares]
    assert sum(part[0] for part in parts) == pytest.approx(whole[0], rel=1e-4)
    for share, part in zip(shares, parts, strict=True):
        assert part[1] == pytest.approx([whole[1][at] for at in share], rel=1e-3)
    for number, gradient in enumerate(whole[2]):
        torch.testing.assert_close(sum(part[2][number] for part in parts), gradient, rtol=1e-3, atol=1e-5)


def test_two_processes_make_the_adapter_of_one(folder: Path, tmp_path: Path) -> None:
    one = tune(folder / "checkpoint", folder / "data", tmp_path / "one", as_asked(3.0, patience=2))
    with running(
        words(folder, tmp_path / "both", "--epochs", "3", "--patience", "2", "--processes", "2"), tmp_path / "said"
    ) as process:
        assert process.wait(LONG_S) == 0, (tmp_path / "said").read_text()
    both = json.loads((tmp_path / "both" / "tune.json").read_bytes())
    assert (one["processes"], both["processes"]) == (1, 2)
    assert both["losses"] == pytest.approx(one["losses"], rel=1e-2)
    for name in ("eval_loss_before", "eval_loss_after"):
        assert both[name] == pytest.approx(one[name], rel=1e-2)
    assert [each["steps"] for each in both["passes"]] == [each["steps"] for each in one["passes"]]
    for name, weight in load_file(tmp_path / "one" / "adapter_model.safetensors").items():
        other = load_file(tmp_path / "both" / "adapter_model.safetensors")[name]
        assert float((other - weight).norm()) < 1e-2 * float(weight.norm()), name
    text = (tmp_path / "said").read_text()
    assert text.count("  tune …") == text.count(f"{tmp_path / 'both'}: 8 examples") == 1, "one of them speaks"
    assert not list(tmp_path.glob(".both*"))


def test_a_run_of_one_process_is_gone_on_with_by_two(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(folder / "checkpoint", folder / "data", tmp_path / "whole", as_asked(4.0))
    kept = TuningRun.keep

    def stop(self: TuningRun, model: Any, optimiser: Any) -> None:
        kept(self, model, optimiser)
        if len(self.losses) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "adapter"
    with monkeypatch.context() as patch:
        patch.setattr(TuningRun, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(folder / "checkpoint", folder / "data", out, as_asked(4.0), keep_every_s=0.0)
    with running(words(folder, out, "--epochs", "4", "--processes", "2"), tmp_path / "said") as process:
        assert process.wait(LONG_S) == 0, (tmp_path / "said").read_text()
    assert "going on after step 3" in (tmp_path / "said").read_text()
    then = json.loads((out / "tune.json").read_bytes())
    assert then["losses"][:3] == whole["losses"][:3]
    assert then["losses"] == pytest.approx(whole["losses"], rel=1e-2)


def test_a_process_that_dies_ends_the_run_with_one_line(folder: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with running(words(folder, tmp_path / "adapter", "--epochs", "9999", "--processes", "2"), said) as process:
        wait_until(lambda: steps_began(said), patience_s=LONG_S)
        started = children(process)
        assert sorted(started) == [0, 1]
        os.kill(started[1], signal.SIGKILL)
        assert process.wait(LONG_S) == 1
    text = said.read_text()
    assert text.splitlines()[-1] == (
        "fieldlm tune: process 2 of 2 was ended by SIGKILL; run the same command again to go on where it was"
    )
    assert text.count("fieldlm tune:") == 1
    assert "Traceback" not in text
    assert not any(Path(f"/proc/{pid}").exists() for pid in started.values())
    assert not (tmp_path / "adapter").exists()


def test_a_process_that_dies_before_they_meet_says_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits for it, and would for hours."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        "    print('Traceback (most recent call last):\\nRuntimeError: out of memory', file=sys.stderr, flush=True)\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with running(words(folder, tmp_path / "adapter", "--processes", "2"), tmp_path / "said") as process:
        assert process.wait(LONG_S) == 1
    text = (tmp_path / "said").read_text()
    assert text.splitlines()[-1] == "fieldlm tune: process 2 of 2 ended: RuntimeError: out of memory"
    assert "Traceback" not in text


def test_a_process_that_dies_after_the_last_step_takes_nothing_away(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries do so when they are taken down."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\nif os.environ.get('RANK') == '1':\n    atexit.register(os._exit, 3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with running(
        words(folder, tmp_path / "adapter", "--epochs", "1", "--processes", "2"), tmp_path / "said"
    ) as process:
        assert process.wait(LONG_S) == 0, (tmp_path / "said").read_text()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_ctrl_c_ends_all_of_them_and_is_said_once(folder: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with running(words(folder, tmp_path / "adapter", "--epochs", "9999", "--processes", "2"), said) as process:
        wait_until(lambda: steps_began(said), patience_s=LONG_S)
        started = children(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG_S) == 130
    assert said.read_text().count("stopped; run the same command again to go on") == 1
    assert "Traceback" not in said.read_text()
    assert not any(Path(f"/proc/{pid}").exists() for pid in started.values())


def test_what_is_wrong_is_said_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train", "eval"):
        (tmp_path / "data" / f"{name}.jsonl").touch()
    argv = [str(folder / "checkpoint"), "--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "adapter")]
    with running([*argv, "--device", "cpu", "--processes", "2"], tmp_path / "said") as process:
        assert process.wait(LONG_S) == 2
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("fieldlm tune: ")]
    assert len(lines) == 1
    assert "train.jsonl has no examples" in lines[0]


def test_a_batch_too_small_and_a_sweep_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    argv = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(tmp_path / "adapter")]
    with pytest.raises(InputError, match=r"^--batch 2 is what all processes take in a step, and 3 of them want one"):
        main([*argv, "--batch", "2", "--processes", "3"])
    with pytest.raises(InputError, match=r"^--sweep is for one process"):
        main([*argv, "--sweep", "rank=2,4", "--processes", "2"])


def test_a_launcher_is_known_by_what_it_sets() -> None:
    assert is_member({"RANK": "0", "WORLD_SIZE": "2"})
    assert [is_quiet({"RANK": rank, "WORLD_SIZE": "2"}) for rank in "01"] == [False, True]
    for alone in ({}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": ""}):
        assert not is_member(alone)
        assert not is_quiet(alone)


def test_the_main_process_alone_keeps_where_the_run_is(tmp_path: Path) -> None:
    run = TuningRun(tmp_path / "state", {}, 0.0, Team(rank=1, count=2))
    run.keep(None, None)
    assert not (tmp_path / "state").exists()
