import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fieldlm.core.errors import EngineError, InputError, UnavailableError
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.chat_template import render
from fieldlm.inference.generations import Generations, Serving, canary
from tests.support.material import lora_gguf, tiny_bundle


@dataclass
class Bundles:
    base: Bundle
    tuned: Bundle
    other_base: Bundle
    broken: Bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("live")
    return Bundles(
        base=tiny_bundle(folder / "base"),
        tuned=tiny_bundle(folder / "tuned", adapter=lora_gguf(folder / "tuned.gguf", scale=0.5)),
        # Room behind the last tensor makes it another file and no other model.
        other_base=tiny_bundle(folder / "other", padding=32),
        broken=tiny_bundle(folder / "broken", adapter=lora_gguf(folder / "broken.gguf", rows=64)),
    )


@pytest.fixture
def live(bundles: Bundles) -> Iterator[Generations]:
    made = Generations(bundles.base, EngineOptions(threads=1, context=256, parallel=2))
    yield made
    made.close()


def answer(serving: Serving, tokens: int = 4) -> str:
    prompt = serving.engine.tokenize(render(serving.bundle, [{"role": "user", "content": "Hello"}]))
    chunks = list(serving.engine.start(prompt, Sampling(max_tokens=tokens), adapter=serving.adapter))
    assert chunks[-1].outcome in ("stop", "length"), chunks[-1]
    return "".join(chunk.text for chunk in chunks)


def test_the_first_bundle_answers(live: Generations, bundles: Bundles) -> None:
    with live.lease() as serving:
        assert serving.bundle is bundles.base
        assert answer(serving)


def test_an_adapter_for_the_same_base_joins_the_same_engine(live: Generations, bundles: Bundles) -> None:
    before = live.current
    tuned = live.load(bundles.tuned)
    assert live.current is before
    assert tuned.engine is before.engine
    assert answer(tuned) != answer(before)
    live.switch(tuned)
    assert live.current is tuned


def test_another_base_gets_its_own_engine_and_the_old_one_is_freed(live: Generations, bundles: Bundles) -> None:
    before = live.current
    other = live.load(bundles.other_base)
    assert other.engine is not before.engine
    live.switch(other)
    assert answer(other)
    with pytest.raises(EngineError, match="the engine is closed"):
        answer(before)


def test_what_is_leased_stays_loaded_until_the_last_lease_ends(live: Generations, bundles: Bundles) -> None:
    with live.lease() as one:
        with live.lease():
            live.switch(live.load(bundles.other_base))
        assert answer(one)
    with pytest.raises(EngineError, match="the engine is closed"):
        answer(one)


def test_a_retired_adapter_is_dropped_after_its_last_answer(live: Generations, bundles: Bundles) -> None:
    live.switch(live.load(bundles.tuned))
    with live.lease() as tuned:
        live.switch(live.load(bundles.base))
        assert answer(tuned)
    with pytest.raises(InputError, match="is not loaded"):
        answer(tuned)
    assert answer(live.current)


def test_a_discarded_generation_is_freed_and_the_current_one_answers(live: Generations, bundles: Bundles) -> None:
    tuned = live.load(bundles.tuned)
    again = live.load(bundles.tuned)
    live.discard(tuned)
    with pytest.raises(InputError, match="is not loaded"):
        answer(tuned)
    assert answer(again)
    assert answer(live.current)


def test_a_generation_that_cannot_be_loaded_leaves_everything_as_it_was(live: Generations, bundles: Bundles) -> None:
    with pytest.raises(EngineError, match="belongs to another model"):
        live.load(bundles.broken)
    assert live.current.bundle is bundles.base
    assert answer(live.current)


def test_the_canary_asks_the_real_system_prompt(live: Generations, bundles: Bundles, tmp_path: Path) -> None:
    canary(live.current)
    bundle = tiny_bundle(tmp_path / "nan", adapter=lora_gguf(tmp_path / "nan.gguf", scale=float("nan")))
    with pytest.raises(EngineError, match=r"does not answer: .*damaged"):
        canary(live.load(bundle))


def test_where_memory_is_short_requests_wait_while_one_base_takes_the_others_place(
    live: Generations, bundles: Bundles
) -> None:
    leased = live.try_lease()
    assert leased
    serving, give_back = leased
    end = threading.Timer(0.3, give_back)
    end.start()
    live.evict()
    assert not end.is_alive(), "the answer that ran was waited for"
    assert live.is_held
    assert live.try_lease() is None
    with live.lease() as named:
        assert (named.bundle, named.engine.memory_mb()) == (bundles.base, {})
    with pytest.raises(EngineError, match="closed"):
        answer(serving)
    other = live.load(bundles.other_base)
    live.switch(other)
    assert not live.is_held
    again = live.try_lease()
    assert again
    assert answer(again[0])
    again[1]()


def test_a_base_that_is_no_good_in_anothers_place_gives_it_back(live: Generations, bundles: Bundles) -> None:
    live.evict()
    with pytest.raises(EngineError):
        live.load(bundles.broken)
    live.restore()
    assert answer(live.current)
    assert live.current.bundle is bundles.base
    assert not live.is_held


def test_an_answer_that_does_not_end_puts_a_replacement_off(live: Generations) -> None:
    with live.lease() as serving:
        with pytest.raises(UnavailableError, match="answers still run"):
            live.evict(within_s=0.1)
        assert not live.is_held
        assert answer(serving)


def test_no_request_fails_while_generations_change(live: Generations, bundles: Bundles) -> None:
    done = threading.Event()

    def client() -> set[str]:
        seen: set[str] = set()
        while not done.is_set():
            with live.lease() as serving:
                answer(serving, tokens=2)
                seen.add(serving.bundle.generation)
        return seen

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        for bundle in (bundles.tuned, bundles.other_base, bundles.base, bundles.tuned):
            serving = live.load(bundle)
            live.switch(serving)
            assert answer(live.current, tokens=2) is not None
        done.set()
        seen = set[str]().union(*(each.result() for each in clients))
    assert bundles.tuned.generation in seen
    with live.lease() as last:
        assert last.bundle is bundles.tuned


def test_what_sleeps_holds_requests_back_and_answers_as_before_when_it_wakes(live: Generations) -> None:
    before = answer(live.current)
    engine = live.current.engine
    assert live.try_sleep()
    assert live.is_asleep
    assert live.try_lease() is None
    assert not live.try_sleep()
    with live.lease() as serving, pytest.raises(EngineError, match="sleeps"):
        serving.engine.tokenize("Hello")
    with pytest.raises(EngineError, match="closed"):
        engine.tokenize("Hello")
    live.wake()
    assert not live.is_asleep
    leased = live.try_lease()
    assert leased
    assert answer(leased[0]) == before
    leased[1]()


def test_nobody_sleeps_who_is_used_or_has_another_generation_beside_it(live: Generations, bundles: Bundles) -> None:
    leased = live.try_lease()
    assert leased
    assert not live.try_sleep()
    leased[1]()
    beside = live.load(bundles.other_base)
    assert not live.try_sleep()
    live.discard(beside)
    assert live.try_sleep()


def test_an_update_of_one_that_sleeps_is_loaded_and_answers(live: Generations, bundles: Bundles) -> None:
    assert live.try_sleep()
    live.switch(live.load(bundles.tuned))
    assert not live.is_asleep
    assert live.current.bundle is bundles.tuned
    assert answer(live.current)


def test_what_cannot_be_prepared_sleeps_on(live: Generations) -> None:
    def refuse(_: Serving) -> None:
        raise EngineError("not like this")

    assert live.try_sleep()
    with pytest.raises(EngineError, match="not like this"):
        live.wake(refuse)
    assert live.is_asleep
    live.wake()
    assert answer(live.current)


def test_one_that_begins_asleep_has_loaded_nothing(bundles: Bundles) -> None:
    made = Generations(bundles.base, EngineOptions(threads=1, context=256, parallel=2), name="mine", asleep=True)
    assert made.is_asleep
    assert made.current.engine.memory_mb() == {}
    assert made.current.engine.context == 256
    made.wake()
    assert (made.current.name, made.current.engine.context) == ("mine", 256)
    made.close()
