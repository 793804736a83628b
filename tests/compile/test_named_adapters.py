"""How several adapters are named for one bundle, and what each is judged by."""

import json
from pathlib import Path

import pytest

from fieldlm.cli.main import main
from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.compile.named_adapters import NamedAdapter, TaskShares, check_named_apart, with_tasks
from tests.support import tiny_models
from tests.support.task_bundles import word_router

SCENARIOS = [
    {"id": "scenario-1", "name": "bar", "description": "", "size": 2, "tasks": ["t1", "t3", "t9"]},
    {"id": "scenario-2", "name": "desk", "description": "", "size": 1, "tasks": ["t2"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two adapters, a router and a tasks file; one of its tasks the router does not know."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "router.npz").write_bytes(word_router().packed())
    (tmp_path / "tasks.json").write_text(json.dumps({"format": "fieldlm.tasks/1", "scenarios": SCENARIOS}))
    return tmp_path


def named(folder: Path, *names: str, tasks: bool = True) -> list[tuple[str, tuple[str, ...]]]:
    words = [f"{name}={folder / each}" for name, each in zip(names, "abc", strict=False)]
    found = with_tasks(words, folder / "router.npz", folder / "tasks.json" if tasks else None)
    return [(each.name, each.tasks) for each in found]


def test_each_is_for_the_task_or_the_scenario_that_it_is_called_like(folder: Path) -> None:
    assert named(folder, "all", "scenario-1", "t2") == [("all", ()), ("scenario-1", ("t1", "t3")), ("t2", ("t2",))]
    assert named(folder, "rest", "bar", "desk") == [("rest", ()), ("bar", ("t1", "t3")), ("desk", ("t2",))]
    assert named(folder, "all", "t1", tasks=False) == [("all", ()), ("t1", ("t1",))]
    assert named(folder, "bar", "desk") == [("bar", ("t1", "t3")), ("desk", ("t2",))], "the first may be for one, too"


def test_one_alone_needs_no_name_and_a_folder_may_have_an_equals_sign(folder: Path) -> None:
    (folder / "x=y").mkdir()
    for word, place in ((f"{folder}/a", "a"), (f"all={folder}/a", "a"), (f"{folder}/x=y", "x=y")):
        assert with_tasks([word], None, None) == (NamedAdapter(folder=folder / place),)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["all=a", "soup=b"], "no task of .* is called 'soup'"),
        (["all=a", "t11=b"], "did you mean 't1'"),
        (["all=a", "bar=b", "t3=c"], "t3 is of the adapter 'bar' already"),
        (["a", "t1=b"], "several --adapter have names: --adapter NAME=a"),
        (["all=a", "t1=nowhere"], "'nowhere' does not exist"),
        (["all=a", "t1=router.npz"], "'router.npz' is no folder"),
        ([""], "names no folder"),
    ],
)
def test_a_name_that_is_of_nothing_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=why):
        with_tasks(words, Path("router.npz"), Path("tasks.json"))


def test_what_several_need_is_asked_for(folder: Path) -> None:
    words = [f"all={folder}/a", f"t1={folder}/b"]
    with pytest.raises(InputError, match="--router FILE"):
        with_tasks(words, None, None)
    (folder / "tasks.json").write_text('{"scenarios": 1}')
    with pytest.raises(InputError, match="is no tasks file"):
        with_tasks(words, folder / "router.npz", folder / "tasks.json")
    (folder / "tasks.json").write_text('{"format": "fieldlm.tasks/2"}')
    with pytest.raises(InputError, match="known is fieldlm"):
        with_tasks(words, folder / "router.npz", folder / "tasks.json")
    several = [NamedAdapter(folder=folder, name=name) for name in ("all", "all")]
    for adapters, router in ((several, None), (several, folder / "router.npz")):
        with pytest.raises(InputError):
            check_named_apart(adapters, router)


def test_examples_are_parted_as_a_device_would_part_the_requests(folder: Path) -> None:
    said = ("a tea please", "the bill please", "what weather is it", "?!", "one more tea")
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]} for text in said]
    path = tiny_models.write_lines(folder / "task.jsonl", rows)
    adapters = [NamedAdapter(folder=folder, name="all"), NamedAdapter(folder=folder, name="bar", tasks=("t1",)),
                NamedAdapter(folder=folder, name="none", tasks=("t7",))]  # fmt: skip
    with TaskShares(path, adapters, folder / "router.npz") as shares:
        found = {each.name: shares.of(each.name) for each in adapters}
        lines = {name: part.read_text().splitlines() for name, part in found.items() if part}
    assert {name: [json.loads(line) for line in those] for name, those in lines.items()} == {
        "all": [rows[1], rows[2], rows[3]],
        "bar": [rows[0], rows[4]],
    }
    assert not any(part.exists() for part in found.values() if part)


def test_the_command_makes_one_bundle_of_several(
    tiny: Checkpoint, tiny_compiled: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("all", "bar", "desk")
    for seed, name in enumerate(names, 1):
        tiny_models.tiny_adapter(folder / name, tiny.folder, seed=seed)
    asked = [word for name in names for word in ("--adapter", f"{name}={folder / name}")]
    asked += ["--base-bundle", str(tiny_compiled.folder), "--profile", tiny_compiled.manifest.profile]
    asked += ["--router", str(folder / "router.npz"), "--tasks", str(folder / "tasks.json")]
    asked += ["--out", str(folder / "out"), "--keys", str(folder / "keys")]
    assert main(["compile", str(tiny.folder), *asked]) == 0
    assert "mean-kl:bar" in capsys.readouterr().out
    bundle = open_bundle(folder / "out")
    assert [(each.name, each.path, each.tasks) for each in bundle.manifest.task_adapters] == [
        ("all", "adapter.gguf", ()),
        ("bar", "adapter-bar.gguf", ("t1", "t3")),
        ("desk", "adapter-desk.gguf", ("t2",)),
    ]
    assert bundle.need("router").read_bytes() == (folder / "router.npz").read_bytes()
    assert bundle.manifest.must_understand == ("adapters",)
