"""`fieldlm rollout`: bring a release to a fleet in waves, watch it, take it back from where it harms.

`start` begins and goes on looking until it is over; Ctrl-C stops the looking and nothing else, `watch` takes it up
again. Everything is in STORE/rollout.json, and drawn in STORE/rollout.html.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.wording import counted
from fieldlm.formats.shadow import HOURS, LEAST, MOST
from fieldlm.formats.topics import parse_broker, release_topic
from fieldlm.network.broker_identity import add_identity_options, identity_of
from fieldlm.network.mqtt import leave
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.sink import Sink
from fieldlm_compiler.fleet.controller import Controller, State, Track, publisher, read
from fieldlm_compiler.fleet.observation import FleetSnapshot
from fieldlm_compiler.fleet.rollout_page import TWICE, failed_words, is_counted_twice, page
from fieldlm_compiler.fleet.waves import Evidence

WORDS = ("start", "watch", "show", "pause", "resume", "abort")


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm rollout`; exit code 1 when the release was taken back, unless that is what was asked for."""
    args = _parse(argv)
    path = args.memory / "rollout.json"
    if args.what == "show":
        state = read(path)
        terminal.show(state, describe(state), as_json=args.json)
        return _verdict(state)
    if args.to is None:
        raise InputError(f"{args.what} needs the repository; say which: --to REPOSITORY")
    release = publisher(args.to, args.keys)
    if args.what == "start":
        offered = release("show")
        if not offered:
            raise InputError(f"{args.to} offers no release; publish one first: {_publish(args)}")
        _found(path, args, offered)
    controller = Controller(path, release)
    with open_sink(args.store, read_only=True) as store:
        _act(controller, args)
        _draw(controller, args)
        if args.what == "watch" or (args.what in ("start", "resume") and not args.once):
            watch(controller, store, args)
    terminal.show(controller.state, describe(controller.state), as_json=args.json)
    return 0 if args.what == "abort" else _verdict(controller.state)


def watch(controller: Controller, store: Sink, args: argparse.Namespace) -> None:
    """Look every so often until the rollout is over, or is paused from elsewhere."""
    while controller.state.status == "running":
        wave = controller.state.wave
        state = controller.state
        fleet = FleetSnapshot.read(
            store, since_ms=state.wave_began_ms, began_ms=state.began_ms, releases=state.releases
        )
        is_news = controller.note(fleet)
        if controller.look(fleet) is not None or is_news or controller.state.status != "running":
            _draw(controller, args)
            if controller.state.wave != wave or controller.state.status != "running":
                _tell(controller.state, args)
        if args.once:
            return
        if controller.state.status == "running":
            time.sleep(args.every)
            controller.state = read(controller.path)


def _act(controller: Controller, args: argparse.Namespace) -> None:
    if args.what == "start":
        controller.begin()
    elif args.what == "pause":
        controller.pause()
    elif args.what == "resume":
        controller.resume()
    elif args.what == "abort":
        controller.abort(args.reason)
    if args.what != "watch":
        _tell(controller.state, args)


def _found(path: Path, args: argparse.Namespace, offered: list[dict[str, Any]]) -> None:
    """Write the memory of a new rollout: the newest release of each profile that was named."""
    if path.exists() and read(path).status in ("running", "paused"):
        raise InputError(f"{path} is a rollout that is not over; run: fieldlm rollout watch --to {args.to}, or abort")
    with open_sink(args.store, read_only=True) as store:
        sizes = FleetSnapshot.read(store, since_ms=0).sizes()
    tracks: list[Track] = []
    for profile in args.profiles or sorted({one["profile"] for one in offered}):
        known = [one for one in offered if one["profile"] == profile]
        if not known:
            raise InputError(f"{args.to} offers nothing for {profile}; publish first: {_publish(args)}")
        if profile not in sizes:
            raise InputError(f"{args.store} knows no device of {profile}; known: {', '.join(sorted(sizes)) or 'none'}")
        newest, seq = known[-1], known[-1]["seq"]
        if why := newest["offer"].get("pulled"):
            raise InputError(f"release {seq} of {profile} was pulled ({why}); publish one: {_publish(args)}")
        bundle, salt = newest["bundle"][:12], newest["offer"].get("salt") or f"{profile}-{seq}"
        shadow, shadow_s = _shadow(args, newest["offer"])
        track = Track(
            profile=profile,
            seq=seq,
            bundle=bundle,
            salt=salt,
            size=sizes[profile],
            shadow=shadow,
            shadow_s=shadow_s,
        )
        tracks.append(track)
    state = State(tracks=tuple(tracks), patience_s=args.patience, spread_s=args.spread)
    write_whole(path, canonical_json(state))


def _shadow(args: argparse.Namespace, offer: dict[str, Any]) -> tuple[int, int]:
    """Return how many requests are answered in the shadow, and in how many seconds: as asked, else as published."""
    shadow = offer.get("shadow", 0) if args.shadow is None else args.shadow
    if args.shadow_hours is None:
        return shadow, offer.get("shadow_s") or round(3600 * HOURS)
    if not shadow:
        hours = f"--shadow-hours {args.shadow_hours:g}"
        raise InputError(f"{hours} belongs to no period; say how many requests: --shadow REQUESTS")
    return shadow, round(3600 * args.shadow_hours)


def _publish(args: argparse.Namespace) -> str:
    """Return the command that publishes what a rollout can begin with."""
    return f"fieldlm publish BUNDLE --to {args.to} --share 0"


def _tell(state: State, args: argparse.Namespace) -> None:
    """Let the devices look now instead of within the hour."""
    if not args.broker:
        return
    for track in state.tracks:
        # The next number, because a release that is taken back is followed by one; the time makes it another message.
        pointer = {"seq": track.seq + 1, "profile": track.profile, "repository": args.at, "told_ms": time.time_ns()}
        topic = release_topic(args.fleet, track.profile)
        leave(args.broker, topic, json.dumps(pointer).encode(), identity=args.identity)


def _draw(controller: Controller, args: argparse.Namespace) -> None:
    write_whole(args.memory / "rollout.html", page(controller.state).encode())
    text = describe(controller.state)
    if sys.stderr.isatty():
        # The whole view is drawn anew in place.
        sys.stderr.write(f"\x1b[H\x1b[2J{text}\n")
    else:
        print(text.splitlines()[0], file=sys.stderr, flush=True)


def describe(state: State) -> str:
    """Return the view for the terminal."""
    plan = state.plan()
    header = (
        "profile",
        "release",
        "devices",
        "offered to",
        "updated",
        "in trouble",
        "kept back",
        "in trouble",
        "e-value",
    )
    evidence = {each.profile: each for each in state.evidence}
    rows = []
    for track in state.tracks:
        share = f"{plan.share(track.profile, state.wave):.1%}"
        rows.append((track.profile, track.seq, f"{track.size:,}", share, *_seen(evidence.get(track.profile))))
    why = f": {state.acts[-1].detail}" if state.acts and state.status != "running" else ""
    number = sum(sum(reasons.values()) for reasons in state.failed.values())
    failed = f", {counted(number, 'update')} failed" if number else ""
    head = f"{state.status}, wave {state.wave + 1} of {len(plan.waves) + 1}{why}{_until(state)}{failed}"
    below = [f"updates that failed on {profile}: {failed_words(reasons)}" for profile, reasons in state.failed.items()]
    below += [TWICE for each in state.evidence if is_counted_twice(state, each)][:1]
    below += [f"in the shadow on {profile}: {sums.describe()}" for profile, sums in state.shadows.items()]
    return "\n".join([head, "", terminal.table(rows, header), *([""] if below else []), *below])


def _until(state: State) -> str:
    """Return when the wave is over: the last to start are judged when they have had their patience."""
    if state.status != "running" or not state.wave_began_ms:
        return ""
    over_s = state.wave_began_ms / 1000 + state.patience_s + state.spread_s + state.shadow_s
    return f", over at {time.strftime('%Y-%m-%d %H:%M', time.localtime(over_s))} at the earliest"


def _seen(each: Evidence | None) -> tuple[object, ...]:
    if each is None:
        return ("–",) * 5
    return (each.updated, each.updated_bad, each.control, each.control_bad, f"{each.e_value:.3g}")


def _verdict(state: State) -> int:
    return 1 if state.status in ("reverted", "aborted") else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = terminal.parser(
        "rollout",
        "Bring a release to a fleet in waves, and take it back from where it harms.",
        "fieldlm rollout start --store store --to repository",
        "fieldlm rollout show --store store",
    )
    parser.add_argument("what", choices=WORDS, nargs="?", default="show", help="what to do")
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="start: whose releases; all without")
    parser.add_argument(
        "--store", default="store", metavar="FOLDER|delta:URI|kafka:BROKERS/TOPIC", help="what `fieldlm collect` fills"
    )
    parser.add_argument(
        "--memory",
        type=options.new_folder,
        metavar="FOLDER",
        help="where the rollout is remembered and drawn; default: a store's folder",
    )
    parser.add_argument(
        "--to", type=options.existing_folder, metavar="REPOSITORY", help="the repository that offers the releases"
    )
    parser.add_argument("--keys", default="", metavar="DIR", help="the publisher's keys; default: as configured")
    parser.add_argument(
        "--patience",
        type=options.real(0),
        default=86_400.0,
        metavar="SECONDS",
        help="seconds until a device is judged; a wave takes that and its spread",
    )
    parser.add_argument(
        "--spread",
        type=options.real(0, 31_536_000),
        default=3600.0,
        metavar="SECONDS",
        help="seconds to stagger a wave over",
    )
    _add_shadow(parser)
    parser.add_argument(
        "--every",
        type=options.real(0, 86_400, above=True),
        default=30.0,
        metavar="SECONDS",
        help="seconds between two looks",
    )
    parser.add_argument("--once", action="store_true", help="look once and end, for a timer; start: do not look yet")
    parser.add_argument(
        "--broker", default="", metavar="mqtt[s]://[USER:PASSWORD@]HOST", help="tell devices through this broker"
    )
    parser.add_argument("--fleet", default="default", help="fleet to notify")
    parser.add_argument("--at", default="", metavar="URL", help="where devices reach the repository")
    parser.add_argument("--reason", default="asked for", help="abort: why")
    add_identity_options(parser)
    args = parser.parse_args(argv)
    if args.memory is None and args.store.startswith(("delta:", "kafka:")):
        raise InputError(f"{args.store} is no folder; say where the rollout is remembered: --memory FOLDER")
    if args.broker:
        parse_broker(args.broker)
    args.identity = identity_of(args, broker=args.broker)
    args.memory = args.memory or Path(args.store)
    return args


def _add_shadow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shadow",
        type=options.whole(LEAST, MOST, zero=True),
        metavar="REQUESTS",
        help="start: requests that a device answers in the shadow before it switches; default: as published",
    )
    parser.add_argument(
        "--shadow-hours",
        type=options.real(0, 8760, above=True),
        metavar="HOURS",
        help="start: hours that this may take; default: as published",
    )
