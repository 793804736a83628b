"""Freshness of a repository: whether what this device has seen of it is renewed, or somebody holds it at the old.

TUF's timestamp is good for days. A mirror, or a network in between, that hands out yesterday's for ever keeps a device
at old releases until it ends; from then on no release is taken, and the device says why.
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from fieldlm.core.wording import counted
from fieldlm.formats.release import DAYS
from fieldlm.hardware.clock import is_credible

DAYS_UP_TO_0_1 = 365.0


class _Signed(msgspec.Struct, frozen=True):
    expires: datetime
    days: float = msgspec.field(name=DAYS, default=DAYS_UP_TO_0_1)


class _Timestamp(msgspec.Struct, frozen=True):
    signed: _Signed


def staleness(metadata: Path) -> tuple[str, str]:
    """Return name and detail of what is wrong with the age of the verified `metadata`, a folder; ("", "") if nothing.

    repository-not-renewed: more than half of its time has passed. repository-expired: all of it. A clock that cannot
    be right says nothing.
    """
    now_s = time.time()
    try:
        signed = msgspec.json.decode((metadata / "timestamp.json").read_bytes(), type=_Timestamp).signed
        renewed = signed.expires - timedelta(days=signed.days)
    except (OSError, msgspec.MsgspecError, RecursionError, OverflowError):
        return "", ""  # nothing was seen yet; what is damaged, the next look at the repository replaces
    age, now = datetime.fromtimestamp(now_s, UTC) - renewed, datetime.fromtimestamp(now_s, UTC)
    if not is_credible(now_s) or age < timedelta(days=signed.days) / 2:
        return "", ""
    said = f"as far as this device has seen, its repository was not renewed for {counted(age.days, 'day')}"
    day = f"{signed.expires:%Y-%m-%d}"
    renew = "its publisher renews it with: fieldlm publish --refresh --to REPOSITORY"
    if now < signed.expires:
        return "repository-not-renewed", f"{said}; from {day} on nothing is taken from it; {renew}"
    return "repository-expired", f"{said}, and nothing is taken from it since {day}; {renew}"
