"""`fieldlm chat`: a conversation with a bundle in this process, or with a running server."""

from collections.abc import Sequence

from fieldlm.cli.conversation import add_model, add_sampling, talk
from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.network.api_keys import CLIENT_KEY


def main(argv: Sequence[str]) -> int:
    """Hold a conversation with a bundle in this process, or with a running server."""
    parser = terminal.parser(
        "chat",
        "talk to a model; /help, said there, lists what else it does",
        "fieldlm chat smollm2",
        "fieldlm chat --url http://127.0.0.1:8080",
    )
    add_model(parser, nargs="?")
    parser.add_argument(
        "--url",
        help=f"a running server (http, https or unix:/PATH; {CLIENT_KEY} has its key); else as configured",
    )
    add_sampling(parser)
    args = parser.parse_args(argv)
    if args.model and args.url:
        raise InputError("give a model or --url, not both")
    return talk(args, as_json=args.json)
