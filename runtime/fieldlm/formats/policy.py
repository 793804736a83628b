"""The telemetry policy of a fleet: what its devices may tell, how much and when. Signed, numbered, kept at the broker.

    fieldlm/1/{fleet}/policy    {"policy": "<JSON>", "signature": {"keyid", "public", "sig"}}

The signature is over the very bytes of the inner JSON. A policy can only take away: what a device tells at most is
said by its own settings. What a later version adds is ignored unless it must be understood.
"""

import re
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import TrustError
from fieldlm.core.hours import HOURS, parse_hours
from fieldlm.core.signing import Signature, check_signature, sign
from fieldlm.formats.growth import Growing, check_understood
from fieldlm.formats.record import WireError

Mode = Literal["off", "metrics", "redacted", "full"]
MODES: tuple[Mode, ...] = ("off", "metrics", "redacted", "full")
"""From least to most."""
MAX_BYTES = 64 << 10
MAX_PATTERNS, MAX_PATTERN_CHARS = 32, 200
DAY_S = 86_400
_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.S)


class Policy(Growing, frozen=True, kw_only=True):
    """What a fleet allows; the defaults allow what a device's own settings do.

    telemetry: the most that may be told.   sample: share of sessions whose text may travel, chosen by their hash.
    patterns: regular expressions of what else is personal.   daily_mb: megabytes (1e6 bytes) a day, 0 is no limit.
    quiet_hours: "22:00-06:00" in the device's local time, when only critical records travel.
    reconnect_window_s: over how long a fleet that lost its broker spreads its return; 600 for a million devices.
    """

    v: int = 1
    fleet: str
    version: int
    telemetry: Mode = "full"
    sample: float = 1.0
    patterns: tuple[str, ...] = ()
    daily_mb: float = 0.0
    quiet_hours: str = ""
    reconnect_window_s: float = 0.0

    def compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.patterns)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    signature: Signature


def sign_policy(policy: Policy, key: Ed25519PrivateKey) -> bytes:
    """Return the message that carries `policy`; raises WireError when no device would take it."""
    check_policy(policy)
    text = msgspec.json.encode(policy, order="deterministic").decode()
    return msgspec.json.encode(_Envelope(policy=text, signature=sign(text.encode(), key)))


def parse_policy(message: bytes, *, trusted: frozenset[str], fleet: str) -> Policy:
    """Read a policy; raises WireError for what is none, TrustError unless a key of `trusted` vouches for it."""
    if len(message) > MAX_BYTES:
        raise WireError(f"a policy of {len(message)} bytes; the limit is {MAX_BYTES}")
    try:
        envelope = msgspec.json.decode(message, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a policy: {error}") from error
    if not trusted:
        raise TrustError("a policy came, and no key is trusted to sign one; see the setting policy_signer")
    try:
        data = envelope.policy.encode()
        check_signature(data, envelope.signature, trusted=trusted, what="the policy")
        policy = msgspec.json.decode(data, type=Policy)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(f"not a policy: {error}") from error
    if policy.fleet != fleet:
        raise TrustError(f"the policy is for fleet {policy.fleet[:80]!r}, this device belongs to {fleet!r}")
    return check_policy(policy)


def check_policy(policy: Policy) -> Policy:
    """Return `policy`; raises WireError when a value of it cannot be."""
    numbers = 1 <= policy.version < 1 << 63 and 0 <= policy.sample <= 1 and 0 <= policy.daily_mb < 1e9
    if policy.v != 1 or not numbers or not 0 <= policy.reconnect_window_s <= DAY_S:
        raise WireError(f"impossible policy: version {policy.version}, a number of it is out of range")
    if policy.quiet_hours and not HOURS.fullmatch(policy.quiet_hours):
        raise WireError(f"quiet_hours {policy.quiet_hours[:40]!r} are none; write 22:00-06:00")
    check_understood(policy, what=f"policy {policy.version}", error=WireError)
    if len(policy.patterns) > MAX_PATTERNS:
        raise WireError(f"a policy with {len(policy.patterns)} patterns; the limit is {MAX_PATTERNS}")
    for pattern in policy.patterns:
        _check_pattern(pattern)
    return policy


def _check_pattern(pattern: str) -> None:
    # A repetition inside a repetition can take for ever on a text that a customer chooses.
    if not 0 < len(pattern) <= MAX_PATTERN_CHARS or _repeats_what_varies(pattern):
        raise WireError(f"the pattern {pattern[:40]!r} is empty, too long, or repeats what repeats")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise WireError(f"the pattern {pattern[:40]!r} is none: {error}") from error


def _repeats_what_varies(pattern: str) -> bool:
    """Say whether a group that holds a repetition or a choice is repeated itself."""
    varies, closed = [False], False
    for match in _PIECE.finditer(pattern):
        piece = match[0]
        if piece in ("*", "+", "{", "?") and closed and piece != "?":
            return True
        if piece in ("*", "+", "{", "|"):
            varies[-1] = True
        closed = False
        if piece == "(":
            varies.append(False)
        elif piece == ")" and len(varies) > 1:
            closed = varies.pop()
            varies[-1] |= closed
    return False


def is_quiet(hours: str, minute: int) -> bool:
    """Say whether `minute` of the day lies in `hours`, which may go over midnight."""
    return bool(hours) and parse_hours(hours).holds(minute)
