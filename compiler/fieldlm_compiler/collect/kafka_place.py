"""A Kafka topic's address: which brokers, which topic, and the client's own properties."""

from pathlib import Path
from typing import NamedTuple

from fieldlm.core.errors import InputError
from fieldlm.core.urls import shown


class Place(NamedTuple):
    """Where a sink lies."""

    brokers: str
    topic: str
    properties: dict[str, str]


def parse_place(where: str) -> Place:
    """Read HOST:PORT[,HOST:PORT…]/TOPIC[?config=FILE]; raises InputError."""
    path, _, query = where.partition("?")
    brokers, _, topic = path.partition("/")
    if not brokers or not topic or "/" in topic or (query and not query.startswith("config=")):
        raise InputError(f"kafka:{shown(where)} names no topic; write kafka:HOST:PORT/TOPIC or …/TOPIC?config=FILE")
    return Place(brokers, topic, _properties(Path(query.removeprefix("config="))) if query else {})


def _properties(path: Path) -> dict[str, str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise InputError(f"the Kafka properties cannot be read: {error}") from error
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs}
