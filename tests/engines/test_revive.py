"""An engine that hangs inside llama.cpp: really, its abort callback being C's sem_wait on a semaphore of ours."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.core.errors import EngineError
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.engines.llama import WEDGED, LlamaEngine
from fieldlm.engines.llama_api import api
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.engine_watchdog import EngineWatchdog
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
libc = ctypes.CDLL(None)
KEPT: list[object] = []  # a thread that was left behind may look at its semaphore after its test


class Wedge:
    """Makes every decode of an engine's context wait inside the library until it is lifted."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._semaphore = ctypes.create_string_buffer(64)
        KEPT.append(self._semaphore)
        libc.sem_init(self._semaphore, 0, 0)
        self._context = engine._loaded.context._context  # type: ignore[union-attr]  # pyright: ignore
        callback = ctypes.cast(libc.sem_wait, api.ggml_abort_callback)
        api.llama_set_abort_callback(self._context, callback, ctypes.addressof(self._semaphore))

    def lift(self) -> None:
        for _ in range(100_000):
            libc.sem_post(self._semaphore)


@pytest.fixture
def engine(smollm2_gguf: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=128, parallel=1))
    made._patience.least_s = 0.5  # pyright: ignore[reportPrivateUsage]
    assert list(made.start([1, 2, 3], Sampling(max_tokens=1)))[-1].outcome == "length"
    yield made
    made.close()


def impatient(engine: LlamaEngine) -> bool:
    # The longest step so far was one of three tokens; a hundred of it can be more than half a second.
    engine._patience._longest_s = 0.001  # pyright: ignore[reportPrivateUsage]
    return engine.is_wedged


def test_what_runs_gets_an_error_and_what_waits_an_answer(engine: LlamaEngine) -> None:
    assert not engine.is_wedged
    wedge = Wedge(engine)
    running = engine.start([1, 2, 3, 4, 5], Sampling(max_tokens=3))
    wait_until(lambda: engine.running)
    waiting = engine.start([1, 2, 3, 4], Sampling(max_tokens=3))
    wait_until(lambda: impatient(engine))
    engine.revive()
    (last,) = list(running)
    assert (last.outcome, last.error) == ("error", WEDGED)
    assert list(waiting)[-1].outcome == "length"
    assert not engine.is_wedged
    wedge.lift()
    # The thread that was left behind comes back, and disturbs nobody.
    assert list(engine.start([5, 6, 7], Sampling(max_tokens=4)))[-1].outcome == "length"


def test_one_that_hangs_again_at_once_is_not_replaced_for_ever(engine: LlamaEngine) -> None:
    first = Wedge(engine)
    engine.start([1, 2, 3, 4, 5], Sampling(max_tokens=3))
    wait_until(lambda: impatient(engine))
    second: list[Wedge] = []
    engine.revive()
    second.append(Wedge(engine))
    hangs = engine.start([1, 2, 3], Sampling(max_tokens=3))
    wait_until(lambda: engine.running)
    with pytest.raises(EngineError, match="hangs again"):
        engine.revive()
    hangs.cancel()
    for wedge in (first, *second):
        wedge.lift()
    assert list(hangs)[-1].outcome == "cancelled"


def test_a_server_goes_on_by_itself(base_bundle: Bundle) -> None:
    live = Generations(base_bundle, EngineOptions(threads=1, context=128, parallel=2))
    engine = live.current.engine
    assert isinstance(engine, LlamaEngine)
    engine._patience.least_s = 0.5  # pyright: ignore[reportPrivateUsage]
    events: list[str] = []
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        ask = httpx.Client(base_url=server.url, timeout=60)
        assert ask.post(CHAT, json=body).status_code == 200
        with EngineWatchdog(lambda: engine, events.append, look_s=0.05, idle_look_s=0.05):
            wedge = Wedge(engine)
            engine._patience._longest_s = 0.001  # pyright: ignore[reportPrivateUsage]
            failed = ask.post(CHAT, json=body)
            assert (failed.status_code, failed.json()["error"]["message"]) == (500, WEDGED)
            assert ask.post(CHAT, json=body).status_code == 200
        wedge.lift()
        ask.close()
    live.close()
    assert events == ["the engine hung and was replaced"]


def test_a_step_that_was_long_because_nobody_ran_is_no_hang_yet(engine: LlamaEngine) -> None:
    looks: list[float] = []

    def now_s() -> float:
        # A minute passes before the second look; then each takes four seconds, which a busy machine may take, too.
        looks.append(looks[-1] + (60.0 if len(looks) == 1 else 4.0) if looks else 0.0)
        return looks[-1]

    replaced_s: list[float] = []
    wedge = Wedge(engine)
    running = engine.start([1, 2, 3, 4, 5], Sampling(max_tokens=3))
    wait_until(lambda: impatient(engine))
    with EngineWatchdog(lambda: engine, lambda _: replaced_s.append(looks[-1]), look_s=0.02, now_s=now_s):
        wait_until(lambda: replaced_s)
    assert list(running)[-1].error == WEDGED
    assert replaced_s[0] >= 60.0 + 30.0, "it was stopped for a minute, and had no time to go on"
    wedge.lift()
