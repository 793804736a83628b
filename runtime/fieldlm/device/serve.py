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
from fieldlm.core.imports import no_garbage
from fieldlm.device.listeners import ListenSettings
from fieldlm.device.local_models import LocalModels, named_models
from fieldlm.device.startup import Start, detected_profile
from fieldlm.formats.profile import load_profile

JOURNAL = "slots.db"
SWITCH_S = 0.0005
"""Between two threads that want to run Python. Who loads wants it a thousand times, for microseconds; with the usual
5 ms it would wait for the imports each time, and with much less than this both would do little else than change places.
"""


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm serve`; with --json what is served is a document on stdout as soon as it is ready."""
    args = _parser().parse_args(argv)
    # uvicorn raises the signal again once the last answer is out; it must not end the process before its parts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # numpy's BLAS would start a thread for each core, which spin while the weights are read; nothing here multiplies.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    config = load_config(vars(args))
    act_as_owner(config.state)
    ListenSettings.of(config).check()
    told = load_profile(config.profile) if config.profile else None
    if config.large_key:
        from fieldlm.escalation.policy import read_key

        read_key(config.large_key)
    own, *others = named_models(args.bundle) or [None]
    # A bundle's files are checked in a thread, while the server is imported.
    folder = own.open().folder if own else _without_model(config)
    # A device that is told what it is does not look.
    profile = told or detected_profile(config, folder)
    beside = [*(each for each in others if each), *named_models(config.models)]
    local = LocalModels(beside, config, profile)
    config = named(config)  # writes: what can be refused has been
    with _quick_switches(), no_garbage():
        start = Start(config, profile, folder, name=own.name if own else "")
        # The server, hundreds of modules: this thread has nothing better to do while the other one loads.
        from fieldlm.device.device import Device

        device = Device(config, profile, start, local=local, on_ready=_show if args.json else None)
    try:
        device.run()
    finally:
        device.close()
    return 0


def _without_model(config: Config) -> Path | None:
    """Return the bundle without a model where the large one is to answer alone: there never was a bundle here."""
    if not config.large or (config.state / JOURNAL).exists():
        return None
    from fieldlm.catalogue.opening import no_model

    return no_model()


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


def _parser() -> Any:
    parser = terminal.parser(
        "serve",
        "Serve a model on this device: an OpenAI-compatible API, telemetry, updates.",
        "fieldlm serve smollm2",
        "fieldlm serve smollm2 embed=./embedding.gguf ./models --sleep-after 300",
        "fieldlm serve smollm2-rpi5-8gb --port 8080 --state ~/kiosk",
        "fieldlm serve smollm2 --large https://api.example.com/v1 --large-key key",
    )
    parser.add_argument(
        "bundle",
        nargs="*",
        metavar="MODEL",
        help=f"{MODEL}, or a folder of such; without it, the bundle that the state folder holds. The first is the "
        "device's own, the others are served beside it; NAME=MODEL calls one by a name of yours",
    )
    add_flags(parser)
    return parser
