"""Answers as objects in the same process, waited for or awaited."""

import asyncio
import decimal
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Annotated, Any, Literal, TypedDict, cast

import msgspec
import pytest
from pydantic import BaseModel

from fieldlm.core.errors import InputError
from fieldlm.engines import Sampling, Schedule, constraint
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.async_model import AsyncModel
from fieldlm.inference.model import Model
from fieldlm.inference.structured import IncompleteError, form

ASKED = "Two coffees, please"
HOT = Sampling(temperature=2.0, seed=7)
LATE = Schedule(deadline_s=0.0)


class Item(msgspec.Struct):
    drink: Literal["coffee", "tea"]
    count: Literal[1, 2, 3]


class Order(msgspec.Struct):
    items: list[Item] = msgspec.field(default_factory=list[Item])
    to_go: bool = False


@dataclass
class Move:
    direction: Literal["left", "right"]
    fast: bool


class Grip(TypedDict):
    hand: Literal["left", "right"]


class Speak(BaseModel):
    tone: Literal["calm", "loud"]


@pytest.fixture(scope="module")
def model(base_bundle: Bundle) -> Iterator[Model]:
    with Model.open(base_bundle, threads=1, context=512, parallel=2) as opened:
        yield opened


def test_every_kind_of_type_comes_back_as_its_own_object(model: Model) -> None:
    for seed in range(4):
        sampling = Sampling(temperature=2.0, seed=seed)
        assert isinstance(model.call(Item, ASKED, sampling), Item)
        assert isinstance(model.call(Move, ASKED, sampling), Move)
        assert isinstance(model.call(Speak, ASKED, sampling), Speak)
        assert model.call(Grip, ASKED, sampling)["hand"] in ("left", "right")
        answer: Any = model.call({"enum": ["yes", "no"]}, ASKED, sampling)
        assert answer in ("yes", "no")


class Visit(msgspec.Struct):
    at: datetime
    span: timedelta
    again: list[datetime] | None


class Slot(BaseModel):
    at: datetime
    span: timedelta


TIMES = [datetime, time_of_day, timedelta, date, list[timedelta], dict[str, time_of_day], Visit, Slot]
NAIVE = [Annotated[datetime, msgspec.Meta(tz=False)], Annotated[datetime, msgspec.Meta(tz=True)]]


@pytest.mark.parametrize("kind", [*TIMES, *NAIVE])
def test_a_time_is_written_as_its_type_reads_it(model: Model, kind: Any) -> None:
    compiled = form(model.engine, kind)
    for seed in range(3):
        sampling = Sampling(temperature=2.0, seed=seed, max_tokens=300)
        try:
            model.call(kind, ASKED, sampling)
        except IncompleteError as error:  # a list or a dict need not end
            assert error.outcome == "length", error  # noqa: PT017
    assert not compiled.constraint.accepts('"Two coffees at 3.50"')


def test_a_type_without_a_schema_is_refused_in_one_line(model: Model) -> None:
    with pytest.raises(InputError, match="has no JSON schema") as caught:
        model.call(complex, ASKED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fallback", "wanted"),
    [
        (Item, {"drink": "coffee", "count": 1}, "(dict), want an object of Item"),
        (Item, Move("left", False), "(Move), want an object of Item"),
        (Move, "stop", "fallback is 'stop' (str), want an object of Move"),
        (Grip, {"hand": "both"}, "want an object of Grip"),
        (Speak, {"tone": "calm"}, "want an object of Speak"),
        (list[Item], [{"drink": "coffee", "count": 1}], "want an object of list"),
        (Literal["go", "stop"], "halt", "want an object of typing.Literal['go', 'stop']"),
    ],
)
def test_a_fallback_of_another_type_is_refused_before_anything_is_asked(
    model: Model, kind: Any, fallback: Any, wanted: str
) -> None:
    with pytest.raises(InputError) as caught:
        model.call(kind, ASKED, fallback=fallback)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fallback"),
    [
        (Item, Item(drink="tea", count=2)),
        (Move, Move("left", False)),
        (Grip, {"hand": "left"}),
        (Speak, Speak(tone="calm")),
        (list[Item], [Item(drink="tea", count=2)]),
        (Literal["go", "stop"], "stop"),
        (float, 1),
        ({"enum": ["yes", "no"]}, "nobody knows"),
    ],
)
def test_a_fallback_of_the_type_stands_in(model: Model, kind: Any, fallback: Any) -> None:
    assert model.call(kind, ASKED, terms=LATE, fallback=fallback) is fallback


def test_an_object_within_an_object_is_checked_too(model: Model) -> None:
    bounded = {"type": "array", "items": {"enum": ["coffee", "tea"]}, "minItems": 2, "maxItems": 2}
    drinks: list[str] = model.call(bounded, ASKED, HOT)
    assert len(drinks) == 2
    assert set(drinks) <= {"coffee", "tea"}
    order = model.call(Order, ASKED, Sampling(max_tokens=400), fallback=Order())
    assert isinstance(order, Order)
    assert all(isinstance(item, Item) for item in order.items)


class Shelf(msgspec.Struct):
    drinks: set[Literal["coffee", "tea"]]
    price: decimal.Decimal
    label: Annotated[bytes, msgspec.Meta(max_length=3)]


def test_sets_decimals_and_bytes_come_back_as_such(model: Model) -> None:
    shelf = model.call(Shelf, ASKED, Sampling(max_tokens=400), fallback=Shelf(set(), decimal.Decimal(1), b""))
    assert isinstance(shelf.drinks, set)
    assert isinstance(shelf.price, decimal.Decimal)
    with pytest.raises(InputError, match="uniqueItems"):
        model.call({"type": "array", "uniqueItems": True}, ASKED)


def test_a_number_beyond_what_is_exact_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="'const'"):
        model.call({"const": 2**53 + 1}, ASKED)
    with pytest.raises(InputError, match="'enum'"):
        model.call(cast(Any, Literal[9007199254740993]), ASKED)


def test_an_answer_that_is_not_whole_is_no_object(model: Model) -> None:
    with pytest.raises(IncompleteError) as cut:
        model.call(Item, ASKED, Sampling(max_tokens=2))
    assert cut.value.outcome == "length"
    with pytest.raises(IncompleteError) as late:
        model.call(Item, ASKED, terms=LATE)
    assert late.value.outcome == "deadline_exceeded"
    canned = Item(drink="tea", count=1)
    assert model.call(Item, ASKED, terms=LATE, fallback=canned) is canned


def test_a_form_that_was_prepared_is_not_compiled_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gait(TypedDict):
        gait: Literal["trot", "walk"]

    class Gaze(TypedDict):
        gaze: Literal["up", "down"]

    model.prepare(Gait, {"enum": ["ahead"]})
    asyncio.run(AsyncModel(model).prepare(Gaze))

    def compiles(*_: object) -> None:
        raise AssertionError("this is compiled while somebody waits")

    monkeypatch.setattr(constraint, "_on_own_stack", compiles)
    monkeypatch.setattr(constraint, "Grammars", compiles)
    assert model.call(Gait, ASKED)["gait"] in ("trot", "walk")
    assert model.call(Gaze, ASKED)["gaze"] in ("up", "down")
    assert model.call({"enum": ["ahead"]}, ASKED) == "ahead"
    with pytest.raises(InputError, match="schema"):
        model.prepare(object)


def test_what_cannot_be_honoured_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="'not'"):
        model.call({"not": {}}, ASKED)
    with pytest.raises(InputError, match="has no JSON schema"):
        model.call(Model, ASKED)


def test_asyncio_gets_the_same(model: Model) -> None:
    alone = model.chat("Hello", Sampling(max_tokens=8)).text

    async def all_of_it() -> None:
        mate = AsyncModel(model)
        assert (await mate.chat("Hello", Sampling(max_tokens=8))).text == alone
        item, move = await asyncio.gather(mate.call(Item, ASKED), mate.call(Move, ASKED))
        assert isinstance(item, Item)
        assert isinstance(move, Move)
        assert await mate.call(Item, ASKED, terms=LATE, fallback=item) is item
        async with aclosing(mate.stream("Hello", Sampling(max_tokens=8))) as stream:
            assert "".join([chunk.text async for chunk in stream]) == alone

    asyncio.run(all_of_it())


def test_a_cancelled_task_frees_its_sequence(model: Model) -> None:
    engine = model.engine
    assert isinstance(engine, LlamaEngine)

    async def leave() -> None:
        mate = AsyncModel(model)
        task = asyncio.create_task(mate.chat("Count to a thousand.", Sampling(max_tokens=450)))
        while not engine.running:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    deadline = time.monotonic() + 60
    while engine.running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_opens_and_closes_in_asyncio(base_bundle: Bundle) -> None:
    async def once() -> str:
        async with await AsyncModel.open(base_bundle, threads=1, context=128, parallel=1) as mate:
            return (await mate.chat("Hello", Sampling(max_tokens=2))).text

    assert asyncio.run(once())
