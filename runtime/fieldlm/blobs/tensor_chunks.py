"""Delta updates by chunks: files cut where tensors begin; those that did not change come from files that are here.

Publisher and device cut by the same rule, so a tensor that is the same in both files is a chunk with the same digest
in both. Where the file does not say where its tensors are (an ONNX graph says it of the weights beside it), what lies
at the same place is looked at instead. A rule that differs costs bytes and nothing else: what is taken is hashed again,
like what is fetched.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from fieldlm.blobs.partial_blob import PartialBlob
from fieldlm.core.errors import EngineError
from fieldlm.core.files import CHUNK_BYTES
from fieldlm.core.timing import Throttle
from fieldlm.formats.gguf import MAGIC, read_header

LEAST_BYTES = 64 << 10  # smaller neighbours share a chunk


def chunk_sizes(path: Path) -> Iterator[int]:
    """Yield the sizes of the chunks of the file: by tensor in a GGUF, by the megabyte in what does not say."""
    size = path.stat().st_size
    try:
        places = read_header(path).places if _is_gguf(path) else ()
    except EngineError:
        places = ()  # published as it is: what is wrong with it is for the device's own checks to say
    yield from cut(places, size)


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def cut(places: Iterable[int], size: int) -> Iterator[int]:
    """Yield the sizes of the chunks of a file of `size` bytes whose tensors begin at `places`."""
    small = 0
    for start, stop in pairwise(sorted({0, size, *(place for place in places if place < size)})):
        left = stop - start
        if left < LEAST_BYTES:
            small += left
            if small < LEAST_BYTES:
                continue
            yield small
            small = 0
            continue
        if small:
            yield small
            small = 0
        while left:
            yield min(left, CHUNK_BYTES)
            left -= min(left, CHUNK_BYTES)
    if small:
        yield small


def borrow(part: PartialBlob, files: Iterable[Path]) -> int:
    """Fill what is missing of `part` with equal stretches of `files`; return the bytes that need not be fetched.

    A file that cannot be read is as good as none: what is not found here is fetched.
    """
    before = part.bytes_here
    for path in files:
        if not part.missing():
            break
        try:
            (_borrow_tensors if _is_gguf(path) else _borrow_in_place)(part, path)
        except OSError:
            continue
    return part.bytes_here - before


def _borrow_tensors(part: PartialBlob, path: Path) -> None:
    wanted: dict[int, dict[bytes, list[int]]] = {}
    for index in part.missing():
        chunk = part.chunks[index]
        wanted.setdefault(chunk.size, {}).setdefault(chunk.digest, []).append(index)
    start, pace = 0, Throttle()
    with path.open("rb") as file:
        for size in chunk_sizes(path):
            if size in wanted:
                file.seek(start)
                data = file.read(size)
                for index in wanted[size].get(sha256(data).digest(), ()):
                    part.put(index, data)
                pace.pause()
            start += size


def _borrow_in_place(part: PartialBlob, path: Path) -> None:
    pace = Throttle()
    with path.open("rb") as file:
        for index in part.missing():
            file.seek(part.chunks[index].start)
            part.put(index, file.read(part.chunks[index].size))
            pace.pause()
