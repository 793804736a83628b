"""`fieldlm demo`: the kiosk story, stage by stage; what is done stays done, so Ctrl-C costs at most one stage.

compile → serve → before → traffic → home → learn → tune → adapter → update → after → report. Every arrow is the real
one: the broker, the collector and the device are processes of their own, and talk to each other over sockets.
"""

import functools
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldlm.core import options, terminal
from fieldlm.core.errors import GateError, InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.bundle import open_bundle
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.formats.release import Pointer
from fieldlm.formats.topics import release_topic
from fieldlm.hardware.detect import detect
from fieldlm.hardware.sensors import usable_cores
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, open_checkpoint
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.demo.customers import CONSENT, MAX_TOKENS, STOP, Crowd, Tally, messages, serve_all
from fieldlm_compiler.demo.kiosk import Customer, held_out_customers, strangers, training_customers
from fieldlm_compiler.demo.menu import SYSTEM_PROMPT
from fieldlm_compiler.demo.processes import FLEET, Machines, Outage
from fieldlm_compiler.demo.report import page
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.dataset import dataset
from fieldlm_compiler.learn.evaluate import Reply, Score, score
from fieldlm_compiler.learn.tune import TrainingRecipe, tune
from fieldlm_compiler.repository.publish import announce, publish

log = logger(__name__)

Facts = dict[str, Any]
CLIENTS = 8
COUNTED = ("asked", "right", "failed", "corrected")


DOUBLED = "SELECT count(*) - count(DISTINCT (device, epoch, stream, seq)) AS doubled FROM records"


@dataclass(frozen=True, kw_only=True)
class StorySize:
    """How much of the story is told; the defaults are the demo's."""

    sentences: int = 2200
    held_out: int = 200
    epochs: float = 1.5
    rank: int = 16
    quants: tuple[str, ...] = ("Q8_0", "Q4_K_M", "Q4_0")


class Story:
    """The folder a demo lives in, and its stages."""

    def __init__(self, folder: Path, profile: Profile, size: StorySize) -> None:
        self.folder = folder
        self.profile = profile
        self.size = size
        self.stages: list[Facts] = []
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
        with self._open:
            compiled = self.stage("compile", "Compile the base model for this device", self.compile_base)
            before = self.stage("before", "Held-out customers meet the base model", lambda: self.examine(self.base))
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
            "cores": usable_cores(),
            "size": asdict(self.size),
            "before": before,
            "after": after,
            "candidates": compiled["candidates"],
            "traffic": traffic,
            "telemetry": telemetry,
            "tasks": learned["tasks"],
            "curated": learned["curated"],
            "tune": {key: value for key, value in tuned.items() if key != "losses"},
            "update": update,
            "stages": self.stages,
            "wall_s": round(sum(stage["seconds"] for stage in self.stages), 1),
        }

    @functools.cached_property
    def machines(self) -> Machines:
        """Broker, collector, repository and device: up from the first stage that needs them to the end of the story."""
        return self._open.enter_context(Machines(self.folder, self.base, profile=self.profile.id))

    def stage(self, name: str, title: str, work: Callable[[], Facts]) -> Facts:
        """Do `work` once; its facts are kept in stages/NAME.json and reused by a later run."""
        path = self.folder / "stages" / f"{name}.json"
        if path.exists():
            facts = json.loads(path.read_text())
            log.info(f"▸ {title}: done before ({facts['seconds']:.0f} s)")
        else:
            log.info(f"▸ {title}")
            started_s = time.monotonic()
            facts = work()
            facts["seconds"] = round(time.monotonic() - started_s, 1)
            write_whole(path, canonical_json(facts))
        self.stages.append({"name": name, "title": title, "seconds": facts["seconds"]})
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

    def examine(self, bundle: Path) -> Facts:
        """Ask every sentence of held-out customers and of strangers; exact match with its interval.

        Raises GateError when another generation than that of `bundle` answers: its score is not of `bundle`.
        """
        generation = open_bundle(bundle).generation
        held_out = self._score("held-out", self.held_out, generation)
        return {**held_out, "strangers": self._score("strangers", self.strangers, generation)}

    def _score(self, who: str, customers: Sequence[Customer], generation: str) -> Facts:
        def check(index: int, reply: Reply) -> None:
            if reply.generation != generation:
                raise GateError(
                    f"{who} example {index} was answered by generation {reply.generation}, and {generation} is to be "
                    f"examined; why the device changed it stands in {self.folder / 'logs' / 'device.log'}"
                )

        examples = [(messages(u), u.answer) for customer in customers for u in customer.utterances]
        found = score(self.machines.server, examples, clients=CLIENTS, max_tokens=MAX_TOKENS, stop=STOP, on_reply=check)
        log.info(f"  {who}: exact match {found}")
        return _score_facts(found)

    def serve_customers(self) -> Facts:
        """Serve all training customers; the broker is killed in the middle and comes back."""
        log = self.folder / "stages" / "traffic.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        served = {row["session"] for row in _rows(log)}
        waiting = [customer for customer in self.training if customer.session not in served]
        outage = Outage(self.machines.broker, first=int(0.4 * len(waiting)), last=int(0.55 * len(waiting)))
        with log.open("a") as file, terminal.progress("customers", total=len(waiting)) as line:

            def on_done(count: int, customer: Customer, tally: Tally) -> None:
                row = {key: getattr(tally, key) for key in COUNTED}
                file.write(json.dumps({"session": customer.session, **row}) + "\n")
                file.flush()
                outage.customer(count)
                line.update(count, "the broker is away" if outage.is_on else "")

            serve_all(self.machines.server, waiting, clients=CLIENTS, on_done=on_done)
        rows = _rows(log)
        totals = {key: sum(row[key] for row in rows) for key in COUNTED}
        if totals["failed"]:
            raise GateError(f"{totals['failed']} of {totals['asked']} requests failed; look at logs/device.log")
        return {**totals, "customers": len(rows), "outage_s": round(outage.seconds, 1)}

    def come_home(self) -> Facts:
        """Wait until the device holds nothing back, then count on both sides."""
        self.machines.drain()
        produced = self.machines.produced()
        with Store(self.folder / "store", read_only=True) as store:
            stored = {count.stream: count.records for count in store.counts() if count.device == self.machines.device}
            gaps, doubled = store.gaps(), store.query(DOUBLED)[0]["doubled"]
        streams = {name: {"produced": count, "stored": stored.get(name, 0)} for name, count in produced.items()}
        sent_bytes = self.machines.sent_bytes()
        total = sum(side["stored"] for side in streams.values())
        for stream, side in streams.items():
            log.info(f"  {stream}: {side['produced']} made, {side['stored']} stored")
        if any(side["produced"] != side["stored"] for side in streams.values()) or doubled or gaps:
            raise GateError(f"telemetry lost or doubled something: {streams}, {gaps} gaps, {doubled} doubled")
        return {
            "streams": streams,
            "gaps": len(gaps),
            "doubled": doubled,
            "bytes_mqtt": sent_bytes,
            "bytes_per_record": sent_bytes / max(1, total),
            "outage_s": json.loads((self.folder / "stages" / "traffic.json").read_text())["outage_s"],
        }

    def learn(self) -> Facts:
        """Turn the store into a dataset."""
        curated = curate(self.folder / "store", self.folder / "examples", consents=[CONSENT], eval_share=0.05)
        tasks = cluster(self.folder / "examples")
        made = dataset(self.folder / "examples", self.folder / "datasets")
        log.info(f"  {curated['train']} examples to train on, {curated['eval']} to watch, {len(tasks)} tasks found")
        return {"curated": curated, "tasks": tasks, "dataset": str(made)}

    def tune(self, learned: Facts) -> Facts:
        checkpoint = open_checkpoint(DEFAULT_MODEL)
        out = self.folder / "adapter"
        recipe = TrainingRecipe(rank=self.size.rank, alpha=2 * self.size.rank, epochs=self.size.epochs)
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
        """Publish the adapter and let the device take it while customers keep coming."""
        bundle = open_bundle(self.tuned)
        with Crowd(self.machines.server, training_customers(400, seed=9), clients=2) as crowd:
            time.sleep(4)
            release = publish(bundle.folder, self.repository, keys=self.keys, profile=self.profile.id)
            pointer = Pointer(seq=release.seq, profile=release.profile)
            announce(pointer, self.machines.broker_url, topic=release_topic(FLEET, release.profile))
            result = self.machines.wait_for_update(bundle.generation)
            time.sleep(8)
        if crowd.tally.failed:
            raise GateError(f"{crowd.tally.failed} requests failed during the update: {crowd.tally.errors[:3]}")
        return {
            "requests": crowd.tally.asked,
            "failed": crowd.tally.failed,
            "generation": bundle.generation,
            "adapter_bytes": bundle.need("adapter").stat().st_size,
            "bundle_bytes": result["bytes_bundle"],
            "fetched_bytes": result["bytes_fetched"],
            "answers": crowd.latencies_s,
            "steps": self.machines.update_steps(),
        }


def candidates(bundle: Path) -> list[Facts]:
    """Return size and speed of every candidate that was compiled on the way to `bundle`."""
    report = json.loads(bundle.with_name(f"{bundle.name}.report.json").read_text())
    return [
        {
            "name": row["quant"],
            "size_mb": row["bytes"] / 1e6,
            "tokens_per_s": row["tokens_per_s"],
            "agreement": row["agreement"],
            "chosen": row["quant"] == report["chosen"],
        }
        for row in report["candidates"]
    ]


def _rows(path: Path) -> list[Facts]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _score_facts(found: Score) -> Facts:
    low, high = found.interval
    return {"right": found.right, "total": found.total, "share": found.share, "low": low, "high": high}


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm demo`."""
    args = _parser().parse_args(argv)
    # Told to end by whatever means, the story takes its processes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.fresh:
        shutil.rmtree(args.folder, ignore_errors=True)
    profile = load_profile(args.profile) if args.profile else detect().best
    size = StorySize(sentences=args.sentences, held_out=args.held_out, epochs=args.epochs)
    _check_same(args.folder, {"size": asdict(size), "profile": profile.id})
    report = Story(args.folder, profile, size).tell()
    write_whole(args.folder / "report.json", canonical_json(report))
    write_whole(args.folder / "report.html", page(report).encode())
    terminal.show(report, _summary(report, args.folder), as_json=args.json)
    return 0


def _check_same(folder: Path, settings: Facts) -> None:
    """Refuse to go on with a half-told story under other settings."""
    path = folder / "settings.json"
    wanted = json.loads(canonical_json(settings))
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise InputError(f"{folder} holds a demo with other settings ({path}); add --fresh to start over")
    write_whole(path, canonical_json(settings))


def _summary(report: Facts, folder: Path) -> str:
    update, telemetry = report["update"], report["telemetry"]
    produced = sum(side["produced"] for side in telemetry["streams"].values())
    stored = sum(side["stored"] for side in telemetry["streams"].values())
    ratio = update["bundle_bytes"] / update["fetched_bytes"]
    rows = [
        ("exact match before", _share(report["before"])),
        ("exact match after", _share(report["after"])),
        ("  of strangers, who order in new words", _share(report["after"]["strangers"])),
        ("records made on the device", f"{produced:,}"),
        ("records in the store", f"{stored:,}"),
        ("requests during the update", f"{update['requests']:,}, {update['failed']} failed"),
        ("adapter", f"{update['adapter_bytes'] / 1e6:.2f} MB"),
        ("whole bundle", f"{update['bundle_bytes'] / 1e6:.1f} MB"),
        ("update fetched", f"{update['fetched_bytes'] / 1e6:.2f} MB, 1/{ratio:.0f} of it"),
        *((stage["title"], f"{stage['seconds']:.0f} s") for stage in report["stages"]),
        ("all stages", f"{report['wall_s']:.0f} s"),
    ]
    return "\n" + terminal.table(rows, ("what", "result")) + f"\n\n{folder / 'report.json'}\n{folder / 'report.html'}"


def _share(facts: Facts) -> str:
    return str(Score(right=facts["right"], total=facts["total"]))


def _parser() -> Any:
    parser = terminal.parser(
        "demo",
        "Run the kiosk story: one turn of the circle, on this machine.",
        "fieldlm demo",
        "fieldlm demo --folder /tmp/demo --fresh",
    )
    parser.add_argument("--folder", type=options.new_folder, default=Path("demo"), help="where everything goes")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument("--profile", default="", help="device profile (default: detected)")
    parser.add_argument(
        "--sentences", type=options.whole(1), default=StorySize.sentences, help="what training customers say"
    )
    parser.add_argument(
        "--held-out", type=options.whole(1), default=StorySize.held_out, help="what held-out customers say"
    )
    parser.add_argument(
        "--epochs", type=options.real(0, 10_000, above=True), default=StorySize.epochs, help="passes over the dataset"
    )
    return parser
