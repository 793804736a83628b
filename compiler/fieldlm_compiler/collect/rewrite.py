"""What has to go from Parquet files, forgotten sessions and text that is too old, and the SQL that leaves it out."""

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fieldlm_compiler.collect.sealed_text import TEXT

if TYPE_CHECKING:
    import duckdb

HAS_TEXT = "(" + " OR ".join(f"{name} <> ''" for name in TEXT) + ")"
_MS = {"h": 3_600_000, "d": 86_400_000}
_MOST_DAYS = 36_500


class OldText(NamedTuple):
    """A file with text that is too old: what to select from it, and how many rows lose theirs."""

    path: Path
    columns: str
    rows: int


def holding(duck: "duckdb.DuckDBPyConnection", files: Sequence[Path]) -> list[Path]:
    """Return the files that hold a row of a session of the table `forgotten`."""
    if not files:
        return []
    sql = """SELECT DISTINCT filename FROM read_parquet(?, filename = true)
        WHERE (device, session) IN (SELECT (device, session) FROM forgotten) AND kind <> 'forget'"""
    return [Path(name) for (name,) in duck.execute(sql, [[str(path) for path in files]]).fetchall()]


def old_text(duck: "duckdb.DuckDBPyConnection", files: Sequence[Path], before_ms: int) -> list[OldText]:
    """Return the files with text from before a time.

    A row is as old as its device's clock says; where that is not to be believed, or is ahead, as old as its file.
    """
    found: list[OldText] = []
    for path in files:
        old = is_old(before_ms, path.stat().st_mtime_ns // 1_000_000)
        sql = f"SELECT count(*) FROM read_parquet(?) WHERE {HAS_TEXT} AND {old}"
        ((rows,),) = duck.execute(sql, [str(path)]).fetchall()
        if rows:
            changes = ", ".join(f"CASE WHEN {old} THEN '' ELSE {name} END AS {name}" for name in TEXT)
            found.append(OldText(path, f"* REPLACE ({changes})", rows))
    return found


def is_old(before_ms: int, arrived_ms: int) -> str:
    """Return the SQL condition of a row that came by `arrived_ms` and was said before `before_ms`."""
    said_ms = f"CASE WHEN clock_ok AND wall_ms > 0 THEN least(wall_ms, {arrived_ms}) ELSE {arrived_ms} END"
    return f"({said_ms} < {before_ms})"


def age_ms(text: str) -> int:
    """Read an age as people write it, 30d or 12h; raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d{1,6})([hd])", text.strip())
    if not found or not 0 < (age := int(found[1]) * _MS[found[2]]) <= _MOST_DAYS * _MS["d"]:
        raise ArgumentTypeError(f"{text!r}; want a number of days or hours, as 30d or 12h")
    return age
