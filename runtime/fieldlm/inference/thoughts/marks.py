"""What a model thinks between: known marks, found in its chat template."""

from collections.abc import Iterable
from dataclasses import dataclass

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates switch thinking on and off."""
EFFORT = "reasoning_effort"
"""The variable by which templates are told how much to think."""


@dataclass(frozen=True)
class ThoughtMarks:
    """What begins a thought and what ends it; `space` stands between the two, and behind them, where it is empty."""

    opens: str
    closes: str
    space: str = ""

    def is_open(self, prompt: str) -> bool:
        """Whether `prompt` has begun the thought already, as some templates do."""
        return prompt.rstrip().endswith(self.opens)

    def closed(self, prompt: str) -> str:
        """Return `prompt` with an empty thought at its end where it has begun one."""
        return f"{prompt.rstrip()}{self.space}{self.closes}{self.space}" if self.is_open(prompt) else prompt

    def control(self, tokens: Iterable[str]) -> list[str]:
        """Return those of a model's control `tokens` that the marks are made of."""
        return [text for text in tokens if len(text) > 1 and (text in self.opens or text in self.closes)]


KNOWN = (
    ThoughtMarks("<think>", "</think>", "\n\n"),  # Qwen3, DeepSeek R1, SmolLM3, GLM 4.5, Nemotron, MiniMax, OLMo 3
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B, Command A
    ThoughtMarks("<|channel>thought", "<channel|>"),  # Gemma 4
    ThoughtMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtMarks("<thought>", "</thought>", "\n\n"),  # EXAONE Deep
    ThoughtMarks("◁think▷", "◁/think▷"),  # Kimi
    ThoughtMarks("<|begin_of_thought|>", "<|end_of_thought|>", "\n\n"),  # OpenThinker
)


def marks_in(template: str) -> ThoughtMarks | None:
    """Return the marks of a model by its chat template's source; None where it shows none.

    What ends a thought is enough: templates that leave out earlier thoughts need not say what begins one.
    """
    return next((marks for marks in KNOWN if marks.closes in template), None)
