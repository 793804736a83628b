"""Many adapters on one base, chosen by each request, loaded and dropped while it serves."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Generations
from fieldlm.inference.model import Model
from fieldlm.network.http_server import listening
from tests.support.material import lora_gguf, tiny_bundle

BASE = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"
NAMES = ("left", "right", "up")
LATEST = f"{BASE}:latest"


@dataclass
class Kiosk:
    http: httpx.Client
    live: Generations
    bundles: dict[str, Bundle]
    exchanges: list[Exchange] = field(default_factory=list[Exchange])

    def ask(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, **more}
        return self.http.post(CHAT, json=body)

    def load(self, name: str) -> httpx.Response:
        return self.http.post("/v1/adapters", json={"name": name})


@pytest.fixture
def kiosk(base_bundle: Bundle, tmp_path: Path) -> Iterator[Kiosk]:
    shelf = tmp_path / "adapters"
    bundles = {
        name: tiny_bundle(shelf / name, adapter=lora_gguf(tmp_path / f"{name}.gguf", seed=seed, scale=0.5))
        for seed, name in enumerate(NAMES)
    }
    live = Generations(base_bundle, EngineOptions(threads=1, context=512, parallel=4))
    exchanges: list[Exchange] = []
    app = make_app(live, exchanges.append, ready=lambda: None, shelf=Shelf(live, shelf))
    with listening(app) as server, httpx.Client(base_url=server.url, timeout=120) as http:
        yield Kiosk(http, live, bundles, exchanges)
    live.close()


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_each_request_gets_the_adapter_it_names_and_its_generation(kiosk: Kiosk) -> None:
    for name in NAMES:
        assert kiosk.load(name).json()["id"] == f"{BASE}:{name}"
    found: dict[str, httpx.Response] = {}

    def ask(model: str) -> None:
        found[model] = kiosk.ask(model)

    models = [BASE, *(f"{BASE}:{name}" for name in NAMES)]
    threads = [threading.Thread(target=ask, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    generations = {BASE: kiosk.live.current.bundle.generation}
    generations |= {f"{BASE}:{name}": bundle.generation for name, bundle in kiosk.bundles.items()}
    for model, response in found.items():
        document = response.json()
        assert document["model"] == model
        assert document["fieldlm"]["generation"] == document["system_fingerprint"] == generations[model]
    assert {(one.model, one.generation) for one in kiosk.exchanges} == set(generations.items())
    texts = [content(kiosk.ask(model)) for model in models]
    assert len(set(texts)) == len(models)
    with Model.open(kiosk.bundles["left"], threads=1, context=512, parallel=1) as alone:
        assert alone.chat("Hello", Sampling(max_tokens=5)).text == texts[1]


def test_they_are_listed_and_found_by_the_openai_client(kiosk: Kiosk) -> None:
    kiosk.load("up")
    with openai.OpenAI(base_url=f"{kiosk.http.base_url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [BASE, f"{BASE}:up"]
        assert client.models.retrieve(f"{BASE}:up").id == f"{BASE}:up"
        assert client.responses.create(model=f"{BASE}:up", input="Hi", max_output_tokens=2).model == f"{BASE}:up"


def test_latest_is_the_model_itself_unless_an_adapter_is_called_so(kiosk: Kiosk, tmp_path: Path) -> None:
    assert content(kiosk.ask(LATEST)) == content(kiosk.ask(BASE))
    assert kiosk.exchanges[0].model == BASE
    assert kiosk.http.get(f"/v1/models/{LATEST}").json()["id"] == BASE
    tiny_bundle(tmp_path / "adapters" / "latest", adapter=lora_gguf(tmp_path / "latest.gguf", seed=3, scale=0.5))
    assert kiosk.load("latest").status_code == 200
    assert kiosk.ask(LATEST).json()["model"] == LATEST
    assert kiosk.http.get(f"/v1/models/{LATEST}").json()["id"] == LATEST
    assert kiosk.ask(f"{BASE}:right").status_code == 404


def test_one_that_is_dropped_in_the_middle_of_an_answer_ends_it_and_then_is_gone(kiosk: Kiosk) -> None:
    kiosk.load("left")
    before = kiosk.live.current.engine.memory_mb()["weights"]
    body = {"messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 40, "stream": True}
    with kiosk.http.stream("POST", CHAT, json={**body, "model": f"{BASE}:left"}) as response:
        lines = response.iter_lines()
        next(lines)
        assert kiosk.http.delete("/v1/adapters/left").status_code == 200
        assert list(lines)[-2] == "data: [DONE]"
    gone = kiosk.ask(f"{BASE}:left")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert kiosk.live.current.engine.memory_mb()["weights"] <= before
    assert kiosk.load("left").status_code == 200


def test_what_does_not_fit_or_is_not_there_is_refused(kiosk: Kiosk, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "adapters" / "plain")
    tiny_bundle(tmp_path / "adapters" / "other", adapter=lora_gguf(tmp_path / "o.gguf"), padding=32)
    assert kiosk.load("left").status_code == 200
    statuses = {name: kiosk.load(name).status_code for name in ("left", "nowhere", "../left", "plain", "other", "")}
    assert statuses == {"left": 409, "nowhere": 404, "../left": 400, "plain": 400, "other": 400, "": 400}
    assert kiosk.http.delete("/v1/adapters/right").status_code == 404
    assert kiosk.ask("elsewhere:left").status_code == 404


def test_an_update_to_a_like_base_takes_them_along(kiosk: Kiosk, tmp_path: Path) -> None:
    kiosk.load("left")
    text = content(kiosk.ask(f"{BASE}:left"))
    # Another engine, on the same bytes: what an update to a bundle with other threads or another prompt would do.
    other = Generations(kiosk.live.current.bundle, EngineOptions(threads=1, context=512, parallel=1))
    shelf = Shelf(other, tmp_path / "adapters")
    shelf.load("left")
    third = Generations(kiosk.live.current.bundle, EngineOptions(threads=1, context=512, parallel=1))
    chosen = shelf.find(third.current, "left")
    assert chosen.engine is third.current.engine
    other.close()
    third.close()
    assert content(kiosk.ask(f"{BASE}:left")) == text
