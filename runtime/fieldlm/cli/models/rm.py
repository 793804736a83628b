"""`fieldlm rm`: remove models from the cache."""

from collections.abc import Sequence

from fieldlm.catalogue.model_cache import remove
from fieldlm.core import terminal


def main(argv: Sequence[str]) -> int:
    """Remove fetched models; what a device serves of them stays in its state folder."""
    parser = terminal.parser(
        "rm", "remove models from the cache, with what a stopped fetch left behind", "fieldlm rm smollm2"
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a name or a source that fieldlm list shows")
    args = parser.parse_args(argv)
    gone = [model for name in args.models for model in remove(name)]
    freed_mb = sum(model.size for model in gone) / 1e6
    names = [model.source for model in gone]
    terminal.show({"removed": names, "freed_mb": round(freed_mb, 1)}, f"{freed_mb:.1f} MB freed", as_json=args.json)
    return 0
