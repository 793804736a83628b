"""An attendant's PIN: kept as a slow salted digest, compared here and never in a page, with few tries a minute."""

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from fieldlm.core.errors import InputError

LEAST, MOST = 4, 12
"""Digits of a PIN."""
FREE_TRIES = 5
"""Wrong ones that cost nothing; after each further one the wait is doubled, from the first of WAITS_S to the second."""
WAITS_S = (30.0, 3600.0)
ALL_TRIES = 4 * FREE_TRIES
"""Wrong ones of all callers together in a row before they wait together: somebody may have many addresses."""
MOST_CALLERS = 256


def digest_pin(pin: str) -> str:
    """Return the digest of `pin` as a kiosk file has it; raises InputError for what is no PIN."""
    if not (pin.isascii() and pin.isdecimal() and LEAST <= len(pin) <= MOST):
        raise InputError(f"a PIN has {LEAST} to {MOST} digits and nothing else")
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${_derived(pin, salt).hex()}"


def _derived(pin: str, salt: bytes) -> bytes:
    # 16 MB and some 50 ms on a desktop: the least that RFC 7914 and OWASP name for interactive use.
    return hashlib.scrypt(pin.encode("utf-8", "replace"), salt=salt, n=1 << 14, r=8, p=1, dklen=32)


class _Tries:
    """Wrong ones in a row, and until when the next has to wait."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._wrong = 0
        self.until_s = -math.inf

    def failed(self, now_s: float) -> None:
        self._wrong += 1
        if self._wrong >= self._free:
            self.until_s = now_s + min(WAITS_S[1], WAITS_S[0] * 2 ** min(self._wrong - self._free, 20))


class PinGate:
    """Compares PINs with one digest, as `digest_pin` returns it. Safe from any thread; one is compared at a time."""

    def __init__(self, digest: str, *, now_s: Callable[[], float] = time.monotonic) -> None:
        _, salt, derived = digest.split("$")
        self._salt, self._derived = bytes.fromhex(salt), bytes.fromhex(derived)
        self._now_s = now_s
        self._lock = threading.Lock()
        self._all = _Tries(ALL_TRIES)
        self._callers = OrderedDict[str, _Tries]()

    def try_open(self, pin: str, caller: str) -> float | None:
        """Return None when `pin` is right, else in how many seconds `caller` may try again; 0 is at once.

        Who has to wait is not compared, right or wrong: the wait is what makes a short number safe.
        """
        with self._lock:
            now_s = self._now_s()
            mine = self._callers.setdefault(caller, _Tries(FREE_TRIES))
            self._callers.move_to_end(caller)
            if len(self._callers) > MOST_CALLERS:
                self._callers.popitem(last=False)
            wait_s = max(mine.until_s, self._all.until_s) - now_s
            if wait_s > 0:
                return wait_s
            if hmac.compare_digest(_derived(pin[: MOST + 1], self._salt), self._derived):
                del self._callers[caller]
                self._all = _Tries(ALL_TRIES)
                return None
            mine.failed(now_s)
            self._all.failed(now_s)
            return max(0.0, mine.until_s - now_s, self._all.until_s - now_s)
