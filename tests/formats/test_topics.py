import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldlm.core.errors import InputError
from fieldlm.formats import topics
from fieldlm.formats.record import WireError
from fieldlm.formats.topics import Ack, Hello, parse_ack, parse_broker, parse_hello, parse_up


def test_a_device_finds_its_own_topic_again() -> None:
    source = parse_up(topics.block_topic("shop", "kiosk-1", "gen"))
    assert (source.fleet, source.device, source.stream) == ("shop", "kiosk-1", "gen")
    assert parse_up(topics.hello_topic("shop", "kiosk-1")).part == "hello"


def test_the_shard_of_a_device_never_changes() -> None:
    assert topics.shard("kiosk-1") == 9


def test_a_topic_of_another_shard_is_refused() -> None:
    with pytest.raises(WireError, match="belongs to shard 9"):
        parse_up("fieldlm/1/shop/80/kiosk-1/t/gen")


@given(st.text(max_size=60))
def test_any_other_topic_raises_one_kind_of_error(topic: str) -> None:
    with pytest.raises(WireError):
        parse_up(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "x" * 65, "-a"])
def test_a_name_that_would_break_a_topic_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        topics.state_topic("shop", name)


def test_all_shards_are_three_subscriptions_and_some_are_three_each() -> None:
    assert topics.collector_filters("shop", range(256))[0] == "fieldlm/1/shop/+/+/t/+"
    assert len(topics.collector_filters("shop", range(128))) == 3 * 128


def test_hello_and_ack_come_back_equal() -> None:
    hello = Hello(device="kiosk-1", epoch=5, first={"gen": 3}, last={"gen": 9}, nonce="ab")
    ack = Ack(epoch=5, upto={"gen": 9})
    assert parse_hello(msgspec.json.encode(hello)) == hello
    assert parse_ack(msgspec.json.encode(ack)) == ack


@given(st.binary(max_size=100))
def test_garbage_is_neither_hello_nor_ack(message: bytes) -> None:
    for parse in (parse_hello, parse_ack):
        with pytest.raises(WireError):
            parse(message)


@pytest.mark.parametrize("first", ['{"gen":0}', '{"gen":-1}', '{"gen":99999999999999999999}'])
def test_an_impossible_hello_is_refused(first: str) -> None:
    with pytest.raises(WireError):
        parse_hello(f'{{"device":"k","epoch":1,"first":{first},"last":{{}}}}'.encode())


@pytest.mark.parametrize("upto", ['{"gen":-1}', '{"gen":99999999999999999999}'])
def test_an_impossible_acknowledgement_is_refused(upto: str) -> None:
    with pytest.raises(WireError):
        parse_ack(f'{{"epoch":1,"upto":{upto}}}'.encode())


def test_a_message_of_another_version_is_refused() -> None:
    with pytest.raises(WireError, match="version 2"):
        parse_ack(b'{"v":2,"epoch":1,"upto":{}}')


def test_a_broker_url_says_where_and_how() -> None:
    assert str(parse_broker("mqtt://10.0.0.1")) == "10.0.0.1:1883"
    address = parse_broker("mqtts://user:secret@broker.example:9999")
    assert (address.port, address.tls, address.user, address.password) == (9999, True, "user", "secret")


@pytest.mark.parametrize("url", ["", "http://x", "mqtt://", "mqtt://x:port", "127.0.0.1:1883", "mqtt://u:secret@x/p"])
def test_a_wrong_broker_url_is_refused_without_repeating_a_password(url: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_broker(url)
    assert "secret" not in str(caught.value)
