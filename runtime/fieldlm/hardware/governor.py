"""The governor keeps a device below the point where its clock falls, and within a budget of power.

A processor that throttles falls far and comes back late; one that in time gives up a thread, or rests between steps,
keeps more of its speed. Nothing is held back until a limit is near. Then a rung is taken at a time, down and up: a
thread less, or a longer rest after each step. Where the power is measured, which of the two is said by the joules above
idleness that a token took with so many threads; else threads go first: decoding waits for memory and needs few.

Who has a deadline that would be missed gets all there is: being late is worse than being hot, and the firmware's own
limits still hold. Sensors are read while something is computed, once a second, and never else.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from fieldlm.hardware.cores import CoreWatch
from fieldlm.hardware.limits import LIVE
from fieldlm.hardware.sensors import temperature_c

LOOK_S = 1.0
FORGET_S = 60.0
"""After so long without work the machine has cooled: all begins anew."""
NEAR_C, HOT_C, COOL_C = 5.0, 2.0, 8.0
"""Below the throttle point: where a rung is given up, where one at each look, and from where on one is taken back."""
AHEAD_S = 5.0
"""How far ahead a rise is taken to go on: a board in the sun may gain two degrees a second."""
HEAT_LOOKS, RAISE_LOOKS = 5, 10
"""Looks from one rung down to the next for heat, which follows slowly; and looks in a row that were easy, to go up."""
IDLE_LOOKS = 5
"""Without a look for so many: most of that time nothing was computed, and what was used is what idleness takes."""
DUTIES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Shares of the time that is computed in; the rest is rested."""
MOST_REST_S = 0.5
"""After one step: who comes meanwhile waits for it."""
SMOOTH = 0.3
SURE_LOOKS, FAR_ABOVE = 2, 1.25
"""Looks at a rung until its power counts as too high, and how many times the budget is too high at once."""
CLOSE = 1.05
"""Joules for a token count as more from here on; sensors are no better."""
SAFE = 0.7
"""Of the time until a deadline, what an answer may need at the present speed."""

Reason = Literal["", "heat", "power"]


class DueRequest(Protocol):
    """An answer that is computed or waits, as far as its deadline is concerned."""

    due_s: float
    count: int

    @property
    def most_left(self) -> int:
        """The most tokens that it may still take, of its prompt too."""
        ...


class GovernorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the governor does now, and what of.

    reason: empty while nothing is held back, else heat or power.   threads: the most it allows; None is all.   duty:
    the share of the time that is computed in.   joules_per_token: above idleness, by threads, as
    far as measured.
    """

    reason: Reason
    threads: int | None
    duty: float
    throttle_c: float | None
    temperature_c: float | None
    max_watts: float
    watts: float | None
    joules_per_token: dict[int, float]


class Governor:
    """Of a machine, whatever engines compute on it. Off until `limit`. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.limit()

    def limit(
        self,
        *,
        throttle_c: float | None = None,
        zones: Sequence[str] = (),
        max_watts: float = 0.0,
        joules: Callable[[], float | None] = lambda: None,
        root: Path = LIVE,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set what to keep to, and begin anew; without arguments nothing is held back.

        `joules` are those used since some moment in the past (`EnergySource.joules`), None where nobody measures.
        `root` and `now_s` are another machine's files and clock.
        """
        with self._lock:
            self.throttle_c, self.max_watts = throttle_c, max_watts
            self._zones, self._joules, self._root, self._now_s = zones, joules, root, now_s
            self.is_on = throttle_c is not None or max_watts > 0
            self._temperature: float | None = None
            self._joules_per_token = dict[int, float]()
            self._watts_at = dict[tuple[int, float], float]()
            self._idle_w = math.inf
            self._used_j: float | None = None
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._cap, self._duty = math.inf, 1.0
        self._reason: Reason = ""
        self._used = self._most = 1
        self._looked_s: float | None = None
        self._watts: float | None = None
        self._tokens = self._easy = self._since_lower = self._since_change = 0
        self._is_pressed = False
        self._token_s = 0.0

    def threads(self, most: int, asked: Iterable[DueRequest | None] = ()) -> int:
        """Return how many of `most` threads the next step may use, for those who have `asked`."""
        if not self.is_on:
            return most
        with self._lock:
            self._look()
            self._most = most
            is_held = self._cap < most or self._duty < 1.0
            self._is_pressed = is_held and any(self._would_be_late(each) for each in asked if each is not None)
            self._used = most if self._is_pressed else int(max(1, min(most, self._cap)))
            return self._used

    def rest_s(self, took_s: float, tokens: int) -> float:
        """Take in that a step took `took_s` and gave `tokens`; return how long to rest after it."""
        if not self.is_on:
            return 0.0
        with self._lock:
            self._tokens += tokens
            rest_s = 0.0 if self._is_pressed else min(MOST_REST_S, took_s * (1 / self._duty - 1))
            if tokens and not self._is_pressed:
                self._token_s += SMOOTH * (took_s + rest_s - self._token_s) if self._token_s else took_s + rest_s
            return rest_s

    def status(self) -> GovernorStatus:
        with self._lock:
            return GovernorStatus(
                reason=self._reason,
                threads=None if math.isinf(self._cap) else int(self._cap),
                duty=self._duty,
                throttle_c=self.throttle_c,
                temperature_c=self._temperature,
                max_watts=self.max_watts,
                watts=None if self._watts is None else round(self._watts, 2),
                joules_per_token={threads: round(j, 4) for threads, j in sorted(self._joules_per_token.items())},
            )

    def _would_be_late(self, asked: DueRequest) -> bool:
        if math.isinf(asked.due_s):
            return False
        # What is still to be read is not known to be quick; nor is anything before the first token.
        is_reading = not asked.count or not self._token_s
        return is_reading or asked.most_left * self._token_s > SAFE * (asked.due_s - self._now_s())

    def _look(self) -> None:
        """Read the sensors where it is time, and take a rung down or up."""
        now_s = self._now_s()
        passed_s = math.inf if self._looked_s is None else now_s - self._looked_s
        if passed_s < LOOK_S:
            return
        self._measure(passed_s)
        if passed_s > FORGET_S:
            self._begin_anew()
        self._looked_s = now_s
        room_c = self._room_c(passed_s)
        self._since_lower += 1
        self._since_change += 1
        most_w = self.max_watts * (1.0 if self._since_change >= SURE_LOOKS else FAR_ABOVE)
        is_costly = self.max_watts > 0 and self._watts is not None and self._watts > most_w
        if self._is_pressed:
            self._easy = 0
        elif is_costly or room_c < HOT_C or (room_c < NEAR_C and self._since_lower >= HEAT_LOOKS):
            self._lower("power" if is_costly else "heat")
        else:
            self._easy = self._easy + 1 if room_c > COOL_C else 0
            if self._easy >= RAISE_LOOKS:
                self._raise()

    def _room_c(self, passed_s: float) -> float:
        """Return how far below the throttle point it is, or will be soon as it rises now; endless without a sensor."""
        if self.throttle_c is None:
            return math.inf
        before, self._temperature = self._temperature, temperature_c(self._root, self._zones)
        if self._temperature is None:
            return math.inf
        rise = 0.0 if before is None else max(0.0, (self._temperature - before) / passed_s)
        return self.throttle_c - self._temperature - AHEAD_S * rise

    def _measure(self, passed_s: float) -> None:
        """Note the watts since the last look, and the joules that a token took, where nothing else came between."""
        used_j, before_j = self._joules(), self._used_j
        self._used_j = used_j
        tokens, self._tokens = self._tokens, 0
        if used_j is None or before_j is None or math.isinf(passed_s) or used_j < before_j:
            self._watts = None
            return
        if passed_s > IDLE_LOOKS * LOOK_S:
            self._idle_w = min(self._idle_w, (used_j - before_j) / passed_s)
            self._watts = None
            return
        now_w = (used_j - before_j) / passed_s
        is_same_rung = self._watts is not None and self._since_change > 0
        self._watts = (self._watts + now_w) / 2 if self._watts is not None and is_same_rung else now_w
        if not self._is_pressed:
            self._watts_at[self._used, self._duty] = self._watts
        if tokens and self._duty == 1.0 and not math.isinf(self._idle_w):
            now, old = (now_w - self._idle_w) * passed_s / tokens, self._joules_per_token.get(self._used)
            self._joules_per_token[self._used] = now if old is None else old + SMOOTH * (now - old)

    def _lower(self, reason: Reason) -> None:
        self._reason, self._since_lower = reason, 0
        lower = [duty for duty in DUTIES if duty < self._duty]
        if self._used > 1 and not (lower and self._is_dearer(self._used - 1, self._used)):
            self._go_to(self._used - 1, self._duty)
        elif lower:
            self._go_to(self._cap, lower[0])

    def _is_dearer(self, threads: int, than: int) -> bool:
        """Whether a token is known to take more joules with so many threads."""
        one, other = self._joules_per_token.get(threads), self._joules_per_token.get(than)
        return one is not None and other is not None and one > CLOSE * other

    def _go_to(self, cap: float, duty: float) -> None:
        self._cap, self._duty = cap, duty
        self._easy = self._since_change = 0

    def _raise(self) -> None:
        """Take the last rung back, unless it is known to cost more than the budget.

        Where another thread makes a token cheaper, it is that thread and a longer rest instead: sooner done at no more.
        """
        self._easy = 0
        higher = [duty for duty in DUTIES if duty > self._duty]
        lower = [duty for duty in DUTIES if duty < self._duty]
        more = int(min(self._cap + 1, self._most))
        if lower and more > self._used and self._is_dearer(self._used, more):
            rung = more, lower[0]
        else:
            rung = (self._used, higher[-1]) if higher else (more, 1.0)
        if 0 < self.max_watts < self._watts_at.get(rung, 0.0):
            del self._watts_at[rung]  # it may have become cheaper: that is seen the next time
            return
        self._go_to(*rung)
        if self._cap >= self._most and self._duty == 1.0:
            self._cap, self._reason = math.inf, ""


GOVERNOR = Governor()
"""This machine's: engines of one process share its heat and its power."""


class Pace:
    """Of one engine: how many threads its next step uses, after its neighbours and the governor, and how it rests."""

    def __init__(self, most: int, cores: CoreWatch | None = None, *, governor: Governor = GOVERNOR) -> None:
        """`most` are the threads it would use; `cores` say how many neighbours leave, where it gives way to them."""
        self._most = most
        self._cores = cores
        self._governor = governor
        self._began_s = 0.0

    def threads(self, asked: Iterable[DueRequest | None]) -> int:
        """Return how many threads to use at most in the step that begins now."""
        free = self._cores.threads() if self._cores is not None else self._most
        if not self._governor.is_on:
            return free
        self._began_s = time.monotonic()
        return self._governor.threads(free, asked)

    def rest(self, tokens: int) -> None:
        """Rest after the step, which gave `tokens`."""
        if self._governor.is_on and self._began_s:
            rest_s = self._governor.rest_s(time.monotonic() - self._began_s, tokens)
            if rest_s > 0:
                time.sleep(rest_s)
