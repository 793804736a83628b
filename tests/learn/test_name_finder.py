"""The learned name finder: what it takes for a person and what not, in a record and in examples; its weights."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from fieldlm.core.errors import InputError
from fieldlm.telemetry.redaction.redact import redact
from fieldlm_compiler.demo.kiosk import strangers
from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.curated import read_examples
from fieldlm_compiler.learn.redacted import name_finder
from fieldlm_compiler.learn.redacted.name_features import BUCKETS, Token, features, tokens_of
from fieldlm_compiler.learn.redacted.name_finder import found_names
from fieldlm_compiler.learn.redacted.second_pass import again
from fieldlm_compiler.learn.redacted.surrogates import PLACEHOLDER
from tests.learn.test_curate import TERMS, fill


def words(text: str, **options: Any) -> list[str]:
    return [text[start:end] for start, end in found_names(text, **options)]


def row(said: str, answer: str = "", correction: str = "", **more: str) -> dict[str, Any]:
    prompt = json.dumps([{"role": "user", "content": said}], ensure_ascii=False)
    return {"prompt": prompt, "answer": answer, "correction": correction, "redacted": "yes", **more}


def said(found: dict[str, Any]) -> str:
    return json.loads(found["prompt"])[-1]["content"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("my neighbour tavish needs his ladder back", ["tavish"]),
        ("i gave my keys to thandeka yesterday", ["thandeka"]),
        ("Okonkwo asked for the invoice again", ["Okonkwo"]),
        ("Dear Mr Oyelaran, thank you for your order", ["Oyelaran"]),
        ("yesterday i met siobhan at the market and she said hello", ["siobhan"]),
    ],
)
def test_a_name_that_no_list_has_is_found_by_what_stands_around_it(text: str, names: list[str]) -> None:
    assert words(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "play something by zanetti on spotify",
        "add thandeka to my playlist road trip",
        "what is the weather in Killarney",
        "my card was declined in the supermarket",
        "how do i top up with apple pay",
        "Sorry, I cannot do that. The kitchen is closed until eight.",
        "<NAME_1> knows why the door is open",
        "i told <NAME_1> about it and <NAME_2> was here, too",
        "one Margherita, a Negroni and a Caesar salad",
        "the gripper is stuck and the arm does not move",
        "mach bitte das Licht in der Küche an",
        "enciende la luz de la cocina por favor",
        "missä on lähin apteekki",
        "昨天我见到了王小明",
        "",
    ],
)
def test_works_places_goods_and_other_languages_name_nobody(text: str) -> None:
    assert words(text) == []


def test_in_a_cafe_that_it_was_not_made_of_one_request_in_two_hundred_is_touched_at_most() -> None:
    said_there = [utterance.text for customer in strangers(800) for utterance in customer.utterances]
    touched = [text for text in map(redact, said_there) if found_names(text)]
    assert len(touched) <= len(said_there) / 200, touched


def test_a_person_has_one_number_in_prompt_answer_and_correction() -> None:
    found = again(
        row(
            "i gave my keys to thandeka when <NAME_1> was here",
            '{"to":"thandeka","of":"<NAME_1>"}',
            "Thandeka has them",
        )
    )
    assert said(found) == "i gave my keys to <NAME_2> when <NAME_1> was here"
    assert found["answer"] == '{"to":"<NAME_2>","of":"<NAME_1>"}'
    assert found["correction"] == "<NAME_2> has them"


def test_a_last_name_beside_a_placeholder_is_the_same_person_wherever_it_stands() -> None:
    found = again(row("remind me to call <NAME_1> quenneville tomorrow", "i told Quenneville", "<NAME_1> knows"))
    assert said(found) == "remind me to call <NAME_1> tomorrow"
    assert (found["answer"], found["correction"]) == ("i told <NAME_1>", "<NAME_1> knows")


def test_two_people_of_a_device_that_stand_together_stay_two() -> None:
    text = "give <NAME_1> <NAME_2> and the key to thandeka"
    assert said(again(row(text))).startswith("give <NAME_1> <NAME_2> and the key to ")


def test_what_the_bundle_itself_says_names_nobody() -> None:
    text = "i gave my keys to thandeka yesterday"
    context = json.dumps({"system": "Thandeka is the name of this robot.", "tools": []})
    assert said(again(row(text, context=context))) == text
    system = json.dumps([{"role": "system", "content": "You are Thandeka."}, {"role": "user", "content": text}])
    assert said(again({**row(text), "prompt": system})) == text
    assert said(again(row(text))) != text


def test_with_lists_alone_and_in_mode_full_the_finder_is_not_asked() -> None:
    text = "i gave my keys to thandeka yesterday"
    assert said(again(row(text), names="listed")) == text
    assert said(again({**row(text), "redacted": ""})) == text


def test_examples_hold_stand_ins_for_whom_the_second_pass_alone_found(tmp_path: Path) -> None:
    rows = [{"said": "i gave my keys to thandeka, not to <NAME_1>", "answer": "so thandeka has them", "session": "s"}]
    fill(tmp_path / "store", rows, [{"response": "r1", "rating": "up"}])
    curate(tmp_path / "store", tmp_path / "out", consents=TERMS)
    (example,) = read_examples(tmp_path / "out")
    name = example.answer.removeprefix("so ").removesuffix(" has them")
    assert example.utterance.startswith(f"i gave my keys to {name}, not to ")
    assert "thandeka" not in f"{example.utterance} {example.answer}"
    assert (PLACEHOLDER.search(example.utterance), example.redacted) == (None, ["name"])
    curate(tmp_path / "store", tmp_path / "listed", consents=TERMS, names="listed")
    assert "thandeka" in read_examples(tmp_path / "listed")[0].utterance


def test_the_weights_are_those_that_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = msgspec.json.decode(name_finder.CARD.read_bytes())
    assert hashlib.sha256(name_finder.WEIGHTS.read_bytes()).hexdigest() == card["sha256"]
    assert set(card["tasks"]) == {f"{task}-train.jsonl" for task in ("snips", "home-robot", "banking77")}
    damaged = tmp_path / "name_weights.bin"
    damaged.write_bytes(bytes(BUCKETS))
    monkeypatch.setattr(name_finder, "WEIGHTS", damaged)
    with pytest.raises(InputError, match="is damaged; install fieldlm-compiler again, or leave it out: --names listed"):
        name_finder.shipped.__wrapped__()


class Neighbours(list[Token]):
    """Tokens that cannot be gone through from end to end."""

    def __iter__(self) -> Iterator[Token]:
        raise AssertionError("a word's features must not depend on the whole text, or the time grows with its square")


def test_a_word_is_told_by_a_few_neighbours_however_long_the_text_is() -> None:
    tokens = tokens_of("tell zed that dinner is ready, " * 9)
    assert features(Neighbours(tokens), 40, is_cased=False) == features(tokens[34:47], 6, is_cased=False)


def test_features_are_the_same_for_ever() -> None:
    """Other ones would need other weights."""
    made = features(tokens_of("Ask O'Brien's wife, <NAME_1>"), 1, is_cased=True)
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16] == "71748aa9ec751442"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_hidden_as_a_person_sees_it(form: Literal["NFC", "NFD"]) -> None:
    """Some systems type an accent as a character of its own."""
    asked = unicodedata.normalize(form, "please call siobhán about the invoice")
    assert said(again(row(asked))) == "please call <NAME_1> about the invoice"
