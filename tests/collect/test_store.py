import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from fieldlm.core.errors import InputError
from fieldlm.core.files import held_lock
from fieldlm.formats import block, topics
from fieldlm.formats.block import Block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.collect import CollectTotals, MqttMessage, main, parse_shards, take_in
from fieldlm_compiler.collect.parquet import Store


def records(first: int, last: int, *, device: str = "kiosk-1", stream: str = "gen") -> list[Record]:
    kind = {"gen": "generation", "sys": "drop"}[stream]
    return [
        msgspec.convert({"device": device, "epoch": 7, "stream": stream, "seq": seq, "kind": kind}, Record)
        for seq in range(first, last + 1)
    ]


def message(made: Sequence[Record], *, first: int | None = None, device: str = "") -> MqttMessage:
    topic = topics.block_topic("shop", device or made[0].device, made[0].stream)
    return MqttMessage(topic, block.encode(made, first=first))


def blocks(*messages: MqttMessage) -> list[Block]:
    return [block.parse(message.payload) for message in messages]


def seqs(store: Store) -> list[int]:
    return [row["seq"] for row in store.query("SELECT seq FROM records ORDER BY seq")]


def test_rows_and_watermark_are_committed_together(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.append(blocks(message(records(1, 3)))) == {("kiosk-1", 7, "gen"): 3}
    with Store(tmp_path, read_only=True) as again:
        assert (seqs(again), again.watermark(("kiosk-1", 7, "gen"))) == ([1, 2, 3], 3)


def test_blocks_that_come_twice_or_overlap_are_stored_once(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(blocks(message(records(1, 3)), message(records(1, 3)), message(records(2, 5))))
        store.append(blocks(message(records(4, 5))))
        assert seqs(store) == [1, 2, 3, 4, 5]


def test_a_block_from_beyond_the_watermark_waits_until_the_rest_has_come(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.append(blocks(message(records(4, 6)))) == {("kiosk-1", 7, "gen"): 0}
        assert seqs(store) == []
        store.append(blocks(message(records(1, 3)), message(records(4, 6))))
        assert seqs(store) == [1, 2, 3, 4, 5, 6]


def test_rows_are_the_same_before_and_after_compaction(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        made = [msgspec.structs.replace(r, answer="é", detail={"a": "b"}, margin=0.5) for r in records(1, 3)]
        store.append(blocks(message(made)))
        before = store.query("SELECT * FROM records ORDER BY seq")
        assert store.compact()
        assert store.query("SELECT * FROM records ORDER BY seq") == before
        store.append(blocks(message(records(4, 4))))
        assert seqs(store) == [1, 2, 3, 4]


def test_a_parquet_file_that_a_killed_compaction_left_is_swept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(blocks(message(records(1, 3))))
        path = store.compact()
    assert path
    stray = path.with_name("stray.parquet")
    stray.write_bytes(path.read_bytes())
    with Store(tmp_path, read_only=True) as reader:
        assert seqs(reader) == [1, 2, 3]
        assert stray.exists()
    with Store(tmp_path) as store:
        assert seqs(store) == [1, 2, 3]
        assert not stray.exists()


CRASHES = """
import os, sys
from pathlib import Path
from fieldlm_compiler.collect.parquet import Store
from fieldlm.formats import block
from fieldlm.formats.record import Record
calls = 0
def audit(event, args):
    global calls
    if event in ("os.rename", "open", "os.remove") and str(args[0]).startswith(sys.argv[1]):
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
store = Store(Path(sys.argv[1]))
sys.addaudithook(audit)
for seq in range(1, 5):
    made = [Record(device="k", epoch=1, stream="gen", seq=seq, kind="generation")]
    store.append([block.parse(block.encode(made))])
    print(seq, flush=True)
    if seq % 2 == 0:
        store.compact()
print("end", flush=True)
"""


def test_a_kill_at_any_file_operation_of_a_compaction_neither_loses_nor_doubles(tmp_path: Path) -> None:
    for crash_at in range(1, 40):
        folder = tmp_path / str(crash_at)
        args = [sys.executable, "-c", CRASHES, str(folder), str(crash_at)]
        said = subprocess.run(args, capture_output=True, text=True, check=False).stdout.split()
        with Store(folder) as store:
            stored = seqs(store)
            assert stored == list(range(1, len(stored) + 1))
            assert len(stored) >= int([line for line in said if line != "end"][-1])
            assert store.gaps() == []
        if "end" in said:
            return
    pytest.fail("it never came to the end")


def test_missing_numbers_are_told_or_lost(tmp_path: Path) -> None:
    detail = {"stream": "gen", "from": "2", "to": "6", "count": "2", "reason": "spool-full"}
    drop = msgspec.structs.replace(records(1, 1, stream="sys")[0], detail=detail)
    kept = [r for r in records(1, 10) if r.seq not in (2, 4, 8)]
    with Store(tmp_path) as store:
        store.append(blocks(message(kept, first=1), message([drop])))
        (gap,) = store.gaps()
        assert (gap.told, gap.lost, gap.ranges) == (2, 1, ((8, 8),))


def test_a_drop_record_explains_no_more_than_it_counts(tmp_path: Path) -> None:
    detail = {"stream": "gen", "from": "1", "to": "9", "count": "1", "reason": "spool-full"}
    drop = msgspec.structs.replace(records(1, 1, stream="sys")[0], detail=detail)
    with Store(tmp_path) as store:
        store.append(blocks(message(records(4, 9), first=1), message([drop])))
        (gap,) = store.gaps()
        assert (gap.told, gap.lost) == (1, 2)


def test_an_unknown_schema_is_kept_raw_acknowledged_and_no_gap(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(block.parse(message(records(1, 3)).payload), schema=99)
    with Store(tmp_path) as store:
        assert store.append([newer]) == {("kiosk-1", 7, "gen"): 3}
        store.append(blocks(message(records(4, 4))))
        assert store.gaps() == []
        assert [(c.records, c.raw) for c in store.counts()] == [(1, 3)]


def test_a_body_that_is_damaged_is_kept_raw_too(tmp_path: Path) -> None:
    broken = msgspec.structs.replace(block.parse(message(records(1, 3)).payload), body=b"nonsense")
    with Store(tmp_path) as store:
        assert store.append([broken]) == {("kiosk-1", 7, "gen"): 3}
        assert store.counts()[0].raw == 3


def hello(device: str, first: int, *, last: int = 9, speaks_for: str = "") -> MqttMessage:
    said = topics.Hello(device=speaks_for or device, epoch=7, first={"gen": first}, last={"gen": last}, nonce="n")
    return MqttMessage(topics.hello_topic("shop", device), msgspec.json.encode(said))


def test_a_hello_is_answered_with_the_watermark_after_the_blocks_before_it(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        replies = take_in(store, "shop", [message(records(1, 3)), hello("kiosk-1", 1)], CollectTotals())
        assert [(reply.ack.upto, reply.ack.nonce) for reply in replies] == [({"gen": 3}, ""), ({"gen": 3}, "n")]
        assert replies[0].topic == "fieldlm/1/shop/kiosk-1/d/ack"


def test_what_a_device_no_longer_has_is_stepped_over_and_counts_as_lost(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        take_in(store, "shop", [hello("kiosk-1", 5)], CollectTotals())
        take_in(store, "shop", [message(records(5, 6))], CollectTotals())
        assert seqs(store) == [5, 6]
        assert [(gap.lost, gap.ranges) for gap in store.gaps()] == [(4, ((1, 4),))]


def test_streams_that_a_hello_makes_up_cost_nothing(tmp_path: Path) -> None:
    made_up = {f"s{number}": 5 for number in range(900)} | {"gen": 3}
    said = topics.Hello(device="kiosk-1", epoch=7, first=made_up, last=made_up, nonce="n")
    with Store(tmp_path) as store:
        heard = MqttMessage(topics.hello_topic("shop", "kiosk-1"), msgspec.json.encode(said))
        (reply,) = take_in(store, "shop", [heard], CollectTotals())
        assert reply.ack.upto == {"gen": 2}
        assert store.watermarks() == {("kiosk-1", 7, "gen"): 2}


def test_gaps_of_many_streams_are_found_in_one_go(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for epoch in range(100):
            store.greet("kiosk-1", 1000 + epoch, {"gen": 5}, {"gen": 5})
        asked: list[str] = []
        query = store.query
        store.query = lambda sql, values=(): asked.append(sql) or query(sql, values)
        assert [gap.lost for gap in store.gaps()] == [4] * 100
        assert len(asked) < 5


def foreign_shard() -> MqttMessage:
    good = message(records(1, 1))
    return MqttMessage(good.topic.replace("/9/", "/10/"), good.payload)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (message(records(1, 1), device="kiosk-2"), "kiosk-2 speaks for 'kiosk-1'"),
        (hello("kiosk-2", 1, speaks_for="kiosk-1"), "kiosk-2 speaks for 'kiosk-1'"),
        (foreign_shard(), "belongs to shard 9"),
        (
            MqttMessage(topics.block_topic("shop", "kiosk-1", "ota"), message(records(1, 1)).payload),
            "on the topic of ota",
        ),
        (MqttMessage(topics.block_topic("shop", "kiosk-1", "gen"), b"junk"), "not a block"),
        (MqttMessage(topics.hello_topic("shop", "kiosk-1"), b"{}"), "not a Hello"),
        (hello("kiosk-1", 11), "impossible hello"),
        (hello("kiosk-1", 1 << 62, last=1 << 62), "impossible hello"),
        (MqttMessage(topics.state_topic("shop", "kiosk-1"), b"I am fine"), "not a presence"),
        (
            MqttMessage(topics.state_topic("shop", "kiosk-1"), b'{"a": "' + b"x" * 9000 + b'"}'),
            "a presence of 9009 bytes",
        ),
    ],
)
def test_a_message_that_does_not_fit_its_topic_is_refused_and_the_rest_taken(
    tmp_path: Path, bad: MqttMessage, why: str
) -> None:
    totals = CollectTotals()
    with Store(tmp_path) as store:
        replies = take_in(store, "shop", [bad, message(records(1, 2, device="kiosk-3"))], totals)
        assert [reply.topic for reply in replies] == ["fieldlm/1/shop/kiosk-3/d/ack"]
        assert {count.device for count in store.counts()} == {"kiosk-3"}
    assert totals.refused == 1
    assert why in totals.last_refusal


def test_a_wrong_query_is_an_input_error(tmp_path: Path) -> None:
    with Store(tmp_path) as store, pytest.raises(InputError, match="the query failed"):
        store.query("SELEC 1")


@pytest.mark.parametrize(("text", "shards"), [("0-255", range(256)), ("5", range(5, 6)), ("0-127", range(128))])
def test_shards_are_a_range(text: str, shards: range) -> None:
    assert parse_shards(text) == shards


@pytest.mark.parametrize("text", ["", "a", "5-1", "-1-3", "0-256"])
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_shards(text)


def test_collect_shows_counts_and_answers_no_when_something_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(tmp_path) as store:
        store.append(blocks(message(records(1, 3))))
    assert main(["--store", str(tmp_path), "--show", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["records"] == 3
    with Store(tmp_path) as store:
        store.append(blocks(message(records(5, 6), first=4)))
    assert main(["--store", str(tmp_path), "--show"]) == 1
    assert "5 records, 1 lost" in capsys.readouterr().out
    assert main(["--store", str(tmp_path), "--query", "SELECT count(*) AS n FROM records", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == [{"n": 5}]


def test_a_folder_that_is_no_store_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no store"):
        main(["--store", str(tmp_path / "nothing"), "--show"])
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_refused_and_what_it_would_have_swept_stays(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(blocks(message(records(1, 3))))
        # Between the rename of a file and its listing, as on a slow disk: whoever sweeps now deletes it.
        stray = store.records_folder / "not-listed-yet.parquet"
        stray.write_bytes(b"")
        with pytest.raises(InputError, match="another fieldlm writes to"):
            Store(tmp_path)
        assert stray.exists()
        assert main(["--store", str(tmp_path), "--show"]) == 0
    with Store(tmp_path) as store:
        assert (seqs(store), stray.exists()) == ([1, 2, 3], False)


def test_a_reader_waits_for_the_writer_that_is_making_the_store(tmp_path: Path) -> None:
    (tmp_path / "store.db").touch()
    found = list[list[int]]()

    def read() -> None:
        with Store(tmp_path, read_only=True) as store:
            found.append(seqs(store))

    with held_lock(tmp_path / "store.lock", "the writer of this test"):
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(1)
        assert reader.is_alive()
    reader.join(20)
    assert found == [[]]


def test_nobody_else_on_the_machine_reads_a_store(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Store(tmp_path / "store") as store:
            store.append(blocks(message(records(1, 3))))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "store").rglob("store.db*")}
    assert set(modes.values()) == {0}
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0
