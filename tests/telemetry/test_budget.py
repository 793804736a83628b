"""Bytes a day, quiet hours, hard examples first, poison, and clocks: what is sent when not everything can be."""

import secrets
import time
from pathlib import Path

import msgspec
import pytest

from fieldlm.formats import block, topics
from fieldlm.formats.record import Record
from fieldlm.hardware.board_id import boot_id
from fieldlm.hardware.clock import DAY_MS, Clock, rebased
from fieldlm.telemetry.alerts import troubles
from fieldlm.telemetry.data_budget import Budget
from fieldlm.telemetry.recorder import Recorder
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync_session import OutgoingMessage, SyncSession, SyncTotals, Timing
from tests.telemetry.test_recorder import Exchange

TIMING = Timing(ack_s=10, linger_s=2, poison_s=100)
NOON = time.mktime((2026, 11, 25, 12, 0, 0, 0, 0, -1))


def conversation(spool: Spool, **more: object) -> SyncSession:
    return SyncSession(spool, "shop", "kiosk-1", TIMING, SyncTotals(), **more)  # type: ignore[arg-type]


def answered(talk: SyncSession, now_s: float) -> None:
    """Let the collector answer the hello, with nothing new."""
    hellos = [m for m in talk.due(now_s) if m.topic.endswith("/hello")]
    said = topics.parse_hello(hellos[-1].payload)
    upto = {stream: first - 1 for stream, first in said.first.items()}
    talk.acknowledged(topics.Ack(epoch=said.epoch, upto=upto, nonce=said.nonce))


def records(messages: list[OutgoingMessage]) -> list[Record]:
    return [record for message in messages for record in block.parse(message.payload).records()]


def generation(spool: Spool, **fields: object) -> None:
    known = {"device": "kiosk-1", "stream": "gen", "kind": "generation"} | fields
    assert spool.append(msgspec.convert(known, Record))


def test_the_days_bytes_are_counted_over_restarts_and_begin_again_the_next_day(tmp_path: Path) -> None:
    today = [NOON]
    with Spool(tmp_path / "s.db") as spool:
        budget = Budget(spool, daily_mb=1, now_s=lambda: today[0])
        budget.spend(600_000)
    with Spool(tmp_path / "s.db") as spool:
        budget = Budget(spool, daily_mb=1, now_s=lambda: today[0])
        assert (budget.sent_mb(), budget.is_tight(), budget.allows("gen")) == (0.6, True, True)
        budget.spend(500_000)
        assert (budget.allows("gen"), budget.allows("sys"), budget.allows("fb")) == (False, False, True)
        budget.spend(200_000)
        assert not budget.allows("fb")
        today[0] += 86_400
        assert (budget.sent_mb(), budget.is_tight(), budget.allows("gen")) == (0.0, False, True)


def test_in_quiet_hours_only_what_is_critical_travels(tmp_path: Path) -> None:
    now = [NOON]
    with Spool(tmp_path / "s.db") as spool:
        talk = conversation(spool, budget=Budget(spool, quiet_hours="11:00-13:00", now_s=lambda: now[0]))
        generation(spool)
        assert spool.append(Record(device="kiosk-1", stream="fb", kind="feedback"))
        spool.flush()
        answered(talk, 0)
        assert [r.stream for r in records(list(talk.due(5)))] == ["fb"]
        now[0] += 7200
        list(talk.due(6))
        assert [r.stream for r in records(list(talk.due(9)))] == ["gen"]


def test_when_bytes_are_scarce_hard_examples_keep_their_text_and_easy_ones_their_numbers(tmp_path: Path) -> None:
    with Spool(tmp_path / "s.db") as spool:
        budget = Budget(spool, daily_mb=1, now_s=lambda: NOON)
        talk = conversation(spool, budget=budget)
        for number in range(12):
            detail = {"hard": "margin"} if number % 4 == 0 else {}
            generation(spool, response=f"r{number}", prompt="[1]", answer="tea", detail=detail, prompt_tokens=number)
        assert spool.append(Record(device="kiosk-1", stream="fb", kind="feedback", response="r5", rating="down"))
        spool.flush()
        answered(talk, 0)
        budget.spend(600_000)
        list(talk.due(0))
        sent = [r for r in records(list(talk.due(5))) if r.stream == "gen"]
    assert [r.response for r in sent if r.answer] == ["r0", "r4", "r5", "r8"]
    assert [r.prompt_tokens for r in sent] == list(range(12))
    assert {r.detail.get("text") for r in sent if not r.answer} == {"scarce"}


def test_a_full_disk_gives_up_easy_examples_before_hard_ones(tmp_path: Path) -> None:
    with Spool(tmp_path / "s.db", max_mb=1) as spool:
        for number in range(3000):
            detail = {"hard": "margin"} if number % 10 == 0 else {}
            generation(spool, answer=f"{number:>600}", detail=detail)
            if number % 500 == 0:
                spool.flush()
        assert spool.flush(60)
        held = spool.pending("gen", 0, 5000, max_bytes=1 << 30)
        assert spool.health().dropped["spool-full"] > 1000
    hard = sum("hard" in r.detail for r in held)
    print(f"kept {hard} of 300 hard, {len(held) - hard} of 2700 easy")
    assert hard / 300 > 1.5 * (len(held) - hard) / 2700


def test_a_record_that_a_collector_chokes_on_is_found_given_up_and_told(tmp_path: Path) -> None:
    with Spool(tmp_path / "s.db") as spool:
        for number in range(300):
            generation(spool, response=f"r{number}")
        spool.flush()
        talk, taken, now_s = conversation(spool), set[str](), 0.0
        while spool.ends()["gen"][1] < 300 and now_s < 5000:
            answered(talk, now_s)
            for message in list(talk.due(now_s, hurry=True)):
                if "/t/gen" not in message.topic:
                    continue
                found = block.parse(message.payload)
                names = {r.response for r in found.records()}
                # A collector that answers, takes blocks in order, and will not have the 201st record.
                if "r200" not in names and found.first <= spool.ends()["gen"][1] + 1:
                    taken |= names
                    talk.acknowledged(topics.Ack(epoch=found.epoch, upto={"gen": found.last}))
            now_s += TIMING.ack_s + 1
        assert taken == {f"r{number}" for number in range(300)} - {"r200"}
        told = [r.detail for r in spool.pending("sys", 0, 10) if r.kind == "drop"]
        assert told == [{"stream": "gen", "from": "201", "to": "201", "count": "1", "reason": "refused"}]
        assert [trouble.name for trouble in troubles(spool.health(), None, Clock())] == ["records-refused"]


def test_a_collector_that_is_silent_costs_no_record(tmp_path: Path) -> None:
    with Spool(tmp_path / "s.db") as spool:
        generation(spool)
        spool.flush()
        talk = conversation(spool)
        for now_s in range(0, 100_000, 11):
            list(talk.due(now_s))
        assert spool.counts()["gen"].held == 1


def test_a_message_holds_no_more_than_the_broker_takes(tmp_path: Path) -> None:
    with Spool(tmp_path / "s.db") as spool:
        for _ in range(50):
            generation(spool, answer=secrets.token_hex(500))
        spool.flush()
        talk = conversation(spool, max_bytes=4000)
        answered(talk, 0)
        list(talk.due(0))
        sent = list(talk.due(5, hurry=True))
        assert len(sent) == 4
        assert all(len(message.payload) <= 4000 for message in sent)


@pytest.mark.parametrize("jump_years", [-50, 50])
def test_wrong_times_of_this_boot_are_mended_once_the_clock_is_right(jump_years: int) -> None:
    wall_ms, mono_ms = time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000
    wrong = wall_ms + jump_years * 365 * DAY_MS
    before = Record(
        device="k",
        stream="gen",
        kind="generation",
        wall_ms=wrong,
        mono_ms=mono_ms - 60_000,
        boot="b1",
        clock_ok=jump_years > 0,
    )
    mended = rebased(before, "b1")
    assert abs(mended.wall_ms - (wall_ms - 60_000)) < 5_000
    assert mended.clock_ok
    assert rebased(before, "b2") == before
    right = msgspec.structs.replace(before, wall_ms=wall_ms, clock_ok=True)
    assert rebased(right, "b1") == right


def test_a_device_that_boots_in_1970_sends_the_right_time_after_it_has_learnt_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = time.time_ns
    with Spool(tmp_path / "s.db") as spool:
        recorder = Recorder(spool, device="kiosk-1", mode="metrics", salt=b"")
        monkeypatch.setattr(time, "time_ns", lambda: 10**12)
        recorder.exchange(Exchange(started_wall_s=999.0))
        spool.flush()
        monkeypatch.setattr(time, "time_ns", now_ns)
        (kept,) = spool.pending("gen", 0, 1)
        assert (kept.wall_ms, kept.clock_ok) == (999_000, False)
        talk = conversation(spool, boot=boot_id())
        answered(talk, 0)
        list(talk.due(0))
        (sent,) = [r for r in records(list(talk.due(5))) if r.stream == "gen"]
    assert sent.clock_ok
    assert abs(sent.wall_ms - (now_ns() // 1_000_000 - 1000)) < 30_000
