"""An answer is right or wrong by what it says, and calls: as JSON, or to the letter."""

import pytest

from fieldlm_compiler.rounds.answers import HeldOutQuestion, is_right

ASKED = HeldOutQuestion(messages=[{"role": "user", "content": "Two teas"}], answer='{"tea": 2}')


@pytest.mark.parametrize(("answer", "want"), [('{"tea":2}', True), ('{"tea": 3}', False), ("tea", False), ("", False)])
def test_an_answer_is_compared_as_json(answer: str, want: bool) -> None:
    assert is_right(answer, ASKED) is want


def test_a_call_is_compared_by_what_it_calls() -> None:
    tools = [{"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}]
    call = '<tool_call>{"name": "go", "arguments": {}}</tool_call>'
    asked = HeldOutQuestion(messages=ASKED.messages, answer='{"name": "go", "arguments": {}}', tools=tools)
    assert is_right(call, asked)
    assert not is_right(f"{call} no", asked)
