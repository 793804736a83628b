"""What depends on a bundle's system prompt, proved anew for each; what depends on weights is proved without one.

Weights compute the same function whatever stands in front of a question: that they are their source's is proved once
(gates.py, against_source.py), and a bundle that differs in its system prompt alone takes that proof from the stage
cache, named by its digest. Here is what is left: the prompt is rendered as transformers renders it, cut as the source
cuts it, leaves room in the context, and the finished artefact answers behind it; those answers are the probes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core.errors import GateError
from fieldlm.core.files import sha256_file
from fieldlm.formats.bundle import Bundle, Gate, Manifest
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.tokenizer_parity import first_difference, json_tokens
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.pack import draft
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import against_source
from fieldlm_compiler.verify.against_source import Answers
from fieldlm_compiler.verify.dialogues import difference
from fieldlm_compiler.verify.gates import ENGINES, Fitted, rendered
from fieldlm_compiler.verify.served import facts, open_served

STAGE = "system-prompt"
MOST_OF_CONTEXT = 0.5
"""That the shortest question may take with the system prompt; a device refuses what takes more."""


class Prompted(NamedTuple):
    """The gates that a system prompt passed, and what the artefact answers behind it."""

    gates: tuple[Gate, ...]
    answers: Answers


def prove_prompt(
    manifest: Manifest,
    artefact: Artefact,
    source: Path | None,
    profile: Profile,
    stages: Stages,
    *,
    fitted: Fitted | None = None,
) -> Prompted:
    """Hold the manifest's system prompt, as `artefact` with its adapter reads it, against the source's tokenizer.

    `source` is the folder of the checkpoint; None where there is none to hold it against. Raises GateError when it is
    rendered or cut otherwise, or takes more than MOST_OF_CONTEXT of the context.
    """
    texts = rendered(manifest, artefact.parts)
    inputs = {
        "artefact": artefact.sha256,
        "adapter": sha256_file(fitted.gguf) if fitted else None,
        "tokenizer": sha256_file(source / "tokenizer.json") if source else None,
        "cache": manifest.cache,
        "served": facts(profile),
        "context": manifest.model.context,
        "texts": texts,
        "tokens": against_source.TOKENS,
        "firm": against_source.FIRM,
        "versions": installed((*ENGINES, "tokenizers", "transformers")),
    }
    bundle, gguf = draft(manifest, artefact.parts), fitted.gguf if fitted else None

    def make(_: Path) -> Ran:
        return call(hold, what="ask with the system prompt")(
            bundle=bundle, profile=profile, source=source, adapter=gguf, texts=texts
        )

    _, made = stages.run(STAGE, inputs, make)
    return Prompted(
        gates=msgspec.convert(made.value["gates"], tuple[Gate, ...]),
        answers=msgspec.convert(made.value["answers"], Answers),
    )


def hold(
    bundle: Bundle, profile: Profile, source: Path | None, adapter: Path | None, texts: Sequence[str]
) -> dict[str, Any]:
    """Return the gates of the prompt in `texts` and the answers to them. Runs in a child process."""
    engine = open_served(bundle, profile)
    cut, limit = [*map(engine.tokenize, texts)], int(MOST_OF_CONTEXT * engine.context)
    engine.close()
    gates: list[Gate] = []
    if source is not None:
        if found := first_difference(texts, json_tokens(source, texts), cut):
            raise GateError(f"the artefact cuts the system prompt otherwise than its source: {found}")
        count, different = difference(source, bundle)
        if different:
            raise GateError(f"the system prompt is rendered otherwise than by transformers: {different}")
        gates.append(Gate(name="prompt-equal", value=len(texts), limit=len(texts), passed=True, unit="texts"))
        if count:
            gates.append(Gate(name="prompt-rendered", value=count, limit=count, passed=True, unit="dialogues"))
    shortest = min(map(len, cut))
    if shortest > limit:
        raise GateError(
            f"with the system prompt the shortest question takes {shortest} of {2 * limit} tokens of context, "
            f"the limit is {limit}; shorten --system-prompt"
        )
    gates.append(Gate(name="prompt-tokens", value=shortest, limit=limit, passed=True, unit="tokens"))
    answers = against_source.answer(bundle, profile, adapter, list(texts), None)
    return {"gates": msgspec.to_builtins(gates), "answers": answers}
