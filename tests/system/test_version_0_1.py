"""What version 0.1.0 left behind is read as before: tests/fixtures/version_0_1/README.md says what it is."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from fieldlm.cli import slots as slots_command
from fieldlm.cli import verify
from fieldlm.core.config import load_config
from fieldlm.core.signing import key_id, load_key
from fieldlm.engines import Sampling
from fieldlm.formats.bundle import open_bundle
from fieldlm.inference.model import Model
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync, Timing
from fieldlm.updates.journal import Journal
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.repository import offers
from fieldlm_compiler.repository.publish import publish
from tests.support import brokers
from tests.support.served_process import free_port, serving

LEFT = Path(__file__).parents[1] / "fixtures/version_0_1"
PROFILE = "generic-x86-64-avx2"
FIELDLM = str(Path(sys.executable).with_name("fieldlm"))
DEVICE = "kiosk-1a2b3c"
QUICK = Timing(ack_s=1.0, linger_s=0.1, backoff_base_s=0.1, backoff_cap_s=0.5)
SAID = """
SELECT kind, seq, epoch, prompt, correction, rating FROM records WHERE stream IN ('gen', 'fb') ORDER BY kind, seq
"""


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """Return a copy of everything, in which one may write."""
    return shutil.copytree(LEFT, tmp_path / "left")


@pytest.fixture(params=brokers.NAMES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[brokers.Broker]:
    made = brokers.make(request.param, tmp_path / "broker")
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("name", ["base", "tuned", "onnx"])
def test_a_bundle_is_verified_and_answers(name: str) -> None:
    signer = key_id(load_key(LEFT / "keys/bundle.pem").public_key())
    assert verify.main([str(LEFT / "bundles" / name), "--key", signer]) == 0
    with Model.open(LEFT / "bundles" / name, threads=1, context=512, parallel=1) as model:
        answer = model.chat("A tea, please.", Sampling(max_tokens=4))
    assert len(answer.tokens) > 0
    assert answer.generation == open_bundle(LEFT / "bundles" / name).generation


def test_the_settings_file_and_the_devices_name_count(left: Path) -> None:
    config = load_config({"state": str(left / "state")}, {}, left / "config.toml")
    assert (config.device, config.fleet, config.telemetry) == (DEVICE, "shop", "redacted")
    assert (config.context, config.parallel, config.threads) == (1024, 2, 1)
    assert (config.discovery, config.share, config.spool_mb, config.daily_mb) == (False, False, 8, 5)
    assert (config.fetch_kb_s, config.fetch_hours) == (50_000, "00:00-23:59")


def test_what_waits_in_the_spool_joins_what_came_home_before(broker: brokers.Broker, left: Path) -> None:
    with Store(left / "store", read_only=True) as store:
        before = store.query(SAID)
    assert [(row["kind"], row["seq"]) for row in before] == [
        ("feedback", 1), ("feedback", 2), ("generation", 1), ("generation", 2),
    ]  # fmt: skip
    with (
        Store(left / "store") as store,
        Collector(broker.url, "shop", store),
        Spool(left / "state/spool.db") as spool,
    ):
        sync = Sync(spool, broker_url=broker.url, fleet="shop", device=DEVICE, timing=QUICK)
        sync.start()
        assert sync.drain(60)
        sync.stop()
        assert all(count.held == 0 for count in spool.counts().values())
    with Store(left / "store", read_only=True) as store:
        after = store.query(SAID)
        assert store.gaps() == []
    assert [(row["kind"], row["seq"]) for row in after] == [
        (kind, seq) for kind in ("feedback", "generation") for seq in range(1, 5)
    ]
    assert [row for row in after if row["seq"] <= 2] == before
    assert len({row["epoch"] for row in after}) == 1
    assert {(row["correction"], row["rating"]) for row in after if row["kind"] == "feedback"} == {("tea", "down")}
    said = " ".join(row["prompt"] for row in after if row["kind"] == "generation")
    assert "Good bye." in said
    assert "555-0134" not in said


def test_a_device_boots_what_it_had_committed_and_takes_the_next_release_of_the_same_publisher(
    left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = (open_bundle(left / "bundles" / name) for name in ("base", "tuned"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [FIELDLM, "serve", "--state", left / "state", "--profile", PROFILE, "--port", str(port)]
    command += ["--repository", left / "repository", "--trust", left / "keys/root.json"]
    settings = {**os.environ, "FIELDLM_CONFIG": str(left / "config.toml")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings)
    with serving(process, url):
        assert answered_by(url) == tuned.generation
        release = publish(base.folder, left / "repository", keys=left / "keys", profile=PROFILE)
        assert release.seq == 2
        done = subprocess.run([FIELDLM, "update", "--url", url, "--json"], capture_output=True, text=True, check=False)
        assert json.loads(done.stdout)["outcome"] == "updated", done.stdout + done.stderr
        assert answered_by(url) == base.generation
    assert [(one.seq, one.bundle) for one in offers.offered(left / "repository")] == [(1, tuned.id), (2, base.id)]
    assert slots_command.main(["--state", str(left / "state"), "--json"]) == 0
    slots = json.loads(capsys.readouterr().out)
    assert (slots["seq"], slots["current"], slots["previous"]) == (2, base.id, tuned.id)
    journal = Journal(left / "state/slots.db", read_only=True)
    assert [step.step for step in journal.tail(1000)][:3] == ["ingest", "built", "factory"]
    journal.close()


def answered_by(url: str) -> str:
    """Return the generation that answers."""
    body = {"messages": [{"role": "user", "content": "A tea, please."}], "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["fieldlm"]["generation"])
