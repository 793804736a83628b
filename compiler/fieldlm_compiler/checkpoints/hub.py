"""Hugging Face hub: fetch a model folder. Runs in a child process: the hub's errors are of many kinds."""

from pathlib import Path

from fieldlm.core.errors import UnavailableError


def snapshot(name: str, revision: str | None, patterns: list[str], cache: Path) -> str:
    """Return a folder with the files of model `name` that match `patterns`.

    Raises UnavailableError when the hub says no.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, revision=revision, allow_patterns=patterns, cache_dir=cache)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnavailableError(f"the hub does not hand out {name}: {reason}") from error
