"""The whole way with the real model: published, fetched, loaded beside, probed and switched while requests run."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fieldlm.api.app import make_app
from fieldlm.cli import update
from fieldlm.core.errors import FieldlmError, UnavailableError
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.probe import agrees, score
from fieldlm.network.http_server import listening
from fieldlm.updates.gates import TrialMeasurements, check_prompt, compare
from fieldlm.updates.rehearsal import RehearsalLimits, rehearse
from fieldlm.updates.routes import update_routes
from fieldlm.updates.slots import Slots
from fieldlm.updates.updater import Updater
from fieldlm_compiler.repository.publish import publish
from tests.support import material
from tests.support.update_simulators import LiveSimulator, simulated_live


@dataclass
class Customers:
    """Keep asking a server until told to stop, and remember what came back."""

    url: str
    answers: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    is_over: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, count: int) -> None:
        while len(self.answers) < count:
            time.sleep(0.01)

    def ask(self) -> None:
        body = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8, "temperature": 0}
        with httpx.Client(timeout=60) as client:
            while not self.is_over.is_set():
                response = client.post(f"{self.url}/v1/chat/completions", json=body)
                generation = response.json().get("fieldlm", {}).get("generation", "")
                self.answers.append((response.status_code, generation))


@pytest.fixture
def slots(tmp_path: Path, base_bundle: Bundle) -> Iterator[Slots]:
    slots = Slots(tmp_path / "state")
    slots.factory(base_bundle.folder)
    yield slots
    slots.close()


@pytest.fixture
def live(slots: Slots) -> Iterator[Generations]:
    live = Generations(slots.boot(), EngineOptions(context=256, parallel=2))
    yield live
    live.close()


def offer(tmp_path: Path, slots: Slots, live: Generations, *, scale: float) -> tuple[Bundle, Updater[Serving]]:
    """Publish an adapter for the device's base; return it and an updater that would find it."""
    adapter = material.lora_gguf(tmp_path / "lora.gguf", scale=scale)
    tuned = material.tiny_bundle(tmp_path / "tuned", adapter=adapter)
    publish(tuned.folder, tmp_path / "repository", keys=tmp_path / "keys")
    root = tmp_path / "keys" / "root.json"
    return tuned, Updater(slots, live, repository=str(tmp_path / "repository"), trust=root)


def test_an_adapter_arrives_while_customers_ask_and_none_notices(
    tmp_path: Path, slots: Slots, live: Generations, base_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, updater = offer(tmp_path, slots, live, scale=0.05)
    app = make_app(live, lambda exchange: None, ready=lambda: None, extra_routes=update_routes(updater))
    with listening(app) as server:
        customers = Customers(server.url)
        threads = [threading.Thread(target=customers.ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        customers.wait_for(4)
        assert update.main(["--url", server.url, "--json"]) == 0
        customers.wait_for(len(customers.answers) + 4)
        customers.is_over.set()
        for thread in threads:
            thread.join()
    result = json.loads(capsys.readouterr().out)
    assert (result["outcome"], result["generation"]) == ("updated", tuned.generation)
    assert result["bytes_fetched"] < result["bytes_bundle"] / 15
    assert {status for status, _ in customers.answers} == {200}
    assert {generation for _, generation in customers.answers} == {base_bundle.generation, tuned.generation}
    assert customers.answers[-1][1] == tuned.generation
    assert slots.current().id == tuned.id


def test_an_adapter_of_broken_numbers_never_answers_anybody(
    tmp_path: Path, slots: Slots, live: Generations, base_bundle: Bundle
) -> None:
    _, updater = offer(tmp_path, slots, live, scale=float("nan"))
    result = updater.check_and_update()
    assert (result.outcome, result.reason) == ("rolled-back", "engine")
    assert live.current.bundle.id == slots.current().id == base_bundle.id
    assert score(live.current) == 1.0


def told_anew(
    tmp_path: Path, slots: Slots, live: Generations, *, prompt: str, adapter: Path | None = None
) -> tuple[Bundle, Updater[Serving], list[str]]:
    """Publish a bundle with another system prompt; return it, an updater, and which generations that rehearsed.

    Somebody who watched before the commit would watch for ever.
    """
    rehearsed: list[str] = []

    def try_elsewhere(bundle: Bundle) -> TrialMeasurements:
        rehearsed.append(bundle.generation)
        return rehearse(bundle, RehearsalLimits(context=256))

    told = material.tiny_bundle(tmp_path / "told", system_prompt=prompt, adapter=adapter)
    publish(told.folder, tmp_path / "repository", keys=tmp_path / "keys")
    updater = Updater(
        slots,
        live,
        repository=str(tmp_path / "repository"),
        trust=tmp_path / "keys" / "root.json",
        rehearse=try_elsewhere,
        compare=compare,
        check_prompt=check_prompt,
        observe_s=0 if adapter else float("inf"),
        guard_s=3600,
    )
    return told, updater, rehearsed


def test_another_system_prompt_is_tried_alone_and_the_weights_are_known(
    tmp_path: Path, slots: Slots, live: Generations, base_bundle: Bundle
) -> None:
    told, updater, rehearsed = told_anew(tmp_path, slots, live, prompt="Answer in capital letters.")
    engine = live.current.engine
    result = updater.check_and_update()
    updater.close()
    assert (result.outcome, result.generation) == ("updated", told.generation)
    assert result.weights_of == base_bundle.generation
    assert result.bytes_fetched < result.bytes_bundle / 100
    assert [step.step for step in result.timeline] == [
        "check", "fetch", "verify", "load", "probe", "switch", "observe", "commit",
    ]  # fmt: skip
    assert rehearsed == []
    assert result.measured
    assert result.measured.prompt_tokens > 10
    assert live.current.engine is engine
    assert live.current.bundle.id == slots.current().id == told.id
    assert f"that of generation {base_bundle.generation}" in update.describe(result)


def test_a_system_prompt_that_leaves_no_room_is_taken_back(
    tmp_path: Path, slots: Slots, live: Generations, base_bundle: Bundle
) -> None:
    _, updater, _ = told_anew(tmp_path, slots, live, prompt="Speak of the sea and of the wind. " * 20)
    result = updater.check_and_update()
    updater.close()
    assert (result.outcome, result.reason) == ("rolled-back", "context")
    assert live.current.bundle.id == slots.current().id == base_bundle.id


def test_a_system_prompt_with_another_adapter_is_rehearsed_as_any_other_model(
    tmp_path: Path, slots: Slots, live: Generations
) -> None:
    adapter = material.lora_gguf(tmp_path / "lora.gguf", scale=0.05)
    told, updater, rehearsed = told_anew(tmp_path, slots, live, prompt="Be brief.", adapter=adapter)
    result = updater.check_and_update()
    updater.close()
    assert (result.outcome, result.weights_of) == ("updated", "")
    assert rehearsed == [told.generation]
    assert result.measured
    assert result.measured.speed


def test_a_device_that_serves_nobody_is_updated_by_the_same_command(
    tmp_path: Path, slots: Slots, live: Generations, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, _ = offer(tmp_path, slots, live, scale=0.05)
    slots.close()
    command = ["--state", str(slots.state), "--repository", str(tmp_path / "repository")]
    assert update.main([*command, "--trust", str(tmp_path / "keys" / "root.json")]) == 0
    assert f"now at release 1, generation {tuned.generation}" in capsys.readouterr().out
    assert update.main(command) == 0
    assert "nothing new" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(UnavailableError, match="fieldlm serve"):
        update.main(["--url", "http://127.0.0.1:9"])


@pytest.mark.parametrize(
    ("found", "expected", "is_same"),
    [
        ("Red and blue.", "Red and blue.", True),
        ("Red and blue.", "Red and", True),
        ("Red and green, maybe.", "Red and blue.", False),
        ("Blue.", "Red and blue.", False),
        ("", "Red and blue.", False),
        (" Red", "Red ", True),
        ("", "", True),
        ("Something", "", False),
        ("Red \ufffd", "Red \ufffd", True),
        ("Red \N{GRINNING FACE}", "Red \ufffd", True),
        ("\ufffd", "\ufffd", True),
    ],
)
def test_an_answer_agrees_when_it_begins_as_expected(found: str, expected: str, is_same: bool) -> None:
    assert agrees(found, expected) is is_same


@pytest.mark.parametrize("kind", ["real", "simulator"])
def test_the_simulator_of_update_tests_loads_switches_and_refuses_as_the_real_one_does(
    kind: str, live: Generations, tmp_path: Path
) -> None:
    adapter = material.lora_gguf(tmp_path / "lora.gguf", scale=0.05)
    tuned = material.tiny_bundle(tmp_path / "tuned", adapter=adapter)
    base = live.current.bundle
    tested: Generations | LiveSimulator = live if kind == "real" else simulated_live(base)
    hold_to_the_same(tested, base, tuned)


def hold_to_the_same(tested: Any, base: Bundle, tuned: Bundle) -> None:
    """Check what an update counts on."""
    tested.discard(tested.load(tuned))
    second = tested.load(tuned)
    assert tested.current.bundle.id == base.id
    tested.switch(second)
    assert tested.current.bundle.id == tuned.id
    engine = tested.current.engine
    tokens = engine.tokenize("Hello")
    assert engine.detokenize(tokens) == "Hello"
    assert list(engine.start(tokens, Sampling(max_tokens=1)))[-1].outcome in ("stop", "length")
    tested.switch(tested.load(base))
    assert tested.current.bundle.id == base.id
    tuned.need("adapter").unlink()
    with pytest.raises(FieldlmError):
        tested.load(msgspec.structs.replace(tuned, id="0" * 64))
    assert tested.current.bundle.id == base.id
