"""Several models in one server: by name, in the memory of fewer, asleep and awake, kept and let go."""

import functools
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.hardware.sensors import rss_mb
from fieldlm.inference.generations import Generations
from fieldlm.inference.model_pool import ModelPool, PooledModel, foreseen_mb
from fieldlm.network.http_server import listening
from tests.support import material

OPTIONS = EngineOptions(threads=1, context=512, parallel=2)
OWN, BETA, GAMMA = "smollm2-135m-instruct", "beta", "gamma"
NAMES = (OWN, BETA, GAMMA)
ASKED = (
    "Name a fruit", "Say something about the sea", "Count to five", "Who are you?", "What is 2+2?", "Hello",
    "Name a colour", "Where is Paris?", "Write a haiku", "What is an owl?", "Tell me a joke", "Repeat: a b a b",
)  # fmt: skip
LEAST_GAP = 0.3
"""Natural log; an answer whose two best choices are nearer at some token may differ with what is computed beside it."""
PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Material:
    """Three models that say different things, what they say, and what one of them takes."""

    bundles: dict[str, Bundle]
    answers: dict[str, dict[str, str]]
    """Of each model, to what it is sure about."""
    need_mb: float

    def first(self, name: str) -> tuple[str, str]:
        """Return a question to the model `name`, and its answer."""
        return next(iter(self.answers[name].items()))


@pytest.fixture(scope="module")
def three(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("several")
    bundles = {OWN: base_bundle}
    for seed, name in enumerate((BETA, GAMMA), 1):
        adapter = material.lora_gguf(folder / f"{name}.gguf", seed=seed, scale=0.5)
        bundles[name] = material.tiny_bundle(folder / name, adapter=adapter)
    answers: dict[str, dict[str, str]] = {}
    for name, bundle in bundles.items():
        live = Generations(bundle, OPTIONS)
        app = make_app(live, lambda _: None, ready=lambda: None)
        with listening(app) as server, httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            known = {asked: text for asked in ASKED if (text := sure(client, asked)) is not None}
            with ThreadPoolExecutor(4) as clients:
                beside = list(clients.map(functools.partial(said, client, None), 3 * ASKED))
        changed = {asked for asked, text in zip(3 * ASKED, beside, strict=True) if known.get(asked, text) != text}
        answers[name] = {asked: text for asked, text in known.items() if asked not in changed}
        live.close()
        assert answers[name], f"{name} is sure of nothing"
    need_mb = foreseen_mb(base_bundle, OPTIONS)
    return Material(bundles=bundles, answers=answers, need_mb=need_mb)


def sure(client: httpx.Client, asked: str) -> str | None:
    """Return the answer, None where a token of it was a near tie, or its end may have been."""
    choice = client.post("/v1/chat/completions", json=body(None, asked, logprobs=True, top_logprobs=2)).json()[
        "choices"
    ][0]
    tops = [[each["logprob"] for each in token["top_logprobs"]] for token in choice["logprobs"]["content"]]
    is_sure = choice["finish_reason"] == "length" and all(best - second > LEAST_GAP for best, second in tops)
    return choice["message"]["content"] if is_sure else None


def body(model: str | None, asked: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}]
    return {"messages": messages, "max_tokens": 4, "temperature": 0, **({"model": model} if model else {}), **more}


def said(client: httpx.Client, model: str | None, asked: str, **more: Any) -> str:
    answer = client.post("/v1/chat/completions", json=body(model, asked, **more))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


class Site:
    """A server of the three models."""

    def __init__(self, pool: ModelPool, url: str, material: Material) -> None:
        self.pool = pool
        self.material = material
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)

    def said(self, model: str | None, asked: str = ASKED[0], **more: Any) -> str:
        return said(self.http, model, asked, **more)

    def is_right(self, model: str) -> bool:
        """Whether it answers as the model of that name does."""
        asked, answer = self.material.first(model)
        return self.said(model, asked) == answer

    def states(self) -> dict[str, str]:
        listed = self.http.get("/v1/models").json()["data"]
        return {row["id"]: row["fieldlm"]["state"] for row in listed}

    def awake(self) -> set[str]:
        return {name for name, state in self.states().items() if state == "awake"}

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not is_true():
            assert time.monotonic() < end_s, self.states()
            time.sleep(0.02)

    @contextmanager
    def running(self, model: str) -> Generator[None]:
        """A long answer of `model`, which does not end by itself; its client leaves with the block."""
        endless = {str(token): -100 for token in self.pool.own.live.current.engine.stop_tokens}
        long = body(model, "Tell a long story", max_tokens=470, stream=True, logit_bias=endless)
        with self.http.stream("POST", "/v1/chat/completions", json=long) as answer:
            lines = answer.iter_lines()  # the stream is closed with its last reference
            next(lines)
            yield
            del lines


@contextmanager
def site(
    three: Material, *, holds: float = 3.5, sleep_after_s: float = 0.0, pinned: tuple[str, ...] = ()
) -> Generator[Site]:
    """Serve the three in the memory of `holds` of them."""
    with ExitStack() as keep:
        live = Generations(three.bundles[OWN], OPTIONS)
        keep.callback(live.close)
        others = [
            PooledModel(
                Generations(three.bundles[name], OPTIONS, name=name, asleep=True, is_beside=True),
                name=name,
                need_mb=three.need_mb,
                check=lambda folder=three.bundles[name].folder: open_bundle(folder),
            )
            for name in (BETA, GAMMA)
        ]
        own = PooledModel(live, need_mb=three.need_mb)
        pool = ModelPool(own, others, budget_mb=holds * three.need_mb, sleep_after_s=sleep_after_s)
        keep.callback(pool.close)
        pool.pin(pinned)
        with listening(make_app(pool, lambda _: None, ready=lambda: None)) as server:
            made = Site(pool, server.url, three)
            keep.callback(made.http.close)
            yield made


def test_each_is_asked_by_its_name_and_loaded_when_it_is_asked(three: Material) -> None:
    with site(three) as served:
        assert served.states() == {OWN: "awake", BETA: "asleep", GAMMA: "asleep"}
        asked, answer = three.first(OWN)
        assert served.said(None, asked) == served.said(OWN, asked) == answer
        assert served.is_right(BETA)
        assert served.states() == {OWN: "awake", BETA: "awake", GAMMA: "asleep"}
        asked, answer = three.first(GAMMA)
        assert served.http.post("/v1/chat/completions", json=body("delta:latest", asked)).status_code == 404
        given = served.http.post("/v1/chat/completions", json=body(f"{GAMMA}:latest", asked)).json()
        assert (given["model"], given["choices"][0]["message"]["content"]) == (GAMMA, answer)
        assert served.awake() == set(NAMES)


def test_a_name_that_is_not_here_is_refused_with_those_that_are(three: Material) -> None:
    with site(three) as served:
        chat = body("delta", "Hello")
        asked = {"/v1/chat/completions": chat, "/api/chat": {"model": "delta", "messages": chat["messages"]}}
        for path, document in (asked | {"/v1/embeddings": {"model": "delta", "input": "Hello"}}).items():
            refused = served.http.post(path, json=document)
            assert refused.status_code == 404, path
            assert all(name in refused.text for name in ("delta", *NAMES)), refused.text
        assert served.http.get("/v1/models/delta").status_code == 404
        assert served.http.get(f"/v1/models/{BETA}").json()["fieldlm"]["state"] == "asleep"


def test_the_one_that_was_used_longest_ago_makes_room(three: Material) -> None:
    with site(three, holds=2.5) as served:
        served.said(BETA)
        served.said(OWN)
        served.said(GAMMA)
        assert served.awake() == {OWN, GAMMA}
        assert served.is_right(BETA)
        assert served.awake() == {GAMMA, BETA}
        assert served.http.get("/ready").status_code == 200
        assert served.is_right(OWN)
        assert served.awake() == {BETA, OWN}


def test_what_is_pinned_stays_and_what_cannot_fit_beside_it_is_refused(three: Material) -> None:
    with site(three, holds=2.5, pinned=(OWN,)) as served:
        served.said(BETA)
        served.said(GAMMA)
        assert served.awake() == {OWN, GAMMA}
    with site(three, holds=1.5, pinned=(OWN,)) as served:
        refused = served.http.post("/v1/chat/completions", json=body(BETA, "Hello"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "insufficient_memory"
        assert all(word in refused.text for word in (BETA, OWN, "pin fewer", "--models-mb")), refused.text
        assert served.is_right(OWN)
        assert served.awake() == {OWN}


def test_one_that_answers_is_not_cut_short_though_it_was_used_longest_ago(three: Material) -> None:
    with site(three, holds=2.5) as served:
        served.said(BETA)
        with served.running(OWN):
            served.said(BETA)
            served.said(GAMMA)
            assert served.awake() == {OWN, GAMMA}
    with site(three, holds=1.5) as served:
        ended = threading.Event()
        whole: list[str] = []

        def write() -> None:
            whole.append(served.said(OWN, ASKED[1], max_tokens=60))
            ended.set()

        alone = served.said(OWN, ASKED[1], max_tokens=60)
        writer = threading.Thread(target=write)
        writer.start()
        served.wait_until(lambda: served.pool.own.live.is_used)
        assert served.is_right(BETA)
        assert ended.wait(PATIENCE_S)
        writer.join()
        assert whole == [alone]
        assert served.awake() == {BETA}


def test_a_request_does_not_wait_for_its_model_beyond_its_deadline(three: Material) -> None:
    with site(three, holds=1.5) as served, served.running(OWN):
        late = served.http.post("/v1/chat/completions", json=body(BETA, "Hello", deadline_ms=100))
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "model_loading"
        # Nobody waits for the other any more, so that this one answers on.
        assert served.is_right(OWN)


def test_a_client_that_leaves_takes_its_wait_with_it(three: Material) -> None:
    with site(three, holds=1.5) as served, served.running(OWN):
        with pytest.raises(httpx.ReadTimeout):
            served.http.post("/v1/chat/completions", json=body(BETA, "Hello"), timeout=0.3)
        served.wait_until(lambda: served.pool.waiting(served.pool.models[1]) == 0)
        assert served.is_right(OWN)
        assert served.awake() == {OWN}


def test_what_nobody_asks_for_sleeps_and_wakes_when_it_is_asked(three: Material) -> None:
    with site(three, sleep_after_s=0.2) as served:
        served.said(BETA)
        served.wait_until(lambda: not served.awake())
        assert served.http.get("/api/ps").json() == {"models": []}
        assert len(served.http.get("/api/tags").json()["models"]) == 3
        assert served.is_right(OWN)


def test_one_that_sleeps_gives_its_memory_back_to_the_system(three: Material) -> None:
    with site(three) as served:
        served.said(OWN)
        served.said(BETA)
        before_mb = rss_mb()
        for model in served.pool.models:
            served.pool.keep(model, 0)
        served.wait_until(lambda: not served.awake())
        assert rss_mb() < before_mb - 1.9 * three.need_mb


def test_keep_alive_of_ollama_unloads_keeps_and_loads(three: Material) -> None:
    asked, answer = three.first(BETA)
    hello = [{"role": "user", "content": asked}]
    with site(three, holds=2.5) as served:

        def chat(model: str, messages: list[dict[str, str]], keep_alive: Any) -> dict[str, Any]:
            options = {"num_predict": 4, "temperature": 0}
            document = {"model": model, "messages": messages, "stream": False, "options": options}
            return served.http.post("/api/chat", json={**document, "keep_alive": keep_alive}).json()

        assert chat(BETA, [], "10m")["done_reason"] == "load"
        assert served.awake() == {OWN, BETA}
        (row,) = [row for row in served.http.get("/api/ps").json()["models"] if row["name"] == "beta:latest"]
        assert not row["expires_at"].startswith("2100")
        assert row["size"] > 0
        assert chat(BETA, hello, 0)["message"]["content"] == answer
        served.wait_until(lambda: served.awake() == {OWN})
        chat(OWN, hello, -1)
        chat(BETA, hello, "1m")
        served.said(GAMMA)
        assert served.awake() == {OWN, GAMMA}, "what is kept for ever goes last"
        assert chat(GAMMA, [], 0)["done_reason"] == "unload"
        served.wait_until(lambda: served.awake() == {OWN})
        chat(BETA, hello, "200ms")
        served.wait_until(lambda: served.awake() == {OWN})
        refused = chat(BETA, hello, "a while")
        assert "keep_alive" in refused["error"]


def test_vectors_of_one_stand_beside_the_chat_of_another(three: Material) -> None:
    with site(three) as served:
        own = served.http.post("/v1/embeddings", json={"model": OWN, "input": "the sea"}).json()
        other = served.http.post("/v1/embeddings", json={"model": BETA, "input": "the sea"}).json()
        assert (own["model"], other["model"]) == (OWN, BETA)
        assert own["data"][0]["embedding"] != other["data"][0]["embedding"]
        assert served.is_right(GAMMA)


def test_a_hundred_requests_to_three_models_in_the_memory_of_one_and_a_half_are_each_answered_right(
    three: Material,
) -> None:
    every = [[(name, *pair) for pair in three.answers[name].items()] for name in NAMES]
    wanted = [every[i % 3][i // 3 % len(every[i % 3])] for i in range(100)]
    with site(three, holds=1.5) as served, ThreadPoolExecutor(8) as clients:
        names, questions, _ = zip(*wanted, strict=True)
        answers = list(clients.map(served.said, names, questions))
        assert answers == [answer for _, _, answer in wanted]
        assert len(served.awake()) == 1
        assert all(model.wakes for model in served.pool.models)


def test_one_that_cannot_be_loaded_says_why_and_leaves_the_others_alone(three: Material, tmp_path: Path) -> None:
    broken = material.tiny_bundle(tmp_path / "broken", padding=32)
    weights = broken.folder / "model.gguf"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with site(three) as served:
        served.pool.models[1].check = lambda: open_bundle(broken.folder)
        refused = served.http.post("/v1/chat/completions", json=body(BETA, "Hello"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "load_failed"
        assert served.is_right(GAMMA)
        assert served.is_right(OWN)


def test_metrics_and_status_show_every_model(three: Material) -> None:
    with site(three, holds=1.5) as served:
        served.said(BETA)
        metrics = served.http.get("/metrics").text
        assert 'fieldlm_model_awake{model="beta"} 1.0' in metrics
        assert f'fieldlm_model_awake{{model="{OWN}"}} 0.0' in metrics
        assert 'fieldlm_model_wakes_total{model="beta"} 1.0' in metrics
        rows = served.http.get("/status").json()["models"]
        assert [row["model"] for row in rows] == list(NAMES)
        assert rows[1]["load_s"] > 0
