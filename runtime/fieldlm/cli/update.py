"""`fieldlm update`: ask the running server, or, where none runs, update the state folder."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.control import remote
from fieldlm.core import terminal
from fieldlm.core.config import Config, load_config
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.files import act_as_owner
from fieldlm.network.http_client import HttpClient, NobodyAnswersError, own_server, refusal
from fieldlm.updates.journal import journal_of
from fieldlm.updates.progress import UpdateResult, UpdateState

POLL_S = 0.2
GOOD = ("updated", "current")
"""How an update ends that did not fail."""
PATH = "/v1/fieldlm/update"


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm update`: ask the running server, or, where none runs, update the state folder."""
    parser = terminal.parser(
        "update",
        "Let a device take the newest release of its profile.",
        "fieldlm update",
        "fieldlm update kiosk-7 --broker mqtt://broker.local",
    )
    remote.add_arguments(parser, has_state=False)
    parser.add_argument("--state", help="update this state folder, without a server")
    parser.add_argument("--repository", help="folder with a repository, a USB stick's say; or URL, without a server")
    parser.add_argument("--trust", help="root.json that vouches for the repository")
    args = parser.parse_args(argv)
    remote.check_arguments(args)
    if args.device:
        result = ask_remote(args)
        terminal.show(result, describe(result), as_json=args.json)
        return 0 if result.outcome in GOOD else 1
    config = load_config({"state": args.state, "repository": args.repository, "trust": args.trust})
    result = None
    if not args.state and (args.url or not args.repository or Path(args.repository).is_dir()):
        client = HttpClient(args.url) if args.url else own_server(config)
        result = ask_server(client, needed=bool(args.url), repository=args.repository or "")
    if result is None:
        result = update_offline(config)
    terminal.show(result, describe(result), as_json=args.json)
    return 0 if result.outcome in GOOD else 1


def ask_remote(args: argparse.Namespace) -> UpdateResult:
    """Let the device that the arguments name update itself, and wait."""
    device = remote.connect(args)
    runs = msgspec.convert(device.do("update"), UpdateState).runs
    with terminal.progress(f"update {args.device}") as line:
        while not is_over(state := msgspec.convert(device.do("status")["update"], UpdateState), runs):
            line.update(state.bytes_done // 1_000_000, state.step)
            time.sleep(POLL_S)
        assert state.last, "an update that has ended has a result"
        _end(line, state.last)
    return state.last


def ask_server(client: HttpClient, *, needed: bool, repository: str = "") -> UpdateResult | None:
    """Let a server update itself, out of a folder if one is named, and wait.

    None when nobody answers and nobody `needed` to.
    """
    folder = str(Path(repository).absolute()) if repository else ""
    try:
        runs = _state(client.post(PATH, {"repository": folder})).runs
    except NobodyAnswersError:
        if needed:
            raise
        return None
    with terminal.progress("update") as line:
        while not is_over(state := _state(client.get(PATH)), runs):
            line.total, line.unit = state.bytes_total // 1_000_000, " MB"
            line.update(state.bytes_done // 1_000_000, state.step)
            time.sleep(POLL_S)
        assert state.last, "an update that has ended has a result"
        _end(line, state.last)
    return state.last


def is_over(state: UpdateState, runs: int) -> bool:
    """Whether the update that was asked for after `runs` others has ended."""
    return state.runs > runs and not state.has_given_way


def update_offline(config: Config) -> UpdateResult:
    """Update a state folder that no server uses: the same steps, in this process."""
    from fieldlm.engines import EngineOptions
    from fieldlm.inference.generations import Generations
    from fieldlm.updates.slots import Slots
    from fieldlm.updates.updater import Updater

    options = EngineOptions(threads=config.threads or None, context=config.context or None, parallel=1)
    journal_of(config.state)
    act_as_owner(config.state)
    slots = Slots(config.state)
    try:
        live = Generations(slots.current(), options)
        try:
            trust = Path(config.trust) if config.trust else None
            with terminal.progress("update") as line:
                result = Updater(slots, live, repository=config.repository, trust=trust).check_and_update()
                _end(line, result)
                return result
        finally:
            live.close()
    finally:
        slots.close()


def _end(line: terminal.Progress, result: UpdateResult) -> None:
    line.note, line.has_failed = result.outcome, result.outcome not in GOOD


def describe(result: UpdateResult) -> str:
    """Say in words how an update ended."""
    head = {
        "updated": f"now at release {result.seq}, generation {result.generation}",
        "current": f"nothing new: {result.detail}",
    }.get(result.outcome, f"{result.outcome} ({result.reason}): {result.detail}")
    moved = f"{result.bytes_fetched / 1e6:.2f} MB moved, the whole bundle has {result.bytes_bundle / 1e6:.2f} MB"
    if result.weights_of:
        moved += f"\nits model is that of generation {result.weights_of}, tried before: what differs was tried alone"
    if result.measured and result.measured.shadow:
        moved += f"\n{result.measured.shadow.describe()}"
    steps = terminal.table([(m.step, f"{m.took_s:.2f}") for m in result.timeline], ("step", "s"))
    return "\n".join([head, moved, steps] if result.outcome == "updated" else [head])


def _state(answer: tuple[int, Any]) -> UpdateState:
    status, document = answer
    try:
        return msgspec.convert(document, UpdateState)
    except (msgspec.MsgspecError, RecursionError) as error:
        if 400 <= status < 500:
            raise InputError(f"the server refuses: {refusal(document)}") from error
        raise UnavailableError(f"the server answers {status} and no update state; is it fieldlm?") from error
