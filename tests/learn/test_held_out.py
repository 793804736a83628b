"""What judges is kept apart from what is trained on: by customer, by time, and near copies of it."""

import json
from pathlib import Path

import msgspec
import pytest

from fieldlm.cli.main import main
from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.learn.quality.held_out import HeldOutFrom, as_date, held_out_from, hold_out_newest
from fieldlm_compiler.learn.quality.near_copies import parted
from fieldlm_compiler.learn.quality.refusals import is_refusal
from tests.learn.test_curate import fill

DAY_MS = 86_400_000
BEGAN_MS = 1_790_812_800_000
"""2026-10-01."""


def example(session: str, at_ms: int, split: str = "train", text: str = "", answer: str = "ok") -> CuratedExample:
    made = CuratedExample(
        messages=[{"role": "user", "content": text or f"{session} {at_ms}"}], answer=answer, label_source="correction",
        session=session, response=f"{session}-{at_ms}", split="train", at_ms=at_ms,
    )  # fmt: skip
    return msgspec.structs.replace(made, split=split)


def test_what_is_trained_on_is_older_than_the_time_and_customers_stay_whole() -> None:
    said = [
        example("early", 10), example("early", 90), example("late", 80), example("late", 99), example("clockless", 0),
        example("held", 20, "eval"), example("held", 95, "eval"),
    ]  # fmt: skip
    kept, at_ms = hold_out_newest(said, HeldOutFrom(at_ms=80))
    assert at_ms == 80
    assert [(each.session, each.at_ms, each.split) for each in kept] == [
        ("early", 10, "train"), ("late", 80, "eval"), ("late", 99, "eval"), ("clockless", 0, "train"),
        ("held", 20, "eval"), ("held", 95, "eval"),
    ]  # fmt: skip


def test_a_device_without_sessions_is_one_customer_by_time_as_well() -> None:
    said = [example(f"r{at}", at) for at in (10, 90)]
    said = [msgspec.structs.replace(each, response=each.session, device="d") for each in said]
    kept, _ = hold_out_newest(said, HeldOutFrom(at_ms=80))
    assert [(each.at_ms, each.split) for each in kept] == [(10, "train")]


def test_a_share_is_the_newest_part_of_what_has_a_time() -> None:
    said = [example(f"s{at}", at) for at in range(100, 200)] + [example("clockless", 0)]
    kept, at_ms = hold_out_newest(said, HeldOutFrom(share=0.2))
    assert at_ms == 180
    assert sum(each.split == "eval" for each in kept) == 20
    with pytest.raises(InputError, match="no example has a time"):
        hold_out_newest([example("clockless", 0)], HeldOutFrom(share=0.2))


def test_a_time_is_a_date_or_a_share() -> None:
    assert held_out_from("0.25") == HeldOutFrom(share=0.25)
    assert as_date(held_out_from("2026-10-01").at_ms) == "2026-10-01T00:00:00+00:00"
    assert held_out_from("2026-10-01T02:00+02:00") == held_out_from("2026-10-01")
    for wrong in ("1.5", "yesterday", "nan"):
        with pytest.raises(InputError, match="is no date and no share"):
            held_out_from(wrong)


def test_near_copies_with_the_same_answer_are_on_one_side() -> None:
    held = example("e", 1, "eval", "bring a tea to the table in the corner")
    copy = example("a", 2, text="Bring a tea to the table in the corner!")
    other = example("b", 3, text="bring a tea to the table in the corner.", answer="no")
    unlike = example("c", 4, text="how long are you open today?")
    assert parted([held, copy, other, unlike]) == [held, other, unlike]
    assert parted([copy, other, unlike]) == [copy, other, unlike]


def test_the_command_holds_out_the_newest_and_the_card_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foods = ("tea", "milk", "soup", "rice", "cake")
    times = [{"wall_ms": BEGAN_MS + at * DAY_MS, "said": f"{foods[at % 5]} {at}" * 3} for at in range(50)]
    fill(tmp_path / "store", times, [{"response": f"r{at}", "rating": "up"} for at in range(1, 51)])
    asked = ["curate", str(tmp_path / "store"), "--consent", "yes", "--out", str(tmp_path / "out")]
    assert main([*asked, "--held-out-from", "2026-11-01", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["held_out_from"] == "2026-11-01T00:00:00+00:00"
    assert document["examples"] + sum(document["dropped"].values()) == 50
    found = read_examples(tmp_path / "out")
    newest = max(each.at_ms for each in found if each.split == "train")
    assert newest < BEGAN_MS + 31 * DAY_MS == held_out_from("2026-11-01").at_ms
    assert sum(each.split == "eval" for each in found) >= 19
    assert main(["dataset", str(tmp_path / "out"), "--out", str(tmp_path / "sets"), "--json"]) == 0
    card = Path(json.loads(capsys.readouterr().out)["folder"]) / "card.md"
    assert "said from 2026-11-01T00:00:00+00:00 on is held out as well" in card.read_text()
    assert main([*asked, "--held-out-from", "soon"]) == 2


REFUSALS = (
    "I'm sorry, but I can't help with that.", "I’m sorry, I cannot assist with this request.",
    "As an AI language model, I don't have access to that.", "I can't help with that.",
    "Sorry, I am unable to do that.",
    "Es tut mir leid, aber ich kann dir dabei nicht helfen.", "Tut mir leid, das kann ich nicht.",
    "Je suis désolé, mais je ne peux pas vous aider.", "Lo siento, pero no puedo ayudarte con eso.",
    "Mi dispiace, non posso aiutarti.", "Desculpe, não posso ajudar com isso.", "Het spijt me, ik kan dat niet doen.",
    "Przykro mi, nie mogę w tym pomóc.", "Извините, но я не могу помочь.", "申し訳ありませんが、お手伝いできません。",
    "抱歉,我无法帮助您。", "죄송합니다. 도와드릴 수 없습니다.",
    "Üzgünüm, ama bunu yapamam.", "عذرًا، لا أستطيع المساعدة.",
)  # fmt: skip
ANSWERS = (
    "I'm sorry to hear that! Your order is on its way.", "Sorry, we are out of oat milk; soy?", '{"name": "goto"}',
    "You can't park here.", "No puedo esperar: ¡su café está listo!", "Unfortunately the kitchen closes at ten.",
    "Ich kann Ihnen den Latte empfehlen.", "I can't recommend the soup enough.", "", "I'm sorry, I can't. " + "x" * 500,
)  # fmt: skip


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_one_in_whatever_language(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_only_begins_like_a_refusal_is_none(answer: str) -> None:
    assert not is_refusal(answer)


def test_refusals_and_empty_answers_are_counted_and_a_correction_may_refuse(tmp_path: Path) -> None:
    answers = [{"answer": REFUSALS[0]}, {"answer": " "}, {"answer": "fine"}, {"outcome": "length"}, {}]
    said = [{"response": f"r{at}", "rating": "up"} for at in range(1, 5)]
    fill(tmp_path / "store", answers, [*said, {"response": "r5", "correction": REFUSALS[0]}])
    asked = ["curate", str(tmp_path / "store"), "--consent", "yes", "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    dropped = json.loads((tmp_path / "out/curate.json").read_bytes())["dropped"]
    assert dropped == {"empty answer": 1, "not finished": 1, "refusal": 1}
    assert [each.answer for each in read_examples(tmp_path / "out")] == ["fine", REFUSALS[0]]
    assert main([*asked, "--refusals"]) == 0
    assert len(read_examples(tmp_path / "out")) == 3
