"""API keys: a file of them, of which only the digests are kept."""

import hashlib
import hmac
import stat
from pathlib import Path

from fieldlm.core.errors import ConfigError

SHORTEST_KEY = 16
CLIENT_KEY = "FIELDLM_API_KEY"
"""The variable in which a client has its key."""


class Keys:
    """The keys that open the API. Only their digests are kept."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read a file of keys, one a line, a name after it if one likes; raises ConfigError for a file that leaks."""
        try:
            mode = path.stat().st_mode
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            make = f"(umask 077; head -c 24 /dev/urandom | base64 > {path})"
            raise ConfigError(f"the keys in {path} cannot be read: {error}; to make one: {make}") from error
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigError(f"every user of this machine can open the keys in {path}; run: chmod 600 {path}")
        keys = {number: line.split()[0] for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"}
        for number, key in keys.items():
            if len(key) < SHORTEST_KEY:
                raise ConfigError(f"the key in line {number} of {path} is shorter than {SHORTEST_KEY} characters")
        if not keys:
            raise ConfigError(f"{path} holds no key; write one a line")
        return cls(list(keys.values()))

    def holds(self, key: str) -> bool:
        """Whether `key` is one of them. Takes as long for a near miss as for any other."""
        given = _digest(key)
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0


def digest_of(key: str) -> str:
    """Return what tells one key from another and says none."""
    return _digest(key).hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
