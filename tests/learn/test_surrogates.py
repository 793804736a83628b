import json
import re
from pathlib import Path
from typing import Any

import pytest

from fieldlm.telemetry.redaction.patterns import is_card, is_iban
from fieldlm.telemetry.redaction.redact import redact
from fieldlm_compiler.learn.redacted.second_pass import again
from fieldlm_compiler.learn.redacted.surrogates import PLACEHOLDER, Surrogates, surrogate
from tests.learn.test_curate import fill, kept

KINDS = ["NAME", "EMAIL", "IBAN", "CARD", "KEY", "ADDRESS", "PHONE", "ID", "DATE", "IP", "MAC"]
SAID = "give the cup to <NAME_1> and the key to <NAME_2>, then call <PHONE_1>"
ANSWER = '{"name":"hand_over","arguments":{"to":["<NAME_1>","<NAME_2>"],"call":"<PHONE_1>"}}'


def test_one_person_has_one_name_in_prompt_and_answer_and_two_have_two() -> None:
    made = Surrogates("session", [SAID, ANSWER])
    said, answer = made.show(SAID), json.loads(made.show(ANSWER))
    first, second = answer["arguments"]["to"]
    assert said == f"give the cup to {first} and the key to {second}, then call {answer['arguments']['call']}"
    assert first.split()[0] != second.split()[0]


def test_the_same_session_draws_the_same_and_others_draw_others() -> None:
    drawn = [Surrogates(f"s{n}", [SAID]).show(SAID) for n in range(200)]
    assert drawn == [Surrogates(f"s{n}", [SAID]).show(SAID) for n in range(200)]
    assert len(set(drawn)) > 190


def test_forty_people_of_one_text_have_forty_names() -> None:
    text = " ".join(f"<NAME_{n}>" for n in range(1, 41))
    made = Surrogates("s", [text])
    assert len({made.show(f"<NAME_{n}>") for n in range(1, 41)}) == 40


@pytest.mark.parametrize(
    ("texts", "is_one"),
    [
        (["for <NAME>", "<NAME>"], True),  # a device before numbers were given
        (["for <NAME_1>", "<NAME>"], True),  # feedback after a restart
        (["<NAME_1> and <NAME_2>", "<NAME>"], False),
    ],
)
def test_a_placeholder_without_a_number_is_the_only_person_there_is(texts: list[str], is_one: bool) -> None:
    made = Surrogates("s", texts)
    assert (made.show("<NAME>") in made.show(texts[0])) == is_one


@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_have_the_form_of_their_kind_and_need_no_escape_in_json(kind: str) -> None:
    made = [surrogate(kind, n * 0x9E3779B97F4A7C15 % 2**64) for n in range(200)]
    assert all(json.dumps(each) == f'"{each}"' for each in made)
    assert all(is_card(each) for each in made if kind == "CARD")
    assert all(is_iban(each) for each in made if kind == "IBAN")
    if kind in ("EMAIL", "PHONE", "IP", "MAC", "CARD", "IBAN", "ADDRESS"):
        assert all(re.fullmatch(rf"call <{kind}> now", redact(f"call {each} now")) for each in made), made[:3]


def test_what_a_fleet_calls_personal_keeps_its_placeholder() -> None:
    assert Surrogates("s", ["<CUSTOM_1>"]).show("member <CUSTOM_1>") == "member <CUSTOM_1>"


def test_curate_writes_stand_ins_that_are_the_same_in_question_and_answer(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"said": "a tea for <NAME_1>", "answer": '{"to":"<NAME_1>"}', "session": session} for session in "abc"
    ]
    fill(tmp_path / "store", rows, [{"response": f"r{n}", "rating": "up"} for n in (1, 2, 3)])
    found = kept(tmp_path)
    assert len(found) == 3, "each customer's stays: they have other names"
    for example in found:
        name = json.loads(example.answer)["to"]
        assert example.utterance == f"a tea for {name}"
        assert (example.redacted, PLACEHOLDER.search(example.utterance)) == (["name"], None)
    assert json.loads((tmp_path / "out" / "curate.json").read_text())["redacted"] == {"name": 3}


def test_customers_who_differ_on_words_about_somebody_are_counted_all_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"said": "a tea for <NAME_1>", "answer": answer, "session": session}
        for session, answer in (("a", "yes"), ("b", "yes"), ("c", "poison"))
    ]
    fill(tmp_path / "store", rows, [{"response": f"r{n}", "rating": "up"} for n in (1, 2, 3)])
    assert [example.answer for example in kept(tmp_path)] == ["yes", "yes"]


def test_a_system_prompt_stays_as_it_is(tmp_path: Path) -> None:
    prompt = json.dumps([{"role": "system", "content": "Call <PHONE>"}, {"role": "user", "content": "tea"}])
    fill(tmp_path / "store", [{"prompt": prompt}], [{"response": "r1", "rating": "up"}])
    (example,) = kept(tmp_path)
    assert (example.messages[0]["content"], example.redacted) == ("Call <PHONE>", [])


def test_the_second_pass_finds_what_an_older_device_left(tmp_path: Path) -> None:
    said = json.dumps([{"role": "user", "content": "Call <NAME>, my passport number is C01X00T47"}])
    row = {"prompt": said, "answer": "C01X00T47", "correction": "", "redacted": ""}
    made = again(row)
    assert json.loads(made["prompt"])[0]["content"] == "Call <NAME>, my passport number is <ID_1>"
    assert again({**row, "prompt": said.replace("<NAME>", "Eve")})["prompt"] == said.replace("<NAME>", "Eve"), "full"


def test_nothing_of_the_map_is_left_where_a_customer_was_forgotten(tmp_path: Path) -> None:
    fill(tmp_path / "store", [{"said": "for <NAME_1>", "session": "gone"}, {}], [{"response": "r1", "rating": "up"}])
    name = kept(tmp_path)[0].utterance.removeprefix("for ")
    with_feedback = [{"response": "r2", "rating": "up"}]
    fill(tmp_path / "again/store", [{"response": "r1", "session": "s1"}, {}], with_feedback)
    kept(tmp_path / "again")
    left = [path for path in (tmp_path / "again").rglob("*") if path.is_file() and name.encode() in path.read_bytes()]
    assert left == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curate.json", "examples.jsonl"]


def test_what_was_rejected_is_redacted_and_has_the_same_stand_ins(tmp_path: Path) -> None:
    row = {"said": "a tea for <NAME_1>", "answer": "a tea for <NAME_1>, call <PHONE_1>, passport number is C01X00T47"}
    fill(tmp_path / "store", [row], [{"response": "r1", "correction": "a tea goes to <NAME>"}])
    (example,) = kept(tmp_path)
    name = example.utterance.removeprefix("a tea for ")
    assert example.answer == f"a tea goes to {name}"
    assert example.rejected.startswith(f"a tea for {name}, call ")
    assert "C01X00T47" not in example.rejected
    assert PLACEHOLDER.search(example.rejected) is None
    assert example.redacted == ["id", "name", "phone"]


def test_who_is_in_a_rejected_answer_alone_changes_nothing_of_the_right_one(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"said": "a tea for <NAME_1>", "answer": answer, "session": "s"} for answer in ("no", "for <NAME_2>")
    ]
    for at, row in enumerate(rows):
        fill(tmp_path / f"{at}/store", [row], [{"response": "r1", "correction": "a tea goes to <NAME>"}])
    (without,), (one,) = (kept(tmp_path / str(at)) for at in range(2))
    assert (one.answer, one.messages) == (without.answer, without.messages)
    assert one.rejected not in ("for <NAME_2>", one.answer)


def test_an_answer_that_says_the_same_once_names_are_in_it_is_not_rejected(tmp_path: Path) -> None:
    row = {"said": "a tea for <NAME_1>", "answer": "a tea for <NAME_1>"}
    fill(tmp_path / "store", [row], [{"response": "r1", "correction": "a tea for <NAME>"}])
    assert [example.rejected for example in kept(tmp_path)] == [""]
