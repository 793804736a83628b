"""The store that an address names."""

from pathlib import Path

from fieldlm.core.errors import InputError
from fieldlm.core.urls import shown
from fieldlm_compiler.collect.sealed_text import reader_of_environment
from fieldlm_compiler.collect.sink import Policy, Sink


def open_sink(where: str, *, read_only: bool = False, forget: Policy = "text") -> Sink:
    """Open what `where` names: a folder, delta:URI or kafka:BROKERS/TOPIC.

    The private key that FIELDLM_TEXT_KEY names reads text that was sealed. Raises InputError, or
    MissingDependencyError for an absent extra.
    """
    reader = reader_of_environment()
    sink = _opened(where, read_only=read_only, forget=forget)
    sink.name, sink.text_reader = where, reader
    return sink


def _opened(where: str, *, read_only: bool, forget: Policy) -> Sink:
    if where.startswith("delta:"):
        from fieldlm_compiler.collect.delta import DeltaStore

        return DeltaStore(where.removeprefix("delta:"), read_only=read_only, forget=forget)
    if where.startswith("kafka:"):
        from fieldlm_compiler.collect.kafka import KafkaStore

        return KafkaStore(where.removeprefix("kafka:"), read_only=read_only, forget=forget)
    if "://" in where:
        raise InputError(f"{shown(where)!r} is a URL; want FOLDER, delta:URI or kafka:BROKERS/TOPIC")
    from fieldlm_compiler.collect.parquet import Store

    return Store(Path(where), read_only=read_only, forget=forget)
