"""The pool of models: who goes when the machine has less than the plan says, and what an update needs of it."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fieldlm.core.errors import ConflictError, EngineError, InputError
from fieldlm.device.local_models import OwnModel
from fieldlm.engines import EngineOptions, memory_plan
from fieldlm.engines.memory_plan import NoRoomError
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations, Serving, canary
from fieldlm.inference.model_pool import ModelPool, PooledModel, PoolFullError, Ticket, foreseen_mb
from fieldlm.inference.prompt_snapshots import Snapshots
from tests.support.material import tiny_bundle

OPTIONS = EngineOptions(threads=1, context=256, parallel=1)
LONG = "You are the assistant of a railway station. " * 12
PATIENCE_S = 120.0


@contextmanager
def pool_of(bundle: Bundle, *others: str) -> Generator[ModelPool]:
    live = Generations(bundle, OPTIONS)
    need_mb = foreseen_mb(bundle, OPTIONS)
    pooled = [
        PooledModel(Generations(bundle, OPTIONS, name=name, asleep=True), name=name, need_mb=need_mb) for name in others
    ]
    pool = ModelPool(PooledModel(live, need_mb=need_mb), pooled)
    try:
        yield pool
    finally:
        pool.close()
        live.close()


def woken(ticket: Ticket) -> None:
    """Wait until a model is given, and give it back."""
    ticket.result(PATIENCE_S)[1]()


def awake(pool: ModelPool) -> list[str]:
    return [model.name for model in pool.models if model.is_awake]


def short_memory(pool: ModelPool, monkeypatch: pytest.MonkeyPatch, *, holds: float) -> None:
    """Let the machine have memory for `holds` models and no more, whatever the plan allows."""
    whole_mb = holds * pool.own.need_mb

    def free_mb(_: Path) -> int:
        return int(whole_mb - sum(model.need_mb for model in pool.models if model.is_awake))

    monkeypatch.setattr(memory_plan, "memory_available_mb", free_mb)


def test_where_the_machine_has_less_than_the_plan_allows_another_model_sleeps(
    base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool_of(base_bundle, "second", "third") as pool:
        short_memory(pool, monkeypatch, holds=2.5)
        second, third = pool.models[1:]
        woken(pool.ask(second))
        assert awake(pool) == [pool.own.name, "second"]
        woken(pool.ask(third))
        assert awake(pool) == ["second", "third"]


def test_where_nothing_can_make_room_who_waits_is_told_and_nothing_is_lost(
    base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool_of(base_bundle, "second") as pool:
        short_memory(pool, monkeypatch, holds=1.5)
        pool.pin([pool.own.name])
        with pytest.raises(PoolFullError, match="no other model can make room"):
            pool.ask(pool.models[1]).result(PATIENCE_S)
        assert awake(pool) == [pool.own.name]


def test_an_update_has_room_made_for_it_by_the_models_beside(
    base_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool_of(base_bundle, "second") as pool:
        woken(pool.ask(pool.models[1]))
        short_memory(pool, monkeypatch, holds=2.5)
        own = OwnModel(pool)
        update = tiny_bundle(tmp_path / "update", padding=32)
        with pytest.raises(NoRoomError):
            pool.own.live.load(update)
        own.switch(own.load(update))
        assert own.current.bundle is update
        assert awake(pool) == [pool.own.name]
        assert pool.find(update.generation) is pool.own


def test_while_an_update_replaces_the_devices_own_requests_for_it_wait(base_bundle: Bundle, tmp_path: Path) -> None:
    with pool_of(base_bundle, "second") as pool:
        own = OwnModel(pool)
        own.evict()
        waits = pool.ask(pool.own)
        update = tiny_bundle(tmp_path / "update", padding=32)
        own.switch(own.load(update))
        serving, give_back = waits.result(PATIENCE_S)
        assert serving.bundle is update
        give_back()


def test_who_waits_is_told_when_the_server_stops(base_bundle: Bundle) -> None:
    with pool_of(base_bundle, "second") as pool:
        pool.own.live.evict()
        ticket = pool.ask(pool.own)
    with pytest.raises(EngineError, match="stopping"):
        ticket.result(PATIENCE_S)


def test_the_system_prompt_is_not_computed_again_after_a_sleep(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", system_prompt=LONG)
    snapshots, restored = Snapshots(tmp_path / "kv"), list[bool]()

    def prepare(serving: Serving) -> None:
        restored.append(snapshots.restore(serving))
        canary(serving)
        snapshots.save(serving)

    live = Generations(bundle, OPTIONS, asleep=True)
    for _ in range(2):
        live.wake(prepare)
        assert live.try_sleep()
    assert restored == [False, True]
    live.close()


def test_what_is_pinned_is_loaded_at_once(base_bundle: Bundle) -> None:
    with pool_of(base_bundle, "second", "third") as pool:
        pool.pin(["third"])
        woken(pool.ask(pool.models[2]))
        assert (pool.models[2].wakes, pool.models[2].live.is_used) == (1, False)
        assert awake(pool) == [pool.own.name, "third"]


def test_a_name_of_the_owners_comes_before_its_bundles_for_the_first_as_for_the_others(base_bundle: Bundle) -> None:
    plain = base_bundle.manifest.model.name
    live = Generations(base_bundle, OPTIONS, name="mine", asleep=True)
    beside = Generations(base_bundle, OPTIONS, name="yours", asleep=True, is_beside=True)
    first, second = PooledModel(live), PooledModel(beside, name="yours")
    pool = ModelPool(first, [second])
    try:
        assert [model.name for model in pool.models] == ["mine", "yours"]
        assert pool.find("mine") is pool.find(plain) is pool.find(f"{plain}:latest") is first
        assert [pool.described(model)["aliases"] for model in pool.models] == [[plain], []]
        assert pool.find("yours") is second
    finally:
        pool.close()
        live.close()
    third = Generations(base_bundle, OPTIONS, name=plain, asleep=True, is_beside=True)
    pool = ModelPool(first, [PooledModel(third, name=plain)])
    try:
        assert pool.find(plain) is pool.models[1], "who is called so comes before whose bundle is"
    finally:
        pool.close()


def test_two_of_one_name_and_a_pin_of_nobody_are_refused(base_bundle: Bundle) -> None:
    with pytest.raises(ConflictError, match="two models are called 'second'"), pool_of(base_bundle, "second", "second"):
        pass
    with pool_of(base_bundle, "second") as pool, pytest.raises(InputError, match="'third', which is not served"):
        pool.pin(["third"])
