"""The store that an address names."""

from pathlib import Path

from fieldlm_compiler.collect.sink import Policy, Sink


def open_sink(where: str, *, read_only: bool = False, forget: Policy = "text") -> Sink:
    """Open what `where` names: a folder, delta:URI or kafka:BROKERS/TOPIC.

    Raises InputError, or MissingPartError for an absent extra.
    """
    if where.startswith("delta:"):
        from fieldlm_compiler.collect.delta import DeltaStore

        return DeltaStore(where.removeprefix("delta:"), read_only=read_only, forget=forget)
    if where.startswith("kafka:"):
        from fieldlm_compiler.collect.kafka import KafkaStore

        return KafkaStore(where.removeprefix("kafka:"), read_only=read_only, forget=forget)
    from fieldlm_compiler.collect.parquet import Store

    return Store(Path(where), read_only=read_only, forget=forget)
