"""Ollama's `keep_alive`: how long a model stays loaded after a request."""

import math
import re

from fieldlm.network.json_api import ApiError

UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
DURATION = re.compile(rf"([+-]?)((?:{PART.pattern})+)")


def keep_seconds(given: float | str | None) -> float | None:
    """Return `given` in seconds: a number of them, or a duration as Go spells it, 5m or 1h30m.

    What is negative is infinity; None where nothing is said. Raises ApiError for anything else.
    """
    if given is None or given == "":
        return None
    if isinstance(given, str):
        if found := DURATION.fullmatch(given):
            size = sum(float(number) * UNITS_S[unit] for number, unit in PART.findall(found[2]))
            given = -size if found[1] == "-" else size
        else:
            try:
                given = float(given)
            except ValueError:
                given = math.nan
    if math.isnan(given):
        what = "keep_alive: want seconds, or a duration as in 30s, 5m or 1h30m; 0 unloads at once, -1 never"
        raise ApiError(400, what, param="keep_alive", code="invalid_value")
    return math.inf if given < 0 else given
