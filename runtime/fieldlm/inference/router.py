"""The router of a bundle."""

from functools import lru_cache
from pathlib import Path

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.router import Router, read_router


def router_of(bundle: Bundle) -> Router | None:
    """Return the bundle's router, None where it has none; raises BundleError where that is damaged."""
    path = bundle.path("router")
    return None if path is None else _read(bundle.id, path)


@lru_cache(maxsize=4)
def _read(_bundle_id: str, path: Path) -> Router:
    return read_router(path)
