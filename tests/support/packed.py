"""What is asked of a device half that was installed or packed: that all of it is there."""

import importlib
import sys
from typing import Any

from tests.support.debian_root import ROOT

EVERY_MODULE = """
import importlib, pkgutil, fieldlm
names = [each.name for each in pkgutil.walk_packages(fieldlm.__path__, 'fieldlm.')]
assert len(names) > 100, names
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ('onnxruntime', 'tokenizers', 'iotcore'):  # the extras `onnx` and `broker`
            raise
"""
"""Imports every module of the device half."""
EVERY_HELP = """
import contextlib, io
from fieldlm.cli.main import COMMANDS, main
for name, (module, _) in COMMANDS.items():
    if not module.startswith('fieldlm.'):
        continue
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            code = main([name, '--help'])
        except SystemExit as end:
            code = end.code
    assert (code, said.getvalue().startswith('usage: fieldlm ' + name)) == (0, True), (name, code, said.getvalue())
"""
"""Has every subcommand of the device half say what it can."""
MULTIPLY = "import numpy; a = numpy.arange(6.0).reshape(2, 3); print((a @ numpy.arange(6.0).reshape(3, 2)).tolist())"
"""Prints [[10.0, 13.0], [28.0, 40.0]]."""


def packaging_module(name: str) -> Any:
    """Return a module of `packaging/`, which is no package."""
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "packaging"))
