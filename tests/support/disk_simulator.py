"""A disk that remembers: every file operation of Python code is a point at which the power may go.

`recording` lets the real operations happen and notes, at each, what of the folder would survive a power cut: of a
file what it held at its last fsync, of a folder the names it had at its own last fsync. `Moment.outcomes` then spells
out what may be found afterwards: everything (the process was killed), only what is certain, names without bytes, files
torn in the middle, and seeded mixtures in which each folder and each file comes from a time of its own. This is
harsher than ext4, which orders its metadata; what survives it survives FAT.

SQLite's files are taken as they are at each point: its journal with synchronous=FULL is trusted to be on the disk.
Nothing here depends on which operations are noted: names and bytes are read from the real folder every time, so an
operation that is missed makes a point fewer and no wrong outcome.
"""

import builtins
import io
import os
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

OPERATIONS = (
    "fdatasync", "fsync", "ftruncate", "link", "mkdir", "posix_fallocate", "pwrite", "remove", "rename", "replace",
    "rmdir", "symlink", "unlink",
)  # fmt: skip
TRUSTED = ("slots.db", "slots.db-wal", "slots.db-shm")
MIXTURES = 3

Listing = dict[str, int]  # name → identity


class Node(NamedTuple):
    """What is found at a path: the bytes of a file or a link, None for a folder; equal identities are hard links."""

    path: str
    identity: int
    content: bytes | Path | None


@dataclass
class Item:
    """A file, a folder or a link as it is now, with what is certain of it and the names it had since."""

    content: bytes | Path = b""
    listing: Listing | None = None
    certain: bytes | Path = b""
    listings: list[Listing] = field(default_factory=lambda: [{}])

    @property
    def torn(self) -> bytes | Path:
        if isinstance(self.content, Path):
            return self.content
        half = len(self.content) // 2
        return self.content[:half] + bytes(len(self.content) - half)


@dataclass(frozen=True)
class Moment:
    """What the disk may hold at one point of the recording. `label` says what was about to happen or had happened."""

    label: str
    root: int
    items: dict[int, Item]

    def outcomes(self, seed: str) -> Iterator[tuple[str, list[Node]]]:
        """Yield every kind of remains, with its name."""
        now = {at: item.listings[-1] for at, item in self.items.items()}
        sure = {at: item.listings[0] for at, item in self.items.items()}
        yield "killed", self._tree({at: item.content for at, item in self.items.items()}, now)
        yield "cut", self._tree({at: item.certain for at, item in self.items.items()}, sure)
        yield "names without bytes", self._tree({at: item.certain for at, item in self.items.items()}, now)
        yield "torn", self._tree({at: _mixed(item, item.torn) for at, item in self.items.items()}, now)
        for number in range(MIXTURES):
            dice = random.Random(f"{seed} {number}")
            bytes_of = {
                at: _mixed(item, dice.choice((item.content, item.certain, item.torn)))
                for at, item in self.items.items()
            }
            yield (
                f"mixture {number}",
                self._tree(bytes_of, {at: dice.choice(i.listings) for at, i in self.items.items()}),
            )

    def _tree(self, contents: dict[int, bytes | Path], listings: dict[int, Listing]) -> list[Node]:
        return list(self._walk("", self.root, contents, listings))

    def _walk(
        self, path: str, identity: int, contents: dict[int, bytes | Path], listings: dict[int, Listing]
    ) -> Iterator[Node]:
        item = self.items[identity]
        if item.listing is None:
            yield Node(path, identity, item.content if path.endswith(TRUSTED) else contents[identity])
            return
        yield Node(path, identity, None)
        names = listings[identity] | {name: at for name, at in item.listing.items() if name in TRUSTED}
        for name, child in sorted(names.items()):
            yield from self._walk(f"{path}/{name}" if path else name, child, contents, listings)


def _mixed(item: Item, otherwise: bytes | Path) -> bytes | Path:
    """Return what is found of a file: `otherwise`, unless all of it was on the disk."""
    return item.content if item.content == item.certain else otherwise


class Recorder:
    """Watches one folder. What it holds at first counts as on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.moments = list[Moment]()
        self._items = dict[int, Item]()
        self._identities = dict[int, int]()  # inode → identity; an inode is used again, an identity is not
        self._next = 0
        self._at = self._scan(root)
        for item in self._items.values():
            item.certain = item.content
            item.listings = [item.listing or {}]

    def note(self, label: str) -> None:
        """Look at the folder and keep what may be found after a power cut now, unless it is what it was."""
        self._at = self._scan(self.root)
        items = {
            identity: Item(item.content, item.listing, item.certain, list(item.listings))
            for identity, item in self._items.items()
        }
        if not self.moments or (self._at, items) != (self.moments[-1].root, self.moments[-1].items):
            self.moments.append(Moment(label, self._at, items))

    def synced(self, inode: int) -> None:
        """The file or the folder with that inode is on the disk now."""
        self._scan(self.root)
        identity = self._identities.get(inode)
        if identity is not None:
            item = self._items[identity]
            item.certain = item.content
            item.listings = [item.listing or {}]

    def _scan(self, path: Path) -> int:
        seen = set[int]()
        identity = self._look(path, seen)
        for inode in [inode for inode in self._identities if inode not in seen]:
            del self._identities[inode]
        return identity

    def _look(self, path: Path, seen: set[int]) -> int:
        inode = path.lstat().st_ino
        seen.add(inode)
        if inode not in self._identities:
            self._identities[inode] = self._next
            self._items[self._next] = Item()
            self._next += 1
        identity = self._identities[inode]
        item = self._items[identity]
        if path.is_symlink():
            item.content = item.certain = path.readlink()
        elif path.is_dir():
            item.listing = {child.name: self._look(child, seen) for child in sorted(path.iterdir())}
            if item.listings[-1] != item.listing:
                item.listings.append(item.listing)
        elif (content := path.read_bytes()) != item.content:
            item.content = content
        return identity


@contextmanager
def recording(root: Path) -> Generator[Recorder]:
    """Record every operation of this process until the block ends."""
    recorder = Recorder(root)
    with intercepted(recorder.note, recorder.note, recorder.synced):
        yield recorder


@contextmanager
def intercepted(
    before: Callable[[str], None], after: Callable[[str], None], synced: Callable[[int], None] = lambda inode: None
) -> Generator[None]:
    """Call `before` and `after` around every operation of Python code that changes a file system."""
    is_inside = False

    def around(name: str, operation: Callable[..., Any], *args: Any, **options: Any) -> Any:
        nonlocal is_inside
        if is_inside:
            return operation(*args, **options)
        is_inside = True
        try:
            before(f"before {name}")
            result = operation(*args, **options)
            if name in ("fsync", "fdatasync"):
                synced(os.fstat(args[0]).st_ino)
            after(f"after {name}")
        finally:
            is_inside = False
        return result

    def opened(real: Callable[..., Any], writes: Callable[..., bool], *args: Any, **options: Any) -> Any:
        if writes(*args, **options):
            return around("open", real, *args, **options)
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, _bound(around, name, getattr(os, name)))
        patch.setattr(os, "open", _bound(opened, os.open, _creates))
        patch.setattr(io, "open", _bound(opened, io.open, _writes))
        patch.setattr(builtins, "open", _bound(opened, builtins.open, _writes))
        yield


def _bound(wrapper: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    return lambda *args, **options: wrapper(*first, *args, **options)


def _creates(path: Any, flags: int, *args: Any, **options: Any) -> bool:
    del path, args, options
    return bool(flags & (os.O_CREAT | os.O_TRUNC))


def _writes(path: Any, mode: str = "r", *args: Any, **options: Any) -> bool:
    del path, args, options
    return any(letter in mode for letter in "wax+")


def lay_out(nodes: list[Node], folder: Path) -> None:
    """Write the remains into `folder`, which must not exist."""
    first = dict[int, Path]()
    for path, identity, content in nodes:
        target = folder / path
        if content is None:
            target.mkdir()
        elif isinstance(content, Path):
            target.symlink_to(content)
        elif identity in first:
            target.hardlink_to(first[identity])
        else:
            target.write_bytes(content)
            first[identity] = target
