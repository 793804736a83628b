"""SNIPS: what tuning, quantising and the choice of an engine do to a real task, through the HTTP server.

    python benchmarks/snips.py --data FOLDER --train 1500 --out results/snips
    python benchmarks/snips.py --data FOLDER --train 13600 --epochs 3 --batch 128 --out results/gpu

FOLDER holds snips-train.jsonl and snips-test.jsonl (text, name, arguments a line; the 2017 Snips benchmark, CC0). Tunes
an adapter on the first N training lines, merges it, compiles every candidate, serves each with `fieldlm serve` and asks
the whole test split. The test split is never trained, tuned or selected on. What is done is kept and reused.
`--quant-aware Q4_0` tunes a second adapter on the same lines for that candidate's blocks, and asks its bundle, too.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import to_terminal
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.hardware.detect import detect
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, open_checkpoint
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.demo.processes import device
from fieldlm_compiler.learn.evaluate import score
from fieldlm_compiler.learn.tune import TrainingRecipe, tune

SYSTEM_PROMPT = "Answer with one JSON call."
ONNX = "ONNX int4"
CANDIDATES = ("F16", "Q8_0", "Q4_K_M", "Q4_0", ONNX)
MAX_TOKENS = 96


def conversation(row: dict[str, Any]) -> dict[str, Any]:
    answer = json.dumps({"name": row["name"], "arguments": row["arguments"]}, ensure_ascii=False)
    said = (("system", SYSTEM_PROMPT), ("user", row["text"]), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def write_dataset(data: Path, train: int, folder: Path) -> Path:
    """Write the first `train` lines as a dataset; the 100 after them watch the loss."""
    lines = [json.loads(line) for line in (data / "snips-train.jsonl").read_text().splitlines()[: train + 100]]
    for name, rows in (("train", lines[:train]), ("eval", lines[train:])):
        text = "".join(json.dumps(conversation(row), ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / f"{name}.jsonl", text.encode())
    return folder


def compiled(out: Path, profile: Profile, adapter: Path, name: str, *, quant: str) -> Path:
    """Return the bundle `name` of the tuned model, made where it is not there yet; an empty `quant` is ONNX."""
    folder = out / "bundles" / name.replace(" ", "-")
    if not (folder / "manifest.json").exists():
        compile_model(
            DEFAULT_MODEL,
            profile=profile,
            out=folder,
            key=load_or_create_key(out / "keys" / "signing.pem"),
            quants=(quant,) if quant else (),
            merge=adapter,
            fmt="gguf" if quant else "onnx",
            name=f"snips-{name}",
        )
    return folder


def tuned(out: Path, dataset: Path, recipe: TrainingRecipe, blocks: Path | None = None) -> Path:
    """Return the adapter folder `out`, tuned where it is not there yet."""
    if not (out / "tune.json").exists():
        tune(open_checkpoint(DEFAULT_MODEL).folder, dataset, out, recipe, blocks=blocks)
    return out


def examine(name: str, bundle: Path, out: Path, profile: Profile, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Serve `bundle` and ask every row."""
    result = out / "scores" / f"{name}.json"
    if result.exists():
        return json.loads(result.read_text())
    examples = [(c["messages"][:-1], c["messages"][-1]["content"]) for c in map(conversation, rows)]
    with device(bundle, out / "devices" / name, profile=profile.id) as server:
        found = score(server, examples, clients=4, max_tokens=MAX_TOKENS)
    low, high = found.interval
    size = sum(f["size"] for f in json.loads((bundle / "manifest.json").read_text())["files"])
    facts = {
        "name": name,
        "megabytes": size / 1e6,
        "right": found.right,
        "total": found.total,
        "low": low,
        "high": high,
    }
    write_whole(result, canonical_json(facts))
    return facts


def main() -> None:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument(
        "--batch", type=int, default=TrainingRecipe.batch, help="examples a step; a GPU is idle below 100"
    )
    parser.add_argument("--test", type=int, default=700)
    parser.add_argument("--out", type=Path, default=Path("build/snips"))
    parser.add_argument("--profile", default="")
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=CANDIDATES, help="candidates to compile")
    parser.add_argument("--quant-aware", choices=CANDIDATES, help="tune for this candidate's blocks as well")
    args = parser.parse_args()
    profile = load_profile(args.profile) if args.profile else detect().best
    dataset = write_dataset(args.data, args.train, args.out / f"dataset-{args.train}")
    recipe = TrainingRecipe(epochs=args.epochs, batch=args.batch)
    adapter = tuned(args.out / f"adapter-{args.train}", dataset, recipe)
    bundles = {
        name: compiled(args.out, profile, adapter, name, quant="" if name == ONNX else name) for name in args.only
    }
    if quant := args.quant_aware:
        blocks = bundles[quant] / "model.gguf"
        adapter = tuned(args.out / f"adapter-{args.train}-for-{quant}", dataset, recipe, blocks)
        name = f"{quant}, tuned for its blocks"
        bundles[name] = compiled(args.out, profile, adapter, f"{quant}-tuned-for", quant=quant)
    rows = [json.loads(line) for line in (args.data / "snips-test.jsonl").read_text().splitlines()[: args.test]]
    results = [examine(name, bundle, args.out, profile, rows) for name, bundle in bundles.items()]
    header = ("bundle", "MB", "exact match %", "95 % interval", "right", "of")
    table = [
        (r["name"], f"{r['megabytes']:.1f}", f"{100 * r['right'] / r['total']:.1f}",
         f"{100 * r['low']:.1f}–{100 * r['high']:.1f}", r["right"], r["total"])
        for r in results
    ]  # fmt: skip
    print(terminal.table(table, header))
    write_whole(args.out / "results.json", canonical_json(results))


if __name__ == "__main__":
    main()
