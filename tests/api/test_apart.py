"""Nobody's answer has anything of somebody else's in it: a canary in each request, 16 at a time, in both engines.

Canaries are in prompts, schemas, tools, sessions and earlier turns; adapters are known by how they answer. Answers are
streamed, left, dropped, late and given up to more urgent ones; snapshots are made meanwhile and read at the next start.
No canary may be in another's answer, in what telemetry is told of another, in a snapshot or a page of status; and no
more may be remembered of a prompt than all have in common, as it is reported and as it is felt. The engine for ONNX has
neither adapters nor snapshots, and remembers nothing between two prompts.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.core.errors import EngineError
from fieldlm.engines import EngineOptions, SupportsStateSnapshot
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Generations
from fieldlm.inference.prompt_snapshots import Snapshots, read
from fieldlm.network.http_server import listening
from tests.support import onnx_models
from tests.support.api_server import api_server
from tests.support.canaries import KINDS, SYSTEM, cached_of, canaries_in, canary, storm, told_wrong
from tests.support.depth import SEED, scaled
from tests.support.material import cut_gguf, lora_gguf, tiny_bundle
from tests.support.waiting import wait_until

WHOLE, CUT = scaled(32, most=1_000), scaled(64, most=10_000)
"""Requests to the small model; and to its first two layers and 2048 tokens, which are fast enough for many."""
BASE = "smollm2-135m-instruct"
NAMES = ("left", "right")
SAVE_S = 0.5  # between two snapshots
OURS = f"You are {canary(SYSTEM)}, who keeps the lift of a large house in order and answers politely. " * 3
Q8_0 = 8  # as ggml counts its types


def test_a_canary_is_found_wherever_it_is() -> None:
    assert len({canary(number) for number in range(10_000)}) == 10_000
    assert list(canaries_in(f"zq{canary(7)} zq000008 {canary(9)}x")) == [canary(7), canary(9)]


def test_what_telemetry_is_told_of_another_is_found() -> None:
    messages = [{"role": "user", "content": f"Repeat: {canary(1)}"}]
    told = Exchange(id="1", generation="g", model="m", messages=messages, started_wall_s=0, session=canary(1))
    assert told_wrong([told]) == []
    told.answer = canary(2)
    assert told_wrong([told]) == [f"the exchange of {canary(1)} has {canary(2)}"]


def test_what_is_remembered_of_a_prompt_is_read_in_answers_and_streams() -> None:
    used = '{"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 7}}}'
    assert [cached_of(text) for text in (used, f"data: {{}}\n\ndata: {used}\n\ndata: [DONE]\n\n", "", "{}")] == [
        7, 7, None, None
    ]  # fmt: skip


@pytest.mark.parametrize("layers", [30, 2], ids=["whole", "cut"])
def test_no_canary_comes_out_elsewhere_in_llama_cpp(layers: int, tmp_path: Path) -> None:
    """Adapters, and snapshots of the model's own system prompt while all that is computed, and after a restart."""
    gguf = None if layers == 30 else cut_gguf(tmp_path / "cut.gguf", layers=layers, kind=Q8_0, vocabulary=2048)
    requests = WHOLE if gguf is None else CUT
    bundle = tiny_bundle(tmp_path / "base", system_prompt=OURS, gguf=gguf)
    shelf, snapshots = tmp_path / "shelf", Snapshots(tmp_path / "snapshots")
    for seed, name in enumerate(NAMES):
        adapter = lora_gguf(tmp_path / f"{name}.gguf", seed=seed, scale=0.5, layer=0)
        tiny_bundle(shelf / name, adapter=adapter, system_prompt=OURS, gguf=gguf)
    exchanges = list[Exchange]()
    for first in (0, requests // 2):
        live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=4))
        adapters = Shelf(live, shelf)
        for name in NAMES:
            adapters.load(name)
        assert snapshots.restore(live.current) == bool(first)
        with listening(make_app(live, exchanges.append, ready=lambda: None, shelf=adapters)) as server:
            asked = [f"{BASE}:{name}" for name in NAMES]
            with _saving(snapshots, live):
                assert storm(server.url, requests // 2, SEED, adapters=asked, first=first) == []
            # Whoever came last may have left no sequence that begins with it.
            assert storm(server.url, 1, SEED, ["ours"], first=requests + first) == []
        wait_until(partial(snapshots.save, live.current))  # idle a moment after its answer is whole
        (kept,) = (tmp_path / "snapshots").glob("*.kv")
        found = read(kept)
        assert found is not None
        assert set(canaries_in(live.current.engine.detokenize(found[0]))) == {canary(SYSTEM)}
        live.close()
    assert told_wrong(exchanges) == []
    assert len(exchanges) > requests // 2


@contextmanager
def _saving(snapshots: Snapshots, live: Generations) -> Generator[None]:
    """Save a snapshot again and again in the block."""
    has_ended = threading.Event()

    def save() -> None:
        while not has_ended.wait(SAVE_S):
            snapshots.save(live.current)

    saving = threading.Thread(target=save)
    saving.start()
    try:
        yield
    finally:
        has_ended.set()
        saving.join()


TIMES = 5
LONG = "The lift stops on the fourth floor at noon, and nobody in the house knows why it does so every day. " * 10


def test_what_another_has_asked_is_read_as_slowly_as_what_nobody_has(base_bundle: Bundle) -> None:
    """How soon an answer begins tells what is remembered: it is one's own or nothing."""
    with api_server(base_bundle) as server, httpx.Client(base_url=server.url, timeout=600) as client:

        def reading_ms(text: str, salt: str) -> float:
            asked = [{"role": "user", "content": text}]
            body = {"messages": asked, "max_tokens": 1, "cache_salt": salt}
            return client.post("/v1/chat/completions", json=body).json()["fieldlm"]["timings"]["prefill_ms"]

        reading_ms(LONG, "own")
        each = range(TIMES)
        own = min(reading_ms(LONG, "own") for _ in each)
        foreign = min(reading_ms(LONG, f"other {number}") for number in each)
        new = min(reading_ms(f"{number} {LONG}", f"new {number}") for number in each)
    # A few tokens against two hundred: neighbours on this machine may make any of ten slow, and none quick.
    assert foreign > 3 * own
    assert foreign > new / 3


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
# Its context of 512 bytes does not hold what a tool is described by.
KINDS_OF_ONNX = [kind for kind in KINDS if kind not in ("call", "adapter", "ours")]


def test_no_canary_comes_out_elsewhere_in_onnxruntime(tmp_path: Path) -> None:
    bundle = onnx_models.bundle(tmp_path / "bundle", onnx_models.int4("llama"), template=TEMPLATE)
    with api_server(bundle, context=512, parallel=4) as server:
        assert not isinstance(server.engine, SupportsStateSnapshot), "and nothing is remembered"
        with pytest.raises(EngineError, match="ONNX bundles take none"):
            server.engine.load_adapter("left", tmp_path)
        assert storm(server.url, CUT, SEED, KINDS_OF_ONNX) == []
        assert told_wrong(server.exchanges) == []
        assert len(server.exchanges) > CUT // 2
