"""Text is kept as long as was said, and its figures stay: a search of every file of a store finds nothing older."""

import os
import time
from pathlib import Path

import pytest

from fieldlm.cli.main import main
from fieldlm.core.errors import InputError
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.delta import DeltaStore
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.collect.sink import Sink
from tests.collect.test_forgetting import blocks, holds, seqs
from tests.support.sink_process import made

OLD, NEW, CLOCKLESS = "said in spring", "said just now", "said by a board without a clock"
DAY_MS = 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def opened(kind: str, folder: Path) -> Sink:
    return Store(folder) if kind == "parquet" else DeltaStore(str(folder), erase_after_h=0)


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_text_goes_when_it_is_too_old_and_figures_stay(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with opened(kind, folder) as sink:
        sink.append(blocks(made(1, 9, answer=OLD, prompt=OLD, wall_ms=now_ms() - 40 * DAY_MS, duration_ms=5)))
        sink.append(blocks(made(10, 14, answer=NEW, wall_ms=now_ms())))
        assert sink.expire(now_ms() - 50 * DAY_MS) == 0
        assert sink.expire(now_ms() - 30 * DAY_MS) == 9
        assert not holds(folder, OLD.encode())
        assert (seqs(sink), sink.gaps()) == (list(range(1, 15)), [])
        texts = sink.query(
            "SELECT prompt || answer AS text, count(*) AS n, sum(duration_ms) AS ms FROM records GROUP BY 1"
        )
        assert {row["text"]: row["n"] for row in texts} == {"": 9, NEW: 5}
        assert {row["ms"] for row in texts if not row["text"]} == {45}
        assert sink.expire(now_ms() - 30 * DAY_MS) == 0
    assert not holds(folder, OLD.encode())


def test_a_row_without_a_clock_to_believe_is_as_old_as_its_file_also_after_files_were_joined(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for first in range(1, 40):
            ahead = now_ms() + 400 * DAY_MS if first % 2 else 0
            store.append(blocks(made(first, first, answer=CLOCKLESS, wall_ms=ahead, clock_ok=bool(first % 2))))
            store.compact()
        long_ago_s = time.time() - 40 * 86_400
        for path in (tmp_path / "records").iterdir():
            os.utime(path, (long_ago_s, long_ago_s))
        store.tidy()
        assert len(list((tmp_path / "records").iterdir())) == 1
        assert store.expire(now_ms() - 50 * DAY_MS) == 0
        assert store.expire(now_ms() - 30 * DAY_MS) == 39
        assert not holds(tmp_path, CLOCKLESS.encode())


def test_a_collector_looks_by_itself_and_the_command_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    old = blocks(made(1, 9, answer=OLD, wall_ms=now_ms() - 2 * DAY_MS))
    with Store(store) as sink:
        sink.append(old)
        with Collector("mqtt://127.0.0.1:9", "default", sink, keep_text_ms=DAY_MS):  # nobody listens there
            end_s = time.monotonic() + 60
            while sink.query("SELECT 1 FROM records WHERE answer <> ''") and time.monotonic() < end_s:
                time.sleep(0.05)
        assert not holds(store, OLD.encode())
        sink.append(blocks(made(10, 12, answer=OLD, wall_ms=now_ms() - 2 * DAY_MS)))
    assert main(["collect", "--store", str(store), "--compact", "--keep-text", "24h"]) == 0
    assert not holds(store, OLD.encode())
    assert main(["collect", "--store", str(store), "--keep-text", "a month"]) == 2
    assert "want a number of days or hours, as 30d or 12h" in capsys.readouterr().err


def test_a_topic_of_kafka_has_a_retention_of_its_own() -> None:
    from fieldlm_compiler.collect.kafka import KafkaStore

    with pytest.raises(InputError, match=r"retention\.ms"):
        KafkaStore.expire(object.__new__(KafkaStore), 0)


def test_a_store_is_opened_for_it_as_for_all_else(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "store")) as sink:
        assert sink.expire(now_ms()) == 0
