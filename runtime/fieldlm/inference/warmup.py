"""Warm-up: the first answer of a generation. Before it is there, a device is not ready."""

from collections.abc import Callable

from fieldlm.core.errors import FieldlmError
from fieldlm.core.logs import logger
from fieldlm.core.tasks import PROCESS, Tasks
from fieldlm.hardware.heap import trim
from fieldlm.inference.generations import Generations, canary
from fieldlm.inference.prompt_snapshots import Snapshots

log = logger(__name__)

UnreadyReason = Callable[[], str | None]
"""Says why the server cannot answer yet, or None."""


def warm(live: Generations, snapshots: Snapshots | None = None, tasks: Tasks | None = None) -> UnreadyReason:
    """Ask `live` for one token in the background; the system prompt is in memory afterwards.

    With `snapshots` it comes from the disk where it can, and goes there for the next start where it has to be computed.
    """
    state: list[str | None] = ["the first answer is not there yet"]

    def ask() -> None:
        try:
            with live.lease() as serving:
                is_restored = snapshots is not None and snapshots.restore(serving)
                try:
                    canary(serving)
                except FieldlmError:
                    if snapshots is not None:
                        snapshots.forget(serving)
                    raise
                state[0] = None
                if snapshots is not None and not is_restored:
                    snapshots.save(serving)
            trim()  # what was there for the load alone, files' headers among it
        except FieldlmError as error:
            if state[0] is not None:
                state[0] = str(error)
            elif not live.is_closed:
                log.warning(f"the system prompt is not kept for the next start: {error}")

    def ask_once() -> None:
        try:
            ask()
        except BaseException as error:
            state[0] = state[0] and f"the first answer failed: {type(error).__name__}"
            raise

    # Once: what it does again is a start of the process, which systemd does where the device does not get ready.
    (tasks or PROCESS).start("canary", ask_once)
    return lambda: state[0]
