"""An answer is right or wrong by what is said, and not by what was thought before."""

import pytest

from fieldlm.inference.thoughts.marks import KNOWN
from fieldlm_compiler.rounds.answers import HeldOutQuestion, is_right

ASKED = HeldOutQuestion(messages=[{"role": "user", "content": "Two teas"}], answer='{"tea": 2}')


@pytest.mark.parametrize("thought", ["", "<think>\n\n</think>\n\n", "<think>\nTwo of them.\n</think>\n\n"])
def test_a_thought_makes_no_answer_wrong(thought: str) -> None:
    assert is_right(f'{thought}{{"tea":2}}', ASKED, KNOWN[0])
    assert not is_right(f'{thought}{{"tea": 3}}', ASKED, KNOWN[0])


def test_a_call_in_a_thought_is_no_answer() -> None:
    tools = [{"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}]
    call = '<tool_call>{"name": "go", "arguments": {}}</tool_call>'
    asked = HeldOutQuestion(messages=ASKED.messages, answer='{"name": "go", "arguments": {}}', tools=tools)
    assert is_right(call, asked, KNOWN[0])
    assert is_right(f"<think>hm</think>{call}", asked, KNOWN[0])
    assert not is_right(f"<think>{call}</think>no", asked, KNOWN[0])
