"""The effective policy: a device's own settings are the ceiling, a signed fleet policy can only lower it.

The newest policy is kept in a file and counts again after a restart, without a broker. An older one is refused, so that
nobody can bring back what was allowed once; an unsigned one, or one by a stranger, changes nothing.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from fieldlm.core.errors import FieldlmError
from fieldlm.core.files import write_whole
from fieldlm.core.logs import logger
from fieldlm.formats.policy import MODES, Mode, Policy, parse_policy

log = logger(__name__)


class EffectivePolicy:
    """The policy that counts on this device. Safe from any thread."""

    def __init__(
        self,
        ceiling: Mode,
        *,
        fleet: str,
        path: Path | None = None,
        signer: str = "",
        consents: Iterable[str] = (),
    ) -> None:
        """Read the kept policy, if `path` has one that is still good; `signer` is the key id that may sign.

        `consents` are the terms that the owner has listed; whatever else a request calls its consent is none.
        """
        self.ceiling: Mode = ceiling
        self.consents = frozenset(consents)
        self.fleet = fleet
        self._path = path
        self._trusted = frozenset({signer}) if signer else frozenset[str]()
        self._lock = threading.Lock()
        self.policy = Policy(fleet=fleet, version=1)
        self.patterns = self.policy.compiled()
        self._version = 0
        self.on_change: list[Callable[[Policy], None]] = []
        if path and path.is_file():
            self._read(path)

    @property
    def mode(self) -> Mode:
        """What may be told: the lesser of the device's own setting and the fleet's policy."""
        return MODES[min(MODES.index(self.ceiling), MODES.index(self.policy.telemetry))]

    @property
    def version(self) -> int:
        """The policy's number; 0 while there is none."""
        return self._version

    def take(self, message: bytes) -> bool:
        """Take a policy that came over the network; False says that it changes nothing, and the log why."""
        try:
            policy = parse_policy(message, trusted=self._trusted, fleet=self.fleet)
            with self._lock:
                if policy.version <= self._version:
                    if policy.version < self._version:
                        log.warning(f"policy {policy.version} is older than {self._version}, which counts")
                    return False
                if self._path:
                    write_whole(self._path, message)
                self._set(policy)
        except FieldlmError as error:
            log.warning(f"policy: {error}")
            return False
        log.info(f"policy {policy.version}: telemetry {self.mode}")
        for tell in self.on_change:
            tell(policy)
        return True

    def _read(self, path: Path) -> None:
        try:
            self._set(parse_policy(path.read_bytes(), trusted=self._trusted, fleet=self.fleet))
        except (FieldlmError, OSError) as error:
            # What it forbade is not known any more: tell no text until the next one comes.
            log.warning(f"the kept policy {path} does not count: {error}")
            self.policy = Policy(fleet=self.fleet, version=1, telemetry="metrics")

    def _set(self, policy: Policy) -> None:
        self.patterns = policy.compiled()
        self.policy, self._version = policy, policy.version
