"""The ONNX row: the engine on plain onnxruntime against onnxruntime-genai with its own int4 build of the same model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.anchors import GENAI, genai_overlay
from benchmarks.serving_rows import Figure, Job, alternate, ratio
from benchmarks.serving_sides import in_process
from fieldlm.core.errors import EngineError
from fieldlm.core.files import cache_root, whole_folder
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.hardware.detect import detect
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, open_checkpoint
from fieldlm_compiler.compile.build import compile_model

BUILDER = ("-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu")
DECODE = """\
import sys, time
import onnxruntime_genai as genai
folder, tokens = sys.argv[1], int(sys.argv[2])
model = genai.Model(folder)
spent_s = 0.0
for turn in range(3):
    wanted = genai.GeneratorParams(model)
    wanted.set_search_options(max_length=tokens + 8, min_length=tokens + 8, do_sample=False)
    generator = genai.Generator(model, wanted)
    generator.append_tokens([504, 1512, 282, 260])
    generator.generate_next_token()
    started_s = time.perf_counter()
    for _ in range(tokens):
        generator.generate_next_token()
    spent_s += (time.perf_counter() - started_s) * (turn > 0)
print(2 * tokens / spent_s)
"""


def decode(job: Job) -> list[Figure]:
    """Decode through ONNX, both sides in int4, and the bytes of the files."""
    overlay = genai_overlay()
    theirs_at, bundle = _build(overlay), _bundle()
    _set_threads(theirs_at, job.setting.threads)
    ours, theirs = alternate(
        job,
        [
            lambda _: in_process(bundle, job.setting.threads, job.tokens),
            lambda _: float(_genai(overlay, ["-c", DECODE, str(theirs_at), str(job.tokens)])),
        ],
    )
    size, other = _size_mb(bundle.folder), _size_mb(theirs_at)
    return [
        ratio(f"ONNX decode / {GENAI} int4", ours, theirs, 1.1),
        ratio("ONNX files / onnxruntime-genai's", [size], [other], 1.0, at_least=False),
    ]


def _bundle() -> Bundle:
    """Compile the embedded default model to ONNX, all weights in int4 as theirs, or take what was compiled."""
    profile = detect().best
    quant = f"int4-b{profile.onnx.block_size}-h4"
    folder = cache_root() / "bench" / f"default-{quant}-{profile.id}"
    if not (folder / "manifest.json").exists():
        key = load_or_create_key(cache_root() / "bench" / "signing.pem")
        compile_model(DEFAULT_MODEL, profile=profile, out=folder, key=key, fmt="onnx", quants=(quant,))
    return open_bundle(folder)


def _build(overlay: Path) -> Path:
    """Let onnxruntime-genai's own builder make its model of the same checkpoint, or take what it made."""
    folder = cache_root() / "bench" / f"genai-int4-{overlay.name}"
    if not folder.exists():
        checkpoint = open_checkpoint(DEFAULT_MODEL).folder
        with whole_folder(folder) as aside:
            _genai(overlay, [*BUILDER, "-i", str(checkpoint), "-o", str(aside), "-c", str(aside / "cache")])
    return folder


def _genai(overlay: Path, arguments: list[str]) -> str:
    """Run Python with the overlay and return the last line it prints."""
    environment = {**os.environ, "PYTHONPATH": str(overlay), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        why = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise EngineError(f"{GENAI} cannot do it: {why[-1]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def _set_threads(folder: Path, threads: int) -> None:
    path = folder / "genai_config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=1))


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*.onnx*")) / 1e6
