#!/usr/bin/env python
"""The device's client as a command, for the conformance suite of The Update Framework.

    git clone https://github.com/theupdateframework/tuf-conformance && cd tuf-conformance
    pytest tuf_conformance --entrypoint=FIELDLM/tests/runtime/tuf_client.py

The suite is published as a repository and an action alone, no registry has it; `test_tuf_conformance.py` beside this
file plays its scenarios on every run. tuf_client.py.xfails names what does not apply.
"""

import argparse
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import unquote

from fieldlm.blobs.sources import ByteReader
from fieldlm.blobs.web_source import WebSource
from fieldlm.core.errors import FieldlmError
from fieldlm.updates.trust import Trust


class Repository:
    """The suite keeps metadata and targets at two addresses of its own choosing."""

    has_ranges = True
    stop = threading.Event()
    name = "the suite"
    moved = 0

    def __init__(self, metadata_url: str, targets_url: str) -> None:
        self._sources = {"tuf": WebSource(metadata_url), "releases": WebSource(targets_url)}

    def open(self, path: str, start: int = 0, stop: int | None = None) -> AbstractContextManager[ByteReader]:
        folder, _, rest = path.partition("/")
        return self._sources[folder].open(rest, start, stop)


def trust_in(metadata: Path) -> Trust:
    """Keep the metadata where the suite looks for it."""
    trust = Trust(metadata / "anchor")
    trust.metadata = metadata
    trust.has_digest_in_name = True
    return trust


def run(args: argparse.Namespace) -> None:
    trust = trust_in(args.metadata_dir)
    if args.what == "init":
        trust.folder.mkdir(exist_ok=True)
        trust.anchor.write_bytes(args.root.read_bytes())
        return
    source = Repository(args.metadata_url, args.target_base_url or args.metadata_url)
    if args.what == "refresh":
        trust.refresh(source)
        return
    for name in args.target_name:
        data = trust.read_target(source, name)
        if data is None:
            raise FieldlmError(f"{name} is not there")
        file = args.target_dir / unquote(name).replace("/", "%2F")
        file.write_bytes(data)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("--metadata-dir", "--target-dir"):
        parser.add_argument(name, type=Path)
    for name in ("--metadata-url", "--target-base-url"):
        parser.add_argument(name, default="")
    parser.add_argument("--target-name", action="append", default=[])
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    try:
        run(parser.parse_args(argv))
    except (FieldlmError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
