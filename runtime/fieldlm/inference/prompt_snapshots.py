"""Prompt cache on disk: the system prompt's keys and values, so that a start does not compute them again.

A file is named by all that its bytes depend on (weights, adapter, template, system prompt, the engine's build), carries
its own digest, and is written aside and put in place. What is not exactly what was written is as good as not there.
"""

import hashlib
from pathlib import Path

import msgspec

from fieldlm.core.files import disk_errors, write_whole
from fieldlm.engines import SupportsStateSnapshot
from fieldlm.inference.chat_template import question
from fieldlm.inference.generations import Serving

MAGIC = b"fieldlm-kv 1\n"
DIGEST_BYTES = 32
LEAST_TOKENS = 64  # a shorter prompt is computed about as fast as it is read
KEPT = 2  # files: this generation's and the one to go back to
ROLES = ("base", "adapter", "tokenizer", "template")


class Snapshots:
    """The snapshots in one folder. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self, serving: Serving) -> bool:
        """Give the engine what an earlier start has computed; False when there is nothing for exactly this engine."""
        engine = serving.engine
        if not isinstance(engine, SupportsStateSnapshot) or not any(self._folder.glob("*.kv")):
            return False
        found = read(self._path(serving, engine))
        return found is not None and engine.remember(*found, adapter=serving.adapter)

    def save(self, serving: Serving) -> bool:
        """Keep what the engine has computed of the system prompt; False when no idle sequence has it.

        Raises NoSpaceError when the disk is full.
        """
        engine = serving.engine
        if not isinstance(engine, SupportsStateSnapshot) or len(prefix := system_tokens(serving)) < LEAST_TOKENS:
            return False
        found = engine.remembered(prefix, adapter=serving.adapter)
        if found is None:
            return False
        path = self._path(serving, engine)
        write(path, *found)
        self._clean(path)
        return True

    def forget(self, serving: Serving) -> None:
        """Drop the snapshot: the engine does not answer with it."""
        if isinstance(serving.engine, SupportsStateSnapshot):
            self._path(serving, serving.engine).unlink(missing_ok=True)

    def _path(self, serving: Serving, engine: SupportsStateSnapshot) -> Path:
        manifest = serving.bundle.manifest
        first = manifest.file("adapter")  # of several, the one that computes it
        used = (each for each in manifest.files if each.role in ROLES and (each.role != "adapter" or each is first))
        files = sorted((each.role, each.sha256) for each in used)
        key = msgspec.json.encode([files, manifest.system_prompt, engine.build])
        return self._folder / f"{hashlib.sha256(key).hexdigest()}.kv"

    def _clean(self, newest: Path) -> None:
        """Drop what a kill left half written, and all but the newest snapshots."""
        with disk_errors(self._folder):
            for part in self._folder.glob(".*.part"):
                part.unlink(missing_ok=True)
            others = [path for path in self._folder.glob("*.kv") if path != newest]
            for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT - 1 :]:
                path.unlink(missing_ok=True)


def system_tokens(serving: Serving) -> list[int]:
    """Return the tokens that every conversation without a system message of its own begins with."""
    one, other = (serving.engine.tokenize(question(serving.bundle, text)) for text in ("A", "1"))
    alike = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return one[:alike]


def write(path: Path, tokens: list[int], state: bytes) -> None:
    """Write a snapshot so that a kill leaves the old file, or none, or the whole new one."""
    body = msgspec.msgpack.encode((tokens, state))
    write_whole(path, MAGIC + hashlib.sha256(body).digest() + body)


def read(path: Path) -> tuple[list[int], bytes] | None:
    """Return the tokens and the memory in the file at `path`; None when it is missing, foreign or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + DIGEST_BYTES
    body = memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : start] != hashlib.sha256(body).digest():
        return None
    return msgspec.msgpack.decode(body, type=tuple[list[int], bytes])
