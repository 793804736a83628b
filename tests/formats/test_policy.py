import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fieldlm.core.errors import FieldlmError, TrustError
from fieldlm.core.signing import key_id
from fieldlm.formats.policy import Policy, check_policy, is_quiet, parse_policy, sign_policy
from fieldlm.formats.record import WireError

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
TRUSTED = frozenset({key_id(KEY.public_key())})
POLICY = Policy(fleet="shop", version=3, telemetry="redacted", sample=0.25, patterns=(r"\bMB-\d{5}\b",), daily_mb=1.5)
SIGNED = sign_policy(POLICY, KEY)


def test_a_signed_policy_comes_back_equal() -> None:
    assert parse_policy(SIGNED, trusted=TRUSTED, fleet="shop") == POLICY


def test_a_policy_of_another_fleet_of_a_stranger_or_without_anybody_to_trust_is_refused() -> None:
    stranger = sign_policy(POLICY, Ed25519PrivateKey.generate())
    for message, trusted, fleet in (
        (SIGNED, TRUSTED, "bar"),
        (stranger, TRUSTED, "shop"),
        (SIGNED, frozenset[str](), "shop"),
    ):
        with pytest.raises(TrustError):
            parse_policy(message, trusted=trusted, fleet=fleet)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(place: int, flip: int) -> None:
    message = bytearray(SIGNED)
    message[place] ^= flip
    try:
        assert parse_policy(bytes(message), trusted=TRUSTED, fleet="shop") == POLICY
    except FieldlmError:
        return


@given(st.binary(max_size=300))
def test_garbage_raises_one_kind_of_error(message: bytes) -> None:
    with pytest.raises(WireError):
        parse_policy(message, trusted=TRUSTED, fleet="shop")


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 0}, {"sample": 1.01}, {"sample": float("nan")}, {"daily_mb": -1.0}, {"quiet_hours": "22-6"},
        {"reconnect_window_s": 1e9}, {"patterns": ("(",)}, {"patterns": ("(a+)+b",)}, {"patterns": ("((a*)b)*",)},
        {"patterns": ("(a|aa)*b",)},
        {"patterns": ("x" * 201,)}, {"patterns": ("",)}, {"patterns": ("a",) * 33}, {"v": 2},
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(WireError):
        check_policy(msgspec.structs.replace(POLICY, **wrong))


def test_a_sound_pattern_is_taken() -> None:
    sound = (r"\bMB-\d{5}\b", r"(?:ab|cd)-\d+", r"[(+*]+x", r"\(\d*\)*", r"(a?b)?")
    for pattern in sound:
        assert check_policy(msgspec.structs.replace(POLICY, patterns=(pattern,))).compiled()


def test_quiet_hours_may_go_over_midnight() -> None:
    quiet = [hour for hour in range(24) if is_quiet("22:30-06:00", 60 * hour)]
    assert quiet == [0, 1, 2, 3, 4, 5, 23]
    assert [hour for hour in range(24) if is_quiet("09:00-11:00", 60 * hour)] == [9, 10]
    assert not any(is_quiet("", 60 * hour) for hour in range(24))
