"""URLs: what may be shown of one with a password, what is told to the server alone, and the name in a Host header."""

import re
from urllib.parse import unquote, urlsplit

_HOST = re.compile(r"(?:\[([^\s,;/@\[\]]+)\]|([^\s:,;/@\[\]]+))(?::\d{0,5})?", re.ASCII)


def host_name(header: str) -> str:
    """Return the name or address in a Host header in small letters, without the port; "" for what is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).lower().rstrip(".") if found else ""


def shown(url: str) -> str:
    """Return `url` without the user and the password that it may carry: for messages, logs and telemetry."""
    head, separator, rest = url.partition("://")
    if not separator:
        return url
    place, slash, path = rest.partition("/")
    return f"{head}://{place.rpartition('@')[2]}{slash}{path}"


def credentials(url: str) -> str:
    """Return `user:password` of a URL as they are meant, or an empty string."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
