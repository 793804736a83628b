"""`fieldlm demo`: the kiosk story, stage by stage; what is done stays done, so Ctrl-C costs at most one stage.

compile → serve → before → traffic → home → learn → tune → adapter → update → after → report. Every arrow is the real
one: the broker, the collector and the device are processes of their own, and talk to each other over sockets.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.core.errors import GateError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.bundle import open_bundle
from fieldlm.formats.profile import Profile
from fieldlm.formats.release import Pointer
from fieldlm.formats.topics import release_topic
from fieldlm.hardware.cores import physical_cores
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, open_checkpoint
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.demo.customers import CONSENT, MAX_TOKENS, STOP, Crowd, Tally, messages, serve_all
from fieldlm_compiler.demo.kiosk import Customer, Utterance, held_out_customers, strangers, training_customers
from fieldlm_compiler.demo.menu import SYSTEM_PROMPT
from fieldlm_compiler.demo.plan import foresee, has_compiled, measure
from fieldlm_compiler.demo.processes import FLEET, Machines, Outage
from fieldlm_compiler.demo.size import StorySize
from fieldlm_compiler.demo.summary import candidates
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.dataset import dataset
from fieldlm_compiler.learn.evaluate import Reply, Score, same_json, score
from fieldlm_compiler.learn.tune import TrainingRecipe, tune
from fieldlm_compiler.repository.publish import announce, publish

log = logger(__name__)

Facts = dict[str, Any]
CLIENTS = 8
COUNTED = ("asked", "right", "failed", "corrected")


# What stands for a personal detail that was hidden on the device, in what a customer said.
REDACTED = r"""
SELECT kind, count(*) AS count FROM (
    SELECT unnest(regexp_extract_all(prompt, '<([A-Z]+)(?:_[0-9]+)?>', 1)) AS kind
    FROM records WHERE kind = 'generation')
GROUP BY kind ORDER BY kind
"""
DOUBLED = "SELECT count(*) - count(DISTINCT (device, epoch, stream, seq)) AS doubled FROM records"


WATCHED = 0.05
"""The share of examples that are not learnt from, to see how those do while others are learnt."""
HEARD = 20
"""Answers of either generation that customers hear before an update begins, and after it."""


class Story:
    """The folder a demo lives in, and its stages."""

    def __init__(self, folder: Path, profile: Profile, size: StorySize) -> None:
        self.folder = folder
        self.profile = profile
        self.size = size
        self.stages: list[Facts] = []
        self.foreseen: dict[str, float] = {}
        """Seconds that each stage will take, by its name."""
        self.is_resumed = False
        """Whether an earlier run began the stage that runs now."""
        self.training = training_customers(size.sentences)
        self.held_out = held_out_customers(size.held_out)
        self.strangers = strangers(size.held_out // 2)
        self.base = folder / "bundles" / "base"
        self.tuned = folder / "bundles" / "tuned"
        self.repository = folder / "repository"
        self.keys = folder / "keys"
        self._open = ExitStack()

    def tell(self) -> Facts:
        """Run every stage that is not done yet and return the report."""
        self._foresee()
        with self._open:
            compiled = self.stage("compile", "Compile the base model for this device", self.compile_base)
            before = self.stage("before", "Held-out customers meet the base model", self.examine_base)
            traffic = self.stage("traffic", "Customers order and correct", self.serve_customers)
            telemetry = self.stage("home", "Usage comes home over MQTT", self.come_home)
            learned = self.stage("learn", "Curate, cluster, make a dataset", self.learn)
            tuned = self.stage("tune", "Fine-tune an adapter", lambda: self.tune(learned))
            self.stage("adapter", "Compile the adapter", lambda: self.compile_adapter(tuned))
            update = self.stage("update", "Update the device under load", self.update)
            after = self.stage("after", "Held-out customers come again", lambda: self.examine(self.tuned))
        return {
            "model": DEFAULT_MODEL,
            "profile": self.profile.id,
            "cores": physical_cores(),
            "size": asdict(self.size),
            "before": before,
            "after": after,
            "candidates": compiled["candidates"],
            "traffic": traffic,
            "telemetry": telemetry,
            "tasks": learned["tasks"],
            "curated": learned["curated"],
            "redacted": telemetry["redacted"],
            "tune": tuned,
            "update": update,
            "stages": self.stages,
            "foreseen_s": round(sum(self.foreseen.values()), 1),
            "wall_s": round(sum(stage["seconds"] for stage in self.stages), 1),
            "interrupted": any(stage["resumed"] for stage in self.stages),
        }

    def _foresee(self) -> None:
        """Say how long the story will take; what was foreseen when it began is kept, for the report."""
        path = self.folder / "foreseen.json"
        if path.exists():
            self.foreseen = json.loads(path.read_text())
        else:
            speed = measure()
            consented = sum(len(each.utterances) for each in self.training if each.has_consented)
            examples = round((1 - WATCHED) * consented)
            self.foreseen = foresee(asdict(self.size), examples, speed, is_compiled=has_compiled())
            write_whole(path, canonical_json(self.foreseen))
            log.info(f"this machine multiplies {speed.plain:.0f} Gflop/s, {speed.tuning:.0f} as tuning does")
        done = {each.stem for each in (self.folder / "stages").glob("*.json")}
        left_s = sum(seconds for name, seconds in self.foreseen.items() if name not in done)
        log.info(f"about {left_s / 60:.0f} minutes {'are left' if done else 'in all'}")

    @functools.cached_property
    def machines(self) -> Machines:
        """Broker, collector, repository and device: up from the first stage that needs them to the end of the story."""
        return self._open.enter_context(Machines(self.folder, self.base, profile=self.profile.id))

    def stage(self, name: str, title: str, work: Callable[[], Facts]) -> Facts:
        """Do `work` once; its facts are kept in stages/NAME.json and reused by a later run.

        A stage that an earlier run began and did not end is marked as resumed: its seconds are those of its last run.
        """
        path, begun = (self.folder / "stages" / f"{name}{end}" for end in (".json", ".begun"))
        if path.exists():
            facts = json.loads(path.read_text())
            log.info(f"▸ {title}: done before ({facts['seconds']:.0f} s)")
        else:
            behind_s = sum(self.foreseen.get(stage["name"], 0.0) for stage in self.stages)
            share = behind_s / (sum(self.foreseen.values()) or 1.0)
            log.info(f"▸ {title} (about {self.foreseen.get(name, 0.0):.0f} s; {share:.0%} of the story is told)")
            self.is_resumed = begun.exists()
            write_whole(begun, b"")
            started_s = time.monotonic()
            facts = work()
            facts |= {"seconds": round(time.monotonic() - started_s, 1), "resumed": self.is_resumed}
            write_whole(path, canonical_json(facts))
        self.stages.append({"name": name, "title": title, "seconds": facts["seconds"], "resumed": facts["resumed"]})
        return facts

    # ── the stages ───────────────────────────────────────────────────────────────────────────────────────────────

    def compile_base(self) -> Facts:
        bundle = compile_model(
            DEFAULT_MODEL,
            profile=self.profile,
            out=self.base,
            key=load_or_create_key(self.keys / "signing.pem"),
            quants=self.size.quants,
            name="kiosk",
            system_prompt=SYSTEM_PROMPT,
        )
        publish(bundle.folder, self.repository, keys=self.keys, profile=self.profile.id)
        return {"generation": bundle.generation, "candidates": candidates(self.base)}

    def examine_base(self) -> Facts:
        return self.examine(self.base, share=self.size.before)

    def examine(self, bundle: Path, *, share: float = 1.0) -> Facts:
        """Ask what a `share` of held-out customers and of strangers say; exact match with its interval.

        Raises GateError when another generation than that of `bundle` answers: its score is not of `bundle`.
        """
        generation = open_bundle(bundle).generation
        scores: list[Facts] = []
        for who, customers in (("held-out", self.held_out), ("strangers", self.strangers)):
            said = [utterance for customer in customers for utterance in customer.utterances]
            scores.append(self._score(who, said[: math.ceil(share * len(said))], generation))
        return {**scores[0], "strangers": scores[1]}

    def _score(self, who: str, said: Sequence[Utterance], generation: str) -> Facts:
        functions: dict[str, list[int]] = {}

        def check(index: int, reply: Reply) -> None:
            if reply.generation != generation:
                raise GateError(
                    f"{who} example {index} was answered by generation {reply.generation}, and {generation} is to be "
                    f"examined; why the device changed it stands in {self.folder / 'logs' / 'device.log'}"
                )
            counts = functions.setdefault(said[index].call["name"], [0, 0])
            counts[0] += same_json(reply.text, said[index].answer)
            counts[1] += 1

        examples = [(messages(utterance), utterance.answer) for utterance in said]
        found = score(self.machines.server, examples, clients=CLIENTS, max_tokens=MAX_TOKENS, stop=STOP, on_reply=check)
        log.info(f"  {who}: exact match {found}")
        return {**_score_facts(found), "functions": functions}

    def serve_customers(self) -> Facts:
        """Serve all training customers; the broker is killed in the middle and comes back."""
        log = self.folder / "stages" / "traffic.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        served = {row["session"]: row for row in _rows(log)}
        waiting = [customer for customer in self.training if customer.session not in served]
        # An outage that an earlier run had in full is not had again.
        outages = [row["outage_s"] for row in served.values() if row["outage_s"]][:1]
        first, last = (0, 0) if outages else (int(0.4 * len(waiting)), int(0.55 * len(waiting)))
        outage = Outage(self.machines.broker, first=first, last=last)
        with log.open("a") as file, terminal.progress("customers", total=len(waiting)) as line:

            def on_done(count: int, customer: Customer, tally: Tally) -> None:
                outage.customer(count)
                row = {key: getattr(tally, key) for key in COUNTED} | {"outage_s": outage.seconds}
                file.write(json.dumps({"session": customer.session, **row}) + "\n")
                file.flush()
                line.update(count, "the broker is away" if outage.is_on else "")

            serve_all(self.machines.server, waiting, clients=CLIENTS, on_done=on_done)
        rows = _rows(log)
        totals = {key: sum(row[key] for row in rows) for key in COUNTED}
        if totals["failed"]:
            raise GateError(f"{totals['failed']} of {totals['asked']} requests failed; look at logs/device.log")
        outages += [outage.seconds] if outage.seconds else []
        return {**totals, "customers": len(rows), "outage_s": round(outages[0], 1) if outages else None}

    def come_home(self) -> Facts:
        """Wait until the device holds nothing back, then count on both sides."""
        self.machines.drain()
        produced = self.machines.produced()
        with Store(self.folder / "store", read_only=True) as store:
            stored = {count.stream: count.records for count in store.counts() if count.device == self.machines.device}
            gaps, doubled = store.gaps(), store.query(DOUBLED)[0]["doubled"]
            redacted = {row["kind"]: row["count"] for row in store.query(REDACTED)}
        streams = {name: {"produced": count, "stored": stored.get(name, 0)} for name, count in produced.items()}
        sent_bytes = self.machines.sent_bytes()
        total = sum(side["stored"] for side in streams.values())
        for stream, side in streams.items():
            log.info(f"  {stream}: {side['produced']} made, {side['stored']} stored")
        if any(side["produced"] != side["stored"] for side in streams.values()) or doubled or gaps:
            raise GateError(f"telemetry lost or doubled something: {streams}, {gaps} gaps, {doubled} doubled")
        return {
            "streams": streams,
            "redacted": redacted,
            "gaps": len(gaps),
            "doubled": doubled,
            "bytes_mqtt": sent_bytes,
            "bytes_per_record": sent_bytes / max(1, total),
            "outage_s": json.loads((self.folder / "stages" / "traffic.json").read_text())["outage_s"],
        }

    def learn(self) -> Facts:
        """Turn the store into a dataset."""
        curated = curate(self.folder / "store", self.folder / "examples", consents=[CONSENT], eval_share=WATCHED)
        tasks = cluster(self.folder / "examples")
        made = dataset(self.folder / "examples", self.folder / "datasets")
        log.info(f"  {curated['train']} examples to train on, {curated['eval']} to watch, {len(tasks)} tasks found")
        return {"curated": curated, "tasks": tasks, "dataset": str(made)}

    def tune(self, learned: Facts) -> Facts:
        checkpoint = open_checkpoint(DEFAULT_MODEL)
        out = self.folder / "adapter"
        size = self.size
        recipe = TrainingRecipe(
            rank=size.rank,
            alpha=2 * size.rank,
            epochs=size.epochs,
            batch=size.batch,
            known=size.known,
        )
        document = tune(checkpoint.folder, Path(learned["dataset"]), out, recipe)
        return {"adapter": str(out), **document}

    def compile_adapter(self, tuned: Facts) -> Facts:
        bundle = compile_model(
            DEFAULT_MODEL,
            profile=self.profile,
            out=self.tuned,
            key=load_or_create_key(self.keys / "signing.pem"),
            adapter=Path(tuned["adapter"]),
            base_bundle=self.base,
            name="kiosk",
            system_prompt=SYSTEM_PROMPT,
        )
        return {"generation": bundle.generation, "adapter_bytes": bundle.need("adapter").stat().st_size}

    def update(self) -> Facts:
        """Publish the adapter and let the device take it while customers keep coming.

        Where the device took it in an earlier run, nobody saw how: what was not measured is None.
        """
        bundle = open_bundle(self.tuned)
        facts: Facts = {
            "generation": bundle.generation,
            "adapter_bytes": bundle.need("adapter").stat().st_size,
            "bundle_bytes": bundle.manifest.size,
        }
        if self.machines.status()["generation"] == bundle.generation:
            log.info("  an earlier run saw the device take the update; what went over the wire then was not kept")
            unseen: Facts = {"requests": None, "failed": None, "fetched_bytes": None, "answers": []}
            return {**facts, **unseen, "steps": self.machines.update_steps()}
        with Crowd(self.machines.server, training_customers(400, seed=9), clients=2) as crowd:
            self.machines.hear(lambda: crowd.tally.asked - crowd.tally.heard(bundle.generation), HEARD)
            release = publish(bundle.folder, self.repository, keys=self.keys, profile=self.profile.id)
            pointer = Pointer(seq=release.seq, profile=release.profile)
            announce(pointer, self.machines.broker_url, topic=release_topic(FLEET, release.profile))
            result = self.machines.wait_for_update(bundle.generation)
            self.machines.hear(lambda: crowd.tally.heard(bundle.generation), HEARD)
        if crowd.tally.failed:
            raise GateError(f"{crowd.tally.failed} requests failed during the update: {crowd.tally.errors[:3]}")
        return {
            **facts,
            "requests": crowd.tally.asked,
            "failed": crowd.tally.failed,
            # Of an update that an earlier run began, a part may lie on the device already.
            "fetched_bytes": None if self.is_resumed else result["bytes_fetched"],
            "answers": crowd.latencies_s,
            "steps": self.machines.update_steps(),
        }


def _rows(path: Path) -> list[Facts]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _score_facts(found: Score) -> Facts:
    low, high = found.interval
    return {"right": found.right, "total": found.total, "share": found.share, "low": low, "high": high}
