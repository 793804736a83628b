"""URLs: what may be shown of one with a password, what is told to the server alone, and the name in a Host header."""

import re
from collections.abc import Sequence
from typing import cast
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}")
_URL = re.compile(r"""\b[A-Za-z][A-Za-z0-9+.-]{0,31}:/{1,2}[^\s'"]+""")
_PLACE_END = re.compile(r"[/?#]")
_BRACKETS = re.compile(r"\[[^\]]*\]")  # an address of IPv6, which has colons
_NO_PORT = re.compile(r":(?!\d{0,5}$)")
_HOST = re.compile(r"(?:\[([^\s,;/@\[\]]+)\]|([^\s:,;/@\[\]]+))(?::\d{0,5})?", re.ASCII)


def host_name(header: str) -> str:
    """Return the name or address in a Host header in small letters, without the port; "" for what is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).lower().rstrip(".") if found else ""


def shown(url: str) -> str:
    """Return `url` without the user and the password that it may carry: for messages, logs and telemetry.

    Of one that is wrong, too: without a scheme, or with a password that has a slash in it. Other text, as a folder's
    name, is returned as it is.
    """
    head = found[0] if (found := _SCHEME.match(url)) else ""
    rest = url[len(head) :]
    place = _PLACE_END.split(rest, maxsplit=1)[0]
    user, at, _ = place.rpartition("@")
    if at:
        return head + rest[len(user) + 1 :] if head.endswith("//") or ":" in user else url
    # What looks like HOST:PORT with another port than digits is USER:PASSWORD, up to the slash in the password.
    return head + rest.rpartition("@")[2] if _NO_PORT.search(_BRACKETS.sub("", place)) else url


def shown_in(text: str) -> str:
    """Return a message with every URL in it as `shown` has it: also where somebody else's words quote one."""
    return _URL.sub(lambda found: shown(found[0]), text)


def shown_all(value: object) -> object:
    """Return a setting's value as `shown` has it, where it is text, or in each text of a list."""
    if isinstance(value, list | tuple):
        return [shown_all(each) for each in cast(Sequence[object], value)]
    return shown(value) if isinstance(value, str) else value


def credentials(url: str) -> str:
    """Return `user:password` of a URL as they are meant, or an empty string."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
