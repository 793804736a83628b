"""A candidate in the shadow of the real model: what people ask is asked again, and nobody notices."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange, Feedback
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Offer
from fieldlm.formats.shadow import LEAST
from fieldlm.inference.chat_template import question
from fieldlm.inference.generations import Generations, Serving
from fieldlm.network.http_server import listening
from fieldlm.updates.progress import UpdateResult
from fieldlm.updates.shadow import Shadow
from fieldlm.updates.slots import Slots
from fieldlm.updates.updater import Updater
from fieldlm_compiler.repository.publish import publish
from tests.support import material
from tests.support.task_bundles import DRINK, OTHER, PAY, loras, several, word_router
from tests.support.waiting import wait_until

CONTEXT = 512
WAYS = {"type": "object", "properties": {"way": {"enum": ["lift", "stairs"]}}, "required": ["way"]}
FORM = {"type": "json_schema", "json_schema": {"name": "way", "schema": WAYS}}
LIFT: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "call_lift",
        "parameters": {"type": "object", "properties": {"floor": {"enum": [1, 2]}}, "required": ["floor"]},
    },
}


@dataclass
class House:
    """A server with the real model, and an updater beside it that lets candidates into the shadow."""

    folder: Path
    live: Generations
    slots: Slots
    url: str = ""
    pairs: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    exchanges: list[Exchange] = field(default_factory=list[Exchange])

    def __post_init__(self) -> None:
        self.shadow = Shadow[Serving](is_busy=lambda: self.live.is_used, on_pair=self.pairs.__setitem__)
        self.app = make_app(
            self.live, self.exchanges.append, ready=lambda: None, on_feedback=self.judge, shadow=self.shadow
        )

    def judge(self, said: Feedback) -> bool:
        self.shadow.judge(said.id, said.text, is_liked=said.rating == "up")
        return True

    def begin(self, candidate: Bundle, *, requests: int) -> Updater[Serving]:
        """Publish `candidate` and wait until it is in the shadow."""
        repository, keys = self.folder / "repository", self.folder / "keys"
        publish(candidate.folder, repository, keys=keys, offer=Offer(shadow=requests))
        root = keys / "root.json"
        updater = Updater(self.slots, self.live, repository=str(repository), trust=root, shadow=self.shadow)
        updater.on_hint()
        wait_until(lambda: self.shadow.figures is not None, patience_s=180)
        return updater

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def ask(self, text: str, **more: Any) -> dict[str, Any]:
        """Ask, and wait for the candidate's answer if there is to be one."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "temperature": 0, **more}
        response = self.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        return response.json()

    def told(self, response: str) -> dict[str, str]:
        wait_until(lambda: response in self.pairs, patience_s=180)
        return self.pairs[response]

    def metric(self, name: str) -> float:
        (line,) = [line for line in httpx.get(f"{self.url}/metrics").text.splitlines() if line.startswith(name)]
        return float(line.rpartition(" ")[2])


@contextmanager
def opened(folder: Path, bundle: Bundle) -> Generator[House]:
    slots = Slots(folder / "state")
    slots.factory(bundle.folder)
    live = Generations(slots.boot(), EngineOptions(threads=1, context=CONTEXT, parallel=2))
    house = House(folder, live, slots)
    with listening(house.app) as server:
        house.url = server.url
        yield house
    live.close()
    slots.close()


@pytest.fixture
def house(tmp_path: Path, base_bundle: Bundle) -> Generator[House]:
    with opened(tmp_path, base_bundle) as house:
        yield house


def ended(updater: Updater[Serving]) -> UpdateResult:
    wait_until(lambda: updater.state.runs, patience_s=180)
    assert updater.state.last
    return updater.state.last


def test_what_people_ask_is_asked_of_the_candidate_too_and_goes_nowhere(house: House, base_bundle: Bundle) -> None:
    adapter = material.lora_gguf(house.folder / "lora.gguf", scale=0.05)
    tuned = material.tiny_bundle(house.folder / "tuned", adapter=adapter)
    updater = house.begin(tuned, requests=LEAST)
    engine = house.live.current.engine
    formed = [house.ask(f"Which way to floor {number}?", response_format=FORM) for number in range(LEAST - 3)]
    for answer in formed:
        told = house.told(answer["id"])
        assert (told["candidate"], told["valid"], told["serving_valid"]) == (tuned.generation, "yes", "yes")
        assert int(told["tokens"]) > 3
        assert int(told["serving_tokens"]) == answer["usage"]["completion_tokens"]
    calls = house.ask("Call the lift.", tools=[LIFT], tool_choice="required", max_tokens=96, metadata={"task": "lift"})
    assert calls["choices"][0]["message"]["tool_calls"]
    told = house.told(calls["id"])
    assert (told["task"], told["valid"], told["serving_valid"]) == ("lift", "yes", "yes")
    said = json.loads(formed[0]["choices"][0]["message"]["content"])
    house.post("/v1/feedback", {"id": formed[0]["id"], "correction": {"way": said["way"]}})
    house.post("/v1/feedback", {"id": formed[1]["id"], "rating": "up"})
    figures = updater.state.shadow
    assert figures
    assert (figures.answers, figures.valid, figures.serving_valid) == (LEAST - 2, LEAST - 2, LEAST - 2)
    assert (figures.judged, figures.serving_right) == (2, 2)
    assert figures.agreed == sum(each["agrees"] == "yes" for each in house.pairs.values())
    assert house.metric("fieldlm_shadow_active") == 1
    assert house.metric(f'fieldlm_shadow_answers{{generation="{tuned.generation}",what="answers"}}') == LEAST - 2
    house.ask("Say hello.", stream=False, n=2)
    house.ask("Which way to floor 0?", response_format=FORM)
    for number in range(2):
        assert house.ask(f"Say {number}.")["fieldlm"]["generation"] == base_bundle.generation
    result = ended(updater)
    updater.close()
    assert (result.outcome, result.generation) == ("updated", tuned.generation)
    assert house.live.current.engine is engine, "an adapter beside its base costs no second one"
    assert {exchange.generation for exchange in house.exchanges} == {base_bundle.generation}
    assert house.ask("Say hello.")["fieldlm"]["generation"] == tuned.generation
    assert len(house.pairs) == LEAST, "no answer with a sibling, and none to what was asked before"


def test_a_candidate_with_no_room_for_what_people_ask_is_refused(house: House, base_bundle: Bundle) -> None:
    wordy = material.tiny_bundle(house.folder / "told", system_prompt="Speak of the sea and of the wind. " * 20)
    updater = house.begin(wordy, requests=50)
    serving, text = house.live.current, "The sea and the wind."
    while len(serving.engine.tokenize(question(serving.bundle, text))) < CONTEXT - 50:
        text += " The sea and the wind."
    for number in range(LEAST):
        answer = house.ask(f"{text} {number}", response_format=FORM)
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert house.told(answer["id"])["valid"] == "no"
    result = ended(updater)
    updater.close()
    assert (result.outcome, result.reason) == ("rolled-back", "shadow-invalid")
    assert house.live.current.bundle.id == house.slots.current().id == base_bundle.id


def test_of_several_adapters_the_candidate_answers_with_that_of_the_task(tmp_path: Path) -> None:
    adapters = loras(tmp_path / "loras", "all", "tea", "bill")
    serves = several(tmp_path / "serves", adapters)
    candidate = several(tmp_path / "candidate", adapters, router=word_router(least=0.55))
    with opened(tmp_path, serves) as house:
        updater = house.begin(candidate, requests=LEAST)
        answers = [house.ask(text) for text in (DRINK, PAY, OTHER)]
        assert [answer["fieldlm"]["adapter"] for answer in answers] == ["tea", "bill", "all"]
        assert [house.told(answer["id"])["agrees"] for answer in answers] == ["yes"] * 3
        updater.close()
