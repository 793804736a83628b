"""What `-o` prints: llama-bench's md, csv, json, jsonl and sql, each row as soon as it is measured.

JSON has "fieldlm" beside llama-bench's fields (intervals, environment, remarks), which llama.cpp's own tools leave out.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

import msgspec

from fieldlm.bench.llama_bench import FIELDS
from fieldlm.core.wording import visible

Row = dict[str, Any]
TABLE = "llama_bench"
# What llama-bench takes where nobody says; its table shows what differs.
DEFAULTS: Row = {
    "n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "flash_attn": -1, "load_mode": "auto",
}  # fmt: skip
SHORT = {"n_gpu_layers": "ngl", "n_threads": "threads", "flash_attn": "fa", "load_mode": "lm", "backends": "backend"}
WIDTHS = {
    "model": -30, "size": 10, "params": 10, "backends": -10, "n_gpu_layers": 3, "n_threads": 7, "n_batch": 7,
    "n_ubatch": 8, "type_k": 6, "type_v": 6, "flash_attn": 3, "load_mode": 10, "test": 15, "t/s": 20,
}  # fmt: skip


class Writer(Protocol):
    """One of llama-bench's formats."""

    def rows(self, rows: Sequence[Row]) -> None: ...

    def end(self) -> None: ...


class Markdown:
    """A table for people and issues. Which columns it has, the first row decides, and what was asked for."""

    def __init__(self, out: TextIO, asked: frozenset[str]) -> None:
        self._out, self._asked = out, asked
        self._columns: list[str] = []
        self._build = ""

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not self._columns:
                self._begin(row)
            self._line([(_cell(row, name), WIDTHS[name]) for name in self._columns])
            self._build = row["build_commit"]

    def _begin(self, row: Row) -> None:
        differing = [name for name, usual in DEFAULTS.items() if name in self._asked or row[name] != usual]
        on_gpu = [] if row["backends"] == "CPU" else ["n_gpu_layers"]
        self._columns = ["model", "size", "params", "backends", *on_gpu, "n_threads", *differing, "test", "t/s"]
        self._line([(SHORT.get(name, name), WIDTHS[name]) for name in self._columns])
        ruled = ["-" * (abs(WIDTHS[name]) - 1) + ("-" if WIDTHS[name] < 0 else ":") for name in self._columns]
        self._out.write(f"| {' | '.join(ruled)} |\n")

    def _line(self, cells: Sequence[tuple[str, int]]) -> None:
        words = [text.ljust(-width) if width < 0 else text.rjust(width) for text, width in cells]
        self._out.write(f"| {' | '.join(visible(word, keep='') for word in words)} |\n")
        self._out.flush()

    def end(self) -> None:
        self._out.write(f"\nbuild: {self._build} (0)\n")


def _cell(row: Row, name: str) -> str:
    if name == "model":
        return str(row["model_type"])
    if name == "size":
        mib = row["model_size"] / 2**20
        return f"{mib:.2f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"
    if name == "params":
        millions = row["model_n_params"] / 1e6
        return f"{millions:.2f} M" if millions < 1000 else f"{millions / 1000:.2f} B"
    if name == "test":
        return name_of_test(row)
    if name == "t/s":
        return f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}{' void' if is_void(row) else ''}"
    return str(row[name])


def is_void(row: Row) -> bool:
    """Return whether something voids the figures of `row`; of others' rows nothing is known."""
    return bool(row.get("fieldlm", {}).get("is_void"))


def name_of_test(row: Row) -> str:
    """Return what llama-bench calls the test of `row`: pp512, tg128, tg128 @ d4096."""
    parts = [f"{short}{row[name]}" for short, name in (("pp", "n_prompt"), ("tg", "n_gen")) if row[name]]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row["n_depth"] else "")


class Csv:
    """Fields of one value, quoted, below their names."""

    def __init__(self, out: TextIO, _asked: frozenset[str]) -> None:
        self._out = out
        out.write(",".join(FIELDS) + "\n")

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._out.write(",".join('"' + text.replace('"', '""') + '"' for text in _texts(row)) + "\n")
        self._out.flush()

    def end(self) -> None: ...


class Sql:
    """A table and its rows, for `sqlite3`."""

    def __init__(self, out: TextIO, _asked: frozenset[str]) -> None:
        self._out = out
        kinds = {str: "TEXT", bool: "INTEGER", int: "INTEGER", float: "REAL"}
        columns = ",\n".join(f"  {name} {kinds[kind]}" for name, kind in FIELDS.items())
        out.write(f"CREATE TABLE IF NOT EXISTS {TABLE} (\n{columns}\n);\n\n")

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = ", ".join("'" + text.replace("'", "''") + "'" for text in _texts(row))
            self._out.write(f"INSERT INTO {TABLE} ({', '.join(FIELDS)}) VALUES ({values});\n")
        self._out.flush()

    def end(self) -> None: ...


class Jsonl:
    """One document a line."""

    def __init__(self, out: TextIO, _asked: frozenset[str]) -> None:
        self._out = out

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._out.write(msgspec.json.encode(row).decode() + "\n")
        self._out.flush()

    def end(self) -> None: ...


class Json:
    """One document with all rows; it is whole when all is measured."""

    def __init__(self, out: TextIO, _asked: frozenset[str]) -> None:
        self._out = out
        self._before = "[\n"

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._out.write(self._before + msgspec.json.format(msgspec.json.encode(row)).decode())
            self._before = ",\n"
        self._out.flush()

    def end(self) -> None:
        self._out.write("\n]\n")


FORMATS: dict[str, Callable[[TextIO, frozenset[str]], Writer]] = {
    "md": Markdown, "csv": Csv, "json": Json, "jsonl": Jsonl, "sql": Sql,
}  # fmt: skip


def writer(name: str, asked: frozenset[str], out: TextIO | None = None) -> Writer:
    """Return who prints rows in the format `name` on stdout, or `out`."""
    return FORMATS[name](out or sys.stdout, asked)


def _texts(row: Row) -> list[str]:
    """Return the values of `row` as llama-bench spells them: truth as 0 and 1, six digits behind the point."""
    return [_text(kind, row[name]) for name, kind in FIELDS.items()]


def _text(kind: type, value: Any) -> str:
    if kind is bool:
        return str(int(value))
    return f"{value:.6f}" if kind is float else str(value)
