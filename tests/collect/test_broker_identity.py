"""What speaks to a broker from a workshop does so where an authority of one's own vouches and asks for certificates."""

from pathlib import Path

import pytest

from fieldlm.cli.main import main
from fieldlm.formats import topics
from fieldlm.network.broker_identity import Identity
from fieldlm.network.mqtt import Inbox, Link, Received, leave
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store
from tests.support.brokers import mosquitto
from tests.support.certificate import Authority
from tests.support.waiting import PATIENCE_S, wait_until


def demanding(authority: Authority) -> list[str]:
    """Return the settings of a broker that asks everybody for a certificate."""
    certificate, key = authority.issue("broker")
    lines = [f"cafile {authority.ca}", f"certfile {certificate}", f"keyfile {key}"]
    return [*lines, "require_certificate true", "allow_anonymous true"]


def test_a_collector_shows_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("workshop")
    mine = Identity(ca=authority.ca, cert=certificate, key=key)
    with mosquitto(tmp_path, *demanding(authority), tls=True) as url, Store(tmp_path / "store") as store:
        leave(url, topics.up("shop", "kiosk-1", "state"), b'{"online": true}', identity=mine)
        with Collector(url, "shop", store, identity=mine) as collector:
            wait_until(lambda: collector.totals.messages)
        assert "kiosk-1" in store.presence()


def test_a_policy_reaches_such_a_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("workshop")
    policy = tmp_path / "policy.toml"
    policy.write_text('fleet = "shop"\nversion = 1\ntelemetry = "metrics"\n')
    monkeypatch.setenv("FIELDLM_BROKER_CA", authority.ca)
    said = ["policy", str(policy), "--key", str(tmp_path / "policy.pem"), "--broker-cert", certificate]
    inbox: Inbox = Inbox()
    with mosquitto(tmp_path, *demanding(authority), tls=True) as url:
        assert main([*said, "--publish", url]) == 2, "a certificate without its key"
        assert "cannot be used" in capsys.readouterr().err
        assert main([*said, "--publish", url, "--broker-key", key]) == 0
        mine = Identity(ca=authority.ca, cert=certificate, key=key)
        with Link(url, client_id="reader", session_expiry_s=0, inbox=inbox, identity=mine) as link:
            link.subscribe([topics.policy_topic("shop")])
            message = inbox.get(timeout=PATIENCE_S)
    assert isinstance(message, Received)
    assert message.topic == topics.policy_topic("shop")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("publish new --to new-repository", "--announce"),
        ("rollout start --to . --store new", "--broker"),
        ("policy policy.toml", "--publish"),
        ("logs kiosk-1", "--broker"),
        ("update", "--broker"),
        ("slots", "--broker"),
    ],
)
def test_a_certificate_for_no_broker_is_refused(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").write_text('fleet = "shop"\nversion = 1\ntelemetry = "metrics"\n')
    authority = Authority(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([*command.split(), "--broker-ca", authority.ca]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--broker-ca {authority.ca} is for a broker" in line
    assert f"give {option}, too" in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["update", "slots", "logs", "rollback"])
def test_a_broker_without_a_device_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--broker", "mqtt://127.0.0.1:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--broker mqtt://127.0.0.1:1 reaches a device by its id" in line


COMMANDS = [
    "collect --store new",
    "publish new --to new-repository",
    "rollout start --to . --store new",
    "policy policy.toml --publish mqtts://127.0.0.1:1",
    "logs kiosk-1 --broker mqtts://127.0.0.1:1",
]
WRONG = {
    "--broker-ca none.pem": "none.pem",
    "--broker-ca policy.toml": "policy.toml",
    "--broker-key policy.toml": "give --broker-cert, too",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("options", WRONG)
def test_a_file_that_is_no_certificate_is_said_before_any_work(
    command: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").write_text('fleet = "shop"\nversion = 1\ntelemetry = "metrics"\n')
    assert main([*command.split(), *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert WRONG[options] in line
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]
