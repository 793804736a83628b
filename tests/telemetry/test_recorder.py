import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm.telemetry.prompt_context import MOST
from fieldlm.telemetry.quantile_sketch import Sketch, calibration
from fieldlm.telemetry.recorder import TEXT_CHARS, Mode, Recorder, load_salt
from fieldlm.telemetry.spool import Spool

SECRETS = ("Maria", "555-0199", "customer-42")


@dataclass
class Timings:
    cached_tokens: int = 3
    queue_s: float = 0.0014
    margin: float = 1.2345
    min_logprob: float | None = None
    forced_tokens: int = 0


@dataclass
class Exchange:
    id: str = "chatcmpl-1"
    generation: str = "abc"
    model: str = "SmolLM2"
    messages: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"role": "system", "content": "You take orders."},
            {"role": "user", "content": "a latte for Maria, call 555-0199"},
        ]
    )
    context: dict[str, Any] = field(default_factory=dict[str, Any])
    answer: str = '{"name":"order","to":"Maria"}'
    outcome: str = "stop"
    timings: Timings = field(default_factory=Timings)
    started_wall_s: float = 1_760_000_000.0
    duration_s: float = 0.25
    ttft_s: float | None = 0.06
    session: str | None = "customer-42"
    consent: str | None = "yes-7"
    route: str | None = "local"
    prompt_tokens: int = 20
    completion_tokens: int = 9
    used_fallback: bool = False
    confidence: float | None = None
    is_unsure: bool | None = None
    adapter: str = ""
    answered_by: str = ""


TERMS = ("yes-7",)
"""What the owner lists as consent."""


def recorded(tmp_path: Path, mode: Mode, exchange: Exchange, correction: str | None = None) -> list[Record]:
    tmp_path.mkdir(exist_ok=True)
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="kiosk-1", mode=mode, salt=b"salt", consents=TERMS)
        recorder.exchange(exchange)
        if correction is not None:
            assert recorder.feedback(exchange.id, "down", correction)
        spool.flush()
        return spool.pending("gen", 0, 10) + spool.pending("fb", 0, 10)


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_metrics_mode_keeps_numbers_and_writes_no_text_to_the_disk(tmp_path: Path) -> None:
    (found, said) = recorded(tmp_path, "metrics", Exchange(), correction="a tea for Maria")
    assert (found.prompt, found.answer, said.correction) == ("", "", "")
    assert (found.prompt_tokens, found.cached_tokens, found.ttft_ms, found.queue_ms) == (20, 3, 60.0, 1.4)
    assert (said.rating, said.detail) == ("down", {"corrected": "yes"})
    assert not [secret for secret in (*SECRETS, "latte", "tea") if secret.encode() in on_disk(tmp_path)]


def test_which_of_several_adapters_answered_is_told(tmp_path: Path) -> None:
    (found,) = recorded(tmp_path, "metrics", Exchange(adapter="orders"))
    assert found.detail == {"adapter": "orders"}


def test_how_many_tokens_a_form_forced_is_told(tmp_path: Path) -> None:
    (found,) = recorded(tmp_path, "metrics", Exchange(timings=Timings(forced_tokens=9)))
    assert found.detail == {"forced": "9"}


def test_that_a_classifier_answered_is_told(tmp_path: Path) -> None:
    (found,) = recorded(tmp_path, "metrics", Exchange(answered_by="classifier"))
    assert found.detail == {"answered_by": "classifier"}


def test_metrics_mode_sends_no_text_either(tmp_path: Path) -> None:
    (found, said) = recorded(tmp_path, "metrics", Exchange(), correction="a tea for Maria")
    for record in (found, said):
        sent = block.parse(block.encode([record]))
        wire = bytes(sent.body) + zstd.decompress(sent.body) + repr(sent.records()).encode()
        assert sent.device.encode() in repr(sent.records()).encode()
        assert not [secret for secret in (*SECRETS, "latte", "tea", "orders") if secret.encode() in wire]


def test_redacted_mode_keeps_text_without_the_person(tmp_path: Path) -> None:
    (found, said) = recorded(tmp_path, "redacted", Exchange(), correction='{"name":"order","to":"maria"}')
    assert json.loads(found.prompt)[1]["content"] == "a latte for <NAME_1>, call <PHONE_1>"
    assert (found.answer, said.correction) == ('{"name":"order","to":"<NAME_1>"}',) * 2
    assert (found.consent, said.consent) == ("yes-7", "yes-7")
    assert not [secret for secret in SECRETS if secret.encode() in on_disk(tmp_path)]


def test_full_mode_keeps_the_text_as_it_was(tmp_path: Path) -> None:
    (found,) = recorded(tmp_path, "full", Exchange())
    assert json.loads(found.prompt) == Exchange().messages
    assert found.answer == Exchange().answer


@pytest.mark.parametrize("mode", ["redacted", "full"])
def test_without_consent_no_text_is_kept_in_any_mode(tmp_path: Path, mode: Mode) -> None:
    (found, said) = recorded(tmp_path, mode, Exchange(consent=None), correction="a tea")
    assert (found.prompt, found.answer, said.correction) == ("", "", "")
    assert b"latte" not in on_disk(tmp_path)


@pytest.mark.parametrize("word", ["no", "false", "0", "denied", "withdrawn", "YES-7", "yes-7 "])
def test_a_word_that_the_owner_did_not_list_is_no_consent(tmp_path: Path, word: str) -> None:
    (found, said) = recorded(tmp_path, "full", Exchange(consent=word), correction="a tea")
    assert (found.consent, found.prompt, found.answer, said.consent, said.correction) == ("",) * 5
    assert b"latte" not in on_disk(tmp_path)


def test_off_records_nothing(tmp_path: Path) -> None:
    assert recorded(tmp_path, "off", Exchange(), correction="a tea") == []


def test_a_session_is_hashed_with_the_devices_salt(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        for salt in (b"one", b"one", b"two"):
            Recorder(spool, device="k", mode="metrics", salt=salt).exchange(Exchange())
        spool.flush()
        first, again, other = (record.session for record in spool.pending("gen", 0, 10))
    assert first == again != other
    assert len(first) == 16


def test_feedback_for_an_unknown_response_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="full", salt=b"", consents=TERMS)
        assert not recorder.feedback("chatcmpl-never", "up", None)
        spool.flush()
        assert spool.pending("fb", 0, 10) == []


def test_feedback_after_a_restart_joins_its_session_and_consent(tmp_path: Path) -> None:
    (before,) = recorded(tmp_path, "redacted", Exchange())
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="kiosk-1", mode="redacted", salt=b"salt", consents=TERMS)
        assert recorder.feedback("chatcmpl-1", None, "a tea for Emma")
        spool.flush()
        (said,) = spool.pending("fb", 0, 10)
    assert (said.session, said.consent, said.generation) == (before.session, "yes-7", "abc")
    assert said.correction == "a tea for <NAME>"


def test_text_that_no_utf8_can_hold_does_not_stop_the_spool(tmp_path: Path) -> None:
    broken = Exchange(answer="a\ud800b", messages=[{"role": "user", "content": "\udfff"}], id="x\ud800")
    (found,) = recorded(tmp_path, "full", broken)
    assert found.answer == "a?b"


def test_long_texts_lose_their_middle_and_long_conversations_their_beginning(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": f"{number} " + "x" * 30_000} for number in range(8)]
    (found,) = recorded(tmp_path, "full", Exchange(messages=messages, answer="y" * 100_000))
    kept = json.loads(found.prompt)
    assert [message["content"][0] for message in kept] == ["0", "6", "7"]
    assert len(found.answer) == TEXT_CHARS + 3


def test_what_is_cut_through_was_redacted_before(tmp_path: Path) -> None:
    before = TEXT_CHARS // 2 - 10
    for said in ("kx7.tester@mail.example.com", "4111 1111 1111 1111", "GB29 NWBK 6016 1331 9268 19"):
        text = f"{'tea ' * (before // 4)}  {said} {'tea ' * TEXT_CHARS}"
        messages = [{"role": "user", "content": text}, {"role": "user", "content": [{"type": "text", "text": text}]}]
        (found,) = recorded(tmp_path / said[:4], "redacted", Exchange(messages=messages, answer=text))
        assert said[:6] not in found.prompt
        assert said[:6] not in found.answer
        assert len(json.loads(found.prompt)[0]["content"]) == TEXT_CHARS + 3


def test_times_of_one_boot_compare_by_the_monotonic_clock(tmp_path: Path) -> None:
    (found,) = recorded(tmp_path, "metrics", Exchange(started_wall_s=time.time() - 5))
    age_ms = time.monotonic() * 1000 - found.mono_ms
    assert 4_000 < age_ms < 60_000
    assert found.clock_ok


def test_events_go_to_their_streams(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="metrics", salt=b"")
        recorder.update("switched", generation="abc", tries=2)
        recorder.system("started")
        spool.flush()
        assert spool.pending("ota", 0, 10)[0].detail == {"event": "switched", "generation": "abc", "tries": "2"}
        assert spool.pending("sys", 0, 10)[0].detail == {"event": "started"}


def test_many_requests_may_end_at_once(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="redacted", salt=b"", consents=TERMS)

        def serve(first: int) -> None:
            for number in range(first, first + 50):
                recorder.exchange(Exchange(id=f"r{number}"))

        threads = [threading.Thread(target=serve, args=(100 * t,)) for t in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spool.flush()
        assert len(spool.pending("gen", 0, 1000)) == 300


def test_the_salt_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    salt = load_salt(tmp_path / "state" / "salt")
    assert load_salt(tmp_path / "state" / "salt") == salt
    assert len(salt) == 32
    assert (tmp_path / "state" / "salt").stat().st_mode & 0o777 == 0o600


def test_a_forgotten_session_leaves_the_disk_and_is_asked_to_leave_the_store(tmp_path: Path) -> None:
    text = [{"role": "user", "content": "a cortado with cardamom " * 40}]
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="full", salt=b"salt", consents=TERMS)
        for number in range(30):
            who = "customer-42" if number % 3 == 0 else "another"
            words = text if who == "customer-42" else [{"role": "user", "content": "an espresso"}]
            recorder.exchange(Exchange(id=f"r{number}", session=who, messages=words, answer=words[0]["content"]))
        recorder.feedback("r0", None, "a cortado with cardamom and no sugar")
        assert spool.flush()
        (session,) = {r.session for r in spool.pending("gen", 0, 1)}
        assert b"cardamom" in on_disk(tmp_path)
        recorder.forget("customer-42")
        assert spool.flush()
        assert b"cardamom" not in on_disk(tmp_path)
        held = spool.pending("gen", 0, 100) + spool.pending("fb", 0, 100)
        assert [r.kind for r in held if r.session == session] == ["forget"]
        assert len([r for r in held if r.kind == "generation"]) == 20
        told = [r.detail for r in spool.pending("sys", 0, 100) if r.kind == "drop"]
        assert {(d["stream"], d["count"], d["reason"]) for d in told} == {
            ("gen", "10", "forgotten"),
            ("fb", "1", "forgotten"),
        }
        assert not recorder.feedback("r0", "up", None)
        assert recorder.feedback("r1", "up", None)
    with Spool(tmp_path / "spool.db") as spool:
        assert not Recorder(spool, device="k", mode="full", salt=b"salt", consents=TERMS).feedback("r3", "up", None)


def test_a_session_that_waits_in_the_ring_is_forgotten_too(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="full", salt=b"salt", consents=TERMS)
        recorder.exchange(Exchange())
        recorder.forget("customer-42")
        assert spool.flush()
        assert spool.pending("gen", 0, 9) == []
        assert [r.kind for r in spool.pending("fb", 0, 9)] == ["forget"]


def test_a_text_that_breaks_redaction_does_not_travel_and_its_numbers_do(tmp_path: Path) -> None:
    class Odd(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("no items today")

    (found,) = recorded(tmp_path, "redacted", Exchange(messages=[Odd(role="user", content="a latte for Maria")]))
    assert (found.prompt, found.answer, found.prompt_tokens, found.detail) == ("", "", 20, {"text": "failed"})
    assert b"latte" not in on_disk(tmp_path)


@pytest.mark.parametrize(
    ("hard", "why"),
    [
        ({}, ""),
        ({"is_unsure": True}, "margin"),
        ({"is_unsure": False}, ""),
        ({"used_fallback": True}, "deadline"),
        ({"outcome": "deadline_exceeded"}, "deadline"),
        ({"outcome": "error"}, "failed"),
        ({"outcome": "preempted"}, ""),
        ({"route": "fallback"}, "fallback"),
        ({"route": "escalated", "is_unsure": True}, "margin,escalated"),
        ({"route": "repair"}, "repair"),
    ],
)
def test_a_hard_exchange_says_why_it_was_hard(tmp_path: Path, hard: dict[str, Any], why: str) -> None:
    (found,) = recorded(tmp_path, "metrics", Exchange(**hard))
    assert found.detail.get("hard", "") == why


def test_sums_of_a_generation_become_a_record(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="metrics", salt=b"")
        for number in range(10):
            recorder.exchange(Exchange(id=f"r{number}", duration_s=0.1 * (number + 1)))
        for number in range(10):  # what a large model answered says nothing of this generation
            recorder.exchange(Exchange(id=f"large{number}", duration_s=60.0, route="large"))
        recorder.feedback("r3", "down", None)
        recorder.sum_up()
        recorder.sum_up()
        spool.flush()
        (found,) = [r for r in spool.pending("sys", 0, 10) if r.kind == "sketch"]
    assert found.generation == "abc"
    assert not calibration(found.detail)
    assert abs(Sketch.decode(found.detail["duration_ms"]).quantile(0.5) - 500) < 11


def test_without_a_calibration_the_least_sure_tenth_of_the_last_answers_is_hard(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="metrics", salt=b"")
        for number in range(1000):
            logprob = -((number * 389) % 1000) / 1000
            recorder.exchange(Exchange(id=f"r{number}", timings=Timings(min_logprob=logprob)))
        recorder.exchange(Exchange(id="other", generation="new", timings=Timings(min_logprob=-99.0)))
        recorder.exchange(Exchange(id="of an adapter", adapter="tea", timings=Timings(min_logprob=-99.0)))
        spool.flush()
        found = spool.pending("gen", 0, 2000)
    hard = [record for record in found if "hard" in record.detail]
    assert 85 <= len(hard) <= 115
    assert max(float(record.detail["min_logprob"]) for record in hard) < -0.8
    assert {record.generation for record in hard} == {"abc"}
    assert "of an adapter" not in {record.response for record in hard}, "it is ranked among its own"


def test_answers_that_are_all_equally_sure_are_not_hard(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="metrics", salt=b"")
        for number in range(200):
            recorder.exchange(Exchange(id=f"r{number}", timings=Timings(min_logprob=-0.5)))
        recorder.exchange(Exchange(id="forced"))
        spool.flush()
        assert not [record for record in spool.pending("gen", 0, 300) if record.detail]


def test_how_sure_an_answer_was_is_kept_with_its_text_and_with_what_was_hard(tmp_path: Path) -> None:
    sure: dict[str, Any] = {"confidence": 0.93123, "timings": Timings(min_logprob=-0.5)}
    (with_text,) = recorded(tmp_path / "text", "full", Exchange(**sure))
    (hard,) = recorded(tmp_path / "hard", "metrics", Exchange(**sure, is_unsure=True))
    (easy,) = recorded(tmp_path / "easy", "metrics", Exchange(**sure))
    assert with_text.detail == {"min_logprob": "-0.5", "confidence": "0.931"}
    assert hard.detail == {"hard": "margin", **with_text.detail}
    assert easy.detail == {}


def test_disputes_are_counted_by_confidence(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="metrics", salt=b"")
        for number in range(10):
            recorder.exchange(Exchange(id=f"r{number}", confidence=0.05 + number / 10))
        for number in (0, 3, 9):
            recorder.feedback(f"r{number}", "down", None)
        recorder.sum_up()
        spool.flush()
        (found,) = [r for r in spool.pending("sys", 0, 10) if r.kind == "sketch"]
    bins = calibration(found.detail)["by_confidence"]
    assert [(each.end, each.answered, each.disputed) for each in bins if each.answered] == [
        (0.5, 5, 2), (0.7, 2, 0), (0.8, 1, 0), (0.9, 1, 0), (0.98, 1, 1),
    ]  # fmt: skip


TOOLS = [{"type": "function", "function": {"name": "goto", "description": "ask 0151 23456789", "parameters": {}}}]


@pytest.mark.parametrize("mode", ["redacted", "full"])
def test_what_stood_around_the_words_is_told_once_and_then_by_its_digest(tmp_path: Path, mode: Mode) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode=mode, salt=b"salt", consents=TERMS)
        for number in range(3):
            recorder.exchange(Exchange(id=f"r{number}", context={"system": "Be kind.", "tools": TOOLS}))
        recorder.exchange(Exchange(id="other", context={"system": "Be brief."}))
        recorder.exchange(Exchange(id="silent", consent="no", context={"system": "Be silent."}))
        spool.flush()
        told, said = spool.pending("sys", 0, 10), spool.pending("gen", 0, 10)
    by_digest = {record.detail["digest"]: json.loads(record.detail["context"]) for record in told}
    assert len(told) == len(by_digest) == 2
    assert [by_digest[record.detail["context"]]["system"] for record in said[:4]] == ["Be kind."] * 3 + ["Be brief."]
    assert "context" not in said[4].detail
    (tool,) = by_digest[said[0].detail["context"]]["tools"]
    assert tool["function"]["name"] == "goto"
    assert tool["function"]["description"] == ("ask <PHONE>" if mode == "redacted" else "ask 0151 23456789")


def test_a_client_with_other_tools_each_time_does_not_fill_the_spool(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="full", salt=b"salt", consents=TERMS)
        for number in range(200):
            recorder.exchange(Exchange(id=f"r{number}", context={"tools": [{"name": f"t{number}"}]}))
        recorder.exchange(Exchange(id="long", context={"system": "x" * 100_000}))
        spool.flush()
        told, said = spool.pending("sys", 0, 1000), spool.pending("gen", 0, 1000, max_bytes=1 << 30)
    assert len(told) == MOST
    assert all(record.detail["context"] for record in said), "what was not told is named all the same"


@pytest.mark.parametrize(
    "change", [{"answer": "x" * 20_000}, {"messages": [{"role": "user", "content": "y" * 20_000}]},
               {"messages": [{"role": "user", "content": "z" * 9_000}] * 9}],
)  # fmt: skip
def test_a_text_that_was_cut_is_marked(tmp_path: Path, change: dict[str, Any]) -> None:
    (found,) = recorded(tmp_path, "full", Exchange(**change))
    assert found.detail["cut"] == "yes"
    (found, *_) = recorded(tmp_path / "other", "full", Exchange())
    assert "cut" not in found.detail
