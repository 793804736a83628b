"""A candidate in the shadow: what counts, what it may cost nobody, and how its period ends."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fieldlm.engines.memory_plan import NoRoomError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Offer
from fieldlm.formats.shadow import ALPHA, LEAST, MOST, ShadowAnswer, ShadowFigures, lost_e, meaning, read_figures
from fieldlm.updates.progress import UpdateResult, UpdateState
from fieldlm.updates.shadow import QUEUE, Shadow, ShadowPeriod
from fieldlm.updates.updater import Updater
from fieldlm_compiler.repository import offers
from fieldlm_compiler.repository.metadata import Keyring
from tests.support.update_simulators import LiveSimulator, ServingSimulator, Site, make_site, small_bundle
from tests.support.waiting import wait_until

RIGHT = ShadowAnswer(is_valid=True, meaning=meaning("The lift."), tokens=3, duration_s=0.5, confidence=0.9)
OTHER = ShadowAnswer(is_valid=True, meaning=meaning("The stairs."), tokens=3, duration_s=0.5)
NONE = ShadowAnswer(is_valid=False)


@dataclass
class Question:
    """A live request whose answers are known beforehand."""

    id: str
    served: ShadowAnswer
    shadow: ShadowAnswer
    generation: str
    is_formed: bool = True
    asks: str = ""
    task: str = "way"
    comes_between: Callable[[], None] = lambda: None
    asked: int = 0

    @property
    def question(self) -> bytes:
        return (self.asks or self.id).encode()

    def ask(self, candidate: ServingSimulator, gives_way: Callable[[], bool]) -> ShadowAnswer | None:
        del candidate
        self.asked += 1
        self.comes_between()
        return None if gives_way() else self.shadow


@dataclass
class Kiosk:
    """A device whose repository offers it a candidate, and the people before it."""

    site: Site
    is_busy: bool = False
    pairs: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])

    def __post_init__(self) -> None:
        self.shadow = Shadow[ServingSimulator](
            is_busy=lambda: self.is_busy, on_pair=lambda response, told: self.pairs.append((response, told))
        )
        self.updater = self.site.updater(shadow=self.shadow)

    def begin(self) -> None:
        """Hear of the release, as from a broker, and wait until it is in the shadow."""
        self.updater.on_hint()
        wait_until(lambda: self.shadow.figures is not None)

    def ask(self, served: ShadowAnswer, shadow: ShadowAnswer, *, count: int = LEAST, is_formed: bool = True) -> None:
        """Let people ask so many questions, one after the other, as long as the period lasts."""
        for number in range(count):
            before = len(self.pairs)
            generation = self.site.base.generation
            question = Question(f"chat-{number}", served, shadow, generation, is_formed=is_formed)
            self.shadow.hear(question)
            wait_until(lambda before=before: len(self.pairs) > before or self.updater.state.runs)

    def end(self, runs: int = 1) -> UpdateResult:
        wait_until(lambda: self.updater.state.runs >= runs)
        assert self.updater.state.last
        return self.updater.state.last


@pytest.fixture
def tuned(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "tuned", base_bytes=5000, adapter="coffee")


@pytest.fixture
def kiosk(tmp_path: Path, tuned: Bundle) -> Iterator[Kiosk]:
    site = make_site(tmp_path, small_bundle(tmp_path / "base", base_bytes=5000))
    site.publish(tuned, Offer(shadow=LEAST))
    kiosk = Kiosk(site)
    yield kiosk
    kiosk.updater.close()
    site.slots.close()


def test_a_candidate_that_answers_as_well_is_switched_to_after_its_period(kiosk: Kiosk, tuned: Bundle) -> None:
    kiosk.begin()
    assert kiosk.site.live.current.bundle.id == kiosk.site.base.id
    kiosk.ask(RIGHT, RIGHT)
    result = kiosk.end()
    assert (result.outcome, result.generation) == ("updated", tuned.generation)
    steps = [moment.step for moment in result.timeline]
    assert steps == ["check", "fetch", "verify", "load", "probe", "shadow", "switch", "observe", "commit"]
    figures = ShadowFigures(wanted=LEAST, answers=LEAST, agreed=LEAST, valid=LEAST, end="full")
    assert result.measured
    assert result.measured.shadow == figures == kiosk.updater.state.shadow
    (told,) = [detail for event, detail in kiosk.site.events if event == "update.shadowed"]
    assert read_figures(told) == figures
    assert {response for response, _ in kiosk.pairs} == {f"chat-{number}" for number in range(LEAST)}
    assert kiosk.pairs[0][1] == {
        "candidate": tuned.generation, "task": "way", "agrees": "yes", "serving_valid": "yes", "serving_tokens": "3",
        "serving_ms": "500", "serving_confidence": "0.9", "valid": "yes", "tokens": "3", "ms": "500",
        "confidence": "0.9",
    }  # fmt: skip


def test_fewer_valid_answers_are_refused_by_name_and_for_good(kiosk: Kiosk) -> None:
    kiosk.begin()
    kiosk.ask(RIGHT, NONE)
    result = kiosk.end()
    assert (result.outcome, result.reason) == ("rolled-back", "shadow-invalid")
    assert "0 of 12 answers are valid, 12 of the serving generation's" in result.detail
    assert kiosk.site.live.current.bundle.id == kiosk.site.slots.current().id == kiosk.site.base.id
    event, told = kiosk.site.events[-1]
    assert (event, told["reason"]) == ("update.rolled-back", "shadow-invalid")
    assert read_figures(told) == ShadowFigures(wanted=LEAST, answers=LEAST, valid_lost=LEAST, end="worse")
    assert kiosk.site.update().reason == "failed-before"


def test_a_period_ends_as_soon_as_the_candidate_is_worse(kiosk: Kiosk) -> None:
    ring = Keyring(kiosk.site.keys)
    offers.change(kiosk.site.repository, ring, "test", 1, what="promote", shadow=500)
    kiosk.begin()
    kiosk.ask(RIGHT, NONE, count=2 * LEAST)
    assert kiosk.end().reason == "shadow-invalid"
    assert len(kiosk.pairs) == LEAST


def test_answers_that_people_correct_are_held_against_what_they_say(kiosk: Kiosk) -> None:
    kiosk.begin()
    for number in range(LEAST - 1):
        kiosk.shadow.hear(Question(f"first-{number}", RIGHT, OTHER, kiosk.site.base.generation))
        # Before the candidate's turn has come, or after.
        kiosk.shadow.judge(f"first-{number}", "The  lift.", is_liked=False)
    wait_until(lambda: len(kiosk.pairs) == LEAST - 1)
    figures = kiosk.updater.state.shadow
    assert figures
    assert (figures.judged, figures.right, figures.serving_right) == (LEAST - 1, 0, LEAST - 1)
    kiosk.is_busy = True
    kiosk.shadow.hear(Question("last", RIGHT, OTHER, kiosk.site.base.generation))
    kiosk.shadow.judge("last", None, is_liked=True)
    kiosk.is_busy = False
    result = kiosk.end()
    assert (result.outcome, result.reason) == ("rolled-back", "shadow-wrong")
    assert "0 of 12 answers are as people say" in result.detail


def test_words_that_somebody_liked_do_not_make_other_words_wrong(kiosk: Kiosk) -> None:
    kiosk.begin()
    kiosk.ask(RIGHT, OTHER, count=1, is_formed=False)
    kiosk.shadow.judge("chat-0", None, is_liked=True)
    figures = kiosk.updater.state.shadow
    assert figures
    assert (figures.answers, figures.agreed, figures.judged) == (1, 0, 0)


def test_a_candidate_that_nobody_asks_anything_is_switched_to_when_its_time_is_over(
    tmp_path: Path, tuned: Bundle
) -> None:
    site = make_site(tmp_path, small_bundle(tmp_path / "base", base_bytes=5000))
    site.publish(tuned, Offer(shadow=LEAST, shadow_s=0))
    kiosk = Kiosk(site)
    kiosk.updater.on_hint()
    result = kiosk.end()
    assert result.outcome == "updated"
    assert result.measured
    assert result.measured.shadow == ShadowFigures(wanted=LEAST, end="time")
    site.slots.close()


def test_who_asks_for_an_update_by_hand_waits_for_no_shadow(kiosk: Kiosk, tuned: Bundle) -> None:
    kiosk.begin()
    kiosk.updater.start()
    result = kiosk.end(runs=2)
    assert (result.outcome, result.generation) == ("updated", tuned.generation)
    assert result.measured
    assert result.measured.shadow
    assert result.measured.shadow.describe() == "no answer in the shadow: it was asked for by hand"
    assert [event for event, _ in kiosk.site.events].count("update.rolled-back") == 0


def test_who_asks_by_hand_is_not_kept_waiting_by_what_the_device_has_heard_meanwhile(
    kiosk: Kiosk, tuned: Bundle
) -> None:
    kiosk.begin()
    kiosk.updater.on_hint()
    kiosk.updater.start()
    wait_until(lambda: kiosk.site.live.current.bundle.id == tuned.id)
    kiosk.end(runs=3)


def test_what_gave_way_is_not_taken_for_the_update_that_it_gave_way_to() -> None:
    gave_way = UpdateResult(outcome="failed", reason="stopped")
    assert UpdateState(running=True, runs=1, last=gave_way).has_given_way
    assert not UpdateState(running=False, runs=1, last=gave_way).has_given_way
    assert not UpdateState(running=True, runs=1, last=UpdateResult(outcome="updated")).has_given_way


class ShortOfMemory(LiveSimulator):
    """Holds one generation at a time."""

    def load(self, bundle: Bundle) -> ServingSimulator:
        if not any(line.startswith("clear") for line in self.story):
            self.story.append("no room")
            raise NoRoomError("it does not fit beside the other one")
        return super().load(bundle)


def test_where_memory_is_short_the_update_says_so_and_goes_on_without(kiosk: Kiosk) -> None:
    kiosk.site.live = ShortOfMemory(kiosk.site.live.current)
    kiosk.updater = kiosk.site.updater(shadow=kiosk.shadow)
    kiosk.updater.on_hint()
    result = kiosk.end()
    assert result.outcome == "updated"
    assert result.measured
    assert result.measured.shadow == ShadowFigures(wanted=LEAST, end="memory")


def test_a_release_that_is_taken_back_meanwhile_is_not_switched_to(kiosk: Kiosk) -> None:
    kiosk.begin()
    offers.change(kiosk.site.repository, Keyring(kiosk.site.keys), "test", 1, what="pull", reason="too polite")
    kiosk.ask(RIGHT, RIGHT)
    result = kiosk.end()
    assert (result.outcome, result.reason) == ("failed", "stopped")
    assert "release 1 is not the one that is offered any more" in result.detail
    assert kiosk.site.live.current.bundle.id == kiosk.site.base.id
    assert not [line for line in kiosk.site.live.story if line.startswith("switch")]
    assert kiosk.site.slots.status().failed == ()


def test_a_repository_that_is_away_when_the_period_ends_keeps_nobody_from_the_update(kiosk: Kiosk) -> None:
    kiosk.begin()
    kiosk.site.repository.rename(kiosk.site.folder / "away")
    kiosk.ask(RIGHT, RIGHT)
    assert kiosk.end().outcome == "updated"


def test_a_device_that_stops_in_between_begins_anew(kiosk: Kiosk, tuned: Bundle) -> None:
    kiosk.begin()
    kiosk.ask(RIGHT, RIGHT, count=3)
    kiosk.updater.close()
    assert kiosk.end().reason == "stopped"
    assert kiosk.site.slots.status().failed == ()
    again = Kiosk(kiosk.site)
    again.begin()
    assert again.updater.state.shadow
    assert again.updater.state.shadow.answers == 0
    again.ask(RIGHT, RIGHT)
    assert again.end().generation == tuned.generation
    again.updater.close()


def run(shadow: Shadow[ServingSimulator], kiosk: Kiosk, stop: threading.Event) -> list[ShadowFigures]:
    """Have the candidate in the shadow until `stop`; the list has the figures then."""
    ended = list[ShadowFigures]()

    def look() -> None:
        if stop.is_set():
            raise InterruptedError

    def period() -> None:
        try:
            serving = kiosk.site.live.current
            ended.append(shadow.run(serving, "before", wanted=2, for_s=3600, stop=stop, look=look))
        except InterruptedError:
            ended.append(ShadowFigures())

    threading.Thread(target=period).start()
    wait_until(lambda: shadow.figures is not None)
    return ended


def test_whoever_comes_meanwhile_goes_first_and_the_shadow_begins_anew(kiosk: Kiosk) -> None:
    stop = threading.Event()
    ended = run(kiosk.shadow, kiosk, stop)
    came = list[str]()

    def somebody_comes() -> None:
        kiosk.is_busy = not came
        came.append("somebody")

    kiosk.is_busy = True
    question = Question("chat-1", RIGHT, RIGHT, "before", comes_between=somebody_comes)
    kiosk.shadow.hear(question)
    assert (question.asked, kiosk.pairs) == (0, [])
    kiosk.is_busy = False
    wait_until(lambda: question.asked == 1)
    wait_until(lambda: kiosk.is_busy)
    assert kiosk.pairs == []
    kiosk.is_busy = False
    wait_until(lambda: kiosk.pairs)
    assert question.asked == 2
    stop.set()
    wait_until(lambda: ended)
    assert kiosk.shadow.figures is None


def test_what_is_heard_is_of_the_generation_that_serves_new_and_no_more_than_a_few_at_a_time() -> None:
    period = ShadowPeriod[ServingSimulator]("candidate", "before", 500)
    period.hear(Question("other", RIGHT, RIGHT, "another"))
    assert period.next() is None
    first = Question("first", RIGHT, RIGHT, "before", asks="Where is the lift?")
    period.hear(first)
    period.hear(Question("again", RIGHT, RIGHT, "before", asks="Where is the lift?"))
    for number in range(QUEUE):
        period.hear(Question(f"more-{number}", RIGHT, RIGHT, "before"))
    assert period.next() is first
    assert period.figures().passed == 2
    period.judge("nobody", "The lift.", is_liked=False)
    period.answered(first, OTHER)
    assert (period.figures().answers, period.figures().agreed) == (1, 0)
    assert period.close("time").end == "time"
    period.hear(Question("late", RIGHT, RIGHT, "before"))
    assert period.next() is None
    assert period.figures().passed == 2


def test_the_figures_are_gauges(kiosk: Kiosk, tuned: Bundle) -> None:
    assert list(kiosk.shadow.readings()) == []
    kiosk.begin()
    kiosk.ask(RIGHT, OTHER, count=2)
    read = {(name, labels.get("what", "")): value for name, _, labels, value in kiosk.shadow.readings()}
    assert read["fieldlm_shadow_active", ""] == 1
    counts = {"wanted": 12, "answers": 2, "agreed": 0, "valid": 2, "serving_valid": 2, "judged": 0}
    assert {what: read["fieldlm_shadow_answers", what] for what in counts} == counts
    assert {labels["generation"] for _, _, labels, _ in kiosk.shadow.readings()} == {tuned.generation}


def test_twelve_pairs_of_one_kind_are_enough_and_what_the_candidate_won_counts_against_them() -> None:
    assert lost_e(LEAST - 1, 0) < 1 / ALPHA < lost_e(LEAST, 0)
    assert lost_e(LEAST, 2) < 1 / ALPHA
    assert lost_e(500, 500) < 1
    assert lost_e(MOST, 0) > 1 / ALPHA


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("The lift.", " The\nlift. ", True),
        ("The lift.", "the lift.", False),
        ('{"a": 1.0, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"a": 1.5}', '{"a": 1}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ("1e400", "-1e400", False),
        ("[" * 100_000, "[" * 100_000, True),
        ("\ud800", "\ud800", True),
    ],
)
def test_answers_agree_that_are_the_same_json_or_the_same_words(one: str, other: str, is_same: bool) -> None:
    assert (meaning(one) == meaning(other)) is is_same


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"shadow_answers": "many"},
        {"shadow_answers": "-1"},
        {"shadow_answers": "12", "shadow_valid": "100000"},
        {"shadow_end": "well"},
    ],
)
def test_figures_that_cannot_be_are_read_as_none(detail: dict[str, str]) -> None:
    assert read_figures(detail) is None


def test_a_device_without_a_shadow_of_its_own_goes_on(kiosk: Kiosk) -> None:
    updater: Updater[ServingSimulator] = kiosk.site.updater()
    updater.on_hint()
    wait_until(lambda: updater.state.runs)
    assert updater.state.last
    assert updater.state.last.outcome == "updated"
    updater.close()
