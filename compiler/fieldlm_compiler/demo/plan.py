"""How long the story will take on this machine: what each stage computes, over how fast this machine computes it.

The speed is measured, with matrices of the model's own shape, just before the story begins. What the stages compute was
counted once, on two cores with AVX2, as seconds times that machine's speed, and so is carried over to any other.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fieldlm.core.errors import UnavailableError
from fieldlm.core.files import cache_root
from fieldlm_compiler.learn.tuning.device_choice import bfloat16_gain
from fieldlm_compiler.learn.tuning.tuning_state import prepare

MEASURE = """\
import json
from dataclasses import asdict
from fieldlm_compiler.demo.plan import multiply
print(json.dumps(asdict(multiply())))
"""
LOOK_S = 0.5
WIDTH, INNER, ROWS = 576, 1536, 512
"""The model's width, the width within its layers, and about as many tokens as a step of tuning has."""
PREFIX, OWN = 84, 52
"""Tokens of the system prompt, and of a sentence with its answer."""
GFLOP_A_TOKEN = 0.54
"""Of tuning: four times the layers' weights, the head on the answers, LoRA, attention."""
TUNING_SHARE = 0.63
"""Of the speed of bare products in float32, what a step of tuning reaches."""
PRODUCTS = 0.45
"""Of a step of tuning in float32, the time that goes into products; the rest gains nothing from bfloat16."""
TRAFFIC, BEFORE, AFTER = 13.0, 13.0, 32.0
"""Gflop at the speed of bare float32 products that a request is worth: of customers who correct, of either exam."""
FIXED = {"home": 3.0, "learn": 17.0, "adapter": 36.0, "update": 45.0}
"""Seconds on the machine where they were counted."""
COMPILE = {True: 8.0, False: 97.0}
"""The same, with the cache of an earlier compilation and without."""
COUNTED_AT = 130.0
"""Gflop/s of the machine where the seconds above were counted."""
BFLOAT16_FROM = 1.3


@dataclass(frozen=True, kw_only=True)
class MachineSpeed:
    """Gflop a second of products in float32, and of those that tuning will do."""

    plain: float
    tuning: float


def measure() -> MachineSpeed:
    """Multiply for about a second, in a process of its own: what it sets for PyTorch is not for those started later."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"this machine's speed could not be measured: {done.stderr.strip()[-300:]}")
    return MachineSpeed(**json.loads(done.stdout))


def multiply() -> MachineSpeed:
    """Multiply with one thread and with all; neighbours who keep a core busy are so seen as well."""
    prepare()
    import torch

    most = torch.get_num_threads()
    try:
        plain = max(_gflops(count) for count in {1, most})
    finally:
        torch.set_num_threads(most)
    gain = bfloat16_gain()
    return MachineSpeed(plain=plain, tuning=plain * (gain if gain > BFLOAT16_FROM else 1.0))


def _gflops(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    left, right = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, INNER)
    torch.mm(left, right)
    count, started_s = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - started_s) < LOOK_S:
        torch.mm(left, right)
        count += 1
    return 2e-9 * ROWS * WIDTH * INNER * count / spent_s


def foresee(size: Mapping[str, Any], examples: int, speed: MachineSpeed, *, is_compiled: bool) -> dict[str, float]:
    """Return the seconds that each stage will take, by its name: of a story of `size` (its fields by their names).

    `examples` is how many of its sentences will be learnt from.
    """
    slower = COUNTED_AT / speed.plain
    asked = 1.5 * size["held_out"]
    steps = math.ceil(examples * size["epochs"] / size["batch"])
    step_gflop = (PREFIX + size["batch"] * OWN) * GFLOP_A_TOKEN
    return {
        "compile": COMPILE[is_compiled] * slower,
        "before": asked * size["before"] * BEFORE / speed.plain,
        "traffic": size["sentences"] * TRAFFIC / speed.plain,
        "tune": steps
        * step_gflop
        / (speed.plain * TUNING_SHARE)
        * (1 - PRODUCTS + PRODUCTS * speed.plain / speed.tuning),
        "after": asked * AFTER / speed.plain,
        **{name: seconds * slower for name, seconds in FIXED.items()},
    }


def has_compiled() -> bool:
    """Say whether this machine has compiled before, and so need not fetch and prove the model again."""
    return any((cache_root() / "compile").glob("proof-*"))
