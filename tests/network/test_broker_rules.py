"""The rules for Mosquitto that come with fieldlm, tried: who may say what; and what of a broker's URL is used."""

import queue
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fieldlm.core.errors import UnavailableError
from fieldlm.formats import topics
from fieldlm.formats.release import Pointer
from fieldlm.network.mqtt import Inbox, Link, Received, leave
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.repository.publish import announce
from tests.support.brokers import Mosquitto
from tests.support.certificate import certificate

RULES = Path(__file__).resolve().parents[2] / "packaging" / "broker" / "mosquitto.acl"
PASSWORD, IN_A_URL = "p@ss/word:1%", "p%40ss%2Fword%3A1%25"
FLEET, ONE, TWO = "default", "kiosk-1", "kiosk-2"
HELLO = topics.Hello(device=ONE, epoch=7, first={"gen": 1}, last={"gen": 0}, nonce="n")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    folder = tmp_path_factory.mktemp("broker")
    users = folder / "users"
    for name in (ONE, TWO, "collector", "publisher"):
        command = ["mosquitto_passwd", *([] if users.exists() else ["-c"]), "-b", str(users), name, PASSWORD]
        subprocess.run(command, check=True, capture_output=True)
    tls = certificate(folder)
    files = f"cafile {tls.certificate}\ncertfile {tls.certificate}\nkeyfile {tls.key}\n"
    made = Mosquitto(folder, f"password_file {users}\nacl_file {RULES}\n{files}", is_open=False)
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def trusted(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(broker.folder / "cert.pem"))


def url(broker: Mosquitto, user: str, password: str = IN_A_URL) -> str:
    return f"mqtts://{user}:{password}@localhost:{broker.port}"


def link(broker: Mosquitto, user: str, inbox: Inbox | None = None) -> Link:
    return Link(url(broker, user), client_id=f"{user}-x", session_expiry_s=0, inbox=inbox or queue.SimpleQueue())


MAY = {
    ONE: [topics.hello_topic(FLEET, ONE), topics.block_topic(FLEET, ONE, "gen"), topics.up(FLEET, ONE, "res/1")],
    "collector": [topics.ack_topic(FLEET, ONE)],
    "publisher": [topics.release_topic(FLEET, "test"), topics.policy_topic(FLEET), topics.command_topic(FLEET, ONE)],
}
TOPICS = sorted({topic for own in MAY.values() for topic in own})


@pytest.mark.parametrize("user", [TWO, *MAY])
def test_each_may_say_what_is_its_own_and_nothing_else(broker: Mosquitto, user: str) -> None:
    taken, refusals = list[str](), list[str]()
    with link(broker, user) as one:
        for topic in TOPICS:
            try:
                one.publish(topic, b"x", wait_s=60)
            except UnavailableError as error:
                refusals.append(str(error))
            else:
                taken.append(topic)
    assert all("Not authorized" in said and PASSWORD not in said for said in refusals)
    assert taken == sorted(MAY.get(user, []))


def test_a_device_hears_the_collectors_answer_and_a_neighbour_does_not(broker: Mosquitto, tmp_path: Path) -> None:
    own: Inbox = queue.SimpleQueue()
    others: Inbox = queue.SimpleQueue()
    with (
        Store(tmp_path) as store,
        Collector(url(broker, "collector"), FLEET, store),
        link(broker, ONE, own) as device,
        link(broker, TWO, others) as neighbour,
    ):
        for each in (device, neighbour):
            each.subscribe([topics.ack_topic(FLEET, ONE), topics.command_topic(FLEET, ONE), topics.policy_topic(FLEET)])
        while True:  # the collector may not have subscribed yet
            device.publish(topics.hello_topic(FLEET, ONE), msgspec.json.encode(HELLO), wait_s=60)
            try:
                answer = own.get(timeout=1)
                break
            except queue.Empty:
                continue
        assert isinstance(answer, Received)
        assert topics.parse_ack(answer.payload).nonce == "n"
        # What comes last of the broker, and to both, says that nothing else is on its way.
        leave(url(broker, "publisher"), topics.policy_topic(FLEET), b"policy")
        heard = others.get(timeout=60)
    assert isinstance(heard, Received)
    assert heard.topic == topics.policy_topic(FLEET)


def test_an_announcement_uses_user_password_and_tls_of_the_url(broker: Mosquitto) -> None:
    topic, inbox = topics.release_topic(FLEET, "announced"), queue.SimpleQueue()
    pointer = Pointer(seq=4, profile="announced")
    for wrong in (url(broker, "publisher", "wrong"), url(broker, ONE), f"mqtts://localhost:{broker.port}"):
        with pytest.raises(UnavailableError, match="the release is published, but") as caught:
            announce(pointer, wrong, topic=topic)
        assert IN_A_URL not in str(caught.value)
    announce(pointer, url(broker, "publisher"), topic=topic)
    with link(broker, ONE, inbox) as device:
        device.subscribe([topic])
        heard = inbox.get(timeout=60)
    assert msgspec.json.decode(heard.payload, type=Pointer) == pointer
