"""What is held out, trained on and rehearsed from round to round, on stores that people really fill."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.curated import CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.quality.held_out import HeldOutFrom
from fieldlm_compiler.rounds.sealed import EarlierRounds, Sealed, earlier, seal, to_watch, words
from fieldlm_compiler.rounds.state import FinishedRound
from tests.support.sample_rounds import sample_round
from tests.support.usage import CONSENT, Usage

SHARE = 0.3


def found(store: Path, out: Path) -> list[CuratedExample]:
    curate(store, out, consents=(CONSENT,), eval_share=SHARE)
    return read_examples(out)


def sealed(store: Path, current: list[CuratedExample], before: EarlierRounds, **more: Any) -> Sealed:
    with open_sink(str(store), read_only=True) as sink:
        return seal(current, before, sink, consents=(CONSENT,), system_prompt=more.get("system_prompt"))


def after(examples: list[CuratedExample], *, rehearsed: bool = False) -> EarlierRounds:
    learned = [example for example in examples if example.split == "train"]
    return EarlierRounds(
        held={words(example): example for example in examples if example.split == "eval"},
        trained=frozenset(map(words, learned)),
        rehearsed=learned if rehearsed else [],
    )


def usage(folder: Path) -> Usage:
    made = Usage(folder)
    made.customers([(f"tea {at}", "order") for at in range(40)], prefix="a", each=1)
    return made


def test_held_out_words_stay_with_their_customer_whoever_says_them_next(tmp_path: Path) -> None:
    made = usage(tmp_path / "store")
    first = found(tmp_path / "store", tmp_path / "one")
    for crowd in ("b", "c", "d"):
        made.customers([(f"tea {at}", "book") for at in range(40)], prefix=crowd, each=1)
    then = sealed(tmp_path / "store", found(tmp_path / "store", tmp_path / "two"), after(first))
    before = {words(example): example for example in first if example.split == "eval"}
    now = {words(example): example for example in then.examples if example.split == "eval"}
    assert before.keys() == now.keys()
    assert {said: (e.session, e.response) for said, e in now.items()} == {
        said: (e.session, e.response) for said, e in before.items()
    }
    assert {json.loads(example.answer)["name"] for example in now.values()} == {"book"}, (
        "people agree on another answer"
    )
    assert then.counts["held out before, stays so"] > 0
    assert any(each.rejected for each in before.values())
    assert not any(each.rejected for each in now.values()), "what was answered to others is not theirs"
    assert then.counts["held out, but trained on before"] > 0
    assert not {words(e) for e in then.examples if e.split == "train"} & before.keys()


def test_words_of_somebody_who_is_forgotten_are_no_exam_for_somebody_else(tmp_path: Path) -> None:
    usage(tmp_path / "store")
    current = found(tmp_path / "store", tmp_path / "one")
    gone = {
        said: msgspec.structs.replace(example, response="chatcmpl-gone")
        for said, example in after(current).held.items()
    }
    as_training = [msgspec.structs.replace(example, split="train") for example in current]
    then = sealed(tmp_path / "store", as_training, EarlierRounds(held=gone, trained=frozenset(), rehearsed=[]))
    assert not {words(example) for example in then.examples} & gone.keys()
    assert then.counts == {"held out before, of somebody who is gone": len(gone)}


def test_what_was_learned_is_rehearsed_unless_it_is_gone_or_answered_otherwise(tmp_path: Path) -> None:
    made = usage(tmp_path / "store")
    first = found(tmp_path / "store", tmp_path / "one")
    before = after(first, rehearsed=True)
    disputed, gone, *others = before.rehearsed
    made.customers([(disputed.utterance, "hours")], prefix="b", each=1)
    forgotten = msgspec.structs.replace(gone, response="chatcmpl-gone")
    before = EarlierRounds(held={}, trained=frozenset(), rehearsed=[disputed, forgotten, *others])
    then = sealed(tmp_path / "store", [], before)
    assert {example.response for example in then.examples} == {example.response for example in others}
    assert then.counts == {"rehearsed": len(others)}


def test_examples_that_are_there_are_not_rehearsed_twice(tmp_path: Path) -> None:
    usage(tmp_path / "store")
    current = found(tmp_path / "store", tmp_path / "one")
    then = sealed(tmp_path / "store", current, after(current, rehearsed=True))
    assert [words(example) for example in then.examples] == [words(example) for example in current]


def test_the_system_prompt_to_come_is_what_is_trained_behind(tmp_path: Path) -> None:
    usage(tmp_path / "store")
    current = found(tmp_path / "store", tmp_path / "one")
    then = sealed(tmp_path / "store", current, after([]), system_prompt="You take orders.")
    assert {example.messages[0]["content"] for example in then.examples} == {"You take orders."}
    assert [words(example) for example in then.examples] == [words(example) for example in current]


def test_some_training_customers_are_watched_with_all_they_say(tmp_path: Path) -> None:
    made = Usage(tmp_path / "store")
    made.customers([(f"tea {at}", "order") for at in range(600)], prefix="a", each=3)
    learned = [e for e in found(tmp_path / "store", tmp_path / "one") if e.split == "train"]
    watched = {example.session for example in learned if to_watch(example)}
    assert 0.04 < len(watched) / len({example.session for example in learned}) < 0.18
    assert not watched & {example.session for example in learned if not to_watch(example)}


def by_time(store: Path, out: Path, share: float) -> list[CuratedExample]:
    curate(store, out, consents=(CONSENT,), eval_share=SHARE, since=HeldOutFrom(share=share))
    return read_examples(out)


def sessions(examples: list[CuratedExample], split: str) -> frozenset[str]:
    return frozenset(example.session for example in examples if example.split == split)


def test_who_was_held_out_by_time_stays_so_when_the_time_moves_on(tmp_path: Path) -> None:
    made = usage(tmp_path / "store")
    first = by_time(tmp_path / "store", tmp_path / "one", 0.2)
    held, trained = (sessions(first, split) for split in ("eval", "train"))
    before = replace(after(first), held_customers=held, trained_customers=trained)
    made.customers([(f"milk {at}", "order") for at in range(40)], prefix="a", each=1)
    made.customers([(f"rice {at}", "order") for at in range(300)], prefix="z", each=1)

    later = by_time(tmp_path / "store", tmp_path / "two", 0.1)
    assert sessions(later, "train") & held, "or this test shows nothing"
    then = sealed(tmp_path / "store", later, before)
    assert not sessions(then.examples, "train") & held
    assert then.counts["new words of who was held out before"] > 0

    wider = by_time(tmp_path / "store", tmp_path / "three", 0.99)
    assert sessions(wider, "eval") & trained, "or this test shows nothing"
    then = sealed(tmp_path / "store", wider, before)
    assert not sessions(then.examples, "eval") & trained


def test_customers_of_earlier_rounds_are_known_by_what_they_were_used_for(tmp_path: Path) -> None:
    usage(tmp_path / "store")
    examples = found(tmp_path / "store", tmp_path / "0001/examples")
    accepted, refused = (FinishedRound(folder=tmp_path / "0001", document=sample_round(str, n)) for n in (1, 3))
    before = earlier([accepted])
    assert before.held_customers == sessions(examples, "eval")
    assert before.trained_customers == sessions(examples, "train")
    assert earlier([refused]).trained_customers == frozenset(), "what was refused has taught nobody"


def say(made: Usage, words: list[str]) -> None:
    """Let a device say something for people of whom it names nobody."""
    made.customers([(each, "order") for each in words], prefix="", each=1, session="")


def rounds_of(*folders: Path) -> list[FinishedRound]:
    return [FinishedRound(folder=folder, document=sample_round(str, 1)) for folder in folders]


def test_a_device_that_names_nobody_is_watched_or_not_with_all_it_says(tmp_path: Path) -> None:
    for device in range(30):
        say(Usage(tmp_path / "store", f"d{device}"), [f"tea {device} {at}" for at in range(5)])
    learned = [e for e in found(tmp_path / "store", tmp_path / "one") if e.split == "train"]
    watched = {example.device for example in learned if to_watch(example)}
    assert watched
    assert not watched & {example.device for example in learned if not to_watch(example)}


def test_who_an_older_version_had_on_both_sides_keeps_its_exam_and_is_trained_on(tmp_path: Path) -> None:
    """Versions before parted what a device said without a session answer by answer."""
    store, old = tmp_path / "store", tmp_path / "0001/examples"
    devices = [Usage(store, f"d{at}") for at in range(40)]
    for at, device in enumerate(devices):
        say(device, [f"tea {at} {number}" for number in range(4)])
    before = [
        msgspec.structs.replace(example, split="eval" if at % 4 == 0 else "train")
        for at, example in enumerate(found(store, old))
    ]
    write_examples(old / "examples.jsonl", before)
    for at, device in enumerate(devices):
        say(device, [f"rice {at}"])
    current = found(store, tmp_path / "now")
    assert {e.split for e in current if e.utterance.startswith("rice")} == {"train", "eval"}, "this test shows nothing"
    then = sealed(store, current, earlier(rounds_of(tmp_path / "0001")))
    held = {example.utterance for example in then.examples if example.split == "eval"}
    assert held == {example.utterance for example in before if example.split == "eval"}
    near = then.counts.get("near copies of what is held out", 0)
    assert len(then.examples) + near == len(current), "nothing else is lost"


def test_where_nobody_is_known_the_exam_grows_and_what_was_trained_on_stays_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    made = Usage(store)
    say(made, [f"tea {at}" for at in range(20)])
    first = found(store, tmp_path / "0001/examples")
    held, trained = ({e.utterance for e in first if e.split == split} for split in ("eval", "train"))
    assert held == {f"tea {at}" for at in range(14, 20)}
    say(made, [*(f"rice {at}" for at in range(12)), "tea 0", "tea 19"])
    then = sealed(store, found(store, tmp_path / "two"), earlier(rounds_of(tmp_path / "0001")))
    now = {e.utterance: e.split for e in then.examples}
    assert now.keys() == {*(f"tea {at}" for at in range(20)), *(f"rice {at}" for at in range(12))}
    assert {said for said in held | trained if now[said] == "eval"} == held
    assert {said for said in now if said.startswith("rice") and now[said] == "eval"}, "the newest judge as well"
