"""Gates: an artefact's answers against the source's, its size against the device, and the reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core.errors import GateError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.formats.bundle import Bundle, CacheTypes, Gate, Manifest
from fieldlm.formats.confidence import Confidence
from fieldlm.formats.probe import Probe, Probes
from fieldlm.formats.profile import Profile, profile_sha256, without_gpu
from fieldlm.inference.chat_template import render
from fieldlm.inference.confidence import BESIDE, SIGNALS
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, position_bounds
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.pack import BundlePart, draft
from fieldlm_compiler.pipeline.stages import Made, Stages
from fieldlm_compiler.verify import against_source
from fieldlm_compiler.verify.against_source import PROMPTS, Answers
from fieldlm_compiler.verify.confidence import TaskAnswer, describe
from fieldlm_compiler.verify.corpus import TaskExample
from fieldlm_compiler.verify.deferral import Deferral, calibrate
from fieldlm_compiler.verify.divergence import Divergences, kept
from fieldlm_compiler.verify.exam import exam_facts
from fieldlm_compiler.verify.limits import SearchRequest
from fieldlm_compiler.verify.served import facts as served_facts
from fieldlm_compiler.verify.served import with_plain_cache
from fieldlm_compiler.verify.task import answer_task, task_gate

log = logger(__name__)

REPORT = "fieldlm.compile-report/1"
PROBE_PROMPTS = 3
# Answering takes ten times as long as reading; all examples were read already.
SERVED_EXAMPLES = 48
# What is shipped answers as many as a calibration has use for; what it is held against, only those above.
CALIBRATED_EXAMPLES = 400
PROOFS = {"proof": "weights", "system-prompt": "system prompt"}
"""Stage → what it proves."""
ENGINES = ("fieldlm", "llama-cpp-python", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to write the weights, what it answers and how near that is to full weights."""

    artefact: Artefact
    answers: Answers
    measured: Divergences | None = None
    cache: CacheTypes | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A LoRA on its way into a bundle: as peft wrote it, and as GGUF."""

    adapter: PeftAdapter
    gguf: Path


class Held(NamedTuple):
    """The gates that were passed, and what the artefact answered to the task; nothing without one."""

    gates: tuple[Gate, ...]
    answers: tuple[TaskAnswer, ...] = ()


class Proof(NamedTuple):
    """The gates that full weights passed, what they answer, and the context up to which that holds, in tokens."""

    gates: tuple[Gate, ...]
    answers: Answers
    context: int


def questions() -> list[list[dict[str, Any]]]:
    """Return the conversations that every artefact is asked."""
    return [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


def rendered(manifest: Manifest, parts: Sequence[BundlePart]) -> list[str]:
    """Return the questions as the model sees them, through the runtime's own rendering."""
    bundle = draft(manifest, parts)
    return [render(bundle, messages) for messages in questions()]


def without_prompt(manifest: Manifest) -> Manifest:
    """Return `manifest` without its system prompt: what is asked of weights is asked without one."""
    return msgspec.structs.replace(manifest, system_prompt=None)


def plain(manifest: Manifest) -> Manifest:
    """Return `manifest` with keys and values in F16, which full weights are judged with."""
    return msgspec.structs.replace(manifest, cache=None)


def prove(
    manifest: Manifest,
    full: Artefact,
    checkpoint: Checkpoint,
    profile: Profile,
    stages: Stages,
    *,
    fitted: Fitted | None = None,
) -> Proof:
    """Hold `full`, with its adapter and as `profile` serves it, against its source; no system prompt has a part in it.

    Where the engine knows nothing of a bound of the model, such as a sliding window, the context ends there, and so it
    does at the first bound that `profile` serves too few tokens to read past. Raises GateError when it cuts text
    otherwise, or thinks or answers what its source would not.
    """
    manifest, profile = without_prompt(plain(manifest)), with_plain_cache(profile)
    texts, bounds = rendered(manifest, full.parts), position_bounds(checkpoint.folder)
    asked = {"artefact": full.sha256, "checkpoint": checkpoint.sha256, "texts": texts, "versions": _judges()}
    bundle, folder = draft(manifest, full.parts), checkpoint.folder
    _, cut = stages.run("tokens", asked, lambda _: against_source.compare_texts(bundle, profile, folder, texts))
    answers = ask(manifest, full, profile, stages, fitted=fitted)
    asked |= {"adapter": fitted.adapter.sha256 if fitted else None, "answers": answers.tokens}
    asked |= {"served": served_facts(profile), "context": manifest.model.context, "bounds": bounds}
    peft, gguf = (fitted.adapter.folder, fitted.gguf) if fitted else (None, None)
    reader = against_source.ArtefactReader(draft=bundle, profile=profile, bounds=bounds, adapter=gguf)

    def hold(_: Path) -> Ran:
        return against_source.compare_answers(folder, texts, answers, adapter=peft, reader=reader, name=checkpoint.name)

    _, held = stages.run("proof", asked, hold)
    if (context := held.value["context"]) is not None:
        log.info(
            f"  note: past {context} tokens the engine computes {checkpoint.name} otherwise than its source, "
            f"whose window or stretched positions it does not know; the bundle's context ends there"
        )
        return prove(_until(manifest, context), full, checkpoint, profile, stages, fitted=fitted)
    gates = msgspec.convert([*cut.value, *held.value["gates"]], tuple[Gate, ...])
    if (context := _unread(bounds, gates, manifest)) is not None:
        log.info(
            f"  note: from {context} tokens on {checkpoint.name} may compute otherwise, and {profile.id} serves too "
            f"few to read past them; the bundle's context ends there"
        )
        manifest = _until(manifest, context)
        if context < profile.gguf.context:  # it is served with another context than it was proved with
            return prove(manifest, full, checkpoint, profile, stages, fitted=fitted)
    if manifest.model.context < checkpoint.context:
        gates += (_context_gate(manifest, profile),)
    return Proof(gates=gates, answers=answers, context=manifest.model.context)


def _until(manifest: Manifest, context: int) -> Manifest:
    return msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, context=context))


def _unread(bounds: Sequence[int], gates: Sequence[Gate], manifest: Manifest) -> int | None:
    """Return the first of `bounds` within the context of `manifest` that nothing was read past; None without one."""
    read = {gate.name for gate in gates}
    within = (bound for bound in bounds if bound < manifest.model.context)
    return next((bound for bound in within if against_source.name_past(bound) not in read), None)


def _context_gate(manifest: Manifest, profile: Profile) -> Gate:
    """Return the gate that `profile` serves no more tokens than were held against the source, which can more."""
    limit = manifest.model.context
    served = min(profile.gguf.context, limit)
    return Gate(name="context-proved", value=served, limit=limit, passed=True, unit="tokens")


def ask(
    manifest: Manifest,
    artefact: Artefact,
    profile: Profile,
    stages: Stages,
    *,
    fitted: Fitted | None = None,
    reference: Answers | None = None,
) -> Answers:
    """Return what `artefact`, with its adapter, answers, how near to `reference`, and how fast on this machine.

    It is asked without a system prompt; what it answers behind one is `system_prompt.prove_prompt`'s to say.
    """
    manifest = without_prompt(manifest)
    texts = rendered(manifest, artefact.parts)
    inputs = {
        "artefact": artefact.sha256,
        "cache": manifest.cache,
        "served": served_facts(profile),
        "context": manifest.model.context,
        "adapter": sha256_file(fitted.gguf) if fitted else None,
        "texts": texts,
        "tokens": against_source.TOKENS,
        "firm": against_source.FIRM,
        "reference": reference.tokens if reference else None,
        "engine": installed(ENGINES),
    }
    bundle, gguf = draft(manifest, artefact.parts), fitted.gguf if fitted else None
    tokens = reference.tokens if reference else None

    def make(_: Path) -> Ran:
        return against_source.ask(bundle, texts, profile, what=artefact.quant, adapter=gguf, reference=tokens)

    _, made = stages.run(f"answers-{artefact.quant}", inputs, make)
    return msgspec.convert(made.value, Answers)


def choose(candidates: Sequence[Candidate], profile: Profile) -> tuple[Candidate, Gate]:
    """Return the first candidate whose weights fit the profile's memory; raises GateError when none does."""
    limit_mb = float(profile.memory.model_budget_mb)
    for candidate in candidates:
        size_mb = round(candidate.artefact.size.bytes / 1e6, 1)
        if size_mb <= limit_mb:
            return candidate, Gate(name="weights", value=size_mb, limit=limit_mb, passed=True, unit="MB")
    smallest = min(candidates, key=lambda candidate: candidate.artefact.size.bytes).artefact
    raise GateError(
        f"no candidate fits {profile.id}: the smallest, {smallest.quant}, has {smallest.size.bytes / 1e6:.0f} MB of "
        f"weights, the budget is {limit_mb:.0f} MB; ask for a smaller --quant or take a smaller model"
    )


def hold_limits(
    chosen: Candidate,
    full: Artefact,
    manifest: Manifest,
    *,
    examples: Sequence[TaskExample],
    request: SearchRequest,
    profile: Profile,
    stages: Stages,
) -> Held:
    """Hold what only the engine can judge against the limits: memory and speed here, and the task's answers as served.

    Of the gates that of the task alone is returned: memory and speed are no two runs' same, and a bundle's bytes are.
    Raises GateError at the first limit that is missed.
    """
    limits = request.limits
    gates: list[Gate] = []
    answers: list[TaskAnswer] = []
    if limits.max_ram_mb is not None:
        gates.append(_at_most("ram", _served_mb(manifest, chosen.artefact, profile, stages), limits.max_ram_mb, "MB"))
    if limits.min_tokens_per_s is not None:
        speed = chosen.answers.tokens_per_s
        gates.append(_at_least("speed", speed, limits.min_tokens_per_s, "tokens/s here"))
    if examples:
        whole = task_answers(plain(manifest), full, examples[:SERVED_EXAMPLES], with_plain_cache(profile), stages)
        answers = task_answers(manifest, chosen.artefact, examples, profile, stages)
        gates.append(task_gate("task-served", kept(pairs_right(whole, answers)), limits))
    for gate in gates:
        if not gate.passed:
            doubt = f" ({gate.doubt})" if gate.doubt else ""
            raise GateError(
                f"{gate.name} of {chosen.artefact.quant} is {gate.value:g} {gate.unit}{doubt}, the limit is "
                f"{gate.limit:g}; change the limit or take a smaller model"
            )
    return Held(tuple(gate for gate in gates if gate.name == "task-served"), tuple(answers))


def _served_mb(manifest: Manifest, artefact: Artefact, profile: Profile, stages: Stages) -> float:
    """Return the megabytes that the engine holds when it serves `artefact` as the profile says."""
    here = without_gpu(profile)
    asked = {
        "artefact": artefact.sha256,
        "cache": manifest.cache,
        "profile": profile_sha256(here),
        "engine": installed(ENGINES),
    }
    bundle = draft(manifest, artefact.parts)

    def serve(_: Path) -> Ran:
        return against_source.weigh_serving(bundle, here)

    _, made = stages.run("serving", asked, serve)
    return round(sum(made.value.values()), 1)


def _at_most(name: str, value: float, limit: float, unit: str) -> Gate:
    return Gate(name=name, value=value, limit=limit, passed=value <= limit, unit=unit)


def _at_least(name: str, value: float, limit: float, unit: str) -> Gate:
    return Gate(name=name, value=value, limit=limit, passed=value >= limit, unit=unit)


def task_answers(
    manifest: Manifest,
    artefact: Artefact,
    examples: Sequence[TaskExample],
    profile: Profile,
    stages: Stages,
    *,
    fitted: Fitted | None = None,
) -> list[TaskAnswer]:
    """Return what the engine answers to the first `examples` with `artefact` and its adapter."""
    few = examples[:CALIBRATED_EXAMPLES]
    pairs = [[example.prompt_tokens, example.opening, example.answer] for example in few]
    asked = {
        "artefact": artefact.sha256,
        "cache": manifest.cache,
        "served": served_facts(profile),
        "context": manifest.model.context,
        "examples": sha256_bytes(canonical_json(pairs)),
        "signals": sorted((*SIGNALS, *BESIDE)),
        "engine": installed(ENGINES),
    }
    if fitted:
        asked["adapter"] = sha256_file(fitted.gguf)
    bundle, gguf = draft(manifest, artefact.parts), fitted.gguf if fitted else None
    asked |= exam_facts(bundle)
    what = f"ask {artefact.quant} {counted(len(few), 'example')} of the task"
    _, made = stages.run("task", asked, lambda _: answer_task(bundle, few, profile, what=what, adapter=gguf))
    return msgspec.convert(made.value, list[TaskAnswer])


def pairs_right(full: Sequence[TaskAnswer], artefact: Sequence[TaskAnswer]) -> list[tuple[bool, bool]]:
    """Return for each example that both were asked whether full weights, and the artefact, had it right."""
    return [(one.right, other.right) for one, other in zip(full, artefact, strict=False)]


def calibration(answers: Sequence[TaskAnswer], stages: Stages, deferral: Deferral) -> Confidence | None:
    """Return the confidence that goes with the artefact that gave `answers`; None where no task was asked."""
    if not answers:
        return None
    told = msgspec.to_builtins(answers)
    tools = installed(("fieldlm", "numpy", "scikit-learn", "scipy"))
    asked = {"answers": sha256_bytes(canonical_json(told)), "tools": tools, "deferral": deferral}
    _, made = stages.run("confidence", asked, lambda _: calibrate(answers, deferral))
    return msgspec.convert(made.value, Confidence)


def probe_file(answers: Mapping[str, Answers]) -> bytes:
    """Return probe.json: the questions that the finished artefact answers most firmly, with the firm part of each.

    Where an artefact is hardly sure of anything, the first tokens have to do. `answers` are those of each of its
    adapters by name, "" for the first, or for an artefact with one or none.
    """
    probes: list[Probe] = []
    for adapter, each in answers.items():
        firm = list(zip(questions(), each.firm, each.firm_texts, strict=True))
        firmest = sorted(firm, key=lambda row: row[1], reverse=True)[:PROBE_PROMPTS]
        probes += [Probe(messages=asked, expect=text, max_tokens=n, adapter=adapter) for asked, n, text in firmest]
    return canonical_json(Probes(prompts=tuple(probes)))


def facts(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return what holds for the candidates wherever they are made."""
    return [
        {
            "quant": candidate.artefact.quant,
            "bytes": candidate.artefact.size.bytes,
            "bits_per_weight": candidate.artefact.size.bits_per_weight,
            "tensors": candidate.artefact.size.tensors,
            "sha256": candidate.artefact.sha256,
            "cache": msgspec.to_builtins(candidate.cache),
            "agreement": candidate.answers.agreement,
            "measured": msgspec.to_builtins(candidate.measured),
        }
        for candidate in candidates
    ]


def report_file(
    candidates: Sequence[Candidate],
    gates: Sequence[Gate],
    search: Mapping[str, Any] | None = None,
    found: Confidence | None = None,
    *,
    proved: Mapping[str, str] | None = None,
) -> bytes:
    """Return report.json, the part of the report that is signed: the same inputs give the same bytes.

    `search` says how the mixture was found, when it was searched for; `found` what its answers' confidence is worth;
    `proved` the digests of the proofs; `doubts` which gates were decided by too few examples, and how many would do.
    """
    said: dict[str, Any] = {"confidence": describe(found)} if found else {}
    if doubts := {gate.name: gate.doubt for gate in gates if gate.is_open}:
        said["doubts"] = doubts
    whole = {"format": REPORT, "candidates": facts(candidates), "gates": gates, "search": search, "proved": proved}
    return canonical_json(whole | said)


def proved(stages: Stages) -> dict[str, str]:
    """Return the digests of the proofs of this run: what holds for weights, and what for the system prompt."""
    return {PROOFS[made.stage]: made.digest for made in stages.made if made.stage in PROOFS}


def whole_report(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    stages: Stages,
    *,
    kept: Mapping[str, Any] | None = None,
    found: Confidence | None = None,
) -> dict[str, Any]:
    """Return everything known about this run, with the times and speeds that no two runs share.

    `kept` says what an adapter costs apart from its base, and merged into it; `found` what confidence is worth.
    """
    speeds = [
        {
            "tokens_per_s": candidate.answers.tokens_per_s,
            "load_s": candidate.answers.load_s,
            "memory_mb": candidate.answers.memory_mb,
        }
        for candidate in candidates
    ]
    stage_names = ("stage", "digest", "seconds", "peak_mb", "cached")
    return {
        "format": REPORT,
        "bundle": bundle.id,
        "folder": str(bundle.folder),
        "manifest": msgspec.to_builtins(bundle.manifest),
        "chosen": bundle.manifest.recipe.quant,
        "candidates": [fact | speed for fact, speed in zip(facts(candidates), speeds, strict=True)],
        **({"kept": kept} if kept else {}),
        **({"confidence": describe(found)} if found else {}),
        "proved": {PROOFS[made.stage]: _told(made) for made in stages.made if made.stage in PROOFS},
        "stages": [{name: getattr(made, name) for name in stage_names} for made in stages.made],
    }


def _told(made: Made) -> dict[str, Any]:
    """Return which proof it is and whether this run made it or an earlier one."""
    return {"digest": made.digest, "taken": "kept" if made.cached else "made", "seconds": made.seconds}


def _judges() -> dict[str, str]:
    return installed((*ENGINES, "peft", "tokenizers", "torch", "transformers"))
