"""Cut model files where their tensors begin, and take those that did not change from the files that are here.

Publisher and device cut by the same rule, so a tensor that is the same in both files is a chunk with the same digest
in both. A rule that differs costs bytes and nothing else: what is taken is hashed again, like what is fetched.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from fieldlm.formats.errors import EngineError
from fieldlm.formats.files import CHUNK_BYTES
from fieldlm.runtime.engines.gguf_header import MAGIC, read_header
from fieldlm.runtime.parts import Part

LEAST_BYTES = 64 << 10  # smaller neighbours share a chunk


def chunk_sizes(path: Path) -> Iterator[int]:
    """Yield the sizes of the chunks of the file: by tensor in a GGUF, by the megabyte in anything else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    try:
        places = read_header(path).places if is_gguf else ()
    except EngineError:
        places = ()  # published as it is: what is wrong with it is for the device's own checks to say
    yield from _cut(sorted({0, size, *(place for place in places if place < size)}))


def _cut(places: list[int]) -> Iterator[int]:
    small = 0
    for start, stop in pairwise(places):
        size = stop - start
        if size < LEAST_BYTES:
            small += size
            if small < LEAST_BYTES:
                continue
            yield small
            small = 0
            continue
        if small:
            yield small
            small = 0
        while size:
            yield min(size, CHUNK_BYTES)
            size -= min(size, CHUNK_BYTES)
    if small:
        yield small


def borrow(part: Part, files: Iterable[Path]) -> int:
    """Fill what is missing of `part` with equal stretches of `files`; return the bytes that need not be fetched.

    A file that cannot be read is as good as none: what is not found here is fetched.
    """
    before = part.bytes_here
    for path in files:
        wanted: dict[int, dict[bytes, list[int]]] = {}
        for index in part.missing():
            chunk = part.chunks[index]
            wanted.setdefault(chunk.size, {}).setdefault(chunk.digest, []).append(index)
        if not wanted:
            break
        try:
            _borrow(part, path, wanted)
        except OSError:
            continue
    return part.bytes_here - before


def _borrow(part: Part, path: Path, wanted: dict[int, dict[bytes, list[int]]]) -> None:
    start = 0
    with path.open("rb") as file:
        for size in chunk_sizes(path):
            if size in wanted:
                file.seek(start)
                data = file.read(size)
                for index in wanted[size].get(sha256(data).digest(), ()):
                    part.put(index, data)
            start += size
