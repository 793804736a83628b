from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.signing import key_id
from fieldlm.formats.policy import MODES, Mode, Policy, sign_policy
from fieldlm.telemetry.effective_policy import EffectivePolicy
from fieldlm.telemetry.recorder import Recorder
from fieldlm.telemetry.spool import Spool
from tests.telemetry.test_recorder import TERMS, Exchange

KEY = Ed25519PrivateKey.generate()
SIGNER = key_id(KEY.public_key())


def signed(version: int, telemetry: Mode = "full", **more: object) -> bytes:
    return sign_policy(Policy(fleet="shop", version=version, telemetry=telemetry, **more), KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("ceiling", MODES)
@pytest.mark.parametrize("asked", MODES)
def test_a_policy_lowers_what_is_told_and_never_raises_it(ceiling: Mode, asked: Mode) -> None:
    terms = EffectivePolicy(ceiling, fleet="shop", signer=SIGNER)
    assert terms.mode == ceiling
    assert terms.take(signed(1, asked))
    assert MODES.index(terms.mode) == min(MODES.index(ceiling), MODES.index(asked))


def test_an_older_policy_an_unsigned_one_and_a_strangers_change_nothing() -> None:
    terms = EffectivePolicy("full", fleet="shop", signer=SIGNER, consents=TERMS)
    assert terms.take(signed(5, "metrics"))
    stranger = sign_policy(Policy(fleet="shop", version=9), Ed25519PrivateKey.generate())
    for message in (signed(4), signed(5), stranger, b"{}", b'{"policy":"{}","signature":{}}'):
        assert not terms.take(message)
    assert (terms.mode, terms.version) == ("metrics", 5)
    assert not EffectivePolicy("full", fleet="shop").take(signed(6, "off"))


def test_a_policy_counts_after_a_restart_and_a_damaged_one_lets_no_text_out(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    assert EffectivePolicy("full", fleet="shop", path=path, signer=SIGNER).take(signed(2, "redacted"))
    again = EffectivePolicy("full", fleet="shop", path=path, signer=SIGNER)
    assert (again.mode, again.version) == ("redacted", 2)
    assert not again.take(signed(1, "full"))
    path.write_bytes(path.read_bytes().replace(b"redacted", b"full"))
    assert EffectivePolicy("full", fleet="shop", path=path, signer=SIGNER).mode == "metrics"


def test_what_changes_is_told() -> None:
    terms = EffectivePolicy("full", fleet="shop", signer=SIGNER, consents=TERMS)
    heard: list[Policy] = []
    terms.on_change.append(heard.append)
    terms.take(signed(1, daily_mb=2.5))
    assert [policy.daily_mb for policy in heard] == [2.5]


def test_a_policy_counts_for_the_next_exchange(tmp_path: Path) -> None:
    terms = EffectivePolicy("full", fleet="shop", signer=SIGNER, consents=TERMS)
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", salt=b"", terms=terms)
        for number, mode in enumerate((None, "redacted", "metrics", "off"), 1):
            if mode:
                assert terms.take(signed(number, mode))
            recorder.exchange(Exchange(id=f"r{number}", answer="tea for Maria"))
        spool.flush()
        assert [r.answer for r in spool.pending("gen", 0, 9)] == ["tea for Maria", "tea for <NAME_1>", ""]


def test_a_fleets_own_patterns_are_applied(tmp_path: Path) -> None:
    terms = EffectivePolicy("redacted", fleet="shop", signer=SIGNER, consents=TERMS)
    assert terms.take(signed(1, patterns=(r"\bMB-\d+\b",)))
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", salt=b"", terms=terms)
        recorder.exchange(Exchange(answer="member MB-123", messages=[{"role": "user", "content": "MB-77 here"}]))
        recorder.feedback("chatcmpl-1", None, "MB-123 it is")
        spool.flush()
        (found,), (said,) = spool.pending("gen", 0, 9), spool.pending("fb", 0, 9)
    assert (found.answer, said.correction) == ("member <CUSTOM_2>", "<CUSTOM_2> it is")
    assert "MB-77" not in found.prompt


def test_the_sessions_whose_text_travels_are_a_share_and_always_the_same(tmp_path: Path) -> None:
    terms = EffectivePolicy("full", fleet="shop", signer=SIGNER, consents=TERMS)
    assert terms.take(signed(1, sample=0.3))
    chosen: list[set[str]] = []
    for run in range(2):
        with Spool(tmp_path / f"{run}.db") as spool:
            recorder = Recorder(spool, device="k", salt=b"salt", terms=terms)
            for number in range(600):
                recorder.exchange(Exchange(id=f"r{number}", session=f"customer {number // 2}"))
            spool.flush()
            found = spool.pending("gen", 0, 1000, max_bytes=1 << 30)
        assert len(found) == 600
        kept = {r.session for r in found if r.prompt}
        assert all(bool(r.prompt) == (r.session in kept) for r in found)
        chosen.append(kept)
    assert chosen[0] == chosen[1]
    assert 60 <= len(chosen[0]) <= 120
