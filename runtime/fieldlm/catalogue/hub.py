"""Hugging Face hub: which GGUF file of a repository is meant, its size and SHA-256, and the file, resumable.

`HF_ENDPOINT` names another hub or mirror, `HF_TOKEN` opens what is gated, `HF_HUB_OFFLINE=1` forbids both; these are
the hub's own variables.
"""

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

import msgspec
import urllib3

from fieldlm.blobs.sources import MissingFileError
from fieldlm.blobs.web_source import CONNECT_S, READ_S, WebSource
from fieldlm.catalogue.download import download
from fieldlm.catalogue.names import HUB
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.urls import shown
from fieldlm.network.bounded_http import connections
from fieldlm.network.patience import cause_of

ENDPOINT = "https://huggingface.co"
PREFERRED = ("Q4_K_M", "Q4_0")
"""The types that are taken where a repository has several files and none is named: what llama.cpp takes, too."""
MOST_BYTES = 16 << 20
"""Of a list of files."""
REFUSED = (401, 403, 404)
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class Lfs(msgspec.Struct, frozen=True):
    """Git LFS: the SHA-256 and the size in bytes of a large file."""

    oid: str
    size: int


class HubFile(msgspec.Struct, frozen=True):
    """One file of a repository, as the hub's `tree` lists it."""

    path: str
    type: str = "file"
    lfs: Lfs | None = None


def fetch(source: str, into: Path) -> tuple[Path, str]:
    """Bring the GGUF file that `source` (hf:ORG/NAME[@REVISION][:FILE]) names into `into`; return its path and SHA-256.

    Goes on where an earlier call stopped. Raises InputError when the hub has no such file or wants a key,
    UnavailableError when it does not answer, TrustError when its bytes are not those of its own SHA-256.
    """
    found = HUB.fullmatch(source)
    assert found is not None, "the name was checked"
    repository, revision = found["repository"], found["revision"] or "main"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise UnavailableError(f"HF_HUB_OFFLINE is set and {source} is not in the cache; unset it, then fieldlm pull")
    file = choose(_files(repository, revision), found["file"] or "", source)
    if file.lfs is None:
        raise InputError(f"the hub names no SHA-256 for {file.path} of {repository}; fetch it yourself and check it")
    source_at = WebSource(_endpoint(), headers=_key())
    try:
        path = download(
            source_at,
            f"{repository}/resolve/{quote(revision, safe='')}/{quote(file.path)}",
            into / PurePosixPath(file.path).name,
            size=file.lfs.size,
            sha256=file.lfs.oid,
            what=source,
        )
    except MissingFileError as error:
        raise InputError(f"the hub lists {file.path} of {repository} and does not hand it out: {error}") from error
    return path, file.lfs.oid


def choose(files: list[HubFile], wanted: str, source: str) -> HubFile:
    """Return the GGUF file that `wanted` names, by its path or its type (Q4_K_M); without it the preferred one.

    Raises InputError, with the names there are, when that is none or several.
    """
    ggufs = [file for file in files if file.type == "file" and file.path.lower().endswith(".gguf")]
    whole = [file for file in ggufs if not PART.search(file.path) and "mmproj" not in file.path.lower()]
    if not ggufs:
        raise InputError(f"{source} has no GGUF file; make a bundle of it: fieldlm compile {source}")
    for names in [(wanted,)] if wanted else [*[(each,) for each in PREFERRED], ("",)]:
        exact = [file for file in whole if file.path == names[0]]
        alike = exact or [file for file in whole if names[0].lower() in PurePosixPath(file.path).name.lower()]
        if len(alike) == 1:
            return alike[0]
    if any(file.path == wanted for file in ggufs) or not whole:
        raise InputError(f"{source} is in parts; fetch all of them and join them: llama-gguf-split --merge")
    raise InputError(f"{source} names no one GGUF file; add :FILE, one of {', '.join(file.path for file in whole)}")


def _files(repository: str, revision: str) -> list[HubFile]:
    endpoint, headers = _endpoint(), _key()
    pool = connections(
        tls=urlsplit(endpoint).scheme == "https", timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S)
    )
    url = f"{endpoint}/api/models/{repository}/tree/{quote(revision, safe='')}?recursive=true"
    try:
        response = pool.request("GET", url, headers=headers, preload_content=False)
        body = response.read(MOST_BYTES, decode_content=True)
        response.close()
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(
            f"the hub {shown(endpoint)} does not answer: {cause_of(error)}; try again later"
        ) from error
    if response.status in REFUSED:
        raise InputError(
            f"the hub has no model {repository} at {revision}, or does not show it to you ({response.status}); "
            "check the name, and HF_TOKEN where it is gated"
        )
    if response.status != 200:
        raise UnavailableError(f"the hub {shown(endpoint)} answers {response.status} for {repository}; try again later")
    try:
        return msgspec.json.decode(body, type=list[HubFile])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UnavailableError(f"what {shown(endpoint)} answers is no list of files: {error}; is it a hub?") from error


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise InputError(f"HF_ENDPOINT is {shown(endpoint)!r}, want an http(s) address such as {ENDPOINT}")
    return endpoint


def _key() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN", "").strip()
    return {"authorization": f"Bearer {token}"} if token else {}
