"""Offers, to whom a release goes after it was published: to more devices, to nobody new, to nobody ever again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors
from fieldlm.formats.release import Offer, Release, parse_release, release_path, role_name
from fieldlm_compiler.repository.metadata import Keyring, RepositoryMetadata, publish_lock, read_offered
from fieldlm_compiler.repository.publish import add_offer_options, add_release, in_shadow, make_offer


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """One release of a repository, and to whom it goes."""

    profile: str
    seq: int
    bundle: str
    model: str
    notes: str
    offer: Offer


def offered(repository: Path) -> list[Offered]:
    """List every release, the newest of each profile last; trusts the folder, as its owner does."""
    profiles = read_offered(repository)
    found = list[Offered]()
    for targets in profiles.values():
        for path, target in targets.targets.items():
            release = _read(repository, path)
            offer = msgspec.convert(target.unrecognized_fields.get("custom") or {}, Offer)
            found.append(
                Offered(
                    profile=release.profile,
                    seq=release.seq,
                    bundle=release.bundle,
                    model=release.model,
                    notes=release.notes,
                    offer=offer,
                )
            )
    return sorted(found, key=lambda one: (one.profile, one.seq))


def change(
    repository: Path,
    ring: Keyring,
    profile: str,
    seq: int,
    *,
    what: str,
    percent: float = 100.0,
    spread_s: float = 0.0,
    reason: str = "",
    shadow: int | None = None,
    shadow_hours: float | None = None,
) -> list[Offered]:
    """Promote, pause or pull a release; 0 is the newest. Returns what changed, the replacement of a pulled one last.

    A pulled release is followed by what was offered before it, under a number of its own, so that the devices which
    took it go back; pulling the only one leaves nothing to offer. A promoted one keeps its shadow period, as far as
    `shadow` and `shadow_hours` are None. Raises InputError.
    """
    every = offered(repository)
    known = [one for one in every if one.profile == profile]
    one = next((one for one in reversed(known) if seq in (0, one.seq)), None)
    if one is None:
        profiles = sorted({one.profile for one in every})
        there = [str(one.seq) for one in known] or [f"for {', '.join(profiles)}" if profiles else "none"]
        near = terminal.did_you_mean(profile, profiles) if not known else ""
        number = f" {seq}" if seq else ""
        raise InputError(f"{repository} has no release{number} for {profile}{near or ';'} releases: {', '.join(there)}")
    if one.offer.pulled and what != "pull":
        raise InputError(f"release {one.seq} of {profile} was pulled ({one.offer.pulled}); publish a new one")
    with publish_lock(repository):
        book = RepositoryMetadata(repository, ring)
        book.need([role_name(profile), "snapshot", "timestamp"])
        offer = _next_offer(one, what, percent, spread_s, reason)
        changed = [msgspec.structs.replace(one, offer=in_shadow(offer, shadow, shadow_hours))]
        book.offer(profile, release_path(profile, one.seq), changed[0].offer)
        if what == "pull" and one.seq == known[-1].seq:
            changed += _go_back(book, repository, known)
        book.write()
    return changed


def _next_offer(one: Offered, what: str, percent: float, spread_s: float, reason: str) -> Offer:
    if what == "pause":
        return msgspec.structs.replace(one.offer, paused=True)
    if what == "pull":
        return msgspec.structs.replace(one.offer, pulled=reason or "pulled")
    # The same salt: who had a place among the first keeps it when more follow.
    offer = make_offer(percent, spread_s, one.offer.salt)
    return msgspec.structs.replace(offer, shadow=one.offer.shadow, shadow_s=one.offer.shadow_s)


def _go_back(book: RepositoryMetadata, repository: Path, known: Sequence[Offered]) -> list[Offered]:
    """Offer the last good release again under the next number."""
    bad = known[-1]
    good = [one for one in known[:-1] if one.offer.is_open and one.bundle != bad.bundle]
    if not good:
        return []
    before = _read(repository, release_path(good[-1].profile, good[-1].seq))
    seq = bad.seq + 1
    notes = f"in place of {bad.seq}, which was pulled"
    release = msgspec.structs.replace(before, seq=seq, notes=notes)
    add_release(book, repository, release)
    return [msgspec.structs.replace(good[-1], seq=seq, notes=notes, offer=Offer())]


def _read(repository: Path, path: str) -> Release:
    file = repository / "releases" / path
    with disk_errors(file):
        return parse_release(file.read_bytes(), what=str(file))


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm release show|promote|pause|pull`."""
    args = _parse(argv)
    if args.what == "show":
        found = offered(args.to)
        _show(found, args.json)
        return 0 if found else 1
    if not args.profile:
        raise InputError(f"{args.what} needs the profile whose release it is; see: fieldlm release show --to {args.to}")
    ring = Keyring(keys_folder(args.keys))
    changed = change(
        args.to,
        ring,
        args.profile,
        args.seq,
        what=args.what,
        percent=args.share,
        spread_s=args.spread,
        reason=args.reason,
        shadow=args.shadow,
        shadow_hours=args.shadow_hours,
    )
    _show(changed, args.json)
    return 0


def _parse(argv: Sequence[str]) -> Any:
    parser = terminal.parser(
        "release",
        "Show what a repository offers, and offer it to more, to nobody new, or never.",
        "fieldlm release show --to repository",
        "fieldlm release promote rpi5-8gb --share 50 --to repository",
    )
    parser.add_argument("what", choices=("show", "promote", "pause", "pull"), help="what to do")
    parser.add_argument("profile", nargs="?", default="", help="whose release")
    parser.add_argument("seq", nargs="?", type=options.whole(1), default=0, help="its number; the newest without")
    parser.add_argument(
        "--to", type=options.existing_folder, required=True, metavar="REPOSITORY", help="the repository"
    )
    parser.add_argument("--keys", metavar="DIR", help="the publisher's keys; default: as configured")
    add_offer_options(parser, what="promote: ")
    parser.add_argument("--reason", default="", help="pull: why, for people")
    return parser.parse_args(argv)


def _show(found: Sequence[Offered], as_json: bool) -> None:
    rows = [(one.profile, one.seq, one.bundle[:12], one.model, _state(one.offer), one.notes) for one in found]
    header = ("profile", "release", "generation", "model", "offered to", "notes")
    terminal.show(found, terminal.table(rows, header) if rows else "no release yet", as_json=as_json)


def _state(offer: Offer) -> str:
    if offer.pulled:
        return f"nobody, pulled: {offer.pulled}"
    shadow = f", {offer.shadow:,} requests in the shadow first" if offer.shadow else ""
    return "nobody new, paused" if offer.paused else f"{offer.share_ppm / 10_000:g} %{shadow}"
