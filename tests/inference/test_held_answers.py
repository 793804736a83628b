"""Answers in the hands of a program: read once, cancelled when nobody holds them, and of this process alone."""

import os
from collections.abc import Iterator

import pytest

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.model import Model

LONG = "Count from one to one thousand in words."


@pytest.fixture(scope="module")
def model(base_bundle: Bundle) -> Iterator[Model]:
    with Model.open(base_bundle, threads=1, context=1024, parallel=1) as made:
        yield made


def test_an_answer_that_was_read_cannot_be_read_again(model: Model) -> None:
    answer = model.start("Hello", Sampling(max_tokens=3))
    assert list(answer)[-1].outcome
    with pytest.raises(InputError, match="has been read already"):
        list(answer)
    with pytest.raises(InputError, match="has been read already"):
        answer.subscribe(lambda chunk: None)


def test_an_answer_that_nobody_holds_is_cancelled(model: Model) -> None:
    answer = model.start(LONG, Sampling(max_tokens=900))
    running = answer._answer  # pyright: ignore  # what the engine has of it
    next(iter(running))
    del answer
    ended = [chunk.outcome for chunk in running]
    assert ended[-1] == "cancelled"


def test_a_forked_process_is_told_that_the_model_is_not_its_own(model: Model) -> None:
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            model.chat("Hello", Sampling(max_tokens=1))
        except EngineError as error:
            os._exit(0 if "forked" in str(error) else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert model.chat("Hello", Sampling(max_tokens=1)).tokens


def test_half_a_character_in_a_message_is_refused_by_name(model: Model) -> None:
    with pytest.raises(InputError, match="udcff"):
        model.chat("a \udcff b")
