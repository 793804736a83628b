"""Assemble a bundle, two roads: from a checkpoint, proved against it, and from a GGUF as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import GateError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import logger
from fieldlm.formats import classifier, confidence, router
from fieldlm.formats.bundle import FORMAT, Bundle, Manifest, ModelInfo, Recipe
from fieldlm.formats.classifier import read_classifier
from fieldlm.formats.profile import Profile, profile_sha256
from fieldlm.formats.router import read_router
from fieldlm_compiler.checkpoints import merge as merging
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.licences import AND, UNKNOWN, together
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter, open_adapter
from fieldlm_compiler.compile import bom
from fieldlm_compiler.export.format import DEFAULT, Format, format_named
from fieldlm_compiler.pipeline.pack import BundlePart, pack
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.search import MixtureTrial, Search
from fieldlm_compiler.verify import gates as proof
from fieldlm_compiler.verify.against_source import Answers
from fieldlm_compiler.verify.confidence import TaskAnswer
from fieldlm_compiler.verify.deferral import Deferral
from fieldlm_compiler.verify.gates import Candidate, Fitted
from fieldlm_compiler.verify.limits import PRESETS, SearchRequest
from fieldlm_compiler.verify.system_prompt import Prompted, prove_prompt

log = logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked for, beside the model."""

    profile: Profile
    out: Path
    key: Ed25519PrivateKey
    quants: tuple[str, ...] = ()
    fmt: str = DEFAULT
    name: str = ""
    system_prompt: str | None = None
    request: SearchRequest = PRESETS
    """With text, a task or limits the best type of every tensor is looked for."""
    licences: tuple[str, ...] = ()
    """Those that a model may have; none allows all."""
    router: Path | None = None
    """What `fieldlm cluster` wrote of the tasks that the model is for."""
    classifier: Path | None = None
    """What `fieldlm round` fitted to tasks with few answers."""
    deferral: Deferral = "threshold"
    """What makes p(right) of an answer: one signal, several that are weighed together, or what is better of the two."""
    compare: bool = False
    """Make an adapter's merged form, too, and say what either costs."""


def check_licence(licence: str, wish: Wish, what: str) -> None:
    """Raise GateError unless `licence` is one of those that are allowed; none named allows all."""
    allowed = {each.lower() for each in wish.licences}
    refused = [each for each in licence.split(AND) if allowed and each.lower() not in allowed]
    if refused:
        raise GateError(
            f"{what} has the licence {licence}, allowed are {', '.join(wish.licences)}; "
            f"add {' '.join(f'--licence-allow {each}' for each in refused)} if you may use it"
        )


def check_adapter_licence(adapter: PeftAdapter, checkpoint: Checkpoint, wish: Wish) -> str:
    """Return the licence of `checkpoint` with `adapter`; raises GateError unless the adapter's, too, is allowed.

    One that says none, as an adapter of one's own does, adds none.
    """
    if adapter.licence == UNKNOWN:
        return checkpoint.licence
    check_licence(adapter.licence, wish, str(adapter.folder))
    return together(checkpoint.licence, adapter.licence)


def compile_checkpoint(model: str, adapter: Path | None, wish: Wish, stages: Stages) -> Bundle:
    """Compile what `model` names, with `adapter` merged in if there is one; see `build.compile_model`."""
    fmt = format_named(wish.fmt)
    asked = () if wish.request.is_wanted else fmt.candidates(wish.quants, wish.profile)
    checkpoint = open_checkpoint(model, stages)
    check_licence(checkpoint.licence, wish, checkpoint.source)
    merged = open_adapter(adapter, checkpoint) if adapter else None
    if merged:
        licence = check_adapter_licence(merged, checkpoint, wish)
        checkpoint = replace(merging.merge(checkpoint, merged, stages), licence=licence)
    if wish.name:
        # It stands in the weights' file, too: the same model out of another folder is the same file.
        checkpoint = replace(checkpoint, name=wish.name)
    manifest = _named(draft_manifest(checkpoint, wish.profile, wish.fmt), wish)
    full = fmt.lower(checkpoint, stages)
    gates, reference, context = proof.prove(manifest, full, checkpoint, wish.profile, stages)
    manifest = msgspec.structs.replace(
        manifest,
        gates=gates,
        model=msgspec.structs.replace(manifest.model, context=context),
        dataset=merged.dataset if merged else None,
        recipe=msgspec.structs.replace(manifest.recipe, merged_adapter_sha256=merged.sha256 if merged else None),
    )
    if wish.request.is_wanted:
        search = Search(manifest, full, checkpoint, request=wish.request, profile=wish.profile, stages=stages)
        return _pack_found(manifest, search, reference, wish, stages, source=checkpoint.folder)
    artefacts = [fmt.shrink(full, quant, wish.profile, stages) for quant in asked]
    answers = [proof.ask(manifest, each, wish.profile, stages, reference=reference) for each in artefacts]
    made = [Candidate(artefact=each, answers=said) for each, said in zip(artefacts, answers, strict=True)]
    return _choose_and_pack(manifest, made, wish, stages, source=checkpoint.folder)


def _pack_found(
    manifest: Manifest, search: Search, reference: Answers, wish: Wish, stages: Stages, *, source: Path
) -> Bundle:
    """Let `search` find the best mixture of types, hold it against every limit, and pack it."""
    found = search.run(reference)
    # The chosen one comes first; a mixture that was tried twice is one.
    trials = {(trial.artefact.sha256, trial.cache): trial for trial in (found.chosen, *found.trials)}.values()
    made = [_candidate(manifest, trial, reference, wish.profile, stages) for trial in trials]
    manifest = msgspec.structs.replace(manifest, cache=found.chosen.cache)
    held = proof.hold_limits(
        made[0],
        search.full,
        manifest,
        examples=found.examples,
        request=wish.request,
        profile=wish.profile,
        stages=stages,
    )
    recipe = msgspec.structs.replace(manifest.recipe, options=found.recipe)
    manifest = msgspec.structs.replace(manifest, gates=(*manifest.gates, *found.gates, *held.gates), recipe=recipe)
    return _choose_and_pack(manifest, made, wish, stages, source=source, search=found.facts, answers=held.answers)


def _candidate(
    manifest: Manifest, trial: MixtureTrial, reference: Answers, profile: Profile, stages: Stages
) -> Candidate:
    """Return what `trial` found, and what it answers with its cache."""
    manifest = msgspec.structs.replace(manifest, cache=trial.cache)
    answers = proof.ask(manifest, trial.artefact, profile, stages, reference=reference)
    return Candidate(artefact=trial.artefact, answers=answers, measured=trial.measured, cache=trial.cache)


def compile_file(path: Path, wish: Wish, stages: Stages) -> Bundle:
    """Make a bundle around the quantised file `path`; there is no source to prove it against."""
    fmt = format_named(wish.fmt)
    artefact, model = fmt.as_is(path, stages)
    log.info(
        f"  note: {path.name} is {artefact.quant} already and is taken as it is, held against no source; "
        "--quant makes it anew"
    )
    check_licence(model.licence, wish, path.name)
    manifest = _named(_manifest(model, wish.profile, fmt), wish)
    made = [Candidate(artefact=artefact, answers=proof.ask(manifest, artefact, wish.profile, stages))]
    return _choose_and_pack(manifest, made, wish, stages)


def _choose_and_pack(
    manifest: Manifest,
    made: Sequence[Candidate],
    wish: Wish,
    stages: Stages,
    *,
    source: Path | None = None,
    search: Mapping[str, Any] | None = None,
    answers: Sequence[TaskAnswer] = (),
) -> Bundle:
    """Pack the first candidate that fits; `source` is the checkpoint's folder, where there is one."""
    # A mixture was chosen under all limits already; the others beside it were not.
    chosen, fits = proof.choose(made[:1] if search else made, wish.profile)
    artefact = chosen.artefact
    prompted = prompt_proof(manifest, chosen, source, wish, stages)
    manifest = msgspec.structs.replace(
        manifest,
        gates=(*manifest.gates, fits, *prompted.gates),
        recipe=msgspec.structs.replace(
            manifest.recipe, quant=artefact.quant, bits_per_weight=artefact.size.bits_per_weight
        ),
    )
    probes = BundlePart(role="probe", name="probe.json", source=proof.probe_file({"": prompted.answers}))
    return finish(manifest, [*artefact.parts, probes], made, wish, stages, search=search, answers=answers)


def prompt_proof(
    manifest: Manifest,
    chosen: Candidate,
    source: Path | None,
    wish: Wish,
    stages: Stages,
    *,
    fitted: Fitted | None = None,
) -> Prompted:
    """Return what depends on the manifest's system prompt; without one, what was answered already and no gate."""
    if not manifest.system_prompt:
        return Prompted((), chosen.answers)
    return prove_prompt(manifest, chosen.artefact, source, wish.profile, stages, fitted=fitted)


def finish(
    manifest: Manifest,
    parts: Sequence[BundlePart],
    made: Sequence[Candidate],
    wish: Wish,
    stages: Stages,
    *,
    search: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
    answers: Sequence[TaskAnswer] = (),
) -> Bundle:
    """Write the bundle with its report, and the report of this run beside it.

    `answers` are those of the very artefact, with its adapter, to a task: its confidence is calibrated to them.
    """
    if wish.router is not None:
        read_router(wish.router)
        parts = [*parts, BundlePart(role="router", name=router.NAME, source=wish.router)]
    if wish.classifier is not None:
        read_classifier(wish.classifier)
        parts = [*parts, BundlePart(role="classifier", name=classifier.NAME, source=wish.classifier)]
    found = proof.calibration(answers, stages, wish.deferral)
    if found is not None:
        parts = [*parts, BundlePart(role="confidence", name=confidence.NAME, source=canonical_json(found))]
    signed = proof.report_file(made, manifest.gates, search, found, proved=proof.proved(stages))
    report = BundlePart(role="report", name="report.json", source=signed)
    manifest = msgspec.structs.replace(manifest, notes={**manifest.notes, "candidates": proof.facts(made)})
    materials = BundlePart(role="report", name=bom.NAME, source=bom.bill(manifest, [*parts, report]))
    bundle = pack(wish.out, manifest, [*parts, report, materials], wish.key)
    whole = proof.whole_report(bundle, made, stages, kept=kept, found=found)
    write_whole(report_path(wish.out), canonical_json(whole))
    return bundle


def report_path(out: Path) -> Path:
    """Return where the report with times and speeds goes: beside the bundle, outside of its signature."""
    return out.with_name(f"{out.name}.report.json")


def draft_manifest(checkpoint: Checkpoint, profile: Profile, name: str = DEFAULT) -> Manifest:
    """Return what is known of the bundle of `checkpoint` before anything is made."""
    model = ModelInfo(
        name=checkpoint.name,
        source=checkpoint.source,
        licence=checkpoint.licence,
        architecture=checkpoint.architecture,
        parameters=checkpoint.parameters,
        context=checkpoint.context,
        source_sha256=checkpoint.sha256,
    )
    fmt = format_named(name)
    return msgspec.structs.replace(_manifest(model, profile, fmt), notes=fmt.notes(checkpoint))


def _manifest(model: ModelInfo, profile: Profile, fmt: Format) -> Manifest:
    return Manifest(
        format=FORMAT,
        engine=fmt.engine,
        model=model,
        profile=profile.id,
        profile_sha256=profile_sha256(profile),
        recipe=Recipe(quant="", bits_per_weight=0.0),
        files=(),
        toolchain=fmt.versions(),
    )


def _named(manifest: Manifest, wish: Wish) -> Manifest:
    model = msgspec.structs.replace(manifest.model, name=wish.name or manifest.model.name)
    return msgspec.structs.replace(manifest, model=model, system_prompt=wish.system_prompt)
