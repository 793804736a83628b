"""`fieldlm serve`: as little as possible before the weights are being read, the server while they are."""

import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldlm.catalogue.names import MODEL
from fieldlm.core import terminal
from fieldlm.core.config import Config, add_flags, load_config, named
from fieldlm.core.files import act_as_owner
from fieldlm.core.logs import logger
from fieldlm.device.startup import Start
from fieldlm.formats.bundle import MANIFEST
from fieldlm.formats.profile import Profile, load_profile

log = logger(__name__)

SWITCH_S = 0.00001
"""Between two threads that want to run Python. Who loads wants it a thousand times, for microseconds; with the usual
5 ms it would wait for the imports each time."""


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm serve`; with --json what is served is a document on stdout as soon as it is ready."""
    args = _parser().parse_args(argv)
    # uvicorn raises the signal again once the last answer is out; it must not end the process before its parts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # numpy's BLAS would start a thread for each core, which spin while the weights are read; nothing here multiplies.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    config = load_config(vars(args))
    act_as_owner(config.state)
    profile = _profile(config)
    folder = _folder(args.bundle) if args.bundle else None
    config = named(config)  # writes: what can be refused has been
    with _quick_switches():
        start = Start(config, profile, folder)
        # The server, hundreds of modules: this thread has nothing better to do while the other one loads.
        from fieldlm.device.device import Device

        device = Device(config, profile, start, on_ready=_show if args.json else None)
    try:
        device.run()
    finally:
        device.close()
    return 0


def _folder(model: str) -> Path:
    """Return the folder of the bundle that `model` names, fetched or made where it has to be.

    What nobody has proved is said to be so.
    """
    if (Path(model) / MANIFEST).is_file():
        return Path(model)  # checked in a thread, while the server is imported
    from fieldlm.catalogue.opening import advice, open_model

    bundle = open_model(model)
    if not bundle.manifest.is_proved:
        log.warning(advice(bundle, model))
    return bundle.folder


@contextmanager
def _quick_switches() -> Generator[None]:
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def _show(served: dict[str, Any]) -> None:
    terminal.show(served, "", as_json=True)


def _profile(config: Config) -> Profile:
    if config.profile:
        return load_profile(config.profile)
    # A device that is told what it is does not look.
    from fieldlm.hardware.detect import detect

    return detect().best


def _parser() -> Any:
    parser = terminal.parser(
        "serve",
        "Serve a model on this device: an OpenAI-compatible API, telemetry, updates.",
        "fieldlm serve smollm2",
        "fieldlm serve smollm2-rpi5-8gb --port 8080 --state ~/kiosk",
    )
    parser.add_argument(
        "bundle", nargs="?", metavar="MODEL", help=f"{MODEL}; without it, the bundle that the state folder holds"
    )
    add_flags(parser)
    return parser
