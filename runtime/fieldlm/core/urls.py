"""URLs with a user and a password in them: what may be shown of one, and what is told to the server alone."""

from urllib.parse import unquote, urlsplit


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
