"""A device with a release that wants a shadow period: what it says of it, and what leaves it."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fieldlm.core.config import load_config
from fieldlm.device.device import Device
from fieldlm.device.startup import Start
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import load_profile
from fieldlm.formats.release import Offer
from fieldlm.formats.shadow import LEAST
from fieldlm_compiler.repository.publish import publish
from tests.support import material
from tests.support.waiting import wait_until

PROFILE = "generic-x86-64-avx2"
SECRET = "My name is Wilhelmina"
FORM = {
    "type": "json_schema",
    "json_schema": {"name": "way", "schema": {"enum": ["lift", "stairs"]}},
}


@contextmanager
def running(bundle: Path, state: Path, repository: Path, root: Path) -> Generator[tuple[Device, str]]:
    """Run a device in this process, on any free port; yields where it answers."""
    flags = {
        "state": str(state), "context": "512", "port": "0", "host": "127.0.0.1", "device": "kiosk",
        "discovery": "false", "repository": str(repository), "trust": str(root), "telemetry": "full",
        "consent": "yes", "threads": "1",
    }  # fmt: skip
    config, profile = load_config(flags, env={}), load_profile(PROFILE)
    ready = threading.Event()
    device = Device(config, profile, Start(config, profile, bundle), on_ready=lambda _: ready.set())
    serving = threading.Thread(target=device.run, name="server")
    serving.start()
    try:
        wait_until(ready.is_set, patience_s=180)
        yield device, device.http.url
    finally:
        device.http.stop()
        serving.join()
        device.close()


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    told = material.tiny_bundle(tmp_path / "told", system_prompt="Answer in capital letters.")
    return material.compiled_for(told, PROFILE, tmp_path / "candidate")


def test_a_device_lets_a_candidate_answer_in_the_shadow_and_only_numbers_leave_it(
    base_bundle: Bundle, candidate: Path, tmp_path: Path
) -> None:
    bundle = material.compiled_for(base_bundle, PROFILE, tmp_path / "bundle")
    repository, keys = tmp_path / "repository", tmp_path / "keys"
    release = publish(candidate, repository, keys=keys, offer=Offer(shadow=LEAST + 1))
    with running(bundle, tmp_path / "state", repository, keys / "root.json") as (device, url):
        assert httpx.get(f"{url}/v1/fieldlm/status").json()["shadow"] is None
        device.updater.on_hint()
        wait_until(lambda: device.shadow.figures is not None, patience_s=180)
        ids = list[str]()
        for number in range(LEAST + 1):
            answer = httpx.post(
                f"{url}/v1/chat/completions",
                json={
                    "messages": [{"role": "user", "content": f"{SECRET}. Which way to floor {number}?"}],
                    "response_format": FORM,
                    "metadata": {"consent": "yes", "session": "s"},
                },
                timeout=60,
            ).json()
            ids.append(answer["id"])
            said = answer["choices"][0]["message"]["content"]
            if number < LEAST:  # what is said of the last one may come when the period is over
                given = httpx.post(f"{url}/v1/feedback", json={"id": answer["id"], "correction": said}, timeout=60)
                assert given.status_code == 200
        wait_until(lambda: device.updater.state.runs, patience_s=180)
        status = httpx.get(f"{url}/v1/fieldlm/status").json()["shadow"]
        state = httpx.get(f"{url}/v1/fieldlm/update").json()
        metrics = httpx.get(f"{url}/metrics").text
        assert device.spool.flush()
        told = {record.detail["event"]: record for record in device.spool.pending("ota", 0, 1000)}
        pairs = [r for r in device.spool.pending("sys", 0, 1000) if r.detail.get("event") == "shadow.answered"]
    assert (status["answers"], status["valid"], status["judged"]) == (LEAST + 1, LEAST + 1, LEAST)
    assert state["shadow"] == status == state["last"]["measured"]["shadow"]
    assert state["last"]["outcome"] == "updated"
    labels = f'generation="{release.bundle[:12]}",what="answers"'
    assert f"fieldlm_shadow_answers{{{labels}}} {LEAST + 1}.0" in metrics
    assert told["update.shadowed"].detail["shadow_answers"] == str(LEAST + 1)
    assert [record.detail["response"] for record in pairs] == ids
    assert {record.detail["valid"] for record in pairs} == {"yes"}
    text = " ".join(f"{record.prompt}{record.answer}{record.detail}" for record in [*told.values(), *pairs])
    assert not [word for word in ("Wilhelmina", "stairs", "lift") if word in text]
