"""One round: curate → tasks → dataset → tune → compile → exam → gate, each stage kept by the digest of its inputs.

    store ─ curate ─ seal ─ cluster ─┬─ dataset ─ tune ─ compile ─┬─ gate ─ rounds/NNNN
                                     └─ held out ─ exam of base, previous and new bundle

Of several bases each that may do is tuned and compiled; `bases` says with which the round goes on.

A round that is interrupted leaves nothing but its finished stages, and goes on from there when it is asked for again.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import (
    canonical_json,
    held_lock,
    link_or_copy,
    make_private_folder,
    sha256_bytes,
    sha256_file,
    whole_folder,
    write_whole,
)
from fieldlm.core.logs import logger
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.agreement import answer_key
from fieldlm_compiler.learn.cluster import TASKS
from fieldlm_compiler.learn.curate import Labels, curate
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.redacted.name_finder import CARD
from fieldlm_compiler.learn.task_edits.edits import TaskEdits, read_edits
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds import learning, traffic
from fieldlm_compiler.rounds.answers import examine, questions_of
from fieldlm_compiler.rounds.bases import BaseTrial, NamedBase, TunedBase, facts_of, open_bases
from fieldlm_compiler.rounds.classifiers import ClassifierTrial
from fieldlm_compiler.rounds.gate import EarlierTask, PairedTest, compare_tasks, compare_whole, reasons
from fieldlm_compiler.rounds.groups import AdapterChoice, GroupTrial
from fieldlm_compiler.rounds.report import page, redacted
from fieldlm_compiler.rounds.sealed import earlier, seal
from fieldlm_compiler.rounds.state import (
    DOCUMENT,
    FORMAT,
    HELD_OUT,
    SEEN,
    WORK,
    FinishedRound,
    HeldOut,
    Mark,
    RoundDocument,
    last_accepted,
    read_rounds,
)
from fieldlm_compiler.rounds.table import exact, rows
from fieldlm_compiler.rounds.wish import UNSAID, RoundWish

log = logger(__name__)
MOST_HELD_OUT = 200
"""Of a task; those of earlier rounds come first."""
DIGEST = """SELECT count(*) AS records, coalesce(bit_xor(md5_number_lower(r::VARCHAR)), 0) AS low,
coalesce(bit_xor(md5_number_upper(r::VARCHAR)), 0) AS high FROM records r"""


class _Exams(NamedTuple):
    """Per held-out example, whether it was answered right; None for a bundle that is not there."""

    base: list[bool]
    previous: list[bool] | None
    this: list[bool] | None


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """The store as it was when the round began: its digest, how many records, and up to which number."""

    digest: str
    records: int
    seen: list[Mark]


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """Folders of what the store gave, the same with tasks, the data set; and the examples that are held out."""

    examples: Path
    clustered: Path
    dataset: Path
    held: list[CuratedExample]
    all: list[CuratedExample]
    edits: TaskEdits


class LearningRound:
    """The next round of the folder `wish.out`."""

    def __init__(self, wish: RoundWish) -> None:
        self.wish = wish
        self.stages = Stages(wish.out / WORK)
        self.compiling = Stages(wish.work)
        self._read_rounds()

    def _read_rounds(self) -> None:
        self.rounds = read_rounds(self.wish.out)
        self.previous = last_accepted(self.rounds)
        self.number = self.rounds[-1].number + 1 if self.rounds else 1

    def check(self) -> None:
        """Raise InputError for options that contradict earlier rounds; writes nothing."""
        for each in self.rounds[-1:]:
            before = each.document.made_of["eval_share"]
            if before != self.wish.eval_share:
                raise InputError(
                    f"the rounds in {self.wish.out} hold out {before:g} of the customers; with another share some of "
                    f"them would be trained on: add --eval-share {before:g}, or begin in a new folder"
                )
        tasks = [(row.id, row.name) for row in self.previous.document.tasks] if self.previous else []
        for word in sorted(self.wish.let_go):
            found = [task for task, _ in tasks if word == task] or [task for task, name in tasks if word == name]
            if len(found) > 1:
                raise InputError(f"--let-go {word!r} is the name of {len(found)} tasks; use an id: {', '.join(found)}")
            if not found:
                near = terminal.did_you_mean(word, [each for task in tasks for each in task])
                raise InputError(f"--let-go {word!r}: the last accepted round has no such task{near}")

    def run(self) -> FinishedRound:
        """Go through all stages; return the new round, or the last one where it was made of exactly the same.

        Raises InputError when nothing can be learned from the store or options contradict earlier rounds.
        """
        self.check()
        make_private_folder(self.wish.out)
        make_private_folder(self.wish.out / WORK)
        with held_lock(self.wish.out / WORK / "lock", f"another round runs in {self.wish.out}; wait for it"):
            self._read_rounds()  # another may have ended while this one began
            named = open_bases(self.wish, self.compiling)
            looked = self._look()
            edits = read_edits(self.wish.out)
            wanted = self._wanted(named) | {"task_edits": edits.deciding_digest}
            if self._is_made_of(wanted | {"store": looked.digest}):
                return self._nothing_new()
            _say(f"round {self.number}: what came home")
            learned = self._learn(looked, edits)
            made_of = wanted | {
                "store": looked.digest,
                "dataset": msgspec.json.decode((learned.dataset / "dataset.json").read_bytes())["sha256"],
                "held_out": sha256_bytes(canonical_json(questions_of(learned.held))),
            }
            if self._is_made_of({name: value for name, value in made_of.items() if name != "store"}):
                return self._nothing_new()
            return self._make(named, looked, learned, made_of)

    def _make(
        self, named: Sequence[NamedBase], looked: _Looked, learned: _Learned, made_of: dict[str, Any]
    ) -> FinishedRound:
        """Tune, compile, ask and decide."""
        data, clustered, stages = learned.dataset, learned.clustered, self.stages
        found, choice = BaseTrial(
            wish=self.wish, named=named, previous=self.previous, data=data, clustered=clustered, stages=stages
        ).choose()
        made_of = made_of | found.facts()
        made = self._compiled(found, learned)
        bundle = made.bundle if made else None
        _say(f"exam on {len(learned.held)} held-out examples")
        exams = self._exams(found.base, bundle, learned.held)
        with terminal.progress("look at the requests"), open_sink(self.wish.store, read_only=True) as sink:
            requests = traffic.look(sink, learned.all, self.wish.consents)
        whole, tests = self._judge(learned.held, exams)
        why = [found.trouble] if exams.this is None else reasons(tests, whole)
        table = rows(
            learned.all, learned.clustered / TASKS, requests, learned.held, exams,
            enough=self.wish.enough, is_accepted=not why,
        )  # fmt: skip
        document = RoundDocument(
            format=FORMAT,
            number=self.number,
            began=self._began(made_of),
            decision="refused" if why else "accepted",
            reasons=why,
            parent=self.previous.number if self.previous else None,
            generation=bundle.generation if bundle else "",
            made_of=made_of | {"records": looked.records, "bundle": bundle.id if bundle else ""},
            stages=self._timings(),
            curated=msgspec.json.decode((learned.examples / "curate.json").read_bytes()),
            sealed=msgspec.json.decode((learned.examples / "sealed.json").read_bytes()),
            redacted=redacted(learned.all),
            dataset=msgspec.json.decode((learned.dataset / "dataset.json").read_bytes()),
            tune=found.tuned,
            requests={
                "looked at": requests.requests, "without words": requests.unread, "of no known task": requests.unknown
            },
            tasks=table,
            base=exact(exams.base),
            previous=exact(exams.previous) if exams.previous else None,
            this=exact(exams.this) if exams.this else None,
            tests=[] if exams.this is None else [whole, *tests],
            edits=[str(edit) for edit in learned.edits.edits],
            base_choice=choice,
            **(made.facts() if made else {}),
        )  # fmt: skip
        return self._keep(document, learned, adapter=found.adapter, made=made, exams=exams, seen=looked.seen)

    def _compiled(self, found: TunedBase, learned: _Learned) -> AdapterChoice | None:
        """Return the bundle for the exam and how its adapters were chosen; None where none was made."""
        if found.one is None:
            return None
        if self.wish.adapters != "one":
            _say("an adapter for each group of tasks")
        trial = GroupTrial(
            wish=found.wish,
            checkpoint=found.checkpoint,
            base=found.base,
            one=found.one,
            folder=found.adapter,
            data=learned.dataset,
            clustered=learned.clustered,
            stages=self.stages,
        )
        return ClassifierTrial(of=trial, chosen=trial.choose()).choose()

    # ── what is there already ────────────────────────────────────────────────────────────────────────────────────

    def _wanted(self, named: Sequence[NamedBase]) -> dict[str, Any]:
        base = self.wish.base_bundle
        return self.wish.facts() | facts_of(named) | {"base_bundle": open_bundle(base).id if base else None}

    def _is_made_of(self, made_of: dict[str, Any]) -> bool:
        """Say whether the last round was made of this."""
        if not self.rounds:
            return False
        before = self.rounds[-1].document.made_of
        plain: dict[str, Any] = msgspec.json.decode(canonical_json(made_of))
        return all(before.get(name, UNSAID.get(name)) == value for name, value in (UNSAID | plain).items())

    def _nothing_new(self) -> FinishedRound:
        log.info(f"  nothing is new since round {self.rounds[-1].number}")
        return self.rounds[-1]

    # ── the stages ───────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> _Looked:
        with terminal.progress("read the store"), open_sink(self.wish.store, read_only=True) as sink:
            (row,) = sink.query(DIGEST)
            seen = traffic.seen(sink)
        return _Looked(digest=f"{row['high']:016x}{row['low']:016x}", records=row["records"], seen=seen)

    def _learn(self, looked: _Looked, edits: TaskEdits) -> _Learned:
        """Return what can be learned; raises InputError when nobody is held out, or nobody is left to train on."""
        examples = self._examples(looked.digest)
        _say("tasks and data set")
        clustered = learning.tasks(examples, self.rounds, edits, self.stages)
        everything = read_examples(clustered)
        held = self._held_out(each for each in everything if not edits.leaves_out(each.task))
        if not held:
            raise InputError(
                f"no customer of {self.wish.store} is held out, so nothing can be judged; collect more, or hold more "
                "of them out from the first round on: --eval-share"
            )
        dataset = learning.dataset_of(clustered, self.stages)
        return _Learned(examples=examples, clustered=clustered, dataset=dataset, held=held, all=everything, edits=edits)

    def _examples(self, store: str) -> Path:
        """Return the folder with what `curate` finds, held out and in training as earlier rounds had it."""
        wish = self.wish
        inputs = {
            "store": store,
            "consents": sorted(wish.consents),
            "eval_share": wish.eval_share,
            "teacher": wish.teacher,
            "check_labels": wish.check_labels,
            "names": wish.names == "learned" and sha256_file(CARD),
            "held_out_from": wish.facts().get("held_out_from"),
            # Examples that an older version left have no rejected answers, or part what one device said.
            "has_rejected": True,
            "by_voter": True,
            "system_prompt": wish.system_prompt,
            "earlier": [sha256_file(each.examples / EXAMPLES) + each.document.decision for each in self.rounds],
        }

        def make(folder: Path) -> Ran:
            with terminal.progress("curate"):
                labels = Labels(large=wish.teacher, checked=wish.check_labels)
                curate(
                    wish.store,
                    folder,
                    consents=wish.consents,
                    eval_share=wish.eval_share,
                    labels=labels,
                    since=wish.held_out_from,
                    names=wish.names,
                )
                with open_sink(wish.store, read_only=True) as sink:
                    sealed = seal(
                        read_examples(folder),
                        earlier(self.rounds),
                        sink,
                        consents=wish.consents,
                        system_prompt=wish.system_prompt,
                    )
            write_examples(folder / EXAMPLES, sealed.examples)
            write_whole(folder / "sealed.json", canonical_json(sealed.counts))
            return Ran(value=len(sealed.examples), seconds=0.0, peak_mb=0.0)

        return self.stages.run("curate", inputs, make)[0]

    def _held_out(self, examples: Iterable[CuratedExample]) -> list[CuratedExample]:
        """Return the held-out examples, of each task those of earlier rounds first, then in an order by chance."""
        known = {held.response for each in self.rounds for held in each.held_out()}
        of = defaultdict[str, list[CuratedExample]](list)
        for example in examples:
            if example.split == "eval":
                of[example.task].append(example)
        return [
            example
            for task in sorted(of)
            for example in sorted(of[task], key=lambda e: (e.response not in known, sha256_bytes(e.response.encode())))[
                :MOST_HELD_OUT
            ]
        ]

    def _exams(self, base: Bundle, bundle: Bundle | None, held: Sequence[CuratedExample]) -> _Exams:
        questions = questions_of(held)

        def ask(each: Bundle, what: str) -> list[bool]:
            return examine(each, questions, self.wish.profile, self.stages, what=what)

        previous = self.previous
        return _Exams(
            base=ask(base, "ask the base"),
            previous=ask(open_bundle(previous.bundle), f"ask round {previous.number}") if previous else None,
            this=ask(bundle, "ask the new bundle") if bundle else None,
        )

    def _judge(self, held: Sequence[CuratedExample], exams: _Exams) -> tuple[PairedTest, list[PairedTest]]:
        """Hold this round's bundle against the one before on the whole, and on what earlier rounds were held to."""
        this = exams.this or [False] * len(held)
        whole = compare_whole(list(zip(exams.previous or exams.base, this, strict=True)))
        if self.previous is None or exams.previous is None:
            return whole, []
        answers = {e.response: e.answer for e in read_examples(self.previous.examples) if e.split == "eval"}
        task_of = {each.response: each.task for each in self.previous.held_out()}
        served = {row.id: row.name for row in self.previous.document.tasks if row.advice != "large"}
        earlier_tasks = {task: EarlierTask(name=name, pairs=[]) for task, name in served.items()}
        for example, was, now in zip(held, exams.previous, this, strict=True):
            found, answer = earlier_tasks.get(task_of.get(example.response, "")), answers.get(example.response)
            if found is None or answer is None:
                continue
            # What people answer otherwise now is no longer what the earlier round was held to.
            if answer_key(answer) == answer_key(example.answer):
                found.pairs.append((was, now))
            else:
                found.changed += 1
        asked = {task: each for task, each in earlier_tasks.items() if each.pairs or each.changed}
        return whole, compare_tasks(asked, let_go=self.wish.let_go)

    # ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────

    def _began(self, made_of: dict[str, Any]) -> str:
        """Return when this round was first looked at: made again, it is the same to the byte."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        inputs = {"made_of": made_of, "number": self.number}
        return self.stages.run("began", inputs, lambda _: Ran(value=now, seconds=0.0, peak_mb=0.0))[1].value

    def _timings(self) -> list[dict[str, Any]]:
        return [
            {"stage": made.stage, "seconds": made.seconds, "inputs": sha256_bytes(canonical_json(made.inputs))}
            for made in self.stages.made
        ]

    def _keep(
        self,
        document: RoundDocument,
        learned: _Learned,
        *,
        adapter: Path,
        made: AdapterChoice | None,
        exams: _Exams,
        seen: list[Mark],
    ) -> FinishedRound:
        """Write the round's folder, whole or not at all; files of finished stages are linked."""
        folder = self.wish.out / f"{self.number:04d}"
        answered = [
            HeldOut(
                response=example.response,
                task=example.task,
                base=exams.base[at],
                previous=exams.previous[at] if exams.previous else None,
                this=exams.this[at] if exams.this else None,
            )
            for at, example in enumerate(learned.held)
        ]
        with whole_folder(folder, private=True) as aside:
            for source, name in (
                (learned.clustered / EXAMPLES, f"examples/{EXAMPLES}"),
                (learned.clustered / TASKS, f"examples/{TASKS}"),
                (learned.examples / "curate.json", "examples/curate.json"),
                (learned.dataset, "dataset"),
                (adapter, "adapter"),
                *([(made.bundle.folder, "bundle")] if made else []),
                *((path, f"adapters/{name}") for name, path in (made.folders if made else {}).items()),
            ):
                _link(source, aside / name)
            write_whole(aside / HELD_OUT, canonical_json(answered))
            write_whole(aside / SEEN, canonical_json(seen))
            write_whole(aside / DOCUMENT, canonical_json(document))
            write_whole(aside / "report.html", page(document).encode())
        return FinishedRound(folder=folder, document=document)


def _say(what: str) -> None:
    log.info(f"▸ {what}")


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        for path in sorted(each for each in source.rglob("*") if each.is_file()):
            _link(path, target / path.relative_to(source))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)
