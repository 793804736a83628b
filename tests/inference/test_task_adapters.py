"""Several adapters in one bundle: each request gets the one of its task, from a program and over the API."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.cli import ps
from fieldlm.core.errors import BundleError, EngineError
from fieldlm.core.files import canonical_json
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.confidence import Confidence
from fieldlm.formats.probe import Probe, Probes
from fieldlm.inference.adapters import named, routed
from fieldlm.inference.confidence import calibration_of
from fieldlm.inference.generations import Generations, canary
from fieldlm.inference.model import Model
from fieldlm.inference.probe import score
from fieldlm.inference.prompt_snapshots import Snapshots
from fieldlm.inference.router import choose, task_adapter_of
from fieldlm.network.http_server import listening
from tests.support.material import tiny_bundle
from tests.support.task_bundles import DRINK, OTHER, PAY, TASKS, loras, several, word_router

BASE = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"
ONE = EngineOptions(threads=1, context=512, parallel=1)
FEW = Sampling(max_tokens=5)
SURE = {
    "all": Confidence(signal="min_logprob", steps=((-30.0, 0.3), (0.0, 0.31))),
    "tea": Confidence(signal="min_logprob", steps=((-30.0, 0.7), (0.0, 0.71))),
}


def talk(*said: str) -> list[dict[str, Any]]:
    """Return a conversation of which the user said `said`."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in said]
    return [message for turn in turns for message in turn][:-1]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return loras(tmp_path_factory.mktemp("loras"), "all", "tea", "bill")


@pytest.fixture(scope="module")
def bundle(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    calibrated = {name: canonical_json(found) for name, found in SURE.items()}
    return several(tmp_path_factory.mktemp("several") / "bundle", adapters, confidence=calibrated)


@pytest.fixture(scope="module")
def live(bundle: Bundle) -> Iterator[Generations]:
    made = Generations(bundle, EngineOptions(threads=1, context=512, parallel=4))
    yield made
    made.close()


# ── which one ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_gets_the_adapter_of_its_task_and_the_first_one_the_rest(bundle: Bundle) -> None:
    found = [task_adapter_of(bundle, talk(said)) for said in (DRINK, PAY, "what weather is it", OTHER, "")]
    assert found == ["tea", "bill", "all", "all", "all"]
    assert task_adapter_of(bundle, []) == "all"


def test_what_the_client_calls_its_task_counts_more_than_the_router(bundle: Bundle) -> None:
    for told, adapter in (("t1", "tea"), ("about tea", "tea"), ("t3", "all"), ("about weather", "all")):
        assert task_adapter_of(bundle, talk(PAY), task=told) == adapter
    assert task_adapter_of(bundle, talk(PAY), task="something else") == "bill"


def test_a_bundle_without_several_adapters_chooses_none(base_bundle: Bundle) -> None:
    assert task_adapter_of(base_bundle, talk(DRINK)) == ""


def test_a_conversation_stays_with_its_adapter_until_its_task_clearly_changes(bundle: Bundle) -> None:
    router, known = word_router(), bundle.manifest.task_adapters
    mixed = "please bring it all together and then put it on the bill for us"
    chance = float(router.chances(mixed).max())
    assert router.least < chance < 0.99
    doubtful = replace(router, least=chance - 0.005)
    assert choose(known, doubtful, talk(mixed)) == "bill"
    assert choose(known, doubtful, talk(DRINK, mixed)) == "tea", "known, but not clear enough to leave"
    assert choose(known, doubtful, talk(DRINK, OTHER, "two")) == "tea"
    assert choose(known, doubtful, talk(DRINK, "two", PAY)) == "bill"
    assert choose(known, doubtful, talk(DRINK, PAY, "thanks", mixed)) == "bill"
    assert choose(known, doubtful, talk(OTHER, "two", PAY)) == "bill"
    assert choose(known, doubtful, talk(OTHER, mixed)) == "bill", "a greeting decides nothing"


def test_the_first_turn_of_a_very_long_conversation_still_counts(bundle: Bundle) -> None:
    assert task_adapter_of(bundle, talk(DRINK, *["two"] * 100)) == "tea"


def test_what_is_no_text_is_no_task(bundle: Bundle) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url"}]}]
    assert task_adapter_of(bundle, picture) == "all"


# ── loaded ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_answers_as_it_would_alone_and_a_switch_frees_them_all(
    adapters: dict[str, Path], bundle: Bundle, base_bundle: Bundle, tmp_path: Path
) -> None:
    own = Generations(base_bundle, ONE)
    before = own.current.engine.memory_mb()["weights"]
    plain = own.current
    serving = own.load(bundle)
    assert serving.engine is plain.engine
    own.switch(serving)
    said: dict[str, str] = {}
    for name, text in (("all", OTHER), ("tea", DRINK), ("bill", PAY)):
        with Model.open(tiny_bundle(tmp_path / name, adapter=adapters[name]), threads=1, context=512) as alone:
            wanted = alone.chat(text, FEW).text
        chosen = routed(serving, talk(text))
        assert (chosen.task_adapter, chosen.bundle, chosen.engine) == (name, bundle, serving.engine)
        with Model.open(bundle, threads=1, context=512) as model:
            answer = model.chat(text, FEW)
        assert (answer.text, answer.adapter) == (wanted, name)
        said[name] = answer.text
    assert len(set(said.values())) == 3
    assert own.current.engine.memory_mb()["weights"] > before
    own.switch(own.load(base_bundle))
    assert own.current.engine.memory_mb()["weights"] <= before
    own.close()


def test_where_one_cannot_be_loaded_none_stays(adapters: dict[str, Path], base_bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(adapters["bill"].read_bytes()[:2000])
    own = Generations(base_bundle, ONE)
    before = own.current.engine.memory_mb()["weights"]
    with pytest.raises(EngineError):
        own.load(several(tmp_path / "bundle", adapters | {"bill": damaged}))
    unroutable = several(tmp_path / "unroutable", adapters)
    (unroutable.folder / "router.npz").write_bytes(b"no router")
    with pytest.raises(BundleError, match="no router"):
        own.load(unroutable)
    assert own.current.engine.memory_mb()["weights"] <= before
    own.close()


def test_one_that_sleeps_wakes_with_all_of_them(bundle: Bundle) -> None:
    own = Generations(bundle, ONE, asleep=True)
    assert set(own.current.task_adapters) == {"all", "tea", "bill"}
    own.wake()
    assert own.try_sleep()
    own.wake()
    assert routed(own.current, talk(DRINK)).adapter == own.current.task_adapters["tea"] != own.current.adapter
    own.close()


def test_each_is_sure_by_its_own_calibration_or_by_none(bundle: Bundle) -> None:
    assert calibration_of(bundle) == calibration_of(bundle, "all") == SURE["all"]
    assert calibration_of(bundle, "tea") == SURE["tea"]
    assert calibration_of(bundle, "bill") is None


def test_one_that_answers_garbage_is_not_made_up_for_by_the_others(
    adapters: dict[str, Path], bundle: Bundle, tmp_path: Path
) -> None:
    asked: dict[str, list[dict[str, Any]]] = {name: talk(said) for name, said in (("", OTHER), ("tea", DRINK))}
    with Model.open(bundle, threads=1, context=512) as model:
        right = [
            Probe(messages=messages, expect=model.chat(messages, FEW).text, max_tokens=5, adapter=name)
            for name, messages in asked.items()
        ]
    wrong = Probe(messages=talk(PAY), expect="nothing that it would say", max_tokens=5, adapter="bill")
    for probes, share in ((right, 1.0), ([*right, wrong], 0.0)):
        folder = tmp_path / str(len(probes))
        made = several(folder, adapters, probe=canonical_json(Probes(prompts=tuple(probes))))
        with Model.open(made, threads=1, context=512) as model:
            assert score(model) == share


def test_a_snapshot_is_of_the_first_adapter_and_of_no_other(adapters: dict[str, Path], tmp_path: Path) -> None:
    prompt = "You take orders in a small café by the sea. " * 12
    one, other = (
        several(tmp_path / name, {each: adapters[each] for each in order}, system_prompt=prompt,
                tasks={"all": ("t3",), **TASKS})
        for name, order in (("one", ("all", "tea")), ("other", ("tea", "all")))
    )  # fmt: skip
    snapshots = Snapshots(tmp_path)
    for made, is_kept in ((one, False), (one, True), (other, False)):
        own = Generations(made, ONE)
        assert snapshots.restore(own.current) is is_kept
        canary(own.current)
        assert snapshots.save(own.current)
        own.close()


# ── over the API ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Server:
    http: httpx.Client
    exchanges: list[Exchange] = field(default_factory=list[Exchange])

    def ask(self, *said: str, **more: Any) -> dict[str, Any]:
        answer = self.http.post(CHAT, json={"messages": talk(*said), "max_tokens": 5, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def server(live: Generations) -> Iterator[Server]:
    exchanges: list[Exchange] = []
    app = make_app(live, exchanges.append, ready=lambda: None)
    with listening(app) as listens, httpx.Client(base_url=listens.url, timeout=120) as http:
        yield Server(http, exchanges)


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def test_an_answer_says_which_adapter_gave_it_and_so_do_records_metrics_and_status(
    server: Server, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"tea": DRINK, "bill": PAY, "all": OTHER}
    found: dict[str, dict[str, Any]] = {}

    def ask(name: str) -> None:
        found[name] = server.ask(said[name])

    threads = [threading.Thread(target=ask, args=(name,)) for name in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, answer in found.items():
        assert answer["model"] == BASE
        assert answer["fieldlm"]["adapter"] == name
        assert answer["fieldlm"]["generation"] == bundle.generation
    assert {exchange.adapter for exchange in server.exchanges} == set(said)
    with Model.open(bundle, threads=1, context=512) as model:
        alone = {name: model.chat(text, FEW).text for name, text in said.items()}
    assert {name: text_of(server.ask(text)) for name, text in said.items()} == alone
    metrics = server.http.get("/metrics").text
    assert {f'fieldlm_adapter_answers_total{{adapter="{name}"}} 2.0' for name in said} <= set(metrics.splitlines())
    wanted = {"all": [], "tea": ["t1"], "bill": ["t2"]}
    assert server.http.get("/status").json()["adapters"] == wanted
    assert server.http.get(f"/v1/models/{BASE}").json()["fieldlm"]["adapters"] == wanted
    assert ps.main(["--url", str(server.http.base_url)]) == 0
    assert "Q4_1 + 3 adapters" in capsys.readouterr().out


def test_a_stream_and_other_apis_say_it_too(server: Server) -> None:
    body = {"messages": talk(DRINK), "max_tokens": 5}
    lines = server.http.post(CHAT, json={**body, "stream": True}).text.splitlines()
    assert sum('"adapter":"tea"' in line for line in lines) == 1
    responses = server.http.post("/v1/responses", json={"input": DRINK, "max_output_tokens": 5})
    assert responses.json()["fieldlm"]["adapter"] == "tea"
    asked = {"model": BASE, "messages": talk(PAY), "stream": False, "options": {"num_predict": 5}}
    ollama = server.http.post("/api/chat", json=asked)
    assert ollama.json()["fieldlm"]["adapter"] == "bill"
    claude = server.http.post("/v1/messages", json={"model": BASE, **body})
    assert claude.json()["fieldlm"]["adapter"] == "tea"


def test_a_conversation_and_a_named_task_choose_over_the_api(server: Server) -> None:
    assert server.ask(DRINK, "two")["fieldlm"]["adapter"] == "tea"
    assert server.ask(DRINK, "two", PAY)["fieldlm"]["adapter"] == "bill"
    assert server.ask(DRINK, metadata={"task": "t2"})["fieldlm"]["adapter"] == "bill"


def test_a_request_may_name_one_of_them_itself(server: Server, bundle: Bundle) -> None:
    answer = server.ask(DRINK, model=f"{BASE}:bill")
    assert (answer["model"], answer["fieldlm"]["adapter"]) == (f"{BASE}:bill", "bill")
    assert answer["fieldlm"]["generation"] == bundle.generation
    missing = server.http.post(CHAT, json={"messages": talk(DRINK), "model": f"{BASE}:soup"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    with openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key="none", max_retries=0) as client:
        assert client.models.retrieve(f"{BASE}:tea").id == f"{BASE}:tea"


def test_what_is_remembered_of_a_prompt_is_the_adapters_own(server: Server) -> None:
    longer = f"{DRINK}, with milk and sugar, for the table at the window"
    first, again = (server.ask(longer) for _ in range(2))
    assert first["fieldlm"]["adapter"] == again["fieldlm"]["adapter"] == "tea"
    other = server.ask(longer, model=f"{BASE}:bill")
    # What a system prompt takes, both may have read before; the question only one.
    cached, elsewhere = (each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (again, other))
    assert cached > elsewhere


def test_confidence_is_that_of_the_adapter_that_answered(server: Server) -> None:
    asked: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "strict": True, "schema": {"enum": ["yes", "no"]}}}}  # fmt: skip
    found = {name: server.ask(said, **asked)["fieldlm"]["confidence"]
             for name, said in (("all", OTHER), ("tea", DRINK), ("bill", PAY))}  # fmt: skip
    assert 0.3 <= found["all"] <= 0.31
    assert 0.7 <= found["tea"] <= 0.71
    assert found["bill"] is None


def test_a_name_that_the_bundle_does_not_have_is_none(live: Generations) -> None:
    assert named(live.current, "soup") is None
