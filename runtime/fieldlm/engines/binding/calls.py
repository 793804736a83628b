"""Functions of llama.cpp that are called otherwise than llama-cpp-python declares them."""

import ctypes
from collections.abc import Callable
from typing import Any


def keeping(function: Any, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return `function` so that it keeps Python's lock, which a microsecond's call would only lose to who waits."""
    return ctypes.PYFUNCTYPE(result, *arguments)(ctypes.cast(function, ctypes.c_void_p).value or 0)


def row_of(api: Any) -> Callable[[Any, int], int]:
    """Return llama_get_logits_ith as a function to an address. On a GPU it waits for the decode: others run then."""
    if api.llama_supports_gpu_offload():
        function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        return function(ctypes.cast(api.llama_get_logits_ith, ctypes.c_void_p).value or 0)
    return keeping(api.llama_get_logits_ith, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)


def adapters_by_sequence(api: Any) -> Callable[[Any, Any, int], int]:
    """Return llama_set_adapters_lora_by_seq, which `packaging/patches` add, or one that always fails (-1) without them.

    It takes a context, an array of adapters (one for each sequence, or NULL for none), and its length.
    """
    try:
        function = api._lib.llama_set_adapters_lora_by_seq
    except AttributeError:
        return lambda context, handles, count: -1
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    function.restype = ctypes.c_int32
    return function
