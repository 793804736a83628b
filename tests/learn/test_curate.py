import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.core.errors import InputError
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.curate import Labels, curate, judge, main, share_of
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.learn.dataset import dataset
from fieldlm_compiler.learn.shapes import spoken

TERMS = ("yes",)
BARE = {"device": "d", "digest": "", "context": "", "cut": ""}


TOOLS = [{"type": "function", "function": {"name": "goto", "description": "", "parameters": {}}}]
CALLS = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}]})


def fill(
    folder: Path | str,
    generations: list[dict[str, Any]],
    feedback: list[dict[str, Any]],
    system: Sequence[dict[str, Any]] = (),
) -> None:
    """Store records; every generation is complete and consented unless a field says otherwise."""
    common = {"device": "kiosk-1", "epoch": 1}
    made: list[list[Record]] = [[], [], []]
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
    for seq, fields in enumerate(system, 1):
        made[2].append(msgspec.convert(common | {"stream": "sys", "kind": "system", "seq": seq} | fields, Record))
    with open_sink(str(folder)) as store:
        store.append([block.parse(block.encode(records)) for records in made if records])


def kept(tmp_path: Path) -> list[CuratedExample]:
    curate(tmp_path / "store", tmp_path / "out", consents=TERMS)
    return read_examples(tmp_path / "out")


def test_the_correction_is_the_label_and_a_liked_answer_is_one(tmp_path: Path) -> None:
    said = [{"response": "r1", "rating": "down", "correction": "two teas"}, {"response": "r2", "rating": "up"}]
    fill(tmp_path / "store", [{}, {}, {}], [*said, {"response": "r3", "rating": "down"}])
    first, second = kept(tmp_path)
    assert (first.answer, first.label_source, first.utterance) == ("two teas", "correction", "tea 1")
    assert (second.answer, second.label_source, second.session) == ("answer 2", "rated up", "s2")
    assert [message["role"] for message in first.messages] == ["system", "user"]


def test_a_store_that_is_no_folder_gives_the_same_examples(tmp_path: Path) -> None:
    for where in (str(tmp_path / "store"), f"delta:{tmp_path / 'lake'}"):
        fill(where, [{}, {}], [{"response": "r1", "rating": "up"}, {"response": "r2", "correction": "two teas"}])
    curate(f"delta:{tmp_path / 'lake'}", tmp_path / "lake-out", consents=TERMS)
    assert read_examples(tmp_path / "lake-out") == kept(tmp_path)


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
        ({"consent": "no"}, "consent not listed"),
        ({"cut": "yes"}, "cut short"),
        ({"digest": "1234"}, "context lost"),
        ({"digest": "1234", "context": '{"raw":true}'}, "not a chat"),
        ({"rating": "", "correction": "  "}, "no label"),
        ({"prompt": ""}, "no text"),
        ({"rating": ""}, "no label"),
        ({"outcome": "length"}, "not finished"),
        ({"prompt": "no json"}, "unreadable"),
        ({"prompt": '[{"role":"assistant","content":"x"}]'}, "unreadable"),
        ({"prompt": "[" * 100_000}, "unreadable"),
        ({"prompt": '[{"role":' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}]"}, "unreadable"),
        ({"digest": "1234", "context": '{"tools":' + "[" * 100_000}, "context lost"),
    ],
)
def test_what_is_no_example_says_why(change: dict[str, str], why: str) -> None:
    row = {"response": "r", "session": "s", "consent": "yes", "generation": "g", "outcome": "stop", "answer": "a"}
    row |= BARE | {"prompt": '[{"role":"user","content":"x"}]', "rating": "up", "correction": ""}
    assert isinstance(judge(row, consents=TERMS), CuratedExample)
    assert judge(row | change, consents=TERMS) == why


def test_an_answer_that_was_cut_off_may_still_be_corrected() -> None:
    row = {"response": "r", "session": "s", "consent": "yes", "generation": "g", "outcome": "length", "answer": ""}
    row |= BARE | {"prompt": '[{"role":"user","content":"x"}]', "rating": "", "correction": "right"}
    found = judge(row, consents=TERMS)
    assert isinstance(found, CuratedExample)
    assert found.answer == "right"


def test_a_customer_is_in_one_split_with_everything_they_said(tmp_path: Path) -> None:
    generations = [{"session": f"s{number % 60}"} for number in range(600)]
    fill(tmp_path / "store", generations, [{"response": f"r{n}", "rating": "up"} for n in range(1, 601)])
    document = curate(tmp_path / "store", tmp_path / "out", eval_share=0.3, consents=TERMS)
    found = read_examples(tmp_path / "out")
    splits = {e.session: {o.split for o in found if o.session == e.session} for e in found}
    assert all(len(split) == 1 for split in splits.values())
    assert 90 < document["eval"] < 270
    assert all((e.split == "eval") == (share_of(e.session) < 0.3) for e in found)


def test_what_a_device_says_without_a_session_is_on_one_side_as_one_customer(tmp_path: Path) -> None:
    for device in (f"d{number}" for number in range(40)):
        common = [{"device": device, "response": f"{device}-{number}"} for number in range(5)]
        generations = [each | {"session": "", "said": f"tea {each['response']}"} for each in common]
        fill(tmp_path / "store", generations, [each | {"rating": "up"} for each in common])
    document = curate(tmp_path / "store", tmp_path / "out", eval_share=0.3, consents=TERMS)
    found = read_examples(tmp_path / "out")
    held, trained = ({e.device for e in found if e.split == split} for split in ("eval", "train"))
    assert held
    assert trained
    assert not held & trained
    assert (document["customers"], document["parted_by"]) == (40, "customer")


@pytest.mark.parametrize("wall_ms", [0, 1_790_000_000_000])
def test_where_nobody_is_known_the_newest_are_held_out_and_one_line_says_so(
    wall_ms: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # What is said day by day is one example, that of the last day: it is not what all of the newest are.
    said = [f"light {number % 40}" for number in range(400)]
    generations = [
        {"session": "", "said": each, "answer": "ok", "wall_ms": wall_ms and wall_ms + at}
        for at, each in enumerate(said)
    ]
    fill(tmp_path / "store", generations, [{"response": f"r{n}", "rating": "up"} for n in range(1, 401)])
    asked = [str(tmp_path / "store"), "--consent", "yes", "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "40 examples of 1 customer (36 train, 4 eval)" in capsys.readouterr().out
    assert "names who asks (metadata.session)" in caplog.text
    assert "the newest answers are held out" in caplog.text
    assert {e.utterance for e in read_examples(tmp_path / "out") if e.split == "eval"} == set(said[-4:])
    folder = dataset(tmp_path / "out", tmp_path / "sets")
    card = json.loads((folder / "card.json").read_bytes())
    assert (card["customers"], card["customers_in_both"]) == ({"train": 1, "eval": 1}, 1)
    assert "who asked may be on both sides" in (folder / "card.md").read_text()
    if wall_ms:
        assert main([*asked, "--held-out-from", "0.5"]) == 0
        assert "(20 train, 20 eval)" in capsys.readouterr().out
    assert main([*asked, "--eval-share", "0"]) == 0
    assert "(40 train, 0 eval)" in capsys.readouterr().out, "who asks for no exam gets none"


def test_the_same_store_gives_the_same_bytes_and_counts_add_up(tmp_path: Path) -> None:
    fill(
        tmp_path / "store",
        [{}, {"consent": ""}, {"said": "x", "answer": "y"}, {"said": "X!", "answer": "y"}],
        [{"response": f"r{n}", "rating": "up"} for n in (1, 2, 3, 4)],
    )
    document = curate(tmp_path / "store", tmp_path / "one", consents=TERMS)
    curate(tmp_path / "store", tmp_path / "two", consents=TERMS)
    assert document["examples"] + sum(document["dropped"].values()) == document["generations"] == 4
    assert document["dropped"] == {"duplicate": 1, "no consent": 1}
    for name in ("examples.jsonl", "curate.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_store_without_examples_is_an_input_error_that_says_why(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{"consent": ""}], [])
    with pytest.raises(InputError, match=r"left out: 1 no consent; nothing is under 'yes'; .* it holds: none"):
        main([str(tmp_path / "store"), "--consent", "yes", "--out", str(tmp_path / "out")])


def test_the_command_prints_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "store", [{}], [{"response": "r1", "rating": "up"}])
    assert main([str(tmp_path / "store"), "--consent", "yes", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 1


def test_without_a_term_nothing_is_curated_and_the_terms_of_the_store_are_said(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{}, {"consent": "no"}, {}], [{"response": "r1", "rating": "up"}])
    with pytest.raises(InputError, match=r"--consent TERM; .* holds: 'yes' \(2\), 'no' \(1\)"):
        main([str(tmp_path / "store"), "--out", str(tmp_path / "out")])


def test_where_nothing_is_under_the_named_terms_those_of_the_store_are_said(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{}, {"consent": "no"}, {}], [{"response": "r1", "rating": "up"}])
    with pytest.raises(InputError, match=r"under 'wrong'; .*--consent TERM; it holds: 'yes' \(2\), 'no' \(1\)") as told:
        main([str(tmp_path / "store"), "--consent", "wrong", "--out", str(tmp_path / "out")])
    assert "{" not in str(told.value)


def test_an_example_has_the_system_prompt_and_the_tools_that_were_served(tmp_path: Path) -> None:
    told = json.dumps({"system": "You are a robot.", "tools": TOOLS})
    prompt = json.dumps([{"role": "user", "content": "to the door"}])
    fill(
        tmp_path / "store",
        [{"prompt": prompt, "detail": {"context": "abcd"}}, {"prompt": prompt, "detail": {"context": "gone"}}],
        [{"response": "r1", "correction": CALLS}, {"response": "r2", "correction": CALLS}],
        [{"detail": {"event": "context", "digest": "abcd", "context": told}}],
    )
    (found,) = kept(tmp_path)
    assert [message["role"] for message in found.messages] == ["system", "user"]
    assert found.messages[0]["content"] == "You are a robot."
    assert found.tools == TOOLS
    assert found.tool_calls == [{"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}]
    assert json.loads(found.answer) == {"name": "goto", "arguments": {"place": "door"}}
    assert json.loads((tmp_path / "out/curate.json").read_bytes())["dropped"] == {"context lost": 1}
    line = json.loads((dataset(tmp_path / "out", tmp_path / "sets") / "train.jsonl").read_bytes())
    assert line["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": found.tool_calls}
    assert line["tools"] == TOOLS


@pytest.mark.parametrize(
    "text",
    [
        CALLS,
        json.dumps([{"type": "function", "function": {"name": "goto", "arguments": '{"place": "door"}'}}]),
        '<tool_call>\n{"name": "goto", "arguments": {"place": "door"}}\n</tool_call>',
        '{"name": "goto", "parameters": {"place": "door"}}',
        '[TOOL_CALLS][{"name": "goto", "arguments": {"place": "door"}}]',
    ],
)
def test_a_call_is_one_however_it_was_spelt(text: str) -> None:
    found = spoken(text, TOOLS)
    assert found is not None
    assert found[1] == [{"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}]


@pytest.mark.parametrize("text", ["two teas", '{"name": "order"}', '[{"name": "x"}]', "[1, 2]", '"<tool_call>"'])
def test_what_is_no_call_is_text_to_the_letter(text: str) -> None:
    assert spoken(text, TOOLS) == (text, [])


def test_a_turn_that_ends_in_a_tools_answer_is_an_example(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}
    said = [
        {"role": "user", "content": "to the door"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "arrived"},
    ]
    fill(tmp_path / "store", [{"prompt": json.dumps(said)}], [{"response": "r1", "rating": "up"}])
    assert kept(tmp_path)[0].messages == said


def test_what_the_large_model_answered_is_a_label_where_it_is_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{"route": "large"}, {"route": "small"}, {"route": "large", "outcome": "length"}], [])
    with pytest.raises(InputError, match="no label"):
        kept(tmp_path)
    document = curate(tmp_path / "store", tmp_path / "out", consents=TERMS, labels=Labels(large=True))
    (only,) = read_examples(tmp_path / "out")
    assert (only.answer, only.label_source, only.agreement) == ("answer 1", "large", 1.0)
    assert document["dropped"] == {"no label": 1, "not finished": 1}


def test_a_correction_outranks_the_large_model_however_often_it_says_otherwise(tmp_path: Path) -> None:
    asked = [{"route": "large", "said": "tea", "answer": "a"} for _ in range(3)]
    fill(tmp_path / "store", asked, [{"response": "r2", "correction": "b"}])
    document = curate(tmp_path / "store", tmp_path / "out", consents=TERMS, labels=Labels(large=True))
    assert [(e.answer, e.label_source) for e in read_examples(tmp_path / "out")] == [("b", "correction")]
    assert (document["teacher"]["corrected_prompts"], document["teacher"]["corrected_alike"]) == (1, 0.0)


def test_how_far_the_large_model_agrees_with_itself_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [("tea", "a"), ("Tea!", "a"), ("tea", "b"), ("juice", "c")]
    fill(tmp_path / "store", [{"route": "large", "said": said, "answer": answer} for said, answer in answers], [])
    args = [str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--consent", "yes", "--teacher", "--json"]
    assert main(args) == 0
    taught = json.loads(capsys.readouterr().out)["teacher"]
    assert (taught["answers"], taught["prompts"]) == (4, 2)
    assert (taught["repeated_prompts"], taught["agreement"], taught["undecided_prompts"]) == (1, 0.667, 0)
    assert {e.answer: e.agreement for e in read_examples(tmp_path / "out")} == {"a": 0.667, "c": 1.0}


def test_an_answer_of_the_large_model_that_was_disliked_is_no_label(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{"route": "large"}, {"route": "large"}], [{"response": "r1", "rating": "down"}])
    curate(tmp_path / "store", tmp_path / "out", consents=TERMS, labels=Labels(large=True))
    assert [e.response for e in read_examples(tmp_path / "out")] == ["r2"]


def test_prompts_without_a_label_are_kept_to_find_tasks_in_and_no_dataset_has_them(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{}, {}, {"outcome": "length"}], [{"response": "r2", "rating": "up"}])
    curate(tmp_path / "store", tmp_path / "out", consents=TERMS, eval_share=0.0, labels=Labels(none=True))
    found = read_examples(tmp_path / "out")
    assert [(e.label_source, e.answer) for e in found] == [("none", ""), ("rated up", "answer 2"), ("none", "")]
    made = dataset(tmp_path / "out", tmp_path / "sets")
    assert json.loads((made / "dataset.json").read_text())["labels"] == {"rated up": 1}


def test_what_a_person_corrected_stays_beside_their_correction(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"answer": '{"order": "tea"}'}, {"answer": '{"order":"milk"}'}, {"answer": "broke o", "outcome": "length"},
        {"answer": " "}, {}, {"answer": "a bad one"},
    ]  # fmt: skip
    said = [{"response": f"r{number}", "correction": '{"order":"milk"}'} for number in (1, 2, 3, 4)]
    said += [{"response": "r5", "rating": "up"}, {"response": "r6", "correction": '{"order":"milk"}', "consent": ""}]
    rows[5]["consent"] = "no"
    fill(tmp_path / "store", rows, said)
    found = {example.response: example.rejected for example in kept(tmp_path)}
    assert found == {"r1": '{"order": "tea"}', "r2": "", "r3": "", "r4": "", "r5": ""}
    assert json.loads((tmp_path / "out/curate.json").read_bytes())["pairs"] == 1
    made = dataset(tmp_path / "out", tmp_path / "sets")
    lines = [json.loads(line) for path in made.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert [line["rejected"] for line in lines if "rejected" in line] == [
        {"role": "assistant", "content": '{"order": "tea"}'}
    ]
    pairs = json.loads((made / "dataset.json").read_bytes())["pairs"]
    assert sum(pairs.values()) == 1
    assert "for `fieldlm tune --preferences`" in (made / "card.md").read_text()


def test_a_call_that_was_corrected_is_a_call(tmp_path: Path) -> None:
    told = json.dumps({"tools": TOOLS})
    prompt = json.dumps([{"role": "user", "content": "to the door"}])
    wrong = CALLS.replace("door", "window")
    fill(
        tmp_path / "store",
        [{"prompt": prompt, "answer": wrong, "detail": {"context": "abcd"}}],
        [{"response": "r1", "correction": CALLS}],
        [{"detail": {"event": "context", "digest": "abcd", "context": told}}],
    )
    (found,) = kept(tmp_path)
    call = {"type": "function", "function": {"name": "goto", "arguments": {"place": "window"}}}
    assert (found.rejected_calls, json.loads(found.rejected)) == ([call], call["function"])
    made = dataset(tmp_path / "out", tmp_path / "sets")
    (line,) = [json.loads(line) for path in made.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert line["rejected"] == {"role": "assistant", "content": "", "tool_calls": [call]}
