"""Which tasks have answers from a closed set, and a classifier fitted to them: it knows them in other words."""

import json
from collections.abc import Iterator
from itertools import product

import msgspec
import pytest

from fieldlm.core.errors import InputError
from fieldlm.formats.classifier import SIGNAL, ClosedCall, context_key
from fieldlm.formats.confidence import Confidence
from fieldlm.telemetry.redaction.redact import redact
from fieldlm_compiler.learn.classifier import ClosedTask, OpenTask, as_heard, closed_tasks, fit_classifier
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.router import FittedHead, fit_head

POLITE = ("please {}", "{}", "could you {}", "{} now", "i want you to {}", "just {}", "{} for me", "hey {}")
LIGHTS = {
    ("kitchen", "on"): ("turn on the kitchen light", "light up the kitchen", "make the kitchen bright"),
    ("kitchen", "off"): ("turn off the kitchen light", "no light in the kitchen", "make the kitchen dark"),
    ("attic", "on"): ("turn on the attic light", "light up the attic", "make the attic bright"),
    ("attic", "off"): ("turn off the attic light", "no light in the attic", "make the attic dark"),
}
NOTES = ("milk", "the plumber", "a birthday", "taxes", "new shoes", "the car", "a letter", "swimming")


def example(task: str, number: int, said: str, answer: str, *, before: str = "") -> CuratedExample:
    turns = [{"role": "user", "content": before}, {"role": "assistant", "content": "yes"}] if before else []
    return CuratedExample(
        messages=[*turns, {"role": "user", "content": said}], answer=answer, label_source="correction",
        session=f"s{number // 2}", response=f"{task}-{number}", split="train", task=task,
    )  # fmt: skip


def lights() -> Iterator[CuratedExample]:
    said = [(words, rest) for rest, forms in LIGHTS.items() for words in forms]
    for number, (polite, (words, (room, state))) in enumerate(product(POLITE, said)):
        # Keys come in another order now and then: that is the same answer.
        pairs = [("room", room), ("state", state)]
        answer = json.dumps(dict(reversed(pairs) if number % 5 == 0 else pairs))
        yield example("lights", number, polite.format(words), answer)


def notes() -> Iterator[CuratedExample]:
    for number, (polite, about) in enumerate(product(POLITE, NOTES)):
        yield example(
            "notes", 1000 + number, polite.format(f"remind me of {about}"), json.dumps({"note": about + polite})
        )


EXAMPLES = [*lights(), *notes()]
(CLOSED,) = [each for each in closed_tasks(EXAMPLES, ["lights"]) if isinstance(each, ClosedTask)]


def test_a_task_with_few_answers_is_closed_and_one_with_many_is_open() -> None:
    closed, opened, unknown = closed_tasks(EXAMPLES, ["lights", "notes", "music"])
    assert isinstance(closed, ClosedTask)
    assert len(closed.answers) == 4
    assert {json.loads(answer.text)["room"] for answer in closed.answers} == {"kitchen", "attic"}
    assert all(answer.text.startswith('{"room"') for answer in closed.answers), "as it is spelt most often"
    assert isinstance(opened, OpenTask)
    assert opened.why.startswith("its answers are open: 64 answers in 64 examples")
    assert isinstance(unknown, OpenTask)
    assert unknown.why == "0 examples to learn from, want 16"


def test_what_one_customer_alone_answered_is_no_answer_of_many() -> None:
    """A bundle goes to every device: nothing is in it that a single person said."""
    own = [example("lights", 7, f"my light {number}", '{"secret": 1}') for number in range(6)]
    found = closed_tasks([*lights(), *own], ["lights"])
    assert [len(each.answers) for each in found if isinstance(each, ClosedTask)] == [4]


def unnamed(number: int, said: str, answer: str, *, device: str) -> CuratedExample:
    """Return what somebody said who gave no session, which curation then calls by its response."""
    return msgspec.structs.replace(
        example("lights", number, said, answer), session=f"lights-{number}", response=f"lights-{number}", device=device
    )


def test_a_device_that_names_no_sessions_is_one_customer() -> None:
    secret = '{"to": "12 Mill Lane, flat 3, Ada\'s home"}'
    home = [unnamed(5000 + number, f"bring it home {number}", secret, device="kiosk-1") for number in range(20)]
    (alone,) = closed_tasks(home, ["lights"])
    assert isinstance(alone, OpenTask)
    found = closed_tasks([*lights(), *home[:9]], ["lights"])
    assert [len(each.answers) for each in found if isinstance(each, ClosedTask)] == [4]
    (of_two,) = closed_tasks([*home, unnamed(6000, "bring it", secret, device="kiosk-2")], ["lights"])
    assert isinstance(of_two, ClosedTask), "two devices are two customers"


def test_who_names_no_session_is_left_out_of_the_fit_as_one_customer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def fit(texts: list[str], classes: list[int], count: int, *, groups: list[str]) -> FittedHead:
        seen.append(groups)
        return fit_head(texts, classes, count, groups=groups)

    monkeypatch.setattr("fieldlm_compiler.learn.classifier.fit_head", fit)
    said = [
        unnamed(6000 + at, each.utterance, each.answer, device=f"kiosk-{at % 3}") for at, each in enumerate(EXAMPLES)
    ]
    fit_classifier(said, [CLOSED])
    assert set(seen[0]) == {"kiosk-0", "kiosk-1", "kiosk-2"}


def test_questions_that_go_on_from_something_make_a_task_open() -> None:
    said = [example("lights", number, "yes", '{"room": "attic"}', before="light?") for number in range(20)]
    (found,) = closed_tasks([*lights(), *said], ["lights"])
    assert isinstance(found, OpenTask)
    assert found.why == "20 of 116 examples have turns before the question"


def test_calls_are_answers_as_well() -> None:
    call = {"type": "function", "function": {"name": "go", "arguments": {"to": "dock"}}}
    called = [
        CuratedExample(
            messages=[{"role": "user", "content": f"go home {number}"}], answer=json.dumps(call["function"]),
            label_source="large", session=f"s{number}", response=f"r{number}", split="train", task="go",
            tool_calls=[call], tools=[{"type": "function", "function": {"name": "go"}}],
        )
        for number in range(20)
    ]  # fmt: skip
    (found,) = closed_tasks(called, ["go"])
    assert isinstance(found, ClosedTask)
    (answer,) = found.answers
    assert answer.calls == (ClosedCall(name="go", arguments={"to": "dock"}),)
    fitted = fit_classifier([*called, *lights()], [found])
    assert len(fitted.contexts) == 1
    assert all(right for _, right in fitted.left_out)


def behind(prompt: str) -> list[CuratedExample]:
    """Return all examples as they were asked behind a system prompt."""
    system = [{"role": "system", "content": prompt}]
    return [msgspec.structs.replace(each, messages=[*system, *each.messages]) for each in EXAMPLES]


OWN = "Serve the kitchen. Whoever wants more writes to ada.novak@example.com."


def test_the_bundles_own_prompt_that_devices_told_redacted_is_the_one_that_they_have() -> None:
    assert redact(OWN) != OWN
    for recorded in (behind(redact(OWN)), behind(OWN), EXAMPLES):
        fitted = fit_classifier(recorded, [CLOSED], system_prompt=OWN)
        assert fitted.contexts == (context_key([{"role": "system", "content": OWN}], ()),)
    heard = as_heard(behind(redact(OWN))[0].messages, OWN)
    assert heard == behind(OWN)[0].messages


def test_behind_another_prompt_than_its_examples_there_is_no_classifier_that_says_nothing() -> None:
    with pytest.raises(InputError, match="other system prompts than the bundle's own"):
        fit_classifier(behind("Sing."), [CLOSED], system_prompt=OWN)
    with pytest.raises(InputError, match="redacted, or is rare"):
        fit_classifier(behind(redact(OWN)), [CLOSED])
    sung = fit_classifier(behind("Sing."), [CLOSED])
    assert sung.contexts == (context_key([{"role": "system", "content": "Sing."}], ()),), "clients send it themselves"


def test_it_answers_in_other_words_and_tells_what_else_is_asked() -> None:
    fitted = fit_classifier(EXAMPLES, [CLOSED])
    sure = Confidence(signal=SIGNAL, steps=((-1.0, 0.5), (0.0, 0.99)))
    made = fitted.calibrated(sure, 0.0)
    asked = {"would you light up the attic": ("attic", "on"), "kitchen light off, turn it off": ("kitchen", "off")}
    for said, (room, state) in asked.items():
        answer, _ = made.guess(said)
        assert answer is not None
        assert json.loads(answer.text) == {"room": room, "state": state}
    assert made.guess("would you remind me of the dentist")[0] is None
    right = [is_right for _, is_right in fitted.left_out]
    assert sum(right) / len(right) > 0.9, "of customers who were left out"


def test_the_same_examples_give_the_same_bytes() -> None:
    sure = Confidence(signal=SIGNAL, steps=((-1.0, 0.5), (0.0, 0.99)))
    one, other = (fit_classifier(EXAMPLES, [CLOSED]).calibrated(sure, 0.5).packed() for _ in range(2))
    assert one == other


def test_where_everything_has_one_answer_nothing_is_told_apart() -> None:
    said = [example("hello", number, f"hello {number}", "Hello.") for number in range(20)]
    (found,) = closed_tasks(said, ["hello"])
    assert isinstance(found, ClosedTask)
    with pytest.raises(InputError, match="nothing to tell apart"):
        fit_classifier(said, [found])
