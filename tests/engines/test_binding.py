"""llama.cpp's binding without the package around it, and its log."""

import subprocess
import sys

from fieldlm.engines.binding.log import Log
from fieldlm.engines.llama_api import api

SCRIPT = """
import sys
from fieldlm.engines.binding.c_api import load_binding

binding = load_binding()
assert binding.llama_model_load_from_file
assert load_binding() is binding
assert not {"diskcache", "jinja2", "llama_cpp.llama", "llama_cpp.llama_chat_format"} & set(sys.modules)
"""
ASKED = {
    "an attribute": "import llama_cpp; found = llama_cpp.Llama",
    "a name": "from llama_cpp import Llama as found",
    "all names": "names = {}; exec('from llama_cpp import *', names); found = names['Llama']",
    "a module": "import llama_cpp.llama; found = llama_cpp.Llama",
    "a name in a module": "from llama_cpp.llama_cache import LlamaCache; from llama_cpp import Llama as found",
}
WHOLE = """
import llama_cpp
import llama_cpp.llama_cpp as again
from llama_cpp import llama_cpp as once_more

assert found is sys.modules["llama_cpp.llama"].Llama
assert again is once_more is load_binding() is binding
assert llama_cpp.llama_backend_init is binding.llama_backend_init
assert llama_cpp.__version__
"""


def test_the_package_is_whole_for_whoever_imports_it_after_the_binding() -> None:
    for how, line in ASKED.items():
        done = subprocess.run(
            [sys.executable, "-c", f"{SCRIPT}\n{line}\n{WHOLE}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (how, done.stderr)


def test_who_listens_hears_of_each_buffer_when_it_is_there() -> None:
    log, heard = Log(api), list[str]()
    with log.listening() as sizes:
        log.on_buffer = lambda: heard.append("a buffer")
        log.callback(2, b"load_tensors:          CPU model buffer size =   136.40 MiB\n", None)
        log.callback(1, b"create_tensor: loading tensor output.weight\n", None)
        log.callback(2, b"llama_kv_cache:        CPU KV buffer size =    45.00 MiB\n", None)
    assert [round(sizes[name]) for name in ("model", "KV")] == [143, 47]
    log.callback(2, b"load_tensors:          CPU model buffer size =   136.40 MiB\n", None)
    assert heard == ["a buffer", "a buffer"], "and of none when it is over"
