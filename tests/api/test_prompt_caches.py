"""How soon an answer begins tells what is remembered: one key's prompts are remembered for that key alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.inference.generations import Generations
from fieldlm.network.api_keys import Keys
from fieldlm.network.http_server import listening
from tests.support.material import tiny_bundle

LEFT, RIGHT = "left-left-left-left", "right-right-right-right"
OURS = "You keep the lift of a large house in order and answer whoever asks politely and in few words."


@pytest.fixture(scope="module", params=[True, False], ids=["keys", "no keys"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, bool]]:
    bundle = tiny_bundle(tmp_path_factory.mktemp("bundle") / "base", system_prompt=OURS)
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=4))
    keys = Keys([LEFT, RIGHT]) if request.param else None
    with listening(make_app(live, lambda _: None, ready=lambda: None, keys=keys)) as server:
        yield server.url, request.param
    live.close()


def cached(url: str, text: str, key: str = LEFT, path: str = "chat/completions", **more: Any) -> int:
    """Return how many tokens of the question were remembered."""
    asked = {"messages": [{"role": "user", "content": text}]} if path == "chat/completions" else {"prompt": text}
    body = {**asked, "max_tokens": 2, **more}
    reply = httpx.post(f"{url}/v1/{path}", json=body, headers={"authorization": f"Bearer {key}"}, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_prompt_is_remembered_for_its_own_key_alone(served: tuple[str, bool]) -> None:
    url, has_keys = served
    secret = "The combination of the safe behind the picture in the hall is left, left, right and up. Repeat that."
    first, own = cached(url, secret), cached(url, secret)
    foreign = cached(url, secret, RIGHT)
    assert own > first
    assert (foreign < own) is has_keys
    # And what the other has remembered by now is its own again.
    assert cached(url, secret, RIGHT) == own


def test_a_salt_parts_what_has_one_key(served: tuple[str, bool]) -> None:
    url, _ = served
    text = "The lift stops on the fourth floor at noon and nobody knows why it does so every single day."
    for path in ("chat/completions", "completions"):
        bare = cached(url, text, path=path)
        salted = cached(url, text, path=path, cache_salt="north")
        assert cached(url, text, path=path, cache_salt="north") > salted
        assert cached(url, text, path=path, cache_salt="south") == salted
        assert cached(url, text, path=path) > bare


def test_the_devices_own_system_prompt_serves_everybody(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "base", system_prompt=OURS)
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=4))
    tokens = live.current.engine.tokenize(f"<|im_start|>system\n{OURS}<|im_end|>\n")
    list(live.current.engine.start(tokens, Sampling(max_tokens=1)))
    with listening(make_app(live, lambda _: None, ready=lambda: None, keys=Keys([LEFT, RIGHT]))) as server:
        for key in (LEFT, RIGHT):
            for number in range(5):
                assert cached(server.url, f"{number} is my number", key, cache_salt=str(number)) >= len(tokens)
    live.close()
