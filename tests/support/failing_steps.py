"""Steps that go wrong, for tests of what the compiler says then."""

from pathlib import Path


def fill_disk() -> None:
    Path("/dev/full").write_bytes(b"x" * 100_000)
