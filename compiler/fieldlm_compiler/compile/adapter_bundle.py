"""Adapters as a small bundle of their own: the base bundle's very weights, and LoRAs that are judged beside them.

One answers everything. Of several each answers the tasks that it is for, and the first one the rest; each is proved,
judged and calibrated as an only one would be, on the examples that the bundle's router would give it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import GateError, InputError
from fieldlm.core.files import canonical_json
from fieldlm.formats import confidence
from fieldlm.formats.bundle import Bundle, Gate, Manifest, open_bundle
from fieldlm.formats.task_adapters import FIELD, TaskAdapter
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, origin
from fieldlm_compiler.checkpoints.licences import together
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter, open_adapter
from fieldlm_compiler.compile.adapter_costs import Judge, Judged
from fieldlm_compiler.compile.assemble import Wish, check_adapter_licence, check_licence, finish, prompt_proof
from fieldlm_compiler.compile.named_adapters import AdapterGateError, NamedAdapter, TaskShares
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.export.format import CarriesAdapters, Format, format_for
from fieldlm_compiler.export.quantize import WeightsSize
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.pack import BundlePart
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates as proof
from fieldlm_compiler.verify.against_source import Answers
from fieldlm_compiler.verify.gates import Candidate, Fitted

# The base bundle's own; an adapter changes the answers, so these are made anew.
OWN = ("adapter", "probe", "report", "confidence", "router", "classifier")


@dataclass(frozen=True, kw_only=True)
class _Proved:
    """What was found of an adapter: gates, the context up to which they hold, and answers of it on the base."""

    fitted: Fitted
    gates: tuple[Gate, ...]
    context: int
    made: Candidate
    probes: Answers
    judged: Judged
    kept: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _Base:
    """The base that adapters are for: as it is quantised, on full weights, and as a checkpoint."""

    fmt: Format
    adapters: CarriesAdapters
    checkpoint: Checkpoint
    artefact: Artefact
    full: Artefact
    wish: Wish
    stages: Stages

    def prove(self, fitted: Fitted, manifest: Manifest, task: Path | None) -> _Proved:
        """Hold an adapter against its source on full weights, and judge it by `task` on the quantised base."""
        wish = replace(self.wish, request=replace(self.wish.request, task=task))
        checkpoint, profile, stages = self.checkpoint, wish.profile, self.stages
        gates, reference, context = proof.prove(manifest, self.full, checkpoint, profile, stages, fitted=fitted)
        manifest = _until(manifest, context)
        answers = proof.ask(manifest, self.artefact, profile, stages, fitted=fitted, reference=reference)
        made = Candidate(artefact=self.artefact, answers=answers)
        _, fits = proof.choose([made], profile)
        prompted = prompt_proof(manifest, made, checkpoint.folder, wish, stages, fitted=fitted)
        judge = Judge(
            fmt=self.fmt,
            adapters=self.adapters,
            fitted=fitted,
            manifest=manifest,
            reference=reference,
            wish=wish,
            stages=stages,
        )
        judged = judge.task(self.artefact, self.full, checkpoint, answers)
        kept = judge.compare_with_merged(self.artefact, checkpoint, answers, judged) if wish.compare else None
        return _Proved(
            fitted=fitted,
            gates=(*gates, *judged.gates, fits, *prompted.gates),
            context=context,
            made=made,
            probes=prompted.answers,
            judged=judged,
            kept=kept,
        )


def attach(model: str, adapters: Sequence[NamedAdapter], base_bundle: Path, wish: Wish, stages: Stages) -> Bundle:
    """Compile `adapters` into a bundle that shares its base file with `base_bundle`, whose source `model` names.

    Raises InputError when an adapter, the model and the base bundle do not belong together, GateError when an adapter
    loses on the quantised base what the task may not lose; of several, an AdapterGateError that names it.
    """
    base = open_bundle(base_bundle)
    if base.manifest.profile != wish.profile.id:
        raise InputError(f"{base.folder} is for {base.manifest.profile}; add --profile {base.manifest.profile}")
    checkpoint = open_checkpoint(model, stages)
    check_licence(checkpoint.licence, wish, checkpoint.source)
    fmt, carrier = _format_of(base)
    _check_base(base, checkpoint)
    # It stands in the weights' file, too: what was converted and measured for the base is taken from the cache.
    checkpoint = replace(checkpoint, name=base.manifest.model.name)
    fitted: list[Fitted] = []
    licence = ""
    for each in adapters:
        peft = open_adapter(each.folder, checkpoint)
        carrier.check_adapter(peft)
        own = check_adapter_licence(peft, checkpoint, wish)
        licence = together(licence, own) if licence else own
        fitted.append(Fitted(adapter=peft, gguf=_export(carrier, peft, checkpoint, stages)))
    manifest = msgspec.structs.replace(
        base.manifest,
        model=msgspec.structs.replace(base.manifest.model, name=wish.name or base.manifest.model.name, licence=licence),
        toolchain=fmt.versions(),
        system_prompt=wish.system_prompt if wish.system_prompt is not None else base.manifest.system_prompt,
        dataset=fitted[0].adapter.dataset,
        parent=base.id,
    )
    on = _Base(
        fmt=fmt,
        adapters=carrier,
        checkpoint=checkpoint,
        artefact=_artefact(base, fitted),
        full=fmt.lower(checkpoint, stages),
        wish=wish,
        stages=stages,
    )
    return _pack_one(on, fitted[0], manifest) if len(adapters) == 1 else _pack_several(on, adapters, fitted, manifest)


def _pack_one(on: _Base, fitted: Fitted, manifest: Manifest) -> Bundle:
    found = on.prove(fitted, manifest, on.wish.request.task)
    parts = (
        *on.artefact.parts,
        BundlePart(role="adapter", name=on.adapters.adapter_name, source=fitted.gguf),
        BundlePart(role="probe", name="probe.json", source=proof.probe_file({"": found.probes})),
    )
    return finish(
        msgspec.structs.replace(_until(manifest, found.context), gates=found.gates),
        parts,
        [found.made],
        on.wish,
        on.stages,
        kept=found.kept,
        answers=found.judged.answers,
    )


def _pack_several(on: _Base, adapters: Sequence[NamedAdapter], fitted: Sequence[Fitted], manifest: Manifest) -> Bundle:
    # Beside others there is no merged form to compare one with.
    on = replace(on, wish=replace(on.wish, compare=False))
    proved = _prove_each(on, adapters, fitted, manifest)
    first = next(iter(proved.values()))
    stem, suffix = Path(on.adapters.adapter_name).stem, Path(on.adapters.adapter_name).suffix
    files = {name: f"{stem}{suffix if found is first else f'-{name}{suffix}'}" for name, found in proved.items()}
    calibrated = {name: _calibration_name(name, is_first=found is first)
                  for name, found in proved.items() if found.judged.answers}  # fmt: skip
    parts = [
        *on.artefact.parts,
        *(BundlePart(role="adapter", name=files[name], source=found.fitted.gguf) for name, found in proved.items()),
        BundlePart(
            role="probe",
            name="probe.json",
            source=proof.probe_file({"" if found is first else name: found.probes for name, found in proved.items()}),
        ),
        *(
            BundlePart(
                role="confidence",
                name=calibrated[name],
                source=canonical_json(proof.calibration(found.judged.answers, on.stages, on.wish.deferral)),
            )
            for name, found in proved.items()
            if found is not first and found.judged.answers
        ),
    ]
    chosen = tuple(
        TaskAdapter(name=each.name, path=files[each.name], tasks=each.tasks, confidence=calibrated.get(each.name))
        for each in adapters
    )
    datasets = {name: found.fitted.adapter.dataset for name, found in proved.items() if found.fitted.adapter.dataset}
    manifest = msgspec.structs.replace(
        _until(manifest, min(found.context for found in proved.values())),
        gates=_gates(proved),
        adapters=chosen,
        must_understand=(FIELD,),
        notes={**manifest.notes, **({"datasets": datasets} if datasets else {})},
    )
    return finish(manifest, parts, [first.made], on.wish, on.stages, answers=first.judged.answers)


def _prove_each(
    on: _Base, adapters: Sequence[NamedAdapter], fitted: Sequence[Fitted], manifest: Manifest
) -> dict[str, _Proved]:
    """Return what was found of each adapter, by its name; all hold for the shortest context that one of them has."""
    assert on.wish.router is not None, "it was asked for beside several"
    found: dict[str, _Proved] = {}
    with TaskShares(on.wish.request.task, adapters, on.wish.router) as shares:
        for each, one in zip(adapters, fitted, strict=True):
            try:
                found[each.name] = on.prove(one, manifest, shares.of(each.name))
            except GateError as error:
                raise AdapterGateError(each.name, error) from error
    contexts = {one.context for one in found.values()}
    return found if len(contexts) == 1 else _prove_each(on, adapters, fitted, _until(manifest, min(contexts)))


def _gates(proved: Mapping[str, _Proved]) -> tuple[Gate, ...]:
    """Return the first adapter's gates, and of the others those that came out otherwise, with their names."""
    first, *others = proved.items()
    gates = [*first[1].gates]
    for name, found in others:
        own = (gate for gate in found.gates if gate not in first[1].gates)
        gates += [msgspec.structs.replace(gate, name=f"{gate.name}:{name}") for gate in own]
    return tuple(gates)


def _calibration_name(adapter: str, *, is_first: bool) -> str:
    stem, suffix = Path(confidence.NAME).stem, Path(confidence.NAME).suffix
    return confidence.NAME if is_first else f"{stem}-{adapter}{suffix}"


def _until(manifest: Manifest, context: int) -> Manifest:
    return msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, context=context))


def _format_of(base: Bundle) -> tuple[Format, CarriesAdapters]:
    fmt = format_for(base.manifest.engine)
    if not isinstance(fmt, CarriesAdapters) or base.manifest.file("adapter"):
        raise InputError(f"{base.folder} cannot carry an adapter: it needs to be a GGUF bundle without one")
    return fmt, fmt


def is_base_of(base: Bundle, checkpoint: Checkpoint) -> bool:
    """Say whether `base` was made from `checkpoint`, or `checkpoint` was unpacked from its file."""
    # An adapter may be tuned on the source, or against the base as it is quantised, unpacked from its own file.
    weights, gguf = base.manifest.file("base"), origin(checkpoint.folder).get("gguf_sha256")
    is_made_from = base.manifest.model.source_sha256 in (checkpoint.sha256, gguf)
    return is_made_from or (weights and weights.sha256) == gguf


def _check_base(base: Bundle, checkpoint: Checkpoint) -> None:
    if not is_base_of(base, checkpoint):
        raise InputError(
            f"{base.folder} was made from {base.manifest.model.source} ({base.manifest.model.source_sha256[:12]}…), "
            f"not from {checkpoint.source} ({checkpoint.sha256[:12]}…); compile a base from the model it was tuned on"
        )


def _export(adapters: CarriesAdapters, adapter: PeftAdapter, checkpoint: Checkpoint, stages: Stages) -> Path:
    def make(folder: Path) -> Ran:
        return adapters.export_adapter(adapter, checkpoint, folder / adapters.adapter_name)

    inputs = {"adapter": adapter.sha256, "checkpoint": checkpoint.sha256, "toolchain": llama_toolchain.versions()}
    folder, _ = stages.run("adapter", inputs, make)
    return folder / adapters.adapter_name


def _artefact(base: Bundle, fitted: Sequence[Fitted]) -> Artefact:
    """Name the base bundle's files, and what they weigh together with the adapters."""
    parts = [
        BundlePart(role=file.role, name=file.path, source=base.folder / file.path, shared=file.role == "base")
        for file in base.manifest.files
        if file.role not in OWN
    ]
    recipe = base.manifest.recipe
    weights = base.manifest.file("base")
    assert weights is not None, "a bundle has weights"
    size = weights.size + sum(each.gguf.stat().st_size for each in fitted)
    return Artefact(
        engine=base.manifest.engine,
        quant=recipe.quant,
        parts=tuple(parts),
        size=WeightsSize(bytes=size, bits_per_weight=recipe.bits_per_weight, tensors={}),
        sha256=weights.sha256,
    )
