"""What `fieldlm tune` is given as an argument: a model's folder, and a file whose types are trained for."""

from argparse import ArgumentTypeError
from pathlib import Path

from fieldlm.core import options
from fieldlm.core.errors import FieldlmError
from fieldlm.formats.bundle import open_bundle
from fieldlm.formats.gguf import read_header


def checkpoint_folder(text: str) -> Path:
    """Return the folder that `text` names."""
    try:
        return options.existing_folder(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(
            f"{error}; make a folder of a model or bundle with: fieldlm unpack MODEL FOLDER"
        ) from error


def blocks_file(text: str) -> Path:
    """Return the GGUF file that `text` names, or the one of the bundle that it names."""
    path = Path(text)
    try:
        found = open_bundle(path).need("base") if path.is_dir() else path
    except FieldlmError as error:
        raise ArgumentTypeError(f"{text!r}, want a .gguf file or a bundle: {error}") from error
    if found.suffix != ".gguf" or not found.is_file():
        raise ArgumentTypeError(f"{text!r} is no .gguf file and no bundle with one; want a file or a bundle")
    read_header(found)
    return found
