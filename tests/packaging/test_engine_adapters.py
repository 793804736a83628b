"""llama.cpp as packages have it computes adapters as it would without `packaging/patches`, one or several in a step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Activations are rounded to 8 bits: what differs in a last digit differs by some hundredths behind 30 layers.
CLOSE = 0.15
ROOT = Path(__file__).resolve().parents[2]


def steps(engine: Path, model: Path, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.adapter_steps", model]
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(engine), **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: np.array(rows) for name, rows in json.loads(done.stdout).items()}


def test_an_adapter_is_computed_in_one_step_as_in_five(engine: Path, smollm2_gguf: Path) -> None:
    found, five = steps(engine, smollm2_gguf), steps(engine, smollm2_gguf, GGML_CPU_DISABLE_FUSION="1")
    assert apart(found["alone"], five["alone"]) < CLOSE
    assert apart(found["together"], five["together"]) < CLOSE
    assert apart(found["base"], five["base"]) < CLOSE


def test_sequences_with_adapters_of_their_own_share_a_step(engine: Path, smollm2_gguf: Path) -> None:
    found = steps(engine, smollm2_gguf)
    assert apart(found["together"], found["alone"]) < CLOSE
    assert apart(found["alone"][:1], found["base"]) > 2 * CLOSE, "an adapter can be told from none"


def apart(some: Any, others: Any) -> float:
    """Return how far the logits of the row that differs most are from the other's, of their own spread."""
    return float(max(np.std(some - others, axis=1) / np.std(others, axis=1)))
