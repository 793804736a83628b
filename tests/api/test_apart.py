"""Nobody's answer has anything of somebody else's in it: a canary in each request, 16 at a time, in both engines."""

import threading
from functools import partial
from pathlib import Path

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.engines import EngineOptions
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Generations
from fieldlm.inference.prompt_snapshots import Snapshots, read
from fieldlm.network.http_server import listening
from tests.support import onnx_models
from tests.support.api_server import api_server
from tests.support.canaries import KINDS, SYSTEM, canaries_in, canary, storm, told_wrong
from tests.support.depth import SEED, scaled
from tests.support.material import lora_gguf, tiny_bundle
from tests.support.waiting import wait_until

REQUESTS = scaled(64, most=10_000)
BASE = "smollm2-135m-instruct"
NAMES = ("left", "right")
SAVE_S = 0.5  # between two snapshots
OURS = f"You are {canary(SYSTEM)}, who keeps the lift of a large house in order and answers politely. " * 3


def test_a_canary_is_found_wherever_it_is() -> None:
    assert len({canary(number) for number in range(10_000)}) == 10_000
    assert list(canaries_in(f"zq{canary(7)} zq000008 {canary(9)}x")) == [canary(7), canary(9)]


def test_what_telemetry_is_told_of_another_is_found() -> None:
    messages = [{"role": "user", "content": f"Repeat: {canary(1)}"}]
    told = Exchange(id="1", generation="g", model="m", messages=messages, started_wall_s=0, session=canary(1))
    assert told_wrong([told]) == []
    told.answer = canary(2)
    assert told_wrong([told]) == [f"the exchange of {canary(1)} has {canary(2)}"]


def test_no_canary_comes_out_elsewhere_in_llama_cpp(tmp_path: Path) -> None:
    """Adapters, and snapshots of the model's own system prompt while all that is computed, and after a restart."""
    bundle = tiny_bundle(tmp_path / "base", system_prompt=OURS)
    shelf, snapshots = tmp_path / "shelf", Snapshots(tmp_path / "snapshots")
    for seed, name in enumerate(NAMES):
        tiny_bundle(
            shelf / name, adapter=lora_gguf(tmp_path / f"{name}.gguf", seed=seed, scale=0.5), system_prompt=OURS
        )
    options, exchanges, has_ended = (
        EngineOptions(threads=1, context=512, parallel=4),
        list[Exchange](),
        threading.Event(),
    )
    for first in (0, REQUESTS // 2):
        live = Generations(bundle, options)
        adapters = Shelf(live, shelf)
        for name in NAMES:
            adapters.load(name)
        assert snapshots.restore(live.current) == bool(first)

        def save(live: Generations = live) -> None:
            while not has_ended.wait(SAVE_S):
                snapshots.save(live.current)

        saving = threading.Thread(target=save)
        saving.start()
        with listening(make_app(live, exchanges.append, ready=lambda: None, shelf=adapters)) as server:
            asked = [f"{BASE}:{name}" for name in NAMES]
            assert storm(server.url, REQUESTS // 2, SEED, adapters=asked, first=first) == []
            # Whoever came last may have left no sequence that begins with it.
            assert storm(server.url, 1, SEED, ["ours"], first=REQUESTS + first) == []
        has_ended.set()
        saving.join()
        has_ended.clear()
        wait_until(partial(snapshots.save, live.current))  # idle a moment after its answer is whole
        (kept,) = (tmp_path / "snapshots").glob("*.kv")
        found = read(kept)
        assert found is not None
        assert set(canaries_in(live.current.engine.detokenize(found[0]))) == {canary(SYSTEM)}
        live.close()
    assert told_wrong(exchanges) == []
    assert len(exchanges) > REQUESTS // 2


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
# Its context of 512 bytes does not hold what a tool is described by, and it takes no adapters.
KINDS_OF_ONNX = [kind for kind in KINDS if kind not in ("call", "adapter", "ours")]


def test_no_canary_comes_out_elsewhere_in_onnxruntime(tmp_path: Path) -> None:
    bundle = onnx_models.bundle(tmp_path / "bundle", onnx_models.int4("llama"), template=TEMPLATE)
    with api_server(bundle, context=512, parallel=4) as server:
        assert storm(server.url, REQUESTS, SEED, KINDS_OF_ONNX) == []
        assert told_wrong(server.exchanges) == []
        assert len(server.exchanges) > REQUESTS // 2
