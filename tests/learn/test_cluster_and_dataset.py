import itertools
import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.cluster import cluster, main
from fieldlm_compiler.learn.communities import communities
from fieldlm_compiler.learn.curated import CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.dataset import dataset
from fieldlm_compiler.learn.dataset import main as dataset_main
from fieldlm_compiler.learn.embed import Embedder, Vectors
from fieldlm_compiler.learn.shapes import signature

ITEMS = ["latte", "tea", "muffin", "bagel", "mocha", "cookie", "espresso", "scone"]
DAYS = ["monday", "tuesday", "friday", "sunday"]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def talk(count: int, *, seed: int = 1, start: int = 0) -> list[CuratedExample]:
    """Three kinds of requests, in turn."""
    rng = random.Random(seed)
    found: list[CuratedExample] = []
    for number in range(start, start + count):
        item, day, many = rng.choice(ITEMS), rng.choice(DAYS), rng.randint(1, 6)
        kinds = [
            (f"can I get {many} {item}s please", {"name": "order", "arguments": {"item": item, "quantity": many}}),
            (f"a table for {many} on {day}", {"name": "book_table", "arguments": {"people": many, "day": day}}),
            (f"when do you open on {day}", {"name": "opening_hours", "arguments": {"day": day}}),
        ]
        said, call = kinds[number % 3]
        found.append(
            CuratedExample(
                messages=[{"role": "user", "content": f"{said} {number}"}],
                answer=json.dumps(call),
                label_source="correction",
                session=f"s{number % 40}",
                response=f"r{number}",
                split="eval" if number % 40 < 4 else "train",
                consent="yes",
                generation="abc",
            )
        )
    return found


THINGS = ["lamp", "heating", "door", "music", "alarm", "recipe", "train", "invoice"]
DEEDS = ["dim", "find", "cancel", "rename", "explain"]


def many_kinds(count: int, *, seed: int = 3) -> list[CuratedExample]:
    """Forty kinds of requests in turn, each in a few forms."""
    rng = random.Random(seed)
    forms = [
        "please {deed} the {thing}",
        "could you {deed} my {thing} {day}",
        "{deed} {thing} now",
        "{thing}: {deed} it",
    ]
    found: list[CuratedExample] = []
    for (number, example), (thing, deed) in zip(
        enumerate(talk(count)), itertools.cycle(itertools.product(THINGS, DEEDS)), strict=False
    ):
        said = rng.choice(forms).format(deed=deed, thing=thing, day=rng.choice(DAYS))
        call = json.dumps({"name": f"{deed}_{thing}", "arguments": {thing: number}})
        message = {"role": "user", "content": f"{said} {number}"}
        found.append(msgspec.structs.replace(example, messages=[message], answer=call))
    return found


def filled(folder: Path, examples: list[CuratedExample]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / "examples.jsonl", examples)
    return folder


def test_tasks_are_found_without_being_told(tmp_path: Path, embedder: Embedder) -> None:
    folder = filled(tmp_path, talk(240))
    tasks = cluster(folder, embedder=embedder)
    assert sorted(task["name"].split(":")[0] for task in tasks) == ["book_table", "opening_hours", "order"]
    assert [task["size"] for task in tasks] == [80, 80, 80]
    by_task = {(e.task, signature(e.answer)[0]) for e in read_examples(folder)}
    assert len(by_task) == 3


def test_the_same_examples_give_the_same_tasks(tmp_path: Path, embedder: Embedder) -> None:
    one, two = (filled(tmp_path / name, talk(150)) for name in ("one", "two"))
    assert cluster(one, embedder=embedder) == cluster(two, embedder=embedder)
    assert (one / "tasks.json").read_bytes() == (two / "tasks.json").read_bytes()
    assert (one / "examples.jsonl").read_bytes() == (two / "examples.jsonl").read_bytes()


def test_a_task_keeps_its_id_when_more_of_it_comes(tmp_path: Path, embedder: Embedder) -> None:
    folder = filled(tmp_path, talk(150))
    before = {task["name"].split(":")[0]: task["id"] for task in cluster(folder, embedder=embedder)}
    filled(tmp_path, talk(210, seed=9, start=500))
    after = {task["name"].split(":")[0]: task["id"] for task in cluster(folder, embedder=embedder)}
    assert after == before


def test_a_handful_of_examples_is_one_task(tmp_path: Path, embedder: Embedder) -> None:
    (task,) = cluster(filled(tmp_path, talk(5)), embedder=embedder)
    assert task["size"] == 5


@pytest.mark.parametrize(
    ("answer", "shape"),
    [
        ('{"name":"order","arguments":{"b":1,"a":2}}', ("order", "order.a", "order.b")),
        ('[{"function":"add","args":{"x":1}}]', ("add", "add.x")),
        ('{"a":1}', ("object", "object.a")),
        ("Certainly!", ("text",)),
        ("[]", ("text",)),
    ],
)
def test_the_shape_of_an_answer_is_what_it_calls_with_which_arguments(answer: str, shape: tuple[str, ...]) -> None:
    assert signature(answer) == shape


def test_a_dataset_is_named_by_its_content(tmp_path: Path) -> None:
    folder = filled(tmp_path / "examples", talk(60))
    first = dataset(folder, tmp_path / "sets")
    assert dataset(folder, tmp_path / "sets") == first
    assert dataset(folder, tmp_path / "elsewhere").name == first.name
    filled(folder, talk(61))
    assert dataset(folder, tmp_path / "sets") != first


def test_a_dataset_holds_conversations_that_end_with_the_label(tmp_path: Path) -> None:
    made = dataset(filled(tmp_path / "examples", talk(60)), tmp_path / "sets")
    train = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (made / "eval.jsonl").read_text().splitlines()]
    assert [message["role"] for message in train[0]["messages"]] == ["user", "assistant"]
    assert {line["session"] for line in train}.isdisjoint(line["session"] for line in held_out)
    document = json.loads((made / "dataset.json").read_text())
    assert (document["id"], document["train"], document["eval"]) == (made.name, len(train), len(held_out))
    assert (document["consents"], document["generations"]) == ({"yes": 60}, {"abc": 60})


def test_a_dataset_of_one_task_holds_only_that(
    tmp_path: Path, embedder: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled(tmp_path / "examples", talk(150))
    task = next(task for task in cluster(folder, embedder=embedder) if task["name"].startswith("book_table"))
    assert dataset(folder, tmp_path / "sets", task=task["id"]) == dataset(folder, tmp_path / "sets", task=task["name"])
    args = [str(folder), "--out", str(tmp_path / "sets"), "--task", task["id"], "--json"]
    assert dataset_main(args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tasks"] == {task["id"]: 50}
    with pytest.raises(InputError, match="there is no task 'tea'"):
        dataset(folder, tmp_path / "sets", task="tea")


def test_a_dataset_without_an_eval_part_says_what_that_means(
    tmp_path: Path, logged: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [msgspec.structs.replace(example, split="train") for example in talk(12)]
    for name, examples in (("all", talk(60)), ("train", known)):
        filled(tmp_path / name, examples)
        assert dataset_main([str(tmp_path / name), "--out", str(tmp_path / "sets")]) == 0
        assert ("cannot be evaluated" in logged.text) == (name == "train")
    assert "12 train, 0 eval" in capsys.readouterr().out
    assert "fieldlm curate STORE --out FOLDER --eval-share 0.5" in logged.text


def test_examples_without_training_customers_make_no_dataset(tmp_path: Path) -> None:
    folder = filled(tmp_path / "examples", [e for e in talk(60) if e.split == "eval"])
    with pytest.raises(InputError, match="no training example"):
        dataset(folder, tmp_path / "sets")


def test_a_missing_examples_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fieldlm curate"):
        main([str(tmp_path)])
    with pytest.raises(InputError, match="fieldlm curate"):
        dataset_main([str(tmp_path), "--out", str(tmp_path)])


def test_an_empty_utterance_stops_no_round(tmp_path: Path, embedder: Embedder) -> None:
    silent = [msgspec.structs.replace(e, messages=[{"role": "user", "content": ""}]) for e in talk(3)]
    assert sum(task["size"] for task in cluster(filled(tmp_path, [*talk(60), *silent]), embedder=embedder)) == 63


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "goto", "arguments": {"place": 1}}',
        '<tool_call>\n{"name": "goto", "arguments": {"place": 1}}\n</tool_call>',
        '[{"type": "function", "function": {"name": "goto", "arguments": "{\\"place\\": 1}"}}]',
        '{"tool_calls": [{"function": {"name": "goto", "arguments": {"place": 1}}}]}',
    ],
)
def test_a_call_has_one_signature_however_it_is_spelt(answer: str) -> None:
    assert signature(answer) == ("goto", "goto.place")


def test_a_task_that_nobody_asked_for_in_a_round_comes_back_with_its_id(tmp_path: Path, embedder: Embedder) -> None:
    everything = talk(240)

    def ids(examples: list[CuratedExample]) -> dict[str, str]:
        cluster(filled(tmp_path, examples), embedder=embedder)
        return {signature(e.answer)[0]: e.task for e in read_examples(tmp_path)}

    first = ids(everything)
    assert "book_table" not in ids([e for e in everything if "book_table" not in e.answer])
    # In other words than before, from which the same id would not be made anew.
    assert ids(talk(240, seed=2, start=1000))["book_table"] == first["book_table"]


@pytest.mark.parametrize("view", ["calls", "text"])
def test_forty_tasks_are_forty_whether_their_answers_call_functions_or_not(
    tmp_path: Path, embedder: Embedder, view: str
) -> None:
    from sklearn.metrics import adjusted_rand_score

    whole = many_kinds(800)
    names = [signature(e.answer)[0] for e in whole]
    given = whole if view == "calls" else [msgspec.structs.replace(e, answer="Done.") for e in whole]
    cluster(filled(tmp_path, given), embedder=embedder)
    agreement = adjusted_rand_score(names, [e.task for e in read_examples(tmp_path)])
    assert agreement > (0.99 if view == "calls" else 0.6)


def test_tasks_among_many_keep_their_ids_when_one_is_absent(tmp_path: Path, embedder: Embedder) -> None:
    whole = many_kinds(800)

    def ids(examples: list[CuratedExample]) -> dict[str, str]:
        cluster(filled(tmp_path, examples), embedder=embedder)
        return {signature(e.answer)[0]: e.task for e in read_examples(tmp_path)}

    first = ids(whole)
    assert len(set(first.values())) == 40
    assert "dim_lamp" not in ids([e for e in whole if signature(e.answer)[0] != "dim_lamp"])
    # In other words than before, from which the same ids would not be made anew.
    assert ids(many_kinds(800, seed=4)) == first


def test_points_beyond_the_graph_join_the_group_of_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(0)
    kinds = np.tile(np.arange(5), 60)
    points = (np.eye(8)[kinds] + 0.05 * dice.standard_normal((300, 8))).astype(np.float32)
    whole = communities(points, [""] * 300, seed=0, least=8)
    monkeypatch.setattr("fieldlm_compiler.learn.communities.NODES", 100)
    assert communities(points, [""] * 300, seed=0, least=8) == whole == kinds.tolist()


def test_a_few_strays_are_no_group_of_their_own() -> None:
    dice = np.random.default_rng(0)
    kinds = np.array([0] * 40 + [1] * 40 + [2] * 3)
    points = (np.eye(4)[kinds] + 0.05 * dice.standard_normal((83, 4))).astype(np.float32)
    labels = communities(points, [""] * 83, seed=0, least=8)
    assert labels[:80] == [0] * 40 + [1] * 40
    assert set(labels[80:]) <= {0, 1}


@pytest.mark.parametrize("odd", [np.zeros((20, 8)), np.ones((20, 8)), np.eye(20)], ids=["nothing", "same", "unlike"])
def test_points_that_say_nothing_of_groups_are_one_beside_others_and_alone(odd: Vectors) -> None:
    assert communities(odd.astype(np.float32), [""] * 20, seed=0, least=8) == [0] * 20
    kinds = np.tile(np.arange(3), 20)
    points = np.vstack([np.eye(3, odd.shape[1])[kinds] * (1 + 0.01 * np.arange(60)[:, None]), 0 * odd])
    labels = communities(points.astype(np.float32), [""] * 80, seed=0, least=8)
    assert {tuple(np.array(labels[:60])[kinds == kind].tolist()) for kind in range(3)} == {(n,) * 20 for n in range(3)}
