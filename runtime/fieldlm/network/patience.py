"""How slowly the other end may send, and what is said of one that broke off. Needs no HTTP client, which takes time."""


class TricklingError(OSError):
    """Bytes come, but so slowly that waiting for them is no use."""


class MinimumRate:
    """How slowly bytes may come: at least so many in so many seconds of waiting for them."""

    def __init__(self, least_bytes: int, within_s: float) -> None:
        self._least_bytes = least_bytes
        self._within_s = within_s
        self._came = 0
        self._waited_s = 0.0

    def count(self, came: int, waited_s: float) -> None:
        """Count bytes and the seconds that they took; raises TricklingError when those were too many."""
        self._came += came
        self._waited_s += waited_s
        if self._waited_s <= self._within_s:
            return
        if self._came < self._least_bytes:
            raise TricklingError(f"no more than {self._came} bytes came in {self._waited_s:.0f} s")
        self._came, self._waited_s = 0, 0.0


def cause_of(error: BaseException) -> str:
    """Return what the system said of a failed request, without what urllib3 tells of its own objects around it."""
    while isinstance(inner := getattr(error, "reason", None) or error.__cause__, BaseException):
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[-1] if error.args else error)
