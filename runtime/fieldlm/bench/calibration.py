"""Calibration, `fieldlm verify BUNDLE --on-device`: whether this device is what the bundle's profile foresees.

Decoding reads every weight for each token, so a profile's memory bandwidth foresees tokens a second, and the header of
the weights foresees memory. Both are measured here, briefly. What came out is the bundle's calibration overlay: a file
beside the bundle, outside of its signature, which edits neither bundle nor profile. Further than `TOLERANCE` from what
was foreseen, it names the point of the compiler's frontier that would give here what was expected of this one. A void
measurement, beside busy neighbours say, is neither judged nor written.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.bench.bench import bench
from fieldlm.bench.measure import Spec
from fieldlm.bench.remarks import findings
from fieldlm.bench.result import Interval, Result
from fieldlm.core.errors import BundleError
from fieldlm.core.files import canonical_json, disk_errors, write_whole
from fieldlm.engines import Reading, engine_kind
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile
from fieldlm.hardware.bandwidth import Bandwidth
from fieldlm.hardware.cores import fast_cores
from fieldlm.hardware.detect import Detection, detect

FORMAT = "fieldlm.calibration/1"
REPORT = "report.json"
TOLERANCE = 0.15
PROMPT_TOKENS, GEN_TOKENS, REPETITIONS = 128, 48, 3
MB = 1e6
# Template, probes, reports and manifest beside the weights.
BESIDE_MB = 0.3


class ForeseenPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One way to write the weights that the compiler knew of: its bytes, and its divergence in nats as foreseen."""

    bytes: int
    predicted_kl: float | None = None


class _Search(msgspec.Struct, frozen=True, kw_only=True):
    frontier: tuple[ForeseenPoint, ...] = ()


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the compiler's report."""

    candidates: tuple[ForeseenPoint, ...]
    search: _Search | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was foreseen, None where the profile does not say, and what was measured."""

    foreseen: float | None
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over foreseen; 1 where nothing was foreseen."""
        return self.measured / self.foreseen if self.foreseen else 1.0

    @property
    def is_near(self) -> bool:
        return abs(self.ratio - 1) <= TOLERANCE


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """The calibration overlay of one bundle on one device.

    `decode` is tokens/s with its 95 % interval, `memory_mb` weights, cache and buffers in megabytes (1e6 bytes),
    `serving_mb` the same as the profile would serve. `instead` is the point to take where this one is not what was
    foreseen. One that `is_void` says nothing of the device.
    """

    format: str
    bundle: str
    profile: str
    device: str
    threads: int
    probes: float
    tokens_per_s: Figure
    memory_mb: Figure
    serving_mb: float
    budget_mb: float
    decode: Interval
    prefill: Interval
    read_gb_s: float
    bandwidth_percent: float
    instead: ForeseenPoint | None
    remarks: tuple[str, ...]
    is_void: bool = False

    @property
    def holds(self) -> bool:
        """Whether the device gives at least what was foreseen and the profile's budget is kept."""
        return self.tokens_per_s.ratio >= 1 - TOLERANCE and self.serving_mb <= self.budget_mb


def overlay_path(bundle: Bundle) -> Path:
    """Return where the overlay goes: beside the bundle."""
    return bundle.folder.with_name(f"{bundle.folder.name}.calibration.json")


def confirm(bundle: Bundle, profile: Profile, probes: float) -> Overlay:
    """Measure `bundle` here, hold it against what `profile` foresees, write the overlay beside it unless it is void.

    `probes` is the share of its probe questions that were answered as expected. Raises EngineError when it cannot be
    measured, InputError when the overlay cannot be written.
    """
    made = judge(bundle, profile, detect(), measure(bundle, profile), probes)
    path = overlay_path(bundle)
    if not made.is_void:
        with disk_errors(path):
            write_whole(path, canonical_json(made))
    return made


def measure(bundle: Bundle, profile: Profile) -> Result:
    """Run a short bench of `bundle` with the threads that `profile` gives one answer."""
    threads = min(profile.cpu.decode_threads, fast_cores())
    spec = Spec(
        bundle=str(bundle.folder), prompt_tokens=PROMPT_TOKENS, gen_tokens=GEN_TOKENS, repetitions=REPETITIONS,
        threads=threads, seed=1, profile=profile,
    )  # fmt: skip
    return bench(bundle, spec)


def judge(bundle: Bundle, profile: Profile, found: Detection, result: Result, probes: float) -> Overlay:
    """Hold what was measured against what `profile` foresees."""
    speed = Figure(
        foreseen=foreseen_tokens_per_s(profile, result.bandwidth, result.reading),
        measured=round(result.decode.median, 2),
    )
    memory = Figure(
        foreseen=foreseen_mb(
            bundle,
            context=result.spec.prompt_tokens + 8,
            parallel=1,
            isa=found.facts["isa"],
            profile=result.spec.profile,
        ),
        measured=round(sum(result.measured.engine_mb.values()), 1),
    )
    served = foreseen_mb(
        bundle,
        context=profile.gguf.context,
        parallel=profile.runtime.parallel,
        isa=profile.cpu.isa,
        profile=profile,
    )
    serving_mb = round((served or memory.measured) * memory.ratio, 1)
    budget_mb = float(profile.memory.model_budget_mb)
    seen = findings(result, found)
    return Overlay(
        format=FORMAT,
        bundle=bundle.id,
        profile=profile.id,
        device=str(found.facts["cpu_name"]),
        threads=result.spec.threads,
        probes=probes,
        tokens_per_s=speed,
        memory_mb=memory,
        serving_mb=serving_mb,
        budget_mb=budget_mb,
        decode=result.decode,
        prefill=result.prefill,
        read_gb_s=round(result.bandwidth.read_gb_s, 2),
        bandwidth_percent=round(result.bandwidth_percent.median, 1),
        instead=instead(points(bundle), bundle.need("base").stat().st_size, speed, serving_mb - budget_mb),
        remarks=tuple(map(str, seen)),
        is_void=any(each.voids for each in seen),
    )


def foreseen_tokens_per_s(profile: Profile, bandwidth: Bandwidth | None, read: Reading) -> float | None:
    """Return tokens a second by the bytes of a token and the bandwidth that decoding reaches.

    Where the profile names no bandwidth that somebody reached, it is the middle of its band of what was measured here;
    None where it has no band either, or where nothing was measured.
    """
    expect = profile.expect
    gb_s = profile.memory.read_gb_s
    if gb_s is None and bandwidth and expect.bandwidth_percent_low and expect.bandwidth_percent_high:
        gb_s = bandwidth.read_gb_s * (expect.bandwidth_percent_low + expect.bandwidth_percent_high) / 200
    return None if gb_s is None else round(gb_s * 1e9 / read.at_depth(GEN_TOKENS / 2), 2)


def foreseen_mb(
    bundle: Bundle, *, context: int, parallel: int, isa: Sequence[str], profile: Profile | None = None
) -> float | None:
    """Return the megabytes of weights, cache and buffers by what the weights say; None for ONNX, which does not say."""
    context = min(context, bundle.manifest.model.context)
    kind = engine_kind(bundle.manifest.engine)
    found = kind.foreseen_mb(bundle, context=context, parallel=parallel, isa=isa, profile=profile)
    return None if found is None else round(found, 1)


def points(bundle: Bundle) -> tuple[ForeseenPoint, ...]:
    """Return the frontier in the bundle's report, the candidates where no mixture was searched, smallest first."""
    path = bundle.folder / REPORT
    if all(file.path != REPORT for file in bundle.manifest.files):
        return ()
    try:
        report = msgspec.json.decode(path.read_bytes(), type=_Report)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{path} is not a compiler's report: {error}") from error
    return tuple(sorted(report.search.frontier if report.search else report.candidates, key=lambda point: point.bytes))


def instead(known: Sequence[ForeseenPoint], weights: int, speed: Figure, over_mb: float) -> ForeseenPoint | None:
    """Return the best of `known` that here is as fast as was foreseen of one with `weights` bytes, and fits.

    None where this one is what was foreseen, or where there is no better one.
    """
    if speed.is_near and over_mb <= 0:
        return None
    allowed = weights * (1.0 if speed.is_near else speed.ratio)
    if over_mb > 0:
        allowed = min(allowed, weights - over_mb * MB)
    fitting = [point for point in known if point.bytes <= allowed]
    best = fitting[-1] if fitting else None
    # A device that is faster than foreseen bears more; it does not ask for less.
    return best if best and (best.bytes > weights) == (allowed > weights) and best.bytes != weights else None


def words(overlay: Overlay) -> str:
    """Say what was found, and what to do when it is not what was foreseen."""
    speed, memory = overlay.tokens_per_s, overlay.memory_mb
    lines = [
        f"  {speed.measured:.1f} tokens/s {_beside(speed)}, 95 % within {overlay.decode.words()}",
        f"  {memory.measured:.0f} MB {_beside(memory)}; {overlay.serving_mb:.0f} MB as {overlay.profile} serves, "
        f"{overlay.budget_mb:.0f} MB are its budget",
        *(f"  ! {line}" for line in overlay.remarks),
    ]
    return "\n".join([*lines, f"  {_verdict(overlay)}"])


def _beside(figure: Figure) -> str:
    if figure.foreseen is None:
        return "(nothing foreseen)"
    return f"({figure.foreseen:.1f} foreseen, {100 * (figure.ratio - 1):+.0f} %)"


def _verdict(overlay: Overlay) -> str:
    if overlay.is_void:
        return "no verdict, and nothing is written: the measurement is void; run it again when the machine is quiet"
    near = overlay.tokens_per_s.is_near and overlay.memory_mb.is_near and overlay.serving_mb <= overlay.budget_mb
    if near:
        return "✓ this device gives what was foreseen"
    mark = "!" if overlay.holds else "✗"
    point = overlay.instead
    if point is None:
        hope = "more" if overlay.holds else "less"
        return f"{mark} it is not what was foreseen, and its frontier has no point that asks for {hope}"
    kl = "" if point.predicted_kl is None else f", divergence {point.predicted_kl:.2g} as foreseen"
    size_mb = point.bytes / MB + BESIDE_MB
    return (
        f"{mark} it is not what was foreseen; take the point of {size_mb:.1f} MB{kl}: "
        f"fieldlm compile … --max-bundle-mb {size_mb:.1f}"
    )
