"""Who vouches for a broker with TLS, and what it is shown: a device's settings, a command's options."""

import argparse
import ssl
from collections.abc import Mapping

import msgspec

from fieldlm.core.config import settings_alone
from fieldlm.core.errors import InputError, UnavailableError

NAMES = ("broker_ca", "broker_cert", "broker_key")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who vouches for the broker, and what it is shown: PEM files; empty is the system's, and nothing."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """Return what TLS needs; raises UnavailableError when a file is missing or not what it should be."""
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ValueError) as error:
            names = ", ".join(filter(None, (self.ca, self.cert, self.key)))
            raise UnavailableError(f"the certificates {names} cannot be used: {error}") from error
        return context


def add_identity_options(parser: argparse.ArgumentParser) -> None:
    """Add what a command that speaks to a broker needs for one with TLS; `identity_of` reads it."""
    parser.add_argument(
        "--broker-ca", metavar="PEM", help="mqtts: authorities, where the system's do not do; default: as configured"
    )
    parser.add_argument(
        "--broker-cert", metavar="PEM", help="mqtts: own certificate, where the broker asks for one; as configured"
    )
    parser.add_argument("--broker-key", metavar="PEM", help="mqtts: the private key of that; as configured")


def identity_of(args: argparse.Namespace, *, broker: str | None, option: str = "--broker") -> Identity:
    """Return what the options or the settings say, tried before any work.

    Raises ConfigError for a file that is not there, InputError for one that is no certificate or key, and for options
    where `option` names no `broker`: they would do nothing.
    """
    flags: Mapping[str, object] = {name: getattr(args, name) for name in NAMES}
    ca, cert, key = (str(value) for value in settings_alone(NAMES, flags).values())
    identity = Identity(ca=ca, cert=cert, key=key)
    if not cert and key:
        raise InputError(f"--broker-key {key} has no certificate; give --broker-cert, too")
    if ca or cert:
        try:
            identity.context()
        except UnavailableError as error:
            raise InputError(f"{error}; want PEM files: --broker-ca, --broker-cert, --broker-key") from error
    refuse_for_nothing(args, broker=broker, option=option)
    return identity


def refuse_for_nothing(args: argparse.Namespace, *, broker: str | None, option: str = "--broker") -> None:
    """Raise InputError for one of these options where `option` names no `broker`: it would do nothing."""
    said = next((name for name in NAMES if getattr(args, name)), "")
    if said and not broker:
        name = f"--{said.replace('_', '-')} {getattr(args, said)}"
        raise InputError(f"{name} is for a broker, and none is named; give {option}, too")
