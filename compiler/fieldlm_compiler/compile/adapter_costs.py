"""What an adapter kept apart from its base costs: judged where it will run: on the base as it is quantised.

Merged into the weights it would be as large as the base, and faster; both are made and measured, so that the choice is
one of numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from fieldlm.core.errors import GateError, NoSpaceError
from fieldlm.core.logs import logger
from fieldlm.formats.bundle import Gate, Manifest
from fieldlm.inference.chat_template import render
from fieldlm_compiler.checkpoints import merge as merging
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.compile.assemble import Wish
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.export.format import CarriesAdapters, Format
from fieldlm_compiler.pipeline.pack import draft
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates as proof
from fieldlm_compiler.verify.against_source import Answers
from fieldlm_compiler.verify.confidence import TaskAnswer
from fieldlm_compiler.verify.corpus import TaskExample, read_task
from fieldlm_compiler.verify.divergence import kept
from fieldlm_compiler.verify.exam import exam_prompt
from fieldlm_compiler.verify.gates import Fitted
from fieldlm_compiler.verify.served import with_plain_cache
from fieldlm_compiler.verify.task import task_gate

log = logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The task's gate, the examples, and what was answered to them on the quantised base; empty without."""

    gates: tuple[Gate, ...] = ()
    examples: tuple[TaskExample, ...] = ()
    answers: tuple[TaskAnswer, ...] = ()

    @property
    def right(self) -> int | None:
        """How many of the examples that every form is asked were right."""
        return sum(answer.right for answer in self.answers[: proof.SERVED_EXAMPLES]) if self.examples else None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What an adapter is judged by; `reference` is what it answers on full weights."""

    fmt: Format
    adapters: CarriesAdapters
    fitted: Fitted
    manifest: Manifest
    reference: Answers
    wish: Wish
    stages: Stages

    def task(self, artefact: Artefact, full: Artefact, checkpoint: Checkpoint, answers: Answers) -> Judged:
        """Let the adapter do the task on `artefact`, the quantised base, and on `full` weights.

        Raises GateError when it loses more of its right answers than the task may lose.
        """
        request = self.wish.request
        if request.task is None:
            return Judged()
        bundle = draft(self.manifest, artefact.parts)
        prompt, ask = partial(render, bundle), partial(exam_prompt, bundle)
        examples = tuple(read_task(request.task, checkpoint, prompt, answers.stops, ask=ask))
        plain, profile = proof.plain(self.manifest), self.wish.profile
        few, served = examples[: proof.SERVED_EXAMPLES], with_plain_cache(profile)
        most = proof.task_answers(plain, full, few, served, self.stages, fitted=self.fitted)
        if not any(answer.right for answer in most):
            raise GateError("the adapter answers none of the task right on full weights: it was tuned for another")
        given = proof.task_answers(self.manifest, artefact, examples, profile, self.stages, fitted=self.fitted)
        gate = task_gate("task-served", kept(proof.pairs_right(most, given)), request.limits)
        if not gate.passed:
            raise GateError(
                f"on the quantised base the adapter keeps {gate.value:.2f} of its right answers ({gate.doubt}), "
                f"the limit is {gate.limit:g}; tune against this base (fieldlm unpack), take a larger one, or --merge"
            )
        return Judged(gates=(gate,), examples=examples, answers=tuple(given))

    def compare_with_merged(
        self, artefact: Artefact, checkpoint: Checkpoint, answers: Answers, judged: Judged
    ) -> dict[str, Any] | None:
        """Return what the adapter costs apart and merged into weights of the base's kind; None without room for it."""
        try:
            merged = merging.merge(checkpoint, self.fitted.adapter, self.stages)
            quant = self.adapters.merged_quant(artefact.quant, self.wish.profile)
            whole = self.fmt.shrink(self.fmt.lower(merged, self.stages), quant, self.wish.profile, self.stages)
        except NoSpaceError as error:
            log.info(f"  note: not compared with the merged model: {error}")
            return None
        said = proof.ask(self.manifest, whole, self.wish.profile, self.stages, reference=self.reference)
        right = None
        if few := judged.examples[: proof.SERVED_EXAMPLES]:
            same = proof.task_answers(self.manifest, whole, few, self.wish.profile, self.stages)
            right = sum(answer.right for answer in same)
        return {
            "apart": _cost(self.fitted.gguf.stat().st_size, answers, judged.right),
            "merged": {"quant": whole.quant, **_cost(whole.size.bytes, said, right)},
        }


def _cost(ships_bytes: int, answers: Answers, right: int | None) -> dict[str, Any]:
    return {
        "ships_bytes": ships_bytes,
        "tokens_per_s": answers.tokens_per_s,
        "agreement": answers.agreement,
        "right": right,
    }
