"""The device's half of the protocol, spoken without a network: tests/feedback has it over real brokers."""

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest

from fieldlm.cli.broker import free_port
from fieldlm.core.errors import InputError
from fieldlm.formats import block, topics
from fieldlm.formats.record import Record
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync
from fieldlm.telemetry.sync_session import BLOCK_RECORDS, WINDOW, OutgoingMessage, SyncSession, SyncTotals, Timing

TIMING = Timing(ack_s=10, linger_s=2)


def filled(path: Path, count: int, stream: str = "gen") -> Spool:
    spool = Spool(path / "spool.db")
    for _ in range(count):
        while not spool.append(Record(device="kiosk-1", stream="gen", kind="generation")):
            spool.flush()
    spool.flush()
    return spool


def conversation(spool: Spool) -> SyncSession:
    return SyncSession(spool, "shop", "kiosk-1", TIMING, SyncTotals())


def hello(messages: list[OutgoingMessage]) -> topics.Hello:
    (message,) = messages
    return topics.parse_hello(message.payload)


def spans(messages: list[OutgoingMessage]) -> list[tuple[int, int]]:
    return [(made.first, made.last) for made in (block.parse(message.payload) for message in messages)]


def answer(talk: SyncSession, spool: Spool, upto: int, nonce: str = "") -> None:
    ack = topics.Ack(epoch=spool.epoch, upto={"gen": upto}, nonce=nonce)
    talk.acknowledged(topics.parse_ack(msgspec.json.encode(ack)))


def test_nothing_is_sent_before_the_hello_is_answered(tmp_path: Path) -> None:
    with filled(tmp_path, 300) as spool:
        talk = conversation(spool)
        said = hello(list(talk.due(0)))
        assert (said.first["gen"], said.last["gen"]) == (1, 300)
        assert list(talk.due(1)) == []
        answer(talk, spool, 0, said.nonce)
        assert spans(list(talk.due(1))) == [(1, 128), (129, 256)]


def test_what_the_collector_has_already_is_deleted_and_not_sent(tmp_path: Path) -> None:
    with filled(tmp_path, 300) as spool:
        talk = conversation(spool)
        answer(talk, spool, 256, hello(list(talk.due(0))).nonce)
        assert spool.counts()["gen"].held == 44
        assert spans(list(talk.due(5))) == []
        assert spans(list(talk.due(8))) == [(257, 300)]


def test_records_wait_for_company_but_not_for_ever(tmp_path: Path) -> None:
    with filled(tmp_path, 5) as spool:
        talk = conversation(spool)
        answer(talk, spool, 0, hello(list(talk.due(0))).nonce)
        assert list(talk.due(0)) == []
        assert list(talk.due(1.9)) == []
        assert spans(list(talk.due(2.1))) == [(1, 5)]


def test_critical_records_do_not_wait(tmp_path: Path) -> None:
    with filled(tmp_path, 5) as spool:
        spool.append(Record(device="kiosk-1", stream="fb", kind="feedback"))
        spool.flush()
        talk = conversation(spool)
        answer(talk, spool, 0, hello(list(talk.due(0))).nonce)
        (message,) = talk.due(0)
        assert message.topic == topics.block_topic("shop", "kiosk-1", "fb")


def test_only_a_window_of_blocks_is_on_the_way(tmp_path: Path) -> None:
    with filled(tmp_path, BLOCK_RECORDS * (WINDOW + 3)) as spool:
        talk = conversation(spool)
        answer(talk, spool, 0, hello(list(talk.due(0))).nonce)
        assert len(list(talk.due(0))) == WINDOW
        assert list(talk.due(1)) == []
        answer(talk, spool, 2 * BLOCK_RECORDS)
        assert len(list(talk.due(1))) == 2


def test_what_is_not_acknowledged_in_time_is_sent_again_after_a_new_hello(tmp_path: Path) -> None:
    with filled(tmp_path, 128) as spool:
        talk = conversation(spool)
        answer(talk, spool, 0, hello(list(talk.due(0))).nonce)
        assert spans(list(talk.due(0))) == [(1, 128)]
        assert list(talk.due(9)) == []
        said = hello(list(talk.due(11)))
        answer(talk, spool, 0, said.nonce)
        assert spans(list(talk.due(11))) == [(1, 128)]
        assert talk.totals.resent == 1


def test_an_unanswered_hello_is_said_again(tmp_path: Path) -> None:
    with filled(tmp_path, 1) as spool:
        talk = conversation(spool)
        first = hello(list(talk.due(0)))
        second = hello(list(talk.due(11)))
        assert first.nonce != second.nonce
        answer(talk, spool, 0, first.nonce)
        assert list(talk.due(15)) == []


def test_an_acknowledgement_of_another_epoch_deletes_nothing(tmp_path: Path) -> None:
    with filled(tmp_path, 3) as spool:
        talk = conversation(spool)
        list(talk.due(0))
        talk.acknowledged(topics.Ack(epoch=spool.epoch + 1, upto={"gen": 3}))
        assert spool.counts()["gen"].held == 3


def test_an_acknowledgement_goes_no_further_than_what_was_sent(tmp_path: Path) -> None:
    with filled(tmp_path, 300) as spool:
        talk = conversation(spool)
        said = hello(list(talk.due(0)))
        for upto in (1, 300, 1 << 62):
            answer(talk, spool, upto, "somebody else's")
        answer(talk, spool, 301, said.nonce)
        assert (spool.counts()["gen"].held, talk.totals.unbelieved, talk.is_answered) == (300, 2, False)
        answer(talk, spool, 0, said.nonce)
        assert spans(list(talk.due(1))) == [(1, 128), (129, 256)]
        answer(talk, spool, 300)
        assert spool.counts()["gen"].held == 300
        answer(talk, spool, 256)
        assert spool.counts()["gen"].held == 44


def test_a_spool_from_a_backup_whose_numbers_are_used_up_goes_home_under_a_new_epoch(tmp_path: Path) -> None:
    with filled(tmp_path, 10) as spool:
        before, talk = spool.epoch, conversation(spool)
        for now in (0, 11, 22):
            answer(talk, spool, 50, hello(list(talk.due(now))).nonce)
        assert spool.epoch != before
        said = hello(list(talk.due(23)))
        assert (said.epoch, spool.counts()["gen"].held) == (spool.epoch, 10)
        answer(talk, spool, 0, said.nonce)
        list(talk.due(24))
        assert spans(list(talk.due(27))) == [(1, 10)]


def test_a_block_speaks_for_the_numbers_that_were_dropped_before_it(tmp_path: Path) -> None:
    with filled(tmp_path, 10) as spool:
        talk = conversation(spool)
        answer(talk, spool, 2, hello(list(talk.due(0))).nonce)
        with contextlib.closing(sqlite3.connect(tmp_path / "spool.db", isolation_level=None)) as database:
            database.execute("DELETE FROM records WHERE seq IN (3, 4, 7)")
        list(talk.due(0))
        (message,) = talk.due(3)
        assert spans([message]) == [(3, 10)]
        assert [r.seq for r in block.parse(message.payload).records()] == [5, 6, 8, 9, 10]


def test_a_broker_that_is_away_is_named_in_the_status_and_stopping_is_quick(tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    with filled(tmp_path, 1) as spool:
        sync = Sync(spool, broker_url=url, fleet="shop", device="kiosk-1", timing=TIMING)
        sync.start()
        assert not sync.drain(0.3)
        assert url.removeprefix("mqtt://") in sync.status().problem
        sync.stop()
        assert spool.counts()["gen"].held == 1


def test_a_wrong_broker_or_device_name_is_refused_at_once(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        with pytest.raises(InputError):
            Sync(spool, broker_url="http://x", fleet="shop", device="kiosk-1")
        with pytest.raises(InputError):
            Sync(spool, broker_url="mqtt://x", fleet="shop", device="kiosk/1")
