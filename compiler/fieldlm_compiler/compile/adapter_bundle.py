"""An adapter as a small bundle of its own: the base bundle's very weights, and a LoRA that is judged beside them."""

from dataclasses import replace
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, origin
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter, open_adapter
from fieldlm_compiler.compile.adapter_costs import Judge
from fieldlm_compiler.compile.assemble import Wish, check_adapter_licence, check_licence, finish, prompt_proof
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.export.format import CarriesAdapters, Format, format_for
from fieldlm_compiler.export.quantize import WeightsSize
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.pack import BundlePart
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates as proof
from fieldlm_compiler.verify.gates import Candidate, Fitted

# The base bundle's own; an adapter changes the answers, so these are made anew.
OWN = ("adapter", "probe", "report", "confidence", "router")


def attach(model: str, adapter: Path, base_bundle: Path, wish: Wish, stages: Stages) -> Bundle:
    """Compile `adapter` into a bundle that shares its base file with `base_bundle`, whose source `model` names.

    Raises InputError when the adapter, the model and the base bundle do not belong together, GateError when the adapter
    loses on the quantised base what the task may not lose.
    """
    base = open_bundle(base_bundle)
    if base.manifest.profile != wish.profile.id:
        raise InputError(f"{base.folder} is for {base.manifest.profile}; add --profile {base.manifest.profile}")
    checkpoint = open_checkpoint(model, stages)
    check_licence(checkpoint.licence, wish, checkpoint.source)
    fmt, adapters = _format_of(base)
    _check_base(base, checkpoint)
    # It stands in the weights' file, too: what was converted and measured for the base is taken from the cache.
    checkpoint = replace(checkpoint, name=base.manifest.model.name)
    peft = open_adapter(adapter, checkpoint)
    adapters.check_adapter(peft)
    licence = check_adapter_licence(peft, checkpoint, wish)
    fitted = Fitted(adapter=peft, gguf=_export(adapters, peft, checkpoint, stages))
    manifest = msgspec.structs.replace(
        base.manifest,
        model=msgspec.structs.replace(base.manifest.model, name=wish.name or base.manifest.model.name, licence=licence),
        toolchain=fmt.versions(),
        system_prompt=wish.system_prompt if wish.system_prompt is not None else base.manifest.system_prompt,
        dataset=peft.dataset,
        parent=base.id,
    )
    full = fmt.lower(checkpoint, stages)
    gates, reference, context = proof.prove(manifest, full, checkpoint, wish.profile, stages, fitted=fitted)
    manifest = msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, context=context))
    artefact = _artefact(base, fitted)
    answers = proof.ask(manifest, artefact, wish.profile, stages, fitted=fitted, reference=reference)
    made = Candidate(artefact=artefact, answers=answers)
    _, fits = proof.choose([made], wish.profile)
    prompted = prompt_proof(manifest, made, checkpoint.folder, wish, stages, fitted=fitted)
    judge = Judge(
        fmt=fmt, adapters=adapters, fitted=fitted, manifest=manifest, reference=reference, wish=wish, stages=stages
    )
    judged = judge.task(artefact, full, checkpoint, answers)
    kept = judge.compare_with_merged(artefact, checkpoint, answers, judged) if wish.compare else None
    parts = (
        *artefact.parts,
        BundlePart(role="adapter", name=adapters.adapter_name, source=fitted.gguf),
        BundlePart(role="probe", name="probe.json", source=proof.probe_file(prompted.answers)),
    )
    return finish(
        msgspec.structs.replace(manifest, gates=(*gates, *judged.gates, fits, *prompted.gates)),
        parts,
        [made],
        wish,
        stages,
        kept=kept,
        answers=judged.answers,
    )


def _format_of(base: Bundle) -> tuple[Format, CarriesAdapters]:
    fmt = format_for(base.manifest.engine)
    if not isinstance(fmt, CarriesAdapters) or base.manifest.file("adapter"):
        raise InputError(f"{base.folder} cannot carry an adapter: it needs to be a GGUF bundle without one")
    return fmt, fmt


def _check_base(base: Bundle, checkpoint: Checkpoint) -> None:
    weights, gguf = base.manifest.file("base"), origin(checkpoint.folder).get("gguf_sha256")
    # An adapter may be tuned on the source, or against the base as it is quantised, unpacked from its own file.
    if base.manifest.model.source_sha256 not in (checkpoint.sha256, gguf) and (weights and weights.sha256) != gguf:
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


def _artefact(base: Bundle, fitted: Fitted) -> Artefact:
    """Name the base bundle's files, and what they weigh together with the adapter."""
    parts = [
        BundlePart(role=file.role, name=file.path, source=base.folder / file.path, shared=file.role == "base")
        for file in base.manifest.files
        if file.role not in OWN
    ]
    recipe = base.manifest.recipe
    weights = base.manifest.file("base")
    assert weights is not None, "a bundle has weights"
    size = weights.size + fitted.gguf.stat().st_size
    return Artefact(
        engine=base.manifest.engine,
        quant=recipe.quant,
        parts=tuple(parts),
        size=WeightsSize(bytes=size, bits_per_weight=recipe.bits_per_weight, tensors={}),
        sha256=weights.sha256,
    )
