"""Steps of a compiler that go wrong, or say what they were given, for tests of what it makes of them."""

from pathlib import Path

from fieldlm.formats.bundle import CacheTypes


def fill_disk() -> None:
    Path("/dev/full").write_bytes(b"x" * 100_000)


def retold(paths: list[Path], cache: CacheTypes | None) -> str:
    return f"{type(paths[0]).__name__} {paths[0]} {type(cache).__name__} {cache.values if cache else ''}"
