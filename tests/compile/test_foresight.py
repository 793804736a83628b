"""What a checkpoint is foreseen to be on a device, beside what is made of it."""

import msgspec
import pytest

from fieldlm.engines.llama_layout import layout_of
from fieldlm.engines.memory_plan import PREFILL_ALONE, plan
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile, load_profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.compile.foresight import foresee
from fieldlm_compiler.export.format import format_named
from fieldlm_compiler.pipeline.stages import Stages


def with_budget(profile: Profile, budget_mb: int) -> Profile:
    return msgspec.structs.replace(profile, memory=msgspec.structs.replace(profile.memory, model_budget_mb=budget_mb))


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q5_K_M", "Q4_0"])
def test_weights_and_memory_are_foreseen_to_a_tenth_of_what_is_made(
    tiny: Checkpoint, profile: Profile, stages: Stages, quant: str
) -> None:
    fmt = format_named("gguf")
    header = read_header(fmt.shrink(fmt.lower(tiny, stages), quant, profile, stages).base)
    foreseen = foresee(tiny, (quant,), profile)
    parallel = profile.runtime.parallel
    made = plan(
        header,
        context=min(profile.gguf.context, tiny.context),
        parallel=parallel,
        batch=PREFILL_ALONE + parallel,
        isa=profile.cpu.isa,
        layout=layout_of(profile),
    )
    assert foreseen.quant == quant
    assert foreseen.weights_mb == pytest.approx(header.weight_bytes / 1e6, rel=0.1)
    assert foreseen.memory.kv == made.kv > 0
    assert foreseen.memory.total == pytest.approx(made.total, rel=0.1)
    assert foreseen.missed == ""


def test_the_first_type_whose_weights_fit_is_the_one_that_would_be_made(tiny: Checkpoint) -> None:
    profile = load_profile("rpi5-8gb")
    assert foresee(tiny, ("F16", "Q4_0"), profile).quant == "F16"
    assert foresee(tiny, (), profile).quant == profile.gguf.quants[0]


def test_what_does_not_fit_says_by_how_much_and_what_to_do(tiny: Checkpoint, profile: Profile) -> None:
    none = foresee(tiny, ("F16", "Q8_0"), with_budget(profile, 0))
    assert none.quant == "Q8_0", "of those that do not fit, the smallest"
    assert none.missed.startswith("does not fit: about 0.")
    assert (
        "MB of weights as Q8_0, the budget is 0 MB; ask for a smaller --quant, or take a smaller model" in none.missed
    )
    served = foresee(tiny, ("Q8_0",), with_budget(profile, 1))
    assert "as Q8_0 it is served in about" in served.missed
    assert "the budget is 1 MB" in served.missed


def test_tokens_a_second_are_foreseen_where_the_profile_says_what_somebody_reached(
    tiny: Checkpoint, profile: Profile
) -> None:
    pi = load_profile("rpi5-8gb")
    assert pi.memory.read_gb_s is not None
    full, half = (foresee(tiny, (quant,), pi).tokens_per_s for quant in ("F16", "Q8_0"))
    assert full is not None
    assert half is not None
    assert 1.3 * full < half < 2 * full
    unknown = msgspec.structs.replace(profile, memory=msgspec.structs.replace(profile.memory, read_gb_s=None))
    assert foresee(tiny, ("Q8_0",), unknown).tokens_per_s is None
