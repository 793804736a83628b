import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.core.errors import InputError
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.learn.curate import CuratedExample, curate, dedupe, judge, main, read_examples, share_of


def fill(folder: Path, generations: list[dict[str, Any]], feedback: list[dict[str, Any]]) -> None:
    """Store records; every generation is complete and consented unless a field says otherwise."""
    common = {"device": "kiosk-1", "epoch": 1}
    made: list[list[Record]] = [[], []]
    for seq, fields in enumerate(generations, 1):
        said = [
            {"role": "system", "content": "You take orders."},
            {"role": "user", "content": fields.pop("said", f"tea {seq}")},
        ]
        full = {"stream": "gen", "kind": "generation", "seq": seq, "response": f"r{seq}", "session": f"s{seq}"}
        full |= {"consent": "yes", "outcome": "stop", "prompt": json.dumps(said), "answer": f"answer {seq}"}
        made[0].append(msgspec.convert(common | full | fields, Record))
    for seq, fields in enumerate(feedback, 1):
        full = {"stream": "fb", "kind": "feedback", "seq": seq}
        made[1].append(msgspec.convert(common | full | fields, Record))
    with Store(folder) as store:
        store.append([block.parse(block.encode(records)) for records in made if records])


def kept(tmp_path: Path) -> list[CuratedExample]:
    curate(tmp_path / "store", tmp_path / "out")
    return read_examples(tmp_path / "out")


def test_the_correction_is_the_label_and_a_liked_answer_is_one(tmp_path: Path) -> None:
    said = [{"response": "r1", "rating": "down", "correction": "two teas"}, {"response": "r2", "rating": "up"}]
    fill(tmp_path / "store", [{}, {}, {}], [*said, {"response": "r3", "rating": "down"}])
    first, second = kept(tmp_path)
    assert (first.answer, first.label_source, first.utterance) == ("two teas", "correction", "tea 1")
    assert (second.answer, second.label_source, second.session) == ("answer 2", "rated up", "s2")
    assert [message["role"] for message in first.messages] == ["system", "user"]


def test_the_latest_feedback_counts_and_a_rating_does_not_undo_a_correction(tmp_path: Path) -> None:
    said = [
        {"response": "r1", "correction": "a"},
        {"response": "r1", "correction": "b"},
        {"response": "r1", "rating": "up"},
    ]
    fill(tmp_path / "store", [{}], said)
    assert kept(tmp_path)[0].answer == "b"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"consent": ""}, "no consent"),
        ({"prompt": ""}, "no text"),
        ({"rating": ""}, "no label"),
        ({"outcome": "length"}, "not finished"),
        ({"prompt": "no json"}, "unreadable"),
        ({"prompt": '[{"role":"assistant","content":"x"}]'}, "unreadable"),
    ],
)
def test_what_is_no_example_says_why(change: dict[str, str], why: str) -> None:
    row = {"response": "r", "session": "s", "consent": "c", "generation": "g", "outcome": "stop", "answer": "a"}
    row |= {"prompt": '[{"role":"user","content":"x"}]', "rating": "up", "correction": ""}
    assert isinstance(judge(row), CuratedExample)
    assert judge(row | change) == why


def test_an_answer_that_was_cut_off_may_still_be_corrected() -> None:
    row = {"response": "r", "session": "s", "consent": "c", "generation": "g", "outcome": "length", "answer": ""}
    row |= {"prompt": '[{"role":"user","content":"x"}]', "rating": "", "correction": "right"}
    found = judge(row)
    assert isinstance(found, CuratedExample)
    assert found.answer == "right"


def example(said: str, answer: str, *, corrected: bool = False, session: str = "s") -> CuratedExample:
    return CuratedExample(
        messages=[{"role": "user", "content": said}],
        answer=answer,
        label_source="correction" if corrected else "rated up",
        session=session,
        response=answer,
        split="train",
    )


def test_of_the_same_words_one_example_is_kept_a_corrected_one_first() -> None:
    found, doubles = dedupe([example("A  tea", "1", corrected=True), example("a tea", "2"), example("a coffee", "3")])
    assert ([e.answer for e in found], doubles) == (["1", "3"], 1)
    found, _ = dedupe([example("a tea", "1"), example("a tea", "2")])
    assert [e.answer for e in found] == ["2"]


def test_a_customer_is_in_one_split_with_everything_they_said(tmp_path: Path) -> None:
    generations = [{"session": f"s{number % 60}"} for number in range(600)]
    fill(tmp_path / "store", generations, [{"response": f"r{n}", "rating": "up"} for n in range(1, 601)])
    document = curate(tmp_path / "store", tmp_path / "out", eval_share=0.3)
    found = read_examples(tmp_path / "out")
    splits = {e.session: {o.split for o in found if o.session == e.session} for e in found}
    assert all(len(split) == 1 for split in splits.values())
    assert 90 < document["eval"] < 270
    assert all((e.split == "eval") == (share_of(e.session) < 0.3) for e in found)


def test_the_same_store_gives_the_same_bytes_and_counts_add_up(tmp_path: Path) -> None:
    fill(
        tmp_path / "store",
        [{}, {"consent": ""}, {"said": "x"}, {"said": "x"}],
        [{"response": f"r{n}", "rating": "up"} for n in (1, 2, 3, 4)],
    )
    document = curate(tmp_path / "store", tmp_path / "one")
    curate(tmp_path / "store", tmp_path / "two")
    assert document["examples"] + sum(document["dropped"].values()) == document["generations"] == 4
    assert document["dropped"] == {"duplicate": 1, "no consent": 1}
    for name in ("examples.jsonl", "curate.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_store_without_examples_is_an_input_error_that_says_why(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{"consent": ""}], [])
    with pytest.raises(InputError, match="'no consent': 1"):
        main([str(tmp_path / "store"), "--out", str(tmp_path / "out")])


def test_the_command_prints_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "store", [{}], [{"response": "r1", "rating": "up"}])
    assert main([str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 1
