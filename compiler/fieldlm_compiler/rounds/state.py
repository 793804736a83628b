"""What a round leaves behind: `rounds/NNNN/`, whole or not there, and what the next one reads of it.

    rounds/0001/
      round.json     a RoundDocument: inputs by digest, stages, figures per task, the decision and its reasons
      report.html    the same as a page
      examples/      examples.jsonl, tasks.json and curate.json, as the round used them
      dataset/       what was trained on
      held_out.json  per held-out example, by the id of its response: its task, and whose answer was right
      adapter/  bundle/  adapters/NAME of groups of tasks, where the bundle has them
      seen.json      up to which number the records of every device were looked at
    rounds/.work/    finished stages by the digest of their inputs, and a tuning that was interrupted

Words of people are in `examples/` and `dataset/` alone, in the shape in which `fieldlm tainted rounds/` finds them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.evaluate import Score
from fieldlm_compiler.rounds.gate import PairedTest

FORMAT = "fieldlm.round/1"
DOCUMENT, HELD_OUT, SEEN = "round.json", "held_out.json", "seen.json"
WORK = ".work"
Decision = Literal["accepted", "refused"]
Mark = tuple[str, int, int]
"""A device, an epoch, and the last number of its stream of generations that was looked at."""


class Exact(msgspec.Struct, frozen=True, kw_only=True):
    """Exact matches among held-out examples."""

    right: int
    total: int

    @property
    def score(self) -> Score:
        return Score(right=self.right, total=self.total)

    def __str__(self) -> str:
        return f"{self.right / self.total:.0%} ({self.right}/{self.total})" if self.total else "–"


class TaskCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests of a task took, and who answered them."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    small: int = 0
    large: int = 0
    escalated: int = 0
    corrected: int = 0


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a round: how often it is asked for, what it costs, who answers it how well, who should."""

    id: str
    name: str
    example: str
    examples: int
    share: float
    """Of the requests whose task is known or not, those whose words may be read."""
    cost: TaskCost
    base: Exact
    previous: Exact | None
    this: Exact | None
    advice: Literal["small", "large", "too few", "left out"]
    reason: str


class TaskMatch(msgspec.Struct, frozen=True, kw_only=True):
    """One task, as customers to watch had it answered: by the adapter for all, and by the one of its group."""

    id: str
    name: str
    one: Exact
    own: Exact


class GroupMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A group of tasks: whether an adapter of its own answers it better than the one for all, and is in the bundle.

    `lost` and `gained` count what customers to watch asked; `p` is how likely so many gains are by chance.
    """

    id: str
    name: str
    is_taken: bool
    reason: str
    lost: int = 0
    gained: int = 0
    p: float = 1.0
    tasks: list[TaskMatch] = []


class ClassifierMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A task: whether the bundle's classifier answers it where it is sure, and why.

    Of what customers to watch asked it answers `given`, `right` of those rightly and the model `model_right`; one takes
    it `ms`, and the model `model_ms`. `answers` counts those of the task.
    """

    id: str
    name: str
    is_taken: bool
    reason: str
    answers: int = 0
    given: int = 0
    right: int = 0
    model_right: int = 0
    ms: float = 0.0
    model_ms: float = 0.0


class BaseTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task, as customers to watch had it answered by a base that was tried.

    `lost` and `gained` count its examples beside the base that answers most.
    """

    id: str
    name: str
    right: Exact
    lost: int = 0
    gained: int = 0


class BaseMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A base that a round could tune: what is known of it, its price, what it answered, and whether it is taken.

    Megabytes are 1e6 bytes. Foreseen on the device are `weights_mb`, `memory_mb` as it is served, and `tokens_per_s`,
    None where nothing says it. `bundle_mb` is what its bundle has, `update_mb` what of it a device fetches, `ms` what
    an answer takes here. One that was not tried has none of these, nor answers. `lost`, `gained` and `p` are of the
    whole, beside the base that answers most.
    """

    name: str
    reason: str
    is_taken: bool = False
    source: str = ""
    licence: str = ""
    about: str = ""
    family: str = ""
    parameters: int = 0
    quant: str = ""
    weights_mb: float | None = None
    memory_mb: float | None = None
    tokens_per_s: float | None = None
    began_at: str = ""
    """Whether its adapter was tuned from the last accepted one or afresh."""
    bundle_mb: float | None = None
    update_mb: float | None = None
    ms: float | None = None
    right: Exact | None = None
    lost: int = 0
    gained: int = 0
    p: float = 1.0
    tasks: list[BaseTask] = []


class BaseChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which of several bases a round tuned: why, and what an update to another one `ships`, in words."""

    chosen: str
    bases: list[BaseMatch]
    ships: str = ""


class RoundDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What round.json holds."""

    format: str
    number: int
    began: str
    """UTC, when its data was first looked at."""
    decision: Decision
    reasons: list[str]
    parent: int | None
    """The accepted round whose bundle this one was held against."""
    generation: str
    """Of the bundle, "" where none was made."""
    made_of: dict[str, Any]
    """Inputs by their digests, and every option that decides what comes of them."""
    stages: list[dict[str, Any]]
    curated: dict[str, Any]
    sealed: dict[str, int]
    redacted: dict[str, int]
    dataset: dict[str, Any]
    tune: dict[str, Any]
    requests: dict[str, int]
    tasks: list[TaskRow]
    base: Exact
    previous: Exact | None
    this: Exact | None
    tests: list[PairedTest]
    groups: list[GroupMatch] = []
    """Where an adapter for each group of tasks was tried beside the one for all: what came of it."""
    chosen: str = ""
    """Which adapters the bundle has then, and why."""
    classifiers: list[ClassifierMatch] = []
    """Where a classifier was tried beside the model: what came of it, by task."""
    classified: str = ""
    """What the bundle's classifier answers then, or why it has none."""
    sure: list[tuple[float, int, int]] = []
    """Of the calibrations of the bundle's adapters: p, how many watched answers had it, and how many of those were
    right. What a classifier answers is counted as the model answered it."""
    deferral: list[str] = []
    """Where a learned deferral was asked for: how it compared with one signal, of each adapter."""
    edits: list[str] = []
    """What people made of the tasks that were found, in words."""
    base_choice: BaseChoice | UnsetType = UNSET
    """Where several bases were named: which one this round tuned. A round of one does not say it."""


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """How one held-out example was answered."""

    response: str
    task: str
    base: bool
    previous: bool | None = None
    this: bool | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedRound:
    """A round that came to a decision, and its folder."""

    folder: Path
    document: RoundDocument

    @property
    def number(self) -> int:
        return self.document.number

    @property
    def is_accepted(self) -> bool:
        return self.document.decision == "accepted"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def examples(self) -> Path:
        return self.folder / "examples"

    def held_out(self) -> list[HeldOut]:
        return msgspec.json.decode((self.folder / HELD_OUT).read_bytes(), type=list[HeldOut])

    def seen(self) -> list[Mark]:
        return msgspec.json.decode((self.folder / SEEN).read_bytes(), type=list[Mark])


def read_rounds(folder: Path) -> list[FinishedRound]:
    """Return the rounds in `folder`, oldest first; raises InputError for one that cannot be read."""
    return list(_rounds(folder))


def last_accepted(rounds: list[FinishedRound]) -> FinishedRound | None:
    return next((each for each in reversed(rounds) if each.is_accepted), None)


def _rounds(folder: Path) -> Iterator[FinishedRound]:
    for path in sorted(folder.glob(f"[0-9][0-9][0-9][0-9]/{DOCUMENT}")):
        try:
            document = msgspec.json.decode(path.read_bytes(), type=RoundDocument)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InputError(f"{path} is no round of this version: {error}; move its folder away") from error
        if document.format != FORMAT:
            raise InputError(f"{path} is of format {document.format}, known is {FORMAT}; update fieldlm-compiler")
        yield FinishedRound(folder=path.parent, document=document)
