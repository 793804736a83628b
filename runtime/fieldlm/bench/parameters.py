"""Parameters of a bench in llama-bench's letters: lists and ranges of values, and every combination of them.

`-p 128,512`, `-t 1-4`, `-d 0-4096+1024`, `-n 16-256*2`; a letter may be given more than once. What nobody asks for is
as `serve` runs it by the profile, where llama-bench takes fixed values of its own.
"""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from itertools import product, zip_longest
from typing import TypeVar

import msgspec

from fieldlm.bench.measure import Spec
from fieldlm.core.errors import InputError
from fieldlm.core.options import real
from fieldlm.core.wording import counted
from fieldlm.engines import engine_kind
from fieldlm.engines.memory_plan import PREFILL_ALONE
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile

T = TypeVar("T")
MOST_VALUES = 1000
RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?:([+*])([0-9]{1,9}))?)?")
FLASH_ATTENTION: dict[str, bool | None] = {"on": True, "off": False, "auto": None, "1": True, "0": False, "-1": None}
LOAD_MODES = {"none": False, "mmap": True, "0": False, "1": True}


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured: every combination of the values, where there are any, else what the profile says.

    The values of `prompt` and `gen` are tests of their own, as llama-bench has it; 0 is none. `pairs` are tests of both
    in one.
    """

    prompt: tuple[int, ...]
    gen: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    depth: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    ubatch: tuple[int, ...] = ()
    key_type: tuple[str, ...] = ()
    value_type: tuple[str, ...] = ()
    flash_attention: tuple[str, ...] = ()
    load_mode: tuple[str, ...] = ()

    @property
    def asked(self) -> frozenset[str]:
        """The fields of llama-bench that are asked for, which its table shows whatever they are."""
        given = {
            "n_batch": self.batch, "n_ubatch": self.ubatch, "type_k": self.key_type, "type_v": self.value_type,
            "flash_attn": self.flash_attention, "load_mode": self.load_mode,
        }  # fmt: skip
        return frozenset(name for name, values in given.items() if values)


def whole_numbers(least: int, most: int) -> Callable[[str], tuple[int, ...]]:
    """Make the type of a list of whole numbers and ranges of them, `first-last`, `first-last+step`, `first-last*by`."""

    def read(text: str) -> tuple[int, ...]:
        wanted = f"{text!r}; want a list of whole numbers or ranges (128,512 or 1-4 or 0-4096+1024 or 16-256*2)"
        found: list[int] = []
        for part in text.split(","):
            match = RANGE.fullmatch(part)
            if match is None:
                raise ArgumentTypeError(f"{wanted}, {least}–{most}")
            first, last = int(match[1]), int(match[2] or match[1])
            found += _steps(first, last, match[3] or "+", int(match[4] or 1))
            if last < first or len(found) > MOST_VALUES or not all(least <= value <= most for value in found):
                raise ArgumentTypeError(f"{wanted}, {least}–{most}, at most {MOST_VALUES} of them, each range rising")
        return tuple(found)

    return read


def _steps(first: int, last: int, sign: str, step: int) -> Iterator[int]:
    """Yield the values of a range; of one that does not rise, its first alone and one that is too large."""
    value = first
    for _ in range(MOST_VALUES + 1):
        if value > last:
            return
        yield value
        following = value + step if sign == "+" else value * step
        if following <= value:
            yield -1
            return
        value = following


def pair(least: int, most: int) -> Callable[[str], tuple[int, int]]:
    """Make the type of two whole numbers with a comma between them."""

    def read(text: str) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9})", text)
        if match is None or not all(least <= int(each) <= most for each in match.groups()):
            raise ArgumentTypeError(f"{text!r}; want a pair of whole numbers, PROMPT,ANSWER, each {least}–{most}")
        return int(match[1]), int(match[2])

    return read


def reals(least: float, most: float) -> Callable[[str], tuple[float, ...]]:
    """Make the type of a list of numbers, each more than `least`."""
    one = real(least, most, above=True)

    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(one(part) for part in text.split(","))
        except ArgumentTypeError as error:
            wanted = f"want a list of numbers, more than {least:g}, at most {most:g}"
            raise ArgumentTypeError(f"{text!r}; {wanted}") from error

    return read


def words(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Make the type of a list of words out of `known`."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not set(found) <= set(known):
            raise ArgumentTypeError(f"{text!r}; want a list out of {', '.join(known)}")
        return found

    return read


def specs(bundle: Bundle, sweep: Sweep, base: Spec) -> list[Spec]:
    """Return one Spec a combination, beginning with `base`, in llama-bench's order.

    Raises InputError for what the engine of `bundle` does not take, and for more than 1,000 combinations.
    """
    _check_engine(bundle, sweep)
    apart = zip_longest(sweep.prompt, sweep.gen, fillvalue=0)
    tests = [(prompt, gen, False) for prompt, gen in apart if prompt or gen]
    tests += [(prompt, gen, True) for prompt, gen in sweep.pairs]
    lists = (
        _or_none(sweep.batch), _or_none(sweep.ubatch), _or_none(sweep.key_type), _or_none(sweep.value_type),
        _or_none(sweep.flash_attention), _or_none(sweep.load_mode), _or_none(sweep.threads), sweep.depth or (0,), tests,
    )  # fmt: skip
    if (count := math.prod(len(values) for values in lists)) > MOST_VALUES:
        raise InputError(f"these are {count:,} combinations; want {MOST_VALUES:,} at most")
    found: list[Spec] = []
    for batch, ubatch, keys, values, flash, mode, threads, depth, (prompt, gen, is_combined) in product(*lists):
        found.append(
            msgspec.structs.replace(
                base,
                prompt_tokens=prompt,
                gen_tokens=gen,
                depth=depth,
                is_combined=is_combined,
                threads=threads or base.threads,
                prefill_threads=threads or base.prefill_threads,
                # A microbatch that is larger than a step would be none.
                batch=batch or (max(PREFILL_ALONE, ubatch) if ubatch else None),
                ubatch=ubatch,
                profile=base.profile and _held(base.profile, keys, values, flash, mode),
            )
        )
    return found


def name_of(spec: Spec) -> str:
    """Return what tells a Spec from others of a grid: pp16, tg8 @ d64, 2 threads, f16/q8_0, fa on, lm none, ub 64."""
    tests = [f"{short}{count}" for short, count in (("pp", spec.prompt_tokens), ("tg", spec.gen_tokens)) if count]
    deep = f" @ d{spec.depth}" if spec.depth else ""
    parts = [("+" if spec.is_combined else ", ").join(tests) + deep, counted(spec.threads, "thread")]
    if spec.profile:
        gguf = spec.profile.gguf
        flash = next(words for words, value in FLASH_ATTENTION.items() if value is gguf.flash_attention)
        mode = next(words for words, value in LOAD_MODES.items() if value is spec.profile.runtime.mmap)
        keys, values = (each or "default" for each in (gguf.kv_k, gguf.kv_v))
        parts += [f"{keys}/{values}", f"fa {flash}", f"lm {mode}"]
    parts += [f"{short} {count}" for short, count in (("b", spec.batch), ("ub", spec.ubatch)) if count]
    return ", ".join(parts)


def _check_engine(bundle: Bundle, sweep: Sweep) -> None:
    kind = engine_kind(bundle.manifest.engine)
    if sweep.asked and kind.cache_type != "f16":
        name, engine, given = bundle.manifest.model.name, bundle.manifest.engine, ", ".join(sorted(sweep.asked))
        raise InputError(f"{name} runs in {engine}, which leaves no choice of {given}; do not say it")


def _held(profile: Profile, keys: str | None, values: str | None, flash: str | None, mode: str | None) -> Profile:
    """Return `profile` with what was asked for in its place."""
    gguf, runtime = profile.gguf, profile.runtime
    if keys:
        gguf = msgspec.structs.replace(gguf, kv_k=keys)
    if values:
        gguf = msgspec.structs.replace(gguf, kv_v=values)
    if flash:
        gguf = msgspec.structs.replace(gguf, flash_attention=FLASH_ATTENTION[flash])
    if mode:
        runtime = msgspec.structs.replace(runtime, mmap=LOAD_MODES[mode])
    return msgspec.structs.replace(profile, gguf=gguf, runtime=runtime)


def _or_none(values: Sequence[T]) -> Sequence[T | None]:
    return values or (None,)
