"""fieldlm: small language models on devices, offline, updated over the air.

`Model` opens a model in this process, `AsyncModel` does so for asyncio; both are imported when they are first used, so
that `import fieldlm` costs nothing. `__version__` is what is installed, `0+unknown` where it is read from a folder.
"""

TYPE_CHECKING = False  # not of `typing`, which takes longer to import than all of this package that a command needs

if TYPE_CHECKING:
    from fieldlm.inference.async_model import AsyncModel
    from fieldlm.inference.model import Model

    __version__: str

__all__ = ["AsyncModel", "Model"]


def __getattr__(name: str) -> object:
    """Import what PEP 562 leaves until it is asked for."""
    if name == "Model":
        from fieldlm.inference.model import Model

        return Model
    if name == "AsyncModel":
        from fieldlm.inference.async_model import AsyncModel

        return AsyncModel
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # reads a file

        try:
            return version(__name__)
        except PackageNotFoundError:  # read from a folder
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
