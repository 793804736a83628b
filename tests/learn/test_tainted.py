import json
from pathlib import Path

import pytest

from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.curated import read_examples
from fieldlm_compiler.learn.dataset import dataset
from fieldlm_compiler.learn.tainted import main, tainted
from tests.learn.test_curate import TERMS, fill


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A store in which s1 asks to be forgotten after examples, a data set, an adapter and a bundle were made."""
    said = [{"response": f"r{number}", "rating": "up"} for number in range(1, 41)]
    fill(tmp_path / "store", [{} for _ in said], said)
    curate(tmp_path / "store", tmp_path / "examples", consents=TERMS)
    made = dataset(tmp_path / "examples", tmp_path / "datasets")
    for name, file in (("adapter", "tune.json"), ("bundle", "manifest.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"dataset": made.name}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tune.json").write_text(json.dumps({"dataset": "of-somebody-else"}))
    return tmp_path


def forget(folder: Path, session: str) -> None:
    fill(folder / "store", [], [], [{"kind": "forget", "session": session}])


def folders(workshop: Path) -> list[Path]:
    return [workshop / name for name in ("examples", "datasets", "adapter", "bundle", "other")]


def test_all_that_was_made_of_forgotten_words_is_listed_and_nothing_else(workshop: Path) -> None:
    assert tainted(workshop / "store", folders(workshop)) == []
    forget(workshop, "s1")
    found = tainted(workshop / "store", folders(workshop))
    assert [(each.kind, each.lines) for each in found] == [
        ("examples", 1), ("data set", 1), ("adapter", 0), ("bundle", 0),
    ]  # fmt: skip
    assert main([str(workshop / "store"), str(workshop), "--json"]) == 1


def test_a_bundle_is_listed_when_one_of_its_adapters_was_made_of_forgotten_words(workshop: Path) -> None:
    (made,) = (workshop / "datasets").iterdir()
    (workshop / "several").mkdir()
    notes = {"datasets": {"all": "of-somebody-else", "tea": made.name}}
    manifest = {"dataset": "of-somebody-else", "notes": notes}
    (workshop / "several/manifest.json").write_text(json.dumps(manifest))
    forget(workshop, "s1")
    found = tainted(workshop / "store", [workshop / "datasets", workshop / "several"])
    assert [(each.kind, each.dataset) for each in found] == [("data set", made.name), ("bundle", made.name)]


def test_what_can_be_rebuilt_is_and_what_was_made_of_the_old_stays_known(workshop: Path) -> None:
    (old,) = (workshop / "datasets").iterdir()
    forget(workshop, "s1")
    tainted(workshop / "store", folders(workshop), rebuild=True)
    (new,) = (workshop / "datasets").iterdir()
    lines = (new / "train.jsonl").read_bytes() + (new / "eval.jsonl").read_bytes()
    assert (old.exists(), b'tea 1"' in lines, lines.count(b"\n")) == (False, False, 39)
    document = json.loads((new / "dataset.json").read_bytes())
    assert (document["replaces"], document["id"], document["train"] + document["eval"]) == ([old.name], new.name, 39)
    assert {e.session for e in read_examples(workshop / "examples")} == {f"s{n}" for n in range(2, 41)}
    assert [each.kind for each in tainted(workshop / "store", folders(workshop))] == ["adapter", "bundle"]


def test_a_data_set_of_which_nothing_is_left_is_removed_and_said(workshop: Path) -> None:
    for number in range(1, 41):
        fill(workshop / "store", [], [], [{"kind": "forget", "session": f"s{number}", "epoch": number + 1}])
    (found,) = tainted(workshop / "store", [workshop / "datasets"], rebuild=True)
    assert found.rebuilt == "removed, nothing was left"
    assert not list((workshop / "datasets").iterdir())


def test_what_somebody_rejected_goes_with_them(tmp_path: Path) -> None:
    said = [{"response": f"r{number}", "correction": f"right {number}"} for number in range(1, 21)]
    fill(tmp_path / "store", [{"answer": f"wrong {number} w"} for number in range(1, 21)], said)
    curate(tmp_path / "store", tmp_path / "examples", consents=TERMS)
    dataset(tmp_path / "examples", tmp_path / "datasets")
    forget(tmp_path, "s1")
    tainted(tmp_path / "store", [tmp_path / "examples", tmp_path / "datasets"], rebuild=True)
    files = [path for name in ("examples", "datasets") for path in (tmp_path / name).rglob("*.json*")]
    left = b"".join(path.read_bytes() for path in files)
    assert (b'"wrong 1 w"' in left, b'"wrong 2 w"' in left) == (False, True)
    (new,) = (tmp_path / "datasets").iterdir()
    assert sum(json.loads((new / "dataset.json").read_bytes())["pairs"].values()) == 19
