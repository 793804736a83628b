"""Nobody owns the data set: one vote a customer, the majority decides, and who says far too much keeps their share."""

from collections.abc import Sequence

from fieldlm_compiler.learn.agreement import SESSION_FLOOR, agree
from fieldlm_compiler.learn.curated import CuratedExample


def example(
    said: str, answer: str, *, by: str = "s", corrected: bool = True, number: int = 0, device: str = "d"
) -> CuratedExample:
    return CuratedExample(
        messages=[{"role": "user", "content": said}],
        answer=answer,
        label_source="correction" if corrected else "rated up",
        session=by,
        response=f"{by} {said} {number}",
        split="train",
        device=device,
    )


def answers(examples: Sequence[CuratedExample]) -> list[str]:
    return [found.answer for found in agree(examples).kept]


def test_of_the_same_words_one_example_is_kept_a_corrected_one_first() -> None:
    found = agree([example("A  tea", "1"), example("a tea!", "2", corrected=False), example("a coffee", "3")])
    assert ([e.answer for e in found.kept], found.lost) == (["1", "3"], {"outvoted": 1} | dict.fromkeys(NO_LOSS, 0))
    assert answers([example("a tea", "1"), example("a tea", "2")]) == ["2"], "a customer may change their mind"


NO_LOSS = ("over a session's share", "over a device's share")


def test_the_majority_decides_and_not_who_came_last() -> None:
    honest = [example("a tea", "A", by=f"s{number}") for number in range(5)]
    assert answers([*honest, example("a tea", "B", by="late")]) == ["A"]
    assert answers([example("a tea", "B", by="early"), *honest]) == ["A"]


def test_a_customer_has_one_vote_whatever_they_repeat() -> None:
    loud = [example("a tea", "B", by="loud", number=number) for number in range(40)]
    assert answers([*loud, example("a tea", "A", by="x"), example("a tea", "A", by="y")]) == ["A"]


def test_answers_that_say_the_same_as_json_are_one() -> None:
    same = [example("a tea", '{"b": 1, "a": 2}', by="x"), example("a tea", '{"a":2,"b":1}', by="y")]
    found = agree([*same, example("a tea", "C", by="z")])
    assert (len(found.kept), found.disputed) == (1, 1)


def test_a_prompt_without_a_majority_is_left_out_and_counted() -> None:
    found = agree([example("a tea", "A", by="x"), example("a tea", "B", by="y"), example("a coffee", "C", by="x")])
    assert [e.answer for e in found.kept] == ["C"]
    assert (found.lost["conflict"], found.disputed) == (2, 1)


def test_one_session_of_ten_thousand_corrections_does_not_own_the_data_set() -> None:
    honest = [example(f"question {number}", "right", by=f"s{number}") for number in range(100)]
    attack = [example(f"question {number % 5000}", "wrong", by="evil", number=number) for number in range(10_000)]
    found = agree([*honest, *attack])
    by_answer = [e.answer for e in found.kept]
    assert by_answer.count("right") == 100, "all that the honest ones said stays"
    assert by_answer.count("wrong") == SESSION_FLOOR
    assert found.lost["over a session's share"] == 4900 - SESSION_FLOOR


def test_who_names_no_session_speaks_for_the_device_however_often() -> None:
    nameless = [
        CuratedExample(
            messages=[{"role": "user", "content": "a tea"}], answer="B", label_source="correction",
            session=f"r{number}", response=f"r{number}", split="train", device="d",
        )
        for number in range(9)
    ]  # fmt: skip
    assert answers([*nameless, example("a tea", "A", by="x"), example("a tea", "A", by="y")]) == ["A"]


def said_by(answer: str, sessions: int, device: str) -> list[CuratedExample]:
    return [example("a tea", answer, by=f"{device} {number}", device=device) for number in range(sessions)]


def fleet(answer: str, devices: int) -> list[CuratedExample]:
    return [each for number in range(devices) for each in said_by(answer, 1, f"d{number}")]


def test_one_device_does_not_outvote_a_fleet_by_inventing_sessions() -> None:
    assert answers([*fleet("A", 20), *said_by("B", 30, "evil")]) == ["A"]
    assert answers([*said_by("B", 300, "evil"), *fleet("A", 9)]) == ["A"]


def test_one_device_alone_never_wins_against_all_others() -> None:
    for others in (1, 2, 3, 4):
        assert answers([*fleet("A", others), *said_by("B", 30, "evil")]) == [], "nobody can tell who is right"
    assert answers([*fleet("A", 5), *said_by("B", 30, "evil")]) == ["A"]


def test_a_busy_device_has_more_votes_and_one_that_is_alone_has_them_all() -> None:
    assert answers([*fleet("A", 3), *said_by("B", 30, "busy"), *said_by("B", 1, "quiet")]) == ["B"]
    alone = [example("a tea", "A", by="x"), *(example("a tea", "B", by=f"y{number}") for number in range(2))]
    assert answers(alone) == ["B"]


def test_a_fleet_of_one_device_keeps_all_it_says() -> None:
    assert len(agree([example(f"q {n}", "a", by=f"s{n}") for n in range(3000)]).kept) == 3000
    flood = [example(f"x {n}", "a", by=f"t{n}", device="evil") for n in range(3000)]
    quiet = [example(f"q {n}", "a", by=f"s{n}", device=f"d{n % 20}") for n in range(200)]
    found = agree([*flood, *quiet])
    assert sum(e.device != "evil" for e in found.kept) == 200
    assert sum(e.device == "evil" for e in found.kept) == 500
