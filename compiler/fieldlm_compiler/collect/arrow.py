"""Records as Arrow tables: the schema of every store's rows, and the SQL that leaves out what is forgotten."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from fieldlm.formats.record import Record
from fieldlm_compiler.collect.sealed_text import TEXT
from fieldlm_compiler.collect.sink import KEY, Policy, Session


@cache
def schema() -> Any:
    """Return the columns of every store."""
    import pyarrow as pa

    types: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    return pa.schema(
        [(f.name, types.get(f.type, pa.string())) for f in msgspec.structs.fields(Record) if f.name != "detail"]
        + [("detail", pa.map_(pa.string(), pa.string()))]
    )


def arrow_table(records: Sequence[Record]) -> Any:
    import pyarrow as pa

    columns = {name: [getattr(record, name) for record in records] for name in schema().names}
    columns["detail"] = [list(record.detail.items()) for record in records]
    return pa.table(columns, schema=schema())


def sessions_table(sessions: set[Session]) -> Any:
    """Return the table `forgotten` that `without_forgotten` looks into."""
    import pyarrow as pa

    listed = sorted(sessions)
    columns = {"device": [device for device, _ in listed], "session": [session for _, session in listed]}
    return pa.table(columns, pa.schema([("device", pa.string()), ("session", pa.string())]))


def without_forgotten(policy: Policy) -> str:
    """Return the SQL columns of `records` without what belonged to sessions of the table `forgotten`."""
    import pyarrow as pa

    gone = "(device, session) IN (SELECT (device, session) FROM forgotten) AND kind <> 'forget'"
    if policy == "text":
        values = dict.fromkeys(TEXT, "''")
    else:
        blank = {pa.int64(): "0", pa.float64(): "0.0", pa.bool_(): "true", pa.string(): "''"}
        values = {f.name: blank.get(f.type, "map([]::VARCHAR[], []::VARCHAR[])") for f in schema() if f.name not in KEY}
        values["kind"] = "'forget'"
    changes = [f"CASE WHEN {gone} THEN {value} ELSE {name} END AS {name}" for name, value in values.items()]
    return f"* REPLACE ({', '.join(changes)})"
