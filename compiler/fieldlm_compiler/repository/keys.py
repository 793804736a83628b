"""Key management (`fieldlm keys`): make, replace and revoke a publisher's keys. Devices follow, and refuse the revoked.

The root keys may be several, of which a threshold has to sign, and lie on sticks in different drawers: a change that
too few of them have signed waits in the repository, where nobody takes it for a root, until `fieldlm keys sign` has
added the others.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors, write_whole
from fieldlm.core.wording import counted
from fieldlm_compiler.repository.metadata import (
    ROLES,
    Keyring,
    RepositoryMetadata,
    create_root,
    publish_lock,
    read_root,
)

STAGED = "next-root.json"


class KeyReport(msgspec.Struct, frozen=True, kw_only=True):
    """One key of one role: whether its private half is at hand, and how many of the role's keys have to sign."""

    role: str
    key: str
    at_hand: bool
    threshold: int
    keys: int
    expires: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of keys came to: published as root `version`, or waiting for more signatures."""

    role: str
    added: str = ""
    dropped: str = ""
    version: int
    signatures: int
    needed: int
    published: bool


def rotate(repository: Path, ring: Keyring, role: str, *, old: str = "", threshold: int = 0) -> Change:
    """Let a new key sign for `role` in place of the `old` one, which may be left out when there is only one.

    `role` is root, targets, snapshot, timestamp or profile-NAME. `threshold` is the root's from now on, 0 for as it is.
    """
    with publish_lock(repository):
        book = RepositoryMetadata(repository, ring)
        _check_nothing_waits(book)
        dropped = _the_key(book, role, old)
        signer = ring.make(role)
        book.swap_key(role, add=signer.public_key, drop=dropped)
        if threshold:
            _set_threshold(book, role, threshold)
        return _publish(book, role, added=signer.public_key.keyid, dropped=dropped)


def revoke(repository: Path, ring: Keyring, keyid: str) -> list[Change]:
    """Let no role be signed by the key any more; a role that would have too few keys left gets a new one."""
    changes = list[Change]()
    for role in _roles(repository, ring):
        with publish_lock(repository):
            book = RepositoryMetadata(repository, ring)
            found_ids = [known for known in book.keys(role).keyids if known.startswith(keyid)] if keyid else []
            if not found_ids:
                continue
            _check_nothing_waits(book)
            has_enough = len(book.keys(role).keyids) > book.keys(role).threshold
            signer = None if has_enough else ring.make(role)
            book.swap_key(role, add=signer.public_key if signer else None, drop=found_ids[0])
            added = signer.public_key.keyid if signer else ""
            changes.append(_publish(book, role, added=added, dropped=found_ids[0]))
    if not changes:
        raise InputError(f"no role is signed by key {keyid!r}; see: fieldlm keys show --to {repository}")
    return changes


def add_signatures(repository: Path, ring: Keyring) -> Change:
    """Add the signatures of the root keys at hand to the root that waits, and publish it once they are enough."""
    with publish_lock(repository):
        book = RepositoryMetadata(repository, ring)
        staged = _staged(book)
        if staged is None:
            raise InputError(
                f"no change of keys waits in {repository}; begin one with: fieldlm keys rotate ROLE --to {repository}"
            )
        old = book.root()
        for signer in ring.at_hand([*old.roles["root"].keyids, *staged.signed.roles["root"].keyids]):
            staged.sign(signer, append=True)
        return _finish(book, staged, old, Change(role="root", version=0, signatures=0, needed=0, published=False))


def report(repository: Path | None, ring: Keyring) -> list[KeyReport]:
    """List every key of every role; without a repository, those of the root in the keys folder."""
    if repository is None:
        anchor = ring.folder / "root.json"
        if not anchor.exists():
            raise InputError(f"{ring.folder} holds no root.json; run: fieldlm keys create")
        root = Metadata[Root].from_file(str(anchor)).signed
        roles = {name: (role, str(root.expires)) for name, role in root.roles.items() if name in ROLES}
    else:
        book = RepositoryMetadata(repository, ring)
        names = (*ROLES, *book.profiles)
        roles = {name: (book.keys(name), str(book.open(name).signed.expires)) for name in names}
    return [
        KeyReport(
            role=name, key=keyid, at_hand=keyid in ring.signers, threshold=role.threshold, keys=len(role.keyids),
            expires=when,
        )
        for name, (role, when) in roles.items()
        for keyid in role.keyids
    ]  # fmt: skip


def _roles(repository: Path, ring: Keyring) -> list[str]:
    with publish_lock(repository):
        return [*ROLES, *RepositoryMetadata(repository, ring).profiles]


def _the_key(book: RepositoryMetadata, role: str, old: str) -> str:
    known = book.keys(role).keyids
    found_ids = [keyid for keyid in known if keyid.startswith(old)]
    if len(found_ids) != 1:
        raise InputError(f"key {old!r} names {len(found_ids)} of the keys of {role}; say which: {', '.join(known)}")
    return found_ids[0]


def _set_threshold(book: RepositoryMetadata, role: str, threshold: int) -> None:
    keys = book.keys(role)
    if role != "root" or not 1 <= threshold <= len(keys.keyids):
        raise InputError(f"threshold is {threshold} for {role}; want 1 to {len(keys.keyids)}, and of root alone")
    keys.threshold = threshold


def _publish(book: RepositoryMetadata, role: str, *, added: str, dropped: str) -> Change:
    change = Change(
        role=role, added=added, dropped=dropped, version=book.root().version, signatures=1, needed=1, published=True
    )
    if role not in ROLES:
        book.need(["targets", role, "snapshot", "timestamp"])
        book.write()
        book.ring.retire(dropped)
        return change
    old = read_root(book.folder)
    return _finish(book, book.stage_root(), old, change)


def _finish(book: RepositoryMetadata, staged: Metadata[Root], old: Root, change: Change) -> Change:
    waiting = book.folder / STAGED
    write_whole(waiting, staged.to_bytes())
    new = staged.signed
    verdict = new.get_root_verification_result(old, staged.signed_bytes, staged.signatures)
    needed = max(verdict.first.threshold, verdict.second.threshold)
    missing = max(verdict.first.missing, verdict.second.missing)
    change = msgspec.structs.replace(
        change, version=new.version, signatures=needed - missing, needed=needed, published=verdict.verified
    )
    if not verdict.verified:
        return change
    book.write(staged)
    with disk_errors(waiting):
        waiting.unlink(missing_ok=True)
    if change.dropped and not _is_used(book, change.dropped):
        book.ring.retire(change.dropped)
    return change


def _is_used(book: RepositoryMetadata, keyid: str) -> bool:
    return any(keyid in book.keys(role).keyids for role in [*ROLES, *book.profiles])


def _staged(book: RepositoryMetadata) -> Metadata[Root] | None:
    path = book.folder / STAGED
    if not path.exists():
        return None
    try:
        return Metadata[Root].from_file(str(path))
    except RepositoryError as error:
        raise InputError(f"{path} is damaged: {error}; remove it and rotate again") from error


def _check_nothing_waits(book: RepositoryMetadata) -> None:
    if (book.folder / STAGED).exists():
        raise InputError(
            f"another change of keys waits for signatures in {book.folder.parent}; "
            f"run: fieldlm keys sign --to {book.folder.parent}, or remove {book.folder / STAGED}"
        )


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm keys create|show|rotate|revoke|sign`."""
    args = _parse(argv)
    keys = keys_folder(args.keys)
    ring = Keyring(keys, args.root_keys)
    if args.what == "create":
        anchor = create_root(ring, root_keys=args.root, threshold=args.threshold or 1, offline=args.root_keys)
        _show_report(report(None, ring), f"devices trust: {anchor}", args.json)
        return 0
    if args.what == "show":
        _show_report(report(args.to, ring), "", args.json)
        return 0
    if args.to is None:
        raise InputError(f"{args.what} changes a repository; say which: --to REPOSITORY")
    if not any((args.to / "tuf").glob("*.root.json")):
        raise InputError(f"{args.to} is no repository; fieldlm publish BUNDLE --to {args.to} makes one")
    if args.what == "rotate":
        changes = [rotate(args.to, ring, args.name, old=args.key, threshold=args.threshold)]
    elif args.what == "revoke":
        changes = revoke(args.to, ring, args.name)
    else:
        changes = [add_signatures(args.to, ring)]
    terminal.show(changes, "\n".join(_words(change, args) for change in changes), as_json=args.json)
    return 0 if all(change.published for change in changes) else 1


def _parse(argv: Sequence[str]) -> Any:
    parser = terminal.parser(
        "keys",
        "Make a publisher's keys, replace them, take them back.",
        "fieldlm keys create",
        "fieldlm keys rotate timestamp --to repository",
    )
    parser.add_argument("what", choices=("create", "show", "rotate", "revoke", "sign"), help="what to do")
    parser.add_argument("name", nargs="?", default="", help="the role to rotate, or the key to revoke")
    parser.add_argument("--keys", metavar="DIR", help="the publisher's keys; default: as configured")
    where = "where root keys lie that are kept apart: a folder or a PEM; may be said again"
    parser.add_argument("--root-keys", type=Path, action="append", default=[], metavar="PATH", help=where)
    parser.add_argument("--root", type=options.whole(1, 100), default=1, metavar="N", help="create: how many root keys")
    parser.add_argument(
        "--threshold",
        type=options.whole(1, 100, zero=True),
        default=0,
        metavar="N",
        help="how many root keys have to sign",
    )
    parser.add_argument("--key", default="", help="rotate: the old key, where the role has several")
    parser.add_argument(
        "--to", type=options.existing_folder, metavar="REPOSITORY", help="the repository whose keys change"
    )
    args = parser.parse_args(argv)
    if args.what in ("rotate", "revoke") and not args.name:
        wanted = f"one of {', '.join(ROLES)}, profile-NAME" if args.what == "rotate" else "a key id or its first digits"
        raise InputError(f"{args.what} needs {wanted}")
    return args


def _show_report(found_keys: Sequence[KeyReport], text: str, as_json: bool) -> None:
    rows = [
        (one.role, one.key[:16], f"{one.threshold} of {one.keys}", "yes" if one.at_hand else "no", one.expires[:10])
        for one in found_keys
    ]
    table = terminal.table(rows, ("role", "key", "sign", "at hand", "expires"))
    terminal.show(found_keys, f"{table}\n{text}".rstrip(), as_json=as_json)


def _words(change: Change, args: Any) -> str:
    swapped = " ".join(
        [
            f"new key {change.added[:16]}" if change.added else "",
            f"without {change.dropped[:16]}" if change.dropped else "",
        ]
    ).strip()
    if change.published:
        return f"{change.role}: {swapped or 'signed'}; devices follow with root {change.version}"
    keys = f" --keys {args.keys}" if args.keys else ""
    return (
        f"{change.role}: {swapped or 'signed'}; root {change.version} waits: "
        f"{change.signatures} of {counted(change.needed, 'signature')}; "
        f"run: fieldlm keys sign --to {args.to}{keys} --root-keys PATH"
    )
