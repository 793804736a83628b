"""Every page that the workshop draws, of made-up facts whose words a test may change."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.formats.bundle import FORMAT, Bundle, File, Gate, Manifest, ModelInfo, Recipe
from fieldlm_compiler.compile import explain
from fieldlm_compiler.demo import report
from fieldlm_compiler.fleet import rollout_page
from fieldlm_compiler.fleet.controller import Act, State, Track
from fieldlm_compiler.fleet.page import device_page, fleet_page
from fieldlm_compiler.fleet.view import DeviceRow, Event, FleetReport, GenerationStats
from fieldlm_compiler.fleet.waves import Evidence
from tests.support.sample_benches import bench_pages
from tests.support.sample_rounds import round_pages

BEGAN_MS = 1_764_000_000_000
Spell = Callable[[str], str]
"""Turns a word that comes from outside into the one that the page gets."""


def pages(folder: Path, spell: Spell) -> dict[str, str]:
    """Return every page by name; `folder` is for a bundle's report."""
    devices = tuple(_device(spell, number) for number in range(8))
    generations = (
        GenerationStats(
            generation=spell("a1b2c3"),
            model=spell("kiosk"),
            devices=8,
            answers=4_000,
            fine=3_900,
            corrected=120,
            large=0,
        ),
    )
    fleet = FleetReport(devices=devices, generations=generations, outcomes={spell("stop"): 3_900, spell("error"): 100})
    rng = random.Random(1)
    answers = [(rng.random() * 40, 90 + rng.random() * 60, rng.random() * 900, rng.random() > 0.1) for _ in range(120)]
    return {
        "fleet": fleet_page(fleet, spell("build/store")),
        "device": device_page(devices[0], [_event(spell, number) for number in range(12)], answers),
        "rollout": rollout_page.page(_rollout(spell)),
        "running rollout": rollout_page.page(msgspec.structs.replace(_rollout(spell), status="running")),
        "report": report.page(_report(spell)),
        "explain": explain.page(_bundle(folder, spell)),
        **round_pages(spell),
        **bench_pages(spell),
    }


def _device(spell: Spell, number: int) -> DeviceRow:
    return DeviceRow(
        device=spell(f"kiosk-{number}"),
        state=spell("lost") if number == 5 else "ready",
        generation=spell("a1b2c3d4e5f6"),
        model=spell("smollm2-135m-instruct"),
        records=1_200 + number,
        last_ms=BEGAN_MS + number * 60_000,
        answers=500 + number,
        large=0,
        fine=490,
        corrected=number,
        tokens_per_s=41.5 + number,
        ttft_p50_ms=120.0,
        ttft_p95_ms=310.0,
        queue_ms=400.0 * number,
        prompt_ms=3_600.0,
        decode_ms=16_000.0,
        lost=3 if number == 6 else 0,
        told=0,
        bytes=25_000 * (number + 1),
    )


def _event(spell: Spell, number: int) -> Event:
    kind, text = ("generation", "21 tokens, first after 100 ms, 0.5 s") if number % 4 else ("system", "update.switched")
    return Event(
        wall_ms=BEGAN_MS + number * 7_000,
        clock_ok=number > 1,
        stream=spell("gen"),
        seq=number + 1,
        kind=spell(kind),
        boot="b",
        generation=spell("a1b2c3d4e5f6"),
        is_fine=number != 9,
        text=spell(text),
    )


def _rollout(spell: Spell) -> State:
    evidence = (
        Evidence(profile=spell("pi5-8gb"), updated=420, updated_bad=31, control=3_800, control_bad=40, e_value=812.0,
                 limit=400.0, troubles={spell("slow"): 20, spell("crashed"): 11}),
        Evidence(profile=spell("jetson-orin-nano"), updated=90, updated_bad=1, control=810, control_bad=9, e_value=0.7,
                 limit=400.0, troubles={spell("slow"): 1}),
    )  # fmt: skip
    acts = [
        Act(at_ms=BEGAN_MS + number * 3_600_000, what=spell(what), detail=spell(detail))
        for number, (what, detail) in enumerate((("began", "wave 1, 1 %"), ("advanced", "wave 2, 10 %"),
                                                 ("reverted", "pi5-8gb goes back to release 6")))
    ]  # fmt: skip
    tracks = tuple(
        Track(profile=spell(name), seq=7, bundle=spell("0" * 12), salt="s", size=size)
        for name, size in (("pi5-8gb", 4_220), ("jetson-orin-nano", 900))
    )
    return State(tracks=tracks, patience_s=60, spread_s=60, status="reverted", wave=1, acts=acts, evidence=evidence)


def _report(spell: Spell) -> dict[str, Any]:
    rng = random.Random(2)
    before = {"right": 12, "total": 300, "share": 0.04, "low": 0.023, "high": 0.069}
    after = {"right": 282, "total": 300, "share": 0.94, "low": 0.907, "high": 0.962}
    strangers = {"right": 118, "total": 150, "share": 0.787, "low": 0.715, "high": 0.845}
    functions = {spell(name): counts for name, counts in (("order", [80, 90]), ("opening_hours", [21, 21]))}
    scores = [score | {"functions": functions} for score in (before, after, strangers)]
    dots = [[BEGAN_MS / 1e3 + at / 2, 0.3 + rng.random() / 2, "old" if at < 40 else "new"] for at in range(70)]
    names = ("found", "fetched", "rehearsed", "loaded", "probed", "switched", "kept")
    return {
        "model": spell("SmolLM2-135M-Instruct"), "profile": spell("this-machine"), "cores": 2, "wall_s": 900.0,
        "before": scores[0] | {"strangers": scores[2]}, "after": scores[1] | {"strangers": scores[2]},
        "foreseen_s": 840.0, "interrupted": False, "redacted": {spell("NAME"): 12, spell("PHONE"): 3},
        "curated": {"generations": 700, "examples": 512, "dropped": {spell("no consent"): 80}},
        "tune": {
            "losses": [2.5 / step for step in range(1, 80)], "examples": 512, "steps": 79, "seconds": 240.0,
            "device": spell("cpu"), "precision": "float32", "eval_loss_before": 2.5, "eval_loss_after": 0.05,
        },
        "candidates": [
            {"name": spell(name), "size_mb": size, "tokens_per_s": speed, "chosen": name == "Q8_0"}
            for name, size, speed in (("F16", 270.9, 40.0), ("Q8_0", 144.8, 71.0), ("Q4_K_M", 105.4, 88.0))
        ],
        "telemetry": {
            "streams": {spell(name): {"produced": n, "stored": n} for name, n in (("gen", 1_204), ("ota", 9))},
            "bytes_mqtt": 61_204, "bytes_per_record": 50.4, "outage_s": 12.0, "gaps": 0, "doubled": 0,
        },
        "update": {
            "requests": 70, "failed": 0, "generation": "new", "bundle_bytes": 154_000_000, "fetched_bytes": 9_700_000,
            "answers": dots,
            "steps": [{"name": spell(name), "at_s": BEGAN_MS / 1e3 + 3 + 4 * at} for at, name in enumerate(names)],
        },
        "tasks": [{"name": spell("order"), "size": 412, "example": spell("two large lattes with oat milk, please")},
                  {"name": spell("opening hours"), "size": 57, "example": spell("are you open on sunday")}],
        "stages": [{"title": spell(name), "seconds": 12.3, "resumed": name == "Serve"}
                   for name in ("Compile", "Serve", "Tune", "Update")],
    }  # fmt: skip


def _bundle(folder: Path, spell: Spell) -> Bundle:
    kinds = ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    rng = random.Random(3)
    types = {spell("token_embd.weight"): "Q8_0", spell("output_norm.weight"): "F32"}
    types |= {f"blk.{block}.{spell(part)}.weight": rng.choice(kinds) for block in range(12) for part in parts}
    sizes = [60 + 5 * step for step in range(19)]
    search: dict[str, Any] = {
        "types": types,
        "frontier": [{"bytes": size * 1e6, "predicted_kl": 40 / size**2.5} for size in sizes],
        "trials": [
            {
                "bytes": size * 1e6,
                "quant": spell(f"mix-{size}"),
                "cache": {},
                "measured": {"kl": {"value": 70 / size**2.5}},
            }
            for size in (75, 100, 140)
        ],
        "cache": {"keys": "q8_0", "values": "q8_0"},
        "caches": [
            {"keys": keys, "values": keys, "mb": 210.4, "predicted_kl": 0.00012}
            for keys in (spell("f16"), "q8_0", "q4_0")
        ],
    }
    report = {"search": search, "candidates": search["trials"][1:2]}
    (folder / "report.json").write_text(json.dumps(report))
    model = ModelInfo(
        name=spell("SmolLM2"), source=spell("hf:SmolLM2"), licence=spell("apache-2.0"), architecture="llama",
        parameters=1, context=2048, source_sha256="0" * 64,
    )  # fmt: skip
    manifest = Manifest(
        format=FORMAT, engine="llama", model=model, profile=spell("pi5-8gb"), profile_sha256="0" * 64,
        recipe=Recipe(quant=spell("mixed"), bits_per_weight=5.0),
        files=(File(path="report.json", role="report", size=100_000_000, sha256="0" * 64),),
        gates=(Gate(name=spell("divergence"), value=0.004, limit=0.01, passed=True, unit=spell("nats")),
               Gate(name=spell("decode"), value=20.1, limit=25, passed=False, unit=spell("tokens/s"))),
    )  # fmt: skip
    return Bundle(folder=folder, id="sha256:" + "a1b2" * 16, manifest=manifest)
