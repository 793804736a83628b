"""`fieldlm bench --compare A B`: whether B is faster than A, by how much at least and at most, and how sure that is.

Rows of two result files that measured the same are held against each other, repetition by repetition: Welch's test of
the logarithms of their speeds, which does not ask that both vary alike, and its 95 % interval of the ratio of their
geometric means. p is Holm's, so that many tests do not make a difference by chance; an interval is of its test alone.
Files are `-o json` and `-o jsonl`,
ours or llama-bench's own.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.bench.formats import name_of_test
from fieldlm.bench.result import Interval, interval
from fieldlm.bench.student import p_value, quantile
from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors

CHANCE = 0.05
# What may differ between two rows, by llama-bench's names; where it does within a file, it tells rows apart.
WAYS = (
    "model_type", "model_size", "backends", "n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn",
    "load_mode", "n_gpu_layers",
)  # fmt: skip
PLACES = ("cpu_info", "gpu_info", "build_commit")
SHOWN = {"n_threads": "threads", "flash_attn": "fa", "load_mode": "lm", "model_type": "model", "build_commit": "build"}


class _Ours(msgspec.Struct, frozen=True):
    remarks: tuple[str, ...] = ()
    is_void: bool = False


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a row of a result file; older versions of llama-bench write flash attention as a truth."""

    n_prompt: int
    n_gen: int
    samples_ts: tuple[float, ...]
    n_depth: int = 0
    model_type: str = ""
    model_size: int = 0
    backends: str = ""
    n_threads: int = 0
    n_batch: int = 0
    n_ubatch: int = 0
    type_k: str = ""
    type_v: str = ""
    flash_attn: int | bool = -1
    load_mode: str = ""
    n_gpu_layers: int = 0
    cpu_info: str = ""
    gpu_info: str = ""
    build_commit: str = ""
    fieldlm: _Ours = _Ours()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One test in two files; speeds in tokens/s, `ratio` is B's over A's.

    One repetition says nothing of its error: then there is neither interval nor p. `differs` is what else is not the
    same, with both values; `void` names the files whose figures are void.
    """

    test: str
    a: Interval
    b: Interval
    ratio: float
    low: float | None
    high: float | None
    p: float | None
    differs: dict[str, tuple[str, str]]
    void: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return what may be said of it."""
        if self.void:
            return f"void: nothing to believe in {' and '.join(self.void)}"
        if self.low is None or self.high is None or self.p is None:
            return "one repetition says nothing of its error"
        if self.p < CHANCE:
            return "B is faster" if self.ratio > 1 else "B is slower"
        if not self.low <= 1 <= self.high:
            return "no difference shown: the interval leaves 1 out, but among so many tests one does by chance"
        return f"no difference shown: the ratio lies between {self.low:.3f} and {self.high:.3f}"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two result files; `alone` are the tests that only one of them has."""

    a: str
    b: str
    differences: tuple[Difference, ...]
    alone: tuple[str, ...]
    remarks: tuple[str, ...]


def compare(a: Path, b: Path) -> Comparison:
    """Hold the rows of the file `b` against those of `a`; raises InputError where they have no test in common."""
    ours, theirs = read_rows(a), read_rows(b)
    telling = [name for name in WAYS if _varies(name, ours) or _varies(name, theirs)]
    left, right = _by_test(ours, telling), _by_test(theirs, telling)
    common = [name for name in left if name in right]
    if not common:
        raise InputError(
            f"{a} and {b} have no test in common: {', '.join(left)} and {', '.join(right)}; measure both with the same "
            "-p, -n and -d"
        )
    found = [_difference(name, left[name], right[name]) for name in common]
    return Comparison(
        a=str(a),
        b=str(b),
        differences=tuple(_holm(found)),
        alone=tuple(
            f"{name} is in {path} alone"
            for path, rows, others in ((a, left, right), (b, right, left))
            for name in rows
            if name not in others
        ),
        remarks=tuple(
            f"{name}: {words}"
            for name, rows in (("A", ours), ("B", theirs))
            for words in dict.fromkeys(words for row in rows for words in row.fieldlm.remarks)
        ),
    )


def read_rows(path: Path) -> list[ResultRow]:
    """Return the rows of a result file in JSON or JSON lines; raises InputError for a file that is none."""
    with disk_errors(path):
        data = path.read_bytes().strip()
    try:
        if data.startswith(b"["):
            found = msgspec.json.decode(data, type=list[ResultRow])
        else:
            found = [msgspec.json.decode(line, type=ResultRow) for line in data.splitlines() if line.strip()]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no result of -o json or -o jsonl: {error}") from error
    if not found:
        raise InputError(f"{path} has no results; write it with: fieldlm bench MODEL -o json")
    for row in found:
        if not row.samples_ts or not all(0 < speed < math.inf for speed in row.samples_ts):
            raise InputError(f"{path} has a row without speeds in samples_ts; write it with -o json or -o jsonl")
    return found


def _varies(name: str, rows: Sequence[ResultRow]) -> bool:
    return len({getattr(row, name) for row in rows}) > 1


def _by_test(rows: Sequence[ResultRow], telling: Sequence[str]) -> dict[str, list[ResultRow]]:
    """Return the rows of each test, by its name and by what tells it from others in its file."""
    found: dict[str, list[ResultRow]] = {}
    for row in rows:
        test = name_of_test({"n_prompt": row.n_prompt, "n_gen": row.n_gen, "n_depth": row.n_depth})
        words = [f"{SHOWN.get(name, name)} {getattr(row, name)}" for name in telling]
        found.setdefault(", ".join([test, *words]), []).append(row)
    return found


def _difference(test: str, left: Sequence[ResultRow], right: Sequence[ResultRow]) -> Difference:
    a, b = ([speed for row in rows for speed in row.samples_ts] for rows in (left, right))
    ratio, low, high, p = welch(a, b)
    differs = {
        SHOWN.get(name, name): (str(getattr(left[0], name)), str(getattr(right[0], name)))
        for name in (*WAYS, *PLACES)
        if getattr(left[0], name) != getattr(right[0], name)
    }
    void = tuple(name for name, rows in (("A", left), ("B", right)) if any(row.fieldlm.is_void for row in rows))
    return Difference(
        test=test, a=interval(a), b=interval(b), ratio=ratio, low=low, high=high, p=p, differs=differs, void=void
    )


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None, float | None, float | None]:
    """Return the ratio of the geometric means of `b` and `a`, its 95 % interval, and p; None of them for one sample."""
    import numpy as np

    logs = [np.log(np.asarray(samples, np.float64)) for samples in (a, b)]
    shift = float(logs[1].mean() - logs[0].mean())
    ratio = math.exp(shift)
    if min(len(a), len(b)) < 2:
        return ratio, None, None, None
    parts = [float(each.var(ddof=1)) / len(each) for each in logs]
    error = math.sqrt(sum(parts))
    if error < 1e-12:
        return ratio, ratio, ratio, float(abs(shift) < 1e-12)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, logs, strict=True))
    reach = quantile(freedom) * error
    return ratio, math.exp(shift - reach), math.exp(shift + reach), p_value(shift / error, freedom)


def _holm(found: Sequence[Difference]) -> Iterator[Difference]:
    """Yield `found` with p as Holm corrects it for how many tests there are."""
    tested = sorted((each.p, at) for at, each in enumerate(found) if each.p is not None)
    corrected: dict[int, float] = {}
    highest = 0.0
    for rank, (p, at) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[at] = highest
    for at, each in enumerate(found):
        yield msgspec.structs.replace(each, p=corrected.get(at))


def cells(difference: Difference) -> tuple[str, ...]:
    """Return a row of the table: test, A, B, B/A with its interval, p, and the verdict."""
    is_known = difference.low is not None and difference.high is not None and difference.p is not None
    span = f" [{difference.low:.3f}, {difference.high:.3f}]" if is_known else ""
    return (
        difference.test, difference.a.words(), difference.b.words(), f"{difference.ratio:.3f}{span}",
        f"{difference.p:.2g}" if is_known else "–", difference.verdict,
    )  # fmt: skip


HEAD = ("test", "A, tokens/s", "B, tokens/s", "B/A [95 %]", "#p (Holm)", "")
KEY = (
    "B/A is of the geometric means, and may differ a little from that of the means shown. p is Holm's over all "
    "rows; each interval is of its row alone, not adjusted for how many there are."
)


def notes(found: Comparison) -> list[str]:
    """Return what has to be known beside the table."""
    both = dict[str, None]()
    for each in found.differences:
        both.update({f"{name}: {a or '–'} in A, {b or '–'} in B": None for name, (a, b) in each.differs.items()})
    return [*both, *found.alone, *found.remarks]


def describe_comparison(found: Comparison) -> str:
    """Lay a comparison out for people."""
    head = [name.lstrip("#") for name in HEAD]
    lines = [f"A {found.a}", f"B {found.b}", terminal.table([cells(each) for each in found.differences], head)]
    return "\n".join([*lines, KEY, *(f"! {line}" for line in notes(found))])


def comparison_document(found: Comparison) -> dict[str, Any]:
    """Return a comparison as one document."""
    whole: dict[str, Any] = msgspec.to_builtins(found)
    for row, each in zip(whole["differences"], found.differences, strict=True):
        row["verdict"] = each.verdict
    return whole
