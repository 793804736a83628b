"""One contract for every sink: what it promises about rows, watermarks, gaps, raw blocks and forgetting."""

import fcntl
import random
import shutil
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, Producer

from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.formats import block
from fieldlm.formats.record import WireError
from fieldlm_compiler.collect import kafka as kafka_sink
from fieldlm_compiler.collect import sink as sinks
from fieldlm_compiler.collect.delta import DeltaStore
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.collect.sink import MOST_EPOCHS, Policy, Sink, without
from tests.support.kafka_cluster import Cluster, cluster
from tests.support.sink_process import KEY, append_for_ever, blocks, forget, forkserver, made, seqs

KILLS = 12
MAGIC = b"\x28\xb5\x2f\xfd"
SECRET = "my sister's flat in Leith"


@pytest.fixture(scope="session")
def kafka() -> Generator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture(params=["parquet", "delta", "kafka"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "kafka":
        return f"kafka:{request.getfixturevalue('kafka').new_topic()}"
    return f"{'delta:' if request.param == 'delta' else ''}{tmp_path / 'store'}"


def test_what_comes_twice_overlaps_or_has_to_wait_is_stored_once(where: str) -> None:
    with open_sink(where) as sink:
        assert sink.append(blocks(made(4, 6))) == {KEY: 0}
        assert sink.append(blocks(made(1, 3), made(1, 3), made(2, 5))) == {KEY: 5}
        assert sink.append(blocks(made(4, 6))) == {KEY: 6}
    with open_sink(where) as again:
        assert again.append(blocks(made(1, 6))) == {KEY: 6}
        assert (seqs(again), again.watermarks(), again.gaps()) == ([1, 2, 3, 4, 5, 6], {KEY: 6}, [])


def test_a_row_is_the_same_after_tidying_up_and_in_another_process(where: str) -> None:
    whole = [msgspec.structs.replace(r, answer="é", detail={"a": "b"}, margin=0.5, clock_ok=False) for r in made(1, 3)]
    with open_sink(where) as sink:
        sink.append(blocks(whole))
        before = sink.query("SELECT * EXCLUDE detail, detail['a'] AS a FROM records ORDER BY seq")
        sink.compact()
        sink.append(blocks(made(4, 4)))
    with open_sink(where, read_only=True) as reader:
        after = reader.query("SELECT * EXCLUDE detail, detail['a'] AS a FROM records WHERE seq < 4 ORDER BY seq")
        assert after == before
        assert seqs(reader) == [1, 2, 3, 4]


def test_a_hello_steps_over_what_will_never_come_and_says_so(where: str) -> None:
    with open_sink(where) as sink:
        assert sink.greet("kiosk-1", 7, {"gen": 5, "fb": 1}) == {"gen": 4, "fb": 0}
        sink.append(blocks(made(5, 6)))
        # A range that no computer could count through must not be counted through.
        assert sink.greet("kiosk-1", 7, {"gen": 1 << 60}) == {"gen": (1 << 60) - 1}
    with open_sink(where) as again:
        assert again.greet("kiosk-1", 7, {"gen": 1}) == {"gen": (1 << 60) - 1}
        (gap,) = again.gaps()
        assert (gap.told, gap.ranges) == (0, ((1, 4), (7, (1 << 60) - 1)))
        assert gap.lost == (1 << 60) - 3


LIE = 1 << 40


@pytest.mark.parametrize("is_noticed_by", ["a block", "a hello", "a block that it cut"])
def test_what_a_forged_hello_stepped_over_is_taken_when_the_device_has_it_after_all(
    where: str, is_noticed_by: str
) -> None:
    first = 6 if is_noticed_by == "a block that it cut" else LIE
    with open_sink(where) as sink:
        sink.append(blocks(made(1, 3)))
        assert sink.greet("kiosk-1", 7, {"gen": first}, {"gen": first}) == {"gen": first - 1}
    with open_sink(where) as sink:
        if is_noticed_by == "a hello":
            assert sink.greet("kiosk-1", 7, {"gen": 4}, {"gen": 9}) == {"gen": 3}
        assert sink.append(blocks(made(4, 9))) == {KEY: 9}
        assert sink.append(blocks(made(4, 9), made(8, 12))) == {KEY: 12}
    with open_sink(where, read_only=True) as reader:
        assert (seqs(reader), reader.watermarks(), reader.gaps()) == ([*range(1, 13)], {KEY: 12}, [])


def test_epochs_that_hellos_make_up_are_bounded_and_a_true_one_goes_on(where: str, tmp_path: Path) -> None:
    last = 1000 + MOST_EPOCHS + 20
    with open_sink(where) as sink:
        sink.append(blocks(made(1, 3)))
        for epoch in range(1000, last + 1):
            assert sink.greet("kiosk-1", epoch, {"gen": 5}, {"gen": 9}) == {"gen": 4}
        assert sink.greet("kiosk-2", 1, {"gen": 5}, {"gen": 9}) == {"gen": 4}
        marks = {KEY: 3, ("kiosk-2", 1, "gen"): 4}
        marks |= {("kiosk-1", epoch, "gen"): 4 for epoch in range(last - MOST_EPOCHS + 1, last + 1)}
        assert sink.watermarks() == marks
        late = [msgspec.structs.replace(record, epoch=last) for record in made(5, 6)]
        assert sink.append(blocks(late)) == {("kiosk-1", last, "gen"): 6}
    assert len(list(tmp_path.rglob("_delta_log/*.json"))) < 10, "what stays for ever in a log is what was stored"
    with open_sink(where) as again:
        assert again.append(blocks(late, made(1, 4))) == {("kiosk-1", last, "gen"): 6, KEY: 4}
        assert again.watermarks().items() <= (marks | {("kiosk-1", last, "gen"): 6, KEY: 4}).items()
        # One whose hello was forgotten meanwhile is refused until it says hello again.
        early = [msgspec.structs.replace(record, epoch=1000) for record in made(5, 6)]
        assert again.append(blocks(early)) == {("kiosk-1", 1000, "gen"): 0}
        assert again.greet("kiosk-1", 1000, {"gen": 5}, {"gen": 6}) == {"gen": 4}
        assert again.append(blocks(early)) == {("kiosk-1", 1000, "gen"): 6}
        assert [gap.lost for gap in again.gaps() if gap.epoch in (1000, last)] == [4, 4]


def test_what_comes_late_from_before_a_true_step_is_not_stored_twice(where: str) -> None:
    with open_sink(where) as sink:
        sink.append(blocks(made(1, 3)))
        assert sink.greet("kiosk-1", 7, {"gen": 10}, {"gen": 20}) == {"gen": 9}
        assert sink.append(blocks(made(10, 20))) == {KEY: 20}
        assert sink.append(blocks(made(4, 6), made(10, 20), made(15, 22))) == {KEY: 22}
        assert sink.greet("kiosk-1", 7, {"gen": 10}, {"gen": 20}) == {"gen": 22}
        assert seqs(sink) == [1, 2, 3, *range(10, 23)]


def test_an_unknown_schema_is_kept_raw_acknowledged_and_no_gap(where: str) -> None:
    newer = msgspec.structs.replace(blocks(made(1, 3))[0], schema=99)
    with open_sink(where) as sink:
        assert sink.append([newer, newer]) == {KEY: 3}
        sink.append(blocks(made(4, 4)))
        for _ in range(2):
            assert [(raw.block, raw.problem) for raw in sink.raw()] == [(newer, "unknown schema")]
            assert (sink.gaps(), [(c.records, c.raw) for c in sink.counts()]) == ([], [(1, 3)])
            sink.compact()


def test_the_last_presence_of_a_device_is_kept(where: str) -> None:
    with open_sink(where) as sink:
        sink.note_presence("kiosk-1", '{"state":"ready"}')
        sink.tidy(finish=True)
        sink.note_presence("kiosk-1", '{"state":"lost"}')
        assert sink.presence() == {"kiosk-1": '{"state":"lost"}'}
        sink.tidy(finish=True)
    with open_sink(where, read_only=True) as reader:
        assert reader.presence() == {"kiosk-1": '{"state":"lost"}'}


def test_names_that_messages_make_up_are_bounded_and_those_that_are_known_go_on(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "MOST_DEVICES", 2)
    for state in ('{"state":"ready"}', '{"state":"lost"}'):
        with open_sink(where) as sink:
            for name in ("kiosk-1", "kiosk-2"):
                sink.note_presence(name, state)
            with pytest.raises(WireError, match="the limit is 2"):
                sink.note_presence("made-up", state)
            assert sink.presence() == dict.fromkeys(("kiosk-1", "kiosk-2"), state)


def texts(sink: Sink) -> list[tuple[str, str]]:
    return [(r["session"], r["answer"]) for r in sink.query("SELECT session, answer FROM records ORDER BY seq")]


def test_a_forgotten_session_loses_its_text_also_what_comes_late(where: str) -> None:
    mine, others = made(1, 2, session="s1", answer=SECRET), made(3, 3, session="s2", answer="tea")
    with open_sink(where) as sink:
        sink.append(blocks([*mine, *others]))
        sink.tidy(finish=True)
        sink.append(blocks(forget("s1")))
        assert {answer for session, answer in texts(sink) if session == "s1"} == {""}
        sink.append(blocks(made(4, 4, session="s1", answer=SECRET)))
        assert ("s2", "tea") in texts(sink)
    with open_sink(where) as again:
        again.append(blocks(made(5, 5, session="s1", answer=SECRET)))
        again.tidy(finish=True)
        kept = again.query("SELECT seq, answer FROM records WHERE kind = 'generation' ORDER BY seq")
        assert [row["answer"] for row in kept] == ["", "", "tea", "", ""]
        assert again.gaps() == []


def test_nobody_can_have_another_devices_customers_forgotten(where: str) -> None:
    with open_sink(where) as sink:
        sink.append(blocks(made(1, 1, session="s1", answer=SECRET)))
        sink.append(blocks(forget("s1", device="kiosk-2")))
        sink.tidy(finish=True)
        assert ("s1", SECRET) in texts(sink)


def test_after_a_session_was_forgotten_the_store_opens_and_answers_every_query(where: str) -> None:
    mixed = [msgspec.structs.replace(r, stream="sys", kind="system") for r in made(1, 2, session="s1", answer=SECRET)]
    mixed[1] = msgspec.structs.replace(mixed[1], kind="sketch", session="s2", answer="")
    with open_sink(where) as sink:
        sink.append(blocks(mixed, made(1, 1, session="s1", answer=SECRET), made(2, 2, session="s2", answer="kept")))
        sink.append(blocks(forget("s1")))
        sink.tidy(finish=True)
    with open_sink(where) as again:
        for sql, count in (
            ("kind <> 'forget'", 4),
            ("session = 's1' AND kind <> 'forget'", 2),
            ("session IN ('s1', 's2') AND answer = 'kept'", 1),
            ("stream = 'sys' AND kind = 'sketch'", 1),
            ("answer LIKE 'my sister%'", 0),
        ):
            assert again.query(f"SELECT count(*) AS n FROM records WHERE {sql}") == [{"n": count}], sql
        assert again.append(blocks(made(3, 3, session="s1", answer=SECRET))) == {KEY: 3}
        assert again.query("SELECT count(*) AS n FROM records WHERE session = 's1' AND answer <> ''") == [{"n": 0}]


def test_two_who_compact_one_delta_store_do_not_double_its_rows(tmp_path: Path) -> None:
    with DeltaStore(str(tmp_path)) as one, DeltaStore(str(tmp_path)) as other:
        for seq in range(1, 5):
            one.append(blocks(made(seq, seq)))
        with (tmp_path / "compact.lock").open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="another fieldlm compacts"):
                other.compact()
        other.compact()
        one.compact()
        assert seqs(one) == [1, 2, 3, 4]


def test_a_kill_at_any_time_neither_loses_nor_doubles(where: str) -> None:
    rng = random.Random(5)
    acknowledged = 0
    for _ in range(KILLS):
        reader, writer = forkserver.Pipe(duplex=False)
        process = forkserver.Process(target=append_for_ever, args=(where, writer))
        process.start()
        writer.close()
        acknowledged = max(acknowledged, reader.recv())
        process.join(rng.random() * 0.2)
        process.kill()
        process.join()
        while reader.poll():
            try:
                acknowledged = reader.recv()
            except EOFError:
                break
        reader.close()
        with open_sink(where, read_only=True) as sink:
            stored = seqs(sink)
            assert stored == list(range(1, len(stored) + 1))
            assert len(stored) >= acknowledged
            assert (sink.watermarks()[KEY], sink.gaps()) == (len(stored), [])
    assert acknowledged > KILLS * 10


@pytest.mark.parametrize("where", ["delta", "kafka"], indirect=True)
def test_two_collectors_that_take_the_same_device_for_theirs_store_it_once(where: str) -> None:
    with open_sink(where) as one, open_sink(where) as other:
        assert other.watermarks() == {}
        assert one.greet("kiosk-1", 7, {"gen": 1}) == other.greet("kiosk-1", 7, {"gen": 1}) == {"gen": 0}
        assert one.append(blocks(made(1, 4))) == {KEY: 4}
        assert other.append(blocks(made(1, 2), made(3, 6))) == {KEY: 6}
        assert one.append(blocks(made(5, 7))) == {KEY: 7}
        assert seqs(one) == seqs(other) == [1, 2, 3, 4, 5, 6, 7]


def test_blocks_are_read_once_their_schema_is_known(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(blocks(made(1, 3))[0], schema=99)
    with Store(tmp_path) as store:
        store.append([newer])
        store.compact()
    # What a newer collector knows, said by the hand that wrote the block.
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("UPDATE raw SET schema = 1")
    db.close()
    with Store(tmp_path) as store:
        assert (seqs(store), store.raw()) == ([1, 2, 3], [])


def test_many_small_files_become_one(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seq in range(1, 41):
            store.append(blocks(made(seq, seq)))
            store.tidy(finish=True)
        assert len(list(store.records_folder.iterdir())) < 32
        assert seqs(store) == list(range(1, 41))


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).with_name("store_v1"), tmp_path / "store")
    with Store(tmp_path / "store", read_only=True) as store:
        assert (seqs(store), store.watermarks(), store.gaps()) == ([1, 2, 3, 4, 5], {KEY: 5}, [])
    with Store(tmp_path / "store") as store:
        store.append(blocks(made(6, 6)))
        assert seqs(store) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("prefix", ["", "delta:"])
def test_what_is_no_store_is_said_and_left_alone(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fill one with: fieldlm collect"):
        open_sink(f"{prefix}{tmp_path / 'nothing'}", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["kafka"], indirect=True)
@pytest.mark.parametrize("policy", ["text", "rows"])
def test_what_stays_of_a_forgotten_session_when_the_broker_has_compacted_has_no_text(
    where: str, policy: Policy, kafka: Cluster
) -> None:
    with open_sink(where, forget=policy) as sink:
        sink.append(blocks(made(1, 9, session="s1", answer=SECRET), made(10, 12, session="s2", answer="tea")))
        sink.append(blocks(forget("s1")))
        sink.tidy()
        sink.append(blocks(made(13, 14, session="s1", answer=SECRET)))
        assert (len(seqs(sink)), sink.gaps()) == (15, [])
    left = kafka.compacted(where)
    assert len(left) == 4
    assert not any(SECRET in str(block.parse(value).records()) for value in left)
    assert any("tea" in str(block.parse(value).records()) for value in left)


@pytest.mark.parametrize("where", ["kafka"], indirect=True)
def test_every_device_keeps_its_partition_and_any_reader_finds_its_blocks_in_order(where: str, kafka: Cluster) -> None:
    others = [[msgspec.structs.replace(r, device=f"kiosk-{n}") for r in made(1, 4)] for n in range(20)]
    with open_sink(where) as sink:
        for part in ([r[:2] for r in others], [r[2:] for r in others]):
            sink.append(blocks(*part))
    found: dict[str, list[tuple[int, int]]] = {}
    for partition, value in kafka.messages(where):
        found.setdefault(block.parse(value).device, []).append((partition, block.parse(value).first))
    assert len(found) == 20
    assert all(len({p for p, _ in places}) == 1 and [f for _, f in places] == [1, 3] for places in found.values())
    assert len({places[0][0] for places in found.values()}) > 1


@pytest.mark.parametrize("text", ["127.0.0.1:9092", "/topic", "127.0.0.1:9092/a/b", "127.0.0.1:9092/a?b=c"])
def test_what_names_no_topic_is_said(text: str) -> None:
    with pytest.raises(InputError, match="write kafka:HOST:PORT/TOPIC"):
        open_sink(f"kafka:{text}")


def test_the_clients_own_properties_come_from_a_file(tmp_path: Path, kafka: Cluster) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("# how to get in\nsecurity.protocol = PLAINTEXT\nclient.id=collector-7\n")
    where = f"kafka:{kafka.new_topic()}?config={file}"
    with open_sink(where) as sink:
        assert sink.append(blocks(made(1, 2))) == {KEY: 2}
    file.write_text("client.idd=collector-7\n")
    with pytest.raises(FieldlmError, match=r"client\.idd"):
        open_sink(where)
    with pytest.raises(InputError, match="cannot be read"):
        open_sink(f"{where}-2")


def test_no_block_passes_one_that_gives_out_on_the_way(kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watermark is the end of the last block in the topic, so nothing may be there behind a hole."""
    where = f"kafka:{kafka.new_topic()}"
    sent: list[bytes] = []

    class Losing(Producer):
        """Gives the first message back as one that took too long."""

        def produce(self, topic: str, value: bytes, key: bytes, *rest: Any, on_delivery: Any) -> None:  # pyright: ignore
            sent.append(key)
            if len(sent) == 1:
                on_delivery(KafkaError(KafkaError._MSG_TIMED_OUT), None)
            else:
                super().produce(topic, value, key, *rest, on_delivery=on_delivery)

    with monkeypatch.context() as patch:
        patch.setattr(kafka_sink, "Producer", Losing)
        with open_sink(where) as sink:
            with pytest.raises(FieldlmError, match="took no commit"):
                sink.append(blocks(made(1, 3), made(4, 6)))
            assert sent == [b"b/kiosk-1/7/gen/1-3"]
    with open_sink(where) as again:
        assert again.append(blocks(made(1, 3), made(4, 6))) == {KEY: 6}
        assert (seqs(again), again.gaps()) == ([1, 2, 3, 4, 5, 6], [])


def test_a_topic_that_is_not_there_is_not_made_by_who_only_looks(kafka: Cluster) -> None:
    with pytest.raises(InputError, match="fill one with"):
        open_sink(f"kafka:{kafka.brokers}/nothing-{time.time_ns()}", read_only=True)


def test_brokers_that_end_are_named_and_what_was_in_doubt_is_found_out_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_sink, "PATIENCE_S", 1.0)
    with cluster(own=True) as brokers:
        sink = open_sink(f"kafka:{brokers.new_topic()}")
        sink.append(blocks(made(1, 2)))
    with pytest.raises(FieldlmError, match="took no commit"):
        sink.append(blocks(made(3, 4)))
    assert sink.greet("kiosk-1", 7, {"gen": 1}) == {"gen": 2}


def test_ranges_without_others() -> None:
    assert without([(1, 10), (20, 30)], [(3, 4), (9, 22), (40, 50)]) == [(1, 2), (5, 8), (23, 30)]
    assert without([(1, 3)], []) == [(1, 3)]
