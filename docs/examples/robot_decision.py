"""A robot decides: python robot_decision.py [MODEL]. The answer has a known form, and there is one by the deadline."""

import sys
from dataclasses import dataclass
from typing import Literal

from fieldlm import Model
from fieldlm.engines import Schedule
from fieldlm.inference.chat_template import Message

RULES = "You steer a robot. Never move towards a person. Turn where the way is free."


@dataclass(frozen=True)
class Move:
    """What the robot may do."""

    direction: Literal["forward", "left", "right", "stop"]
    metres: Literal[0, 1, 2]


STOP = Move("stop", 0)


def decide(model: Model, seen: str, deadline_s: float) -> Move:
    """Return what to do; `STOP` when there is no whole answer after `deadline_s` seconds."""
    asked: list[Message] = [{"role": "system", "content": RULES}, {"role": "user", "content": seen}]
    return model.call(Move, asked, terms=Schedule(deadline_s=deadline_s, priority="safety"), fallback=STOP)


def main(name: str) -> None:
    with Model.open(name) as model:
        for seen in ("A person stands one metre in front of you.", "The way ahead is free for five metres."):
            print(seen, decide(model, seen, deadline_s=10.0))
        print("in no time:", decide(model, "Anything.", deadline_s=0.0))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
