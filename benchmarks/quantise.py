"""What a searched mixture of types gains over llama-quantize's presets, at the same bytes, from the same library.

    python -m benchmarks.quantise --data FOLDER --out build/quantise [--part presets …]

FOLDER holds snips-train.jsonl, snips-test.jsonl (text, name, arguments a line; the 2017 Snips benchmark, CC0) and
snips-adapter, a LoRA for the embedded default model; the source is the two merged. General text is Python's own
reference (pydoc_data). Calibration sees two windows of three and the first training lines; divergence is measured on
the third windows, the task on the test split, which nothing is chosen by. The default model was Q4_1 once: no mixture
here may use Q4_1, which would find most of its grid again. What is done is kept, so parts may be run one by one.
"""

import argparse
import json
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import msgspec

from benchmarks.quantise_divisible import train
from fieldlm.core import terminal
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file, write_whole
from fieldlm.core.logs import to_terminal
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.inference.chat_template import render
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.merge import merge
from fieldlm_compiler.checkpoints.peft_adapter import open_adapter
from fieldlm_compiler.compile.assemble import draft_manifest, report_path
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.export import quantize
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.export.format import lower, shrink
from fieldlm_compiler.pipeline.pack import draft
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.calibrate import IMATRIX
from fieldlm_compiler.search.frontier import FrontierPoint
from fieldlm_compiler.search.search import Search
from fieldlm_compiler.verify import gates
from fieldlm_compiler.verify.against_source import Answers, weigh_serving
from fieldlm_compiler.verify.corpus import read_corpus, read_task
from fieldlm_compiler.verify.divergence import Divergences, measure
from fieldlm_compiler.verify.exam import exam_prompt
from fieldlm_compiler.verify.limits import Limits, SearchRequest

MIB = 1 << 20
SYSTEM_PROMPT = "Answer with one JSON call."
UNFAIR = ("Q4_1",)
PRESETS = ("Q2_K", "Q4_0", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q8_0")
WITH_IMATRIX = ("IQ4_XS", "Q4_0", "Q3_K_M", "Q4_K_M")
SMALL_MIB = 75
SHARE = 0.98
POINTS = 12
AT_ONCE = 3
Table = list[tuple[str, str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The source with full weights, and all that is measured with."""

    stages: Stages
    profile: Profile
    checkpoint: Checkpoint
    full: Artefact
    answers: Answers
    files: dict[str, Path]
    windows: list[list[int]]
    examples: list[tuple[list[int], list[int]]]

    def search(self, *calibration: str, without: Sequence[str] = UNFAIR) -> Search:
        """Return a search that is calibrated on those of `files`, and ready to make points of its frontier."""
        request = SearchRequest(calibration=tuple(self.files[name] for name in calibration), without=tuple(without))
        manifest = draft_manifest(self.checkpoint, self.profile)
        found = Search(manifest, self.full, self.checkpoint, request=request, profile=self.profile, stages=self.stages)
        found.prepare(self.answers)
        return found

    def measure(self, artefacts: Sequence[Artefact], *, examples: int | None = None) -> list[Divergences]:
        """Hold `artefacts` against full weights on held-out text and the first `examples` of the test split."""
        pairs = self.examples[:examples]
        found: list[Divergences] = []
        for at in range(0, len(artefacts), AT_ONCE):
            some = artefacts[at : at + AT_ONCE]
            asked = {
                "full": self.full.sha256,
                "artefacts": [each.sha256 for each in some],
                "material": sha256_bytes(canonical_json([self.windows, pairs])),
            }
            make = partial(self._measure, some, pairs)
            _, made = self.stages.run("bench-measured", asked, make)
            found += msgspec.convert(made.value, list[Divergences])
        return found

    def _measure(self, some: Sequence[Artefact], pairs: Sequence[tuple[list[int], list[int]]], _: Path) -> Any:
        names = ", ".join(each.quant for each in some)
        return measure(self.full.base, [each.base for each in some], self.windows, pairs, what=f"measure {names}")

    def preset(self, quant: str, imatrix: Path | None = None) -> Artefact:
        """Return what llama-quantize makes of full weights."""
        if imatrix is None:
            return shrink(self.full, quant, self.profile, self.stages)
        asked = {"full": self.full.sha256, "quant": quant, "imatrix": sha256_file(imatrix)}

        def make(folder: Path) -> Any:
            return quantize.quantize(self.full.base, folder / "model.gguf", quant, imatrix=imatrix)

        folder, made = self.stages.run(f"imatrix-{quant}", asked, make)
        part = replace(next(part for part in self.full.parts if part.role == "base"), source=folder / "model.gguf")
        size = msgspec.convert(made.value, quantize.WeightsSize)
        return replace(
            self.full, quant=f"{quant}+imatrix", parts=(part,), size=size, sha256=made.files["model.gguf"][2]
        )


def conversation(row: dict[str, Any]) -> dict[str, Any]:
    answer = json.dumps({"name": row["name"], "arguments": row["arguments"]}, ensure_ascii=False)
    said = (("system", SYSTEM_PROMPT), ("user", row["text"]), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def write_files(data: Path, out: Path) -> dict[str, Path]:
    """Write general text, the task's traffic, and training lines that were not tuned on, to choose by."""
    train_rows, test_rows = (
        [json.loads(line) for line in (data / f"snips-{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    rows = {"traffic": train_rows[:2000], "choose": train_rows[8000:8200], "test": test_rows}
    files = {name: out / f"{name}.jsonl" for name in rows} | {"text": out / "text.txt"}
    write_whole(files["text"], "\n\n".join(topics[name] for name in sorted(topics)).encode())
    for name, each in rows.items():
        lines = (json.dumps(conversation(row), ensure_ascii=False) + "\n" for row in each)
        write_whole(files[name], "".join(lines).encode())
    return files


def open_bench(args: argparse.Namespace) -> Bench:
    stages, profile = Stages(args.out / "stages"), load_profile(args.profile)
    files = write_files(args.data, args.out)
    base = open_checkpoint(DEFAULT_MODEL)
    checkpoint = merge(base, open_adapter(args.data / "snips-adapter", base), stages)
    made = with_full(checkpoint, files, profile, stages, examples=args.examples)
    return replace(made, windows=made.windows[: args.windows])


def with_full(
    checkpoint: Checkpoint, files: dict[str, Path], profile: Profile, stages: Stages, *, examples: int
) -> Bench:
    """Lower `checkpoint` and cut the text that everything is measured on."""
    full, manifest = lower(checkpoint, "gguf", stages), draft_manifest(checkpoint, profile)
    answers = gates.ask(manifest, full, profile, stages)
    bundle = draft(manifest, full.parts)
    prompt, ask = partial(render, bundle), partial(exam_prompt, bundle)
    corpus = read_corpus([files["text"]], checkpoint, prompt)
    task = read_task(files["test"], checkpoint, prompt, answers.stops, ask=ask)[:examples] if examples else []
    return Bench(
        stages=stages,
        profile=profile,
        checkpoint=checkpoint,
        full=full,
        answers=answers,
        files=files,
        windows=corpus.hold,
        examples=[(each.prompt_tokens, each.answer_tokens) for each in task],
    )


def point_within(search: Search, limit_bytes: float) -> FrontierPoint:
    """Return the best point whose file has at most `limit_bytes`."""
    points = search.frontier.points
    return next(
        point for point in reversed(points) if search.foresight.foresee(search.types(point)).bytes <= limit_bytes
    )


def presets_part(bench: Bench) -> Table:
    """Ours beside every preset: at Q4_K_M's bytes, at 75 MiB, and the smallest that keeps the task."""
    search = bench.search("text", "traffic")
    plain = [bench.preset(name) for name in PRESETS]
    known = [bench.preset(name, search.statistics / IMATRIX) for name in WITH_IMATRIX]
    limit = next(each.size.bytes for each in plain if each.quant == "Q4_K_M")
    sizes = (SMALL_MIB * MIB, limit)
    ours = [search.make(point_within(search, size)) for size in sizes]
    # Those that a row below is about come first: what is measured stays measured.
    everything = sorted([*plain, *known, *ours], key=_weight)
    found = dict(zip((each.sha256 for each in everything), bench.measure(everything), strict=True))
    print(_details(everything, found))
    kl = {each.quant: found[each.sha256].kl.value for each in everything}
    small, level = ours
    keeping = [each for each in (*plain, *known) if _kept(found[each.sha256]) >= SHARE]
    preset = min(keeping, key=lambda each: each.size.bytes)
    mine = [each.size.bytes for each in ours if _kept(found[each.sha256]) >= SHARE]
    half, known_half = kl[level.quant] / kl["Q4_K_M"], kl[level.quant] / kl["Q4_K_M+imatrix"]
    third = kl["Q3_K_M"]
    share = min(mine, default=math.inf) / preset.size.bytes
    return [
        ("KL at Q4_K_M's bytes, over Q4_K_M", "≤ 0.5", f"{half:.2f}", _verdict(half <= 0.5)),
        ("  over Q4_K_M with imatrix", "≤ 0.6", f"{known_half:.2f}", _verdict(known_half <= 0.6)),
        ("KL at 75 MiB, Q3_K_M's", f"< {third:.4f}", f"{kl[small.quant]:.4f}", _verdict(kl[small.quant] < third)),
        ("  share of right answers kept", f"≥ {SHARE}", *_held(_kept(found[small.sha256]))),
        (f"bytes that keep the task, over {preset.quant}", "≤ 0.8", f"{share:.2f}", _verdict(share <= 0.8)),
    ]


def _weight(artefact: Artefact) -> int:
    first = ("Q4_K_M", "Q4_K_M+imatrix", "Q3_K_M", "Q3_K_M+imatrix", "Q4_K_S", "Q8_0")
    return first.index(artefact.quant) if artefact.quant in first else -1 if "MIX" in artefact.quant else len(first)


def points_part(bench: Bench) -> Table:
    """Predicted against measured, at points all along the frontier; sizes against files."""
    search = bench.search("text", "traffic")
    points = _spread(search.frontier.points)
    made = [search.make(point) for point in points]
    found = bench.measure(made, examples=0)
    rho = spearman([point.divergence for point in points], [each.kl.value for each in found])
    foreseen = [search.foresight.foresee(search.types(point)) for point in points]
    exact = all(each.bytes == one.size.bytes for each, one in zip(foreseen, made, strict=True))
    rows = zip(made, points, found, strict=True)
    table = [(m.quant, f"{m.size.bytes / MIB:.1f}", f"{p.divergence:.5f}", f"{f.kl.value:.4f}") for m, p, f in rows]
    print(terminal.table(table, ("mixture", "MiB", "predicted", "measured")))
    return [
        (f"rank correlation over {len(points)} points", "≥ 0.9", f"{rho:.3f}", _verdict(rho >= 0.9)),
        ("size prediction", "exact", "exact" if exact else "wrong", _verdict(exact)),
    ]


def foresight_part(bench: Bench) -> Table:
    """Memory and speed against what was foreseen, at 75 MiB and at Q4_K_M's bytes."""
    search, manifest = bench.search("text", "traffic"), draft_manifest(bench.checkpoint, bench.profile)
    worst_ram = worst_speed = 0.0
    for size in (SMALL_MIB * MIB, bench.preset("Q4_K_M").size.bytes):
        point = point_within(search, size)
        foreseen, artefact = search.foresight.foresee(search.types(point)), search.make(point)
        held = sum(weigh_serving(draft(manifest, artefact.parts), bench.profile).value.values())
        speed = gates.ask(manifest, artefact, bench.profile, bench.stages).tokens_per_s
        print(
            f"{artefact.quant}: {foreseen.ram.total:.1f} MB foreseen, {held:.1f} held; "
            f"{foreseen.tokens_per_s:.0f} tokens/s foreseen, {speed:.0f} measured"
        )
        worst_ram = max(worst_ram, abs(foreseen.ram.total / held - 1))
        worst_speed = max(worst_speed, abs(foreseen.tokens_per_s / speed - 1))
    return [
        ("memory prediction", "± 8 %", f"{100 * worst_ram:.1f} %", _verdict(worst_ram <= 0.08)),
        ("tokens/s prediction", "± 15 %", f"{100 * worst_speed:.0f} %", _verdict(worst_speed <= 0.15)),
    ]


def calibration_part(bench: Bench) -> Table:
    """The task's own traffic against general text, at the same bytes, judged within the task's right answers."""
    made = [
        search.make(point_within(search, SMALL_MIB * MIB)) for search in (bench.search("traffic"), bench.search("text"))
    ]
    found = bench.measure(made, examples=100)
    own, general = (each.task_kl.value for each in found if each.task_kl)
    print(f"divergence on the task: traffic {own:.5f}, general text {general:.5f}")
    ratio = own / general
    return [("calibrated on the task's traffic, over general text", "≤ 0.9", f"{ratio:.2f}", _verdict(ratio <= 0.9))]


def divisible_part(bench: Bench) -> Table:
    """A model all of whose rows K-quants can hold, random at first and trained a little on the spot."""
    stages = bench.stages
    folder, _ = stages.run("divisible", {"recipe": 1}, lambda into: train(into, bench.files["text"]))
    small = with_full(open_checkpoint(str(folder)), bench.files, bench.profile, stages, examples=0)
    search = small.search("text", without=())
    preset = small.preset("Q4_K_M", search.statistics / IMATRIX)
    ours = search.make(point_within(search, preset.size.bytes))
    known, found = (each.kl.value for each in small.measure([preset, ours]))
    print(f"512 wide, {preset.size.bytes / MIB:.1f} MiB: Q4_K_M with imatrix {known:.5f}, {ours.quant} {found:.5f}")
    ratio = found / known
    return [("256-divisible, KL over Q4_K_M with imatrix", "≤ 0.85", f"{ratio:.2f}", _verdict(ratio <= 0.85))]


def compile_part(bench: Bench, out: Path, data: Path) -> Table:
    """The whole command, nothing cached but the unpacked wheel, and once more; seconds on the clock and of cores."""
    limits = Limits(max_bundle_mb=SMALL_MIB * MIB / 1e6)
    request = SearchRequest(
        calibration=(bench.files["text"], bench.files["traffic"]), task=bench.files["choose"], limits=limits
    )
    open_checkpoint(DEFAULT_MODEL, Stages(out / "compile"))
    seconds: list[float] = []
    computed_s: list[float] = []
    peak_mb = 0.0
    for _ in range(2):
        started_s, before_s = time.monotonic(), _computed_s()
        compile_model(
            DEFAULT_MODEL,
            profile=bench.profile,
            out=out / "bundle",
            key=load_or_create_key(out / "keys" / "signing.pem"),
            merge=data / "snips-adapter",
            work=out / "compile",
            request=request,
        )
        seconds.append(time.monotonic() - started_s)
        computed_s.append(_computed_s() - before_s)
        stages = json.loads(report_path(out / "bundle").read_bytes())["stages"]
        peak_mb = max([peak_mb, *(each["peak_mb"] for each in stages if each["stage"] != "checkpoint")])
    most_mb = 1.3 * bench.checkpoint.parameters * 2 / 1e6 + 600
    first, again = seconds
    print(f"compile: {first:.0f} s, of processors {computed_s[0]:.0f} s; again {again:.1f} s")
    return [
        ("compile, all stages and gates, s", "≤ 300", f"{first:.0f}", _verdict(first <= 300)),
        ("  again from the cache, s", "≤ 5", f"{again:.1f}", _verdict(again <= 5)),
        ("  peak resident of a stage, MB", f"≤ {most_mb:.0f}", f"{peak_mb:.0f}", _verdict(peak_mb <= most_mb)),
    ]


def _computed_s() -> float:
    """Return the processor seconds of the steps that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _details(artefacts: Sequence[Artefact], found: dict[str, Divergences]) -> str:
    rows: list[tuple[str, ...]] = []
    for each in sorted(artefacts, key=lambda each: each.size.bytes):
        one = found[each.sha256]
        task = f"{100 * one.task.value:.1f} ({100 * one.task.low:.0f}–{100 * one.task.high:.0f})" if one.task else ""
        interval = f"{one.kl.value:.4f} ({one.kl.low:.4f}–{one.kl.high:.4f})"
        rows.append((each.quant, f"{each.size.bytes / MIB:.2f}", interval, f"{100 * one.same_top.value:.1f}", task))
    full = next((one.task_full for one in found.values() if one.task_full), None)
    note = f"full weights: {100 * full.value:.1f} % of {full.count} right" if full else ""
    return terminal.table(rows, ("what", "MiB", "mean KL (95 %)", "same top %", "right % (95 %)")) + f"\n{note}"


def _kept(found: Divergences) -> float:
    assert found.task is not None, "measured with a task"
    assert found.task_full is not None, "measured with a task"
    return found.task.value / found.task_full.value


def _held(kept: float) -> tuple[str, str]:
    return f"{kept:.3f}", _verdict(kept >= SHARE)


def _verdict(passed: bool) -> str:
    return "met" if passed else "MISSED"


def _spread(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return points whose predictions are equal factors apart."""
    first, last = math.log(points[0].divergence), math.log(max(points[-1].divergence, 1e-5))
    wanted = [math.exp(first + (last - first) * at / (POINTS - 1)) for at in range(POINTS)]
    return list(dict.fromkeys(min(points, key=lambda p: abs(math.log(max(p.divergence, 1e-9) / w))) for w in wanted))


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two lists without ties."""
    ranks = [[sorted(each).index(value) for value in each] for each in (one, other)]
    apart = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    return 1 - 6 * apart / (len(one) * (len(one) ** 2 - 1))


def main() -> None:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/quantise"))
    parser.add_argument("--profile", default="generic-x86-64-avx2")
    parser.add_argument("--examples", type=int, default=200, help="of the test split")
    parser.add_argument("--windows", type=int, default=32, help="of 256 tokens of held-out text")
    parser.add_argument("--part", action="append", help="presets, points, foresight, calibration, divisible or compile")
    args = parser.parse_args()
    bench = open_bench(args)
    parts: dict[str, Callable[[], Table]] = {
        "presets": partial(presets_part, bench),
        "points": partial(points_part, bench),
        "foresight": partial(foresight_part, bench),
        "calibration": partial(calibration_part, bench),
        "divisible": partial(divisible_part, bench),
        "compile": partial(compile_part, bench, args.out, args.data),
    }
    table = [row for name in args.part or parts for row in parts[name]()]
    print(terminal.table(table, ("what", "at least", "found", "")))
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"load of 1, 5 and 15 minutes: {load}")
    print(f"{platform.processor() or platform.machine()}, {bench.answers.tokens_per_s:.0f} tokens/s with full weights")


if __name__ == "__main__":
    main()
