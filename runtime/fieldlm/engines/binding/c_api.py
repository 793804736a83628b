"""llama.cpp's C API with Python types, without the rest of the package that it comes in."""

import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

PACKAGE = "llama_cpp"
BINDING = f"{PACKAGE}.llama_cpp"
_importing = threading.Lock()


def load_binding() -> Any:
    """Return the module `llama_cpp.llama_cpp`; raises ModuleNotFoundError where the package is not installed.

    The package itself imports its Python API: chat formats and Jinja, caches on disk, processes. That takes as long as
    the binding and stays in memory, and nothing here uses it. So its code is not run while the binding is imported.
    Who imports the package later has it run then, over this same binding.
    """
    with _importing:
        if BINDING in sys.modules:
            return sys.modules[BINDING]
        if PACKAGE in sys.modules or (spec := find_spec(PACKAGE)) is None:
            return import_module(BINDING)
        sys.modules[PACKAGE] = module_from_spec(spec)
        try:
            return import_module(BINDING)
        finally:
            del sys.modules[PACKAGE]


def binding_version() -> str:
    """Return the version of llama-cpp-python, as it is installed."""
    from importlib.metadata import version  # reads e-mail headers, which takes 20 ms

    return version("llama-cpp-python")
