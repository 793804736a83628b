"""`fieldlm publish`: a bundle for the devices of its profile, into a static folder for any web server, bucket or stick.

Everything new is written aside and under new names first; `timestamp.json` is replaced last, and with it the release
becomes visible. A publisher that is killed leaves the repository as it was.
"""

import argparse
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.blobs.store import Blobs
from fieldlm.blobs.tensor_chunks import chunk_sizes, cut
from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.files import canonical_json, disk_errors, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.signing import Signature
from fieldlm.formats.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle
from fieldlm.formats.release import (
    FORMAT,
    Blob,
    Offer,
    Pointer,
    Release,
    ReleaseFile,
    check_profile_id,
    describe_blob,
    parse_release,
    release_path,
    role_name,
)
from fieldlm.formats.shadow import HOURS, LEAST, MOST
from fieldlm.formats.topics import parse_broker, release_topic
from fieldlm.network.broker_identity import Identity, add_identity_options, identity_of
from fieldlm.network.mqtt import leave
from fieldlm_compiler.repository.metadata import TIMESTAMP_DAYS, Keyring, RepositoryMetadata, publish_lock, read_offered

log = logger(__name__)


def publish(
    bundle_folder: Path,
    repository: Path,
    *,
    keys: Path,
    profile: str | None = None,
    min_seq: int | None = None,
    notes: str = "",
    offer: Offer | None = None,
    days: int | None = None,
) -> Release:
    """Add the bundle to the repository as the newest release of its profile, and return the release.

    The bundle that is the newest already is not released again; the metadata is signed afresh. Devices that commit the
    release never go back below `min_seq`; without it they keep the limit of the release before. `offer` says which of
    them may take it; all may without. `days` is for how long the repository is good without `refresh`, as there.
    """
    bundle = open_bundle(bundle_folder)
    if not bundle.manifest.is_proved:
        raise InputError(f"{bundle_folder} is unproved and made for no profile; compile {bundle.manifest.model.source}")
    _check_profile(bundle, profile)
    with disk_errors(repository), publish_lock(repository):
        _check_keys_at_hand(repository, keys)
        book = RepositoryMetadata(repository, Keyring(keys))
        own = role_name(bundle.manifest.profile)
        book.need([*([own] if own in book.profiles else ["targets"]), "snapshot", "timestamp"])
        if days is not None:
            book.renew_every(days)
        newest = newest_release(repository, bundle.manifest.profile)
        if newest and newest.bundle == bundle.id and min_seq is None and not _is_pulled(repository, newest):
            book.write()
            return newest
        release, indices = describe_release(bundle, newest, min_seq=min_seq, notes=notes)
        store = Blobs(repository)
        for path, blob in _files(bundle, release):
            store.keep(path, blob.sha256, blob.size)
        for sha256, index in indices.items():
            _keep_index(store, sha256, index)
        add_release(book, repository, release, offer)
        book.write()
        return release


def refresh(repository: Path, *, keys: Path, days: int | None = None) -> datetime:
    """Sign the timestamp anew, and return until when it is good; of the keys only the timestamp's has to be at hand.

    `days` is how long that is from now on; without it as long as before. Raises InputError where there is nothing to
    renew.
    """
    if not (repository / "tuf" / "timestamp.json").exists():
        raise InputError(
            f"{repository} is no repository with releases; publish one first: fieldlm publish BUNDLE --to {repository}"
        )
    with disk_errors(repository), publish_lock(repository):
        _check_keys_at_hand(repository, keys)
        book = RepositoryMetadata(repository, Keyring(keys))
        book.need(["timestamp"])
        if days is not None:
            book.renew_every(days)
        book.write()
        return book.timestamp().expires


def add_release(book: RepositoryMetadata, repository: Path, release: Release, offer: Offer | None = None) -> None:
    """Write the release's file and offer it; visible once the book is written."""
    data = canonical_json(release)
    target = release_path(release.profile, release.seq)
    write_whole(repository / "releases" / target, data)
    book.add(release.profile, target, data, offer)


def newest_release(repository: Path, profile: str) -> Release | None:
    """Return the newest release that the repository offers to `profile`; trusts the folder, as its owner does."""
    profiles = read_offered(repository)
    offered = profiles.get(role_name(profile))
    if offered is None or not offered.targets:
        return None
    path = repository / "releases" / release_path(profile, max(int(Path(name).stem) for name in offered.targets))
    with disk_errors(path):
        return parse_release(path.read_bytes(), what=str(path))


def _is_pulled(repository: Path, release: Release) -> bool:
    """Whether the owner took `release` back: what is published once more then is a release of its own."""
    offered = read_offered(repository)[role_name(release.profile)]
    target = offered.targets[release_path(release.profile, release.seq)]
    return bool((target.unrecognized_fields.get("custom") or {}).get("pulled"))


def describe_release(
    bundle: Bundle, newest: Release | None, *, min_seq: int | None = None, notes: str = ""
) -> tuple[Release, dict[str, bytes]]:
    """Work out the release that follows `newest`, and the indices of its files by digest."""
    seq = newest.seq + 1 if newest else 1
    floor = min_seq if min_seq is not None else newest.min_seq if newest else 0
    if not 0 <= floor <= seq:
        raise InputError(f"min_seq is {floor}, this release is {seq}; want 0 to {seq}")
    signature = msgspec.json.decode((bundle.folder / SIGNATURE).read_bytes(), type=Signature)
    names = [MANIFEST, SIGNATURE, *(file.path for file in bundle.manifest.files)]
    described = {name: describe_blob(bundle.folder / name, _chunk_sizes(bundle, name)) for name in names}
    release = Release(
        format=FORMAT,
        seq=seq,
        min_seq=floor,
        profile=bundle.manifest.profile,
        bundle=bundle.id,
        signer=signature.keyid,
        manifest=described[MANIFEST][0],
        signature=described[SIGNATURE][0],
        files=tuple(
            ReleaseFile(path=file.path, role=file.role, **msgspec.structs.asdict(described[file.path][0]))
            for file in bundle.manifest.files
        ),
        model=bundle.manifest.model.name,
        notes=notes,
    )
    return release, {blob.index: index for blob, index in described.values() if blob.index}


def _chunk_sizes(bundle: Bundle, name: str) -> Iterator[int]:
    """Cut where the format says that tensors begin, else by what the file says itself."""
    path = bundle.folder / name
    from fieldlm_compiler.export.format import formats

    fmt = next((each for each in formats().values() if each.engine == bundle.manifest.engine), None)
    places = fmt.places(bundle, name) if fmt else ()
    return cut(places, path.stat().st_size) if places else chunk_sizes(path)


def _keep_index(store: Blobs, sha256: str, index: bytes) -> None:
    if not store.holds(sha256, len(index)):
        write_whole(store.path(sha256), index)


def announce(pointer: Pointer, broker: str, *, topic: str, identity: Identity | None = None) -> None:
    """Leave the pointer on the broker as a retained message; raises UnavailableError when it does not take it."""
    try:
        leave(broker, topic, canonical_json(pointer), identity=identity)
    except UnavailableError as error:
        raise UnavailableError(f"the release is published, but its announcement is not: {error}") from error


def _check_keys_at_hand(repository: Path, keys: Path) -> None:
    """Refuse a strange keys folder before anything is written to it."""
    if (repository / "tuf" / "root.json").exists() and not keys.is_dir():
        raise InputError(f"{repository} is signed with another root key than {keys}, which is empty; pass --keys")


def _check_profile(bundle: Bundle, profile: str | None) -> None:
    own = bundle.manifest.profile
    check_profile_id(own, what=str(bundle.folder))
    if profile and profile != own:
        raise InputError(
            f"{bundle.folder} is compiled for {own}, devices of {profile} would refuse it; "
            f"run: fieldlm compile MODEL --profile {profile}"
        )


def _files(bundle: Bundle, release: Release) -> Iterator[tuple[Path, Blob]]:
    yield bundle.folder / MANIFEST, release.manifest
    yield bundle.folder / SIGNATURE, release.signature
    for file in release.files:
        yield bundle.folder / file.path, file


def _parse(argv: Sequence[str]) -> Any:
    parser = terminal.parser(
        "publish",
        "Offer a bundle to the devices of its profile.",
        "fieldlm publish smollm2-rpi5-8gb --to repository",
        "fieldlm publish --refresh --to repository",
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="the folder that `fieldlm compile` made")
    parser.add_argument(
        "--refresh", action="store_true", help="instead of a bundle: only renew what says that this is the newest"
    )
    parser.add_argument(
        "--timestamp-days",
        type=options.whole(1, 365),
        metavar="DAYS",
        help="how long that is good from now on; as before without, "
        f"{TIMESTAMP_DAYS} at first. Devices take nothing from a repository that was not renewed for longer",
    )
    parser.add_argument(
        "--to", type=options.new_folder, required=True, metavar="REPOSITORY", help="folder; made when it is not there"
    )
    parser.add_argument("--profile", default="", help="refuse unless the bundle is for this profile")
    parser.add_argument("--keys", metavar="DIR", help="the publisher's keys, made on first use; default: as configured")
    parser.add_argument(
        "--min-seq", type=options.whole(0), help="devices that take this release never go back below that one"
    )
    parser.add_argument("--notes", default="", help="a line for people")
    add_offer_options(parser)
    parser.add_argument(
        "--announce", default="", metavar="mqtt[s]://[USER:PASSWORD@]HOST", help="tell the devices through this broker"
    )
    parser.add_argument("--fleet", default="default", help="fleet to notify")
    parser.add_argument(
        "--at", default="", metavar="URL", help="where devices reach the repository; default: as configured"
    )
    add_identity_options(parser)
    args = parser.parse_args(argv)
    if (args.bundle is None) is not args.refresh:
        raise InputError("name a bundle, or say --refresh to renew what was published")
    if args.announce:
        parse_broker(args.announce)
    args.identity = identity_of(args, broker=args.announce, option="--announce")
    return args


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm publish BUNDLE --to REPOSITORY`, or `fieldlm publish --refresh --to REPOSITORY`."""
    args = _parse(argv)
    keys = keys_folder(args.keys)
    if args.refresh:
        until = f"{refresh(args.to, keys=keys, days=args.timestamp_days):%Y-%m-%d %H:%M} UTC"
        terminal.show(
            {"repository": str(args.to), "until": until}, f"{args.to} is good until {until}", as_json=args.json
        )
        return 0
    manifest = open_bundle(args.bundle, digests=False).manifest
    before = newest_release(args.to, manifest.profile)
    is_first = not (args.to / "tuf" / "root.json").exists() and not keys.is_dir()
    with terminal.progress(f"publish {args.bundle} to {args.to}"):
        release = publish(
            args.bundle,
            args.to,
            keys=keys,
            profile=args.profile,
            min_seq=args.min_seq,
            notes=args.notes,
            offer=in_shadow(make_offer(args.share, args.spread), args.shadow, args.shadow_hours),
            days=args.timestamp_days,
        )
    if not manifest.is_held_against_source:
        log.info("note: its weights came quantised and were held against no source model; compile --quant does that")
    if args.announce:
        pointer = Pointer(seq=release.seq, profile=release.profile, repository=args.at)
        topic = release_topic(args.fleet, release.profile)
        announce(pointer, args.announce, topic=topic, identity=args.identity)
    if is_first:
        log.info(f"{keys} holds new keys, which devices of {args.to} trust from now on; keep a copy: fieldlm keys show")
    terminal.show(release, _summary(release, args.to, is_known=release == before), as_json=args.json)
    return 0


def make_offer(percent: float, spread_s: float, salt: str = "") -> Offer:
    """Offer to that share of the devices, from now on; a new salt where none is given."""
    if not 0 <= percent <= 100 or not 0 <= spread_s <= 365 * 86400:
        raise InputError(f"share is {percent:g} % over {spread_s:g} s; want 0 to 100 %, at most a year")
    share_ppm = round(percent * 10_000)
    return Offer(share_ppm=share_ppm, salt=salt or secrets.token_hex(8), since=int(time.time()), spread_s=int(spread_s))


def in_shadow(offer: Offer, requests: int | None, hours: float | None) -> Offer:
    """Return `offer` with another shadow period: so many requests of each device, in so many hours at most.

    None leaves what is there. Raises InputError for hours of no period.
    """
    requests = offer.shadow if requests is None else requests
    if hours is not None and not requests:
        raise InputError(f"--shadow-hours {hours:g} belongs to no period; say how many requests: --shadow REQUESTS")
    shadow_s = offer.shadow_s if hours is None else round(3600 * hours)
    return msgspec.structs.replace(offer, shadow=requests, shadow_s=shadow_s)


def add_offer_options(parser: argparse.ArgumentParser, *, what: str = "") -> None:
    """Add `--share`, `--spread`, and what `add_shadow_options` adds; `what` says to what they belong."""
    parser.add_argument(
        "--share",
        type=options.real(0, 100),
        default=100.0,
        metavar="PERCENT",
        help=f"{what}percent of the profile's devices, to begin with",
    )
    parser.add_argument(
        "--spread",
        type=options.real(0, 31_536_000),
        default=0.0,
        metavar="SECONDS",
        help=f"{what}seconds to stagger the start over",
    )
    add_shadow_options(parser, what=what)


def add_shadow_options(parser: argparse.ArgumentParser, *, what: str = "") -> None:
    """Add `--shadow` and `--shadow-hours`, None where they are not said; `what` says to what they belong."""
    parser.add_argument(
        "--shadow",
        type=options.whole(LEAST, MOST, zero=True),
        metavar="REQUESTS",
        help=f"{what}requests that a device answers with it for nobody to see, before it is switched to",
    )
    parser.add_argument(
        "--shadow-hours",
        type=options.real(0, 8760, above=True),
        metavar="HOURS",
        help=f"{what}hours that this may take; {HOURS:g} at first",
    )


def _summary(release: Release, repository: Path, *, is_known: bool) -> str:
    if is_known:
        return f"{repository} offers {release.bundle[:12]} already, as release {release.seq} for {release.profile}"
    rows = [(file.role, file.path, f"{file.size / 1e6:.2f}") for file in release.files]
    table = terminal.table(rows, ("role", "file", "MB"))
    return f"{repository} now offers {release.bundle[:12]} as release {release.seq} for {release.profile}\n{table}"
