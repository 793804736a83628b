"""`fieldlm serve`: as little as possible before the weights are being read, the server while they are."""

import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.core.config import Config, load_config
from fieldlm.device.startup import Start
from fieldlm.formats.profile import Profile, load_profile

SWITCH_S = 0.00001
"""Between two threads that want to run Python. Who loads wants it a thousand times, for microseconds; with the usual
5 ms it would wait for the imports each time."""


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm serve`."""
    args = vars(_parser().parse_args(argv))
    folder: Path | None = args.pop("bundle")
    args.pop("json")
    # uvicorn raises the signal again once the last answer is out; it must not end the process before its parts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # numpy's BLAS would start a thread for each core, which spin while the weights are read; nothing here multiplies.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    config = load_config(args)
    profile = _profile(config)
    with _quick_switches():
        start = Start(config, profile, folder)
        # The server, hundreds of modules: this thread has nothing better to do while the other one loads.
        from fieldlm.device.device import Device

        device = Device(config, profile, start)
    try:
        device.run()
    finally:
        device.close()
    return 0


@contextmanager
def _quick_switches() -> Generator[None]:
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def _profile(config: Config) -> Profile:
    if config.profile:
        return load_profile(config.profile)
    # A device that is told what it is does not look.
    from fieldlm.hardware.detect import detect

    return detect().best


def _parser() -> Any:
    parser = terminal.parser("serve", "Serve a bundle on this device: an OpenAI-compatible API, telemetry, updates.")
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle folder; without it, what the state folder holds")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default 8080)")
    parser.add_argument("--api-keys", metavar="FILE", help="keys, one a line, that open the API")
    parser.add_argument("--open", action="store_const", const="true", help="answer the network without keys")
    parser.add_argument("--tls-cert", metavar="PEM", help="certificate to serve https with")
    parser.add_argument("--tls-key", metavar="PEM", help="the certificate's private key")
    parser.add_argument("--socket", metavar="PATH", help="unix socket to serve, too; alone with --host none")
    parser.add_argument("--socket-group", metavar="GROUP", help="who may use it beside this user and root")
    parser.add_argument("--state", help="folder for the spool and the generations")
    parser.add_argument("--profile", help="device profile (default: detected)")
    parser.add_argument("--device", help="this device's name")
    parser.add_argument("--fleet", help="the fleet it belongs to")
    parser.add_argument("--broker", help="mqtt://HOST:PORT to send usage to and hear of releases from")
    parser.add_argument("--telemetry", help="off, metrics, redacted or full")
    parser.add_argument("--repository", help="folder or URL of updates")
    parser.add_argument("--trust", help="root.json that vouches for the repository")
    parser.add_argument("--threads", help="threads for decoding (default: as many as there are free cores for)")
    parser.add_argument("--context", help="tokens of context for each request")
    parser.add_argument("--parallel", help="answers at a time")
    parser.add_argument("--no-discovery", dest="discovery", action="store_const", const="false", help="not on the LAN")
    return parser
