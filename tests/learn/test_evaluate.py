import json
from pathlib import Path

import pytest

from fieldlm_compiler.learn.evaluate import Score, read_examples, said, same_json


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_agrees_with_the_published_table(right: int, total: int, low: float, high: float) -> None:
    assert Score(right=right, total=total).interval == pytest.approx((low, high), abs=1e-4)


def test_white_space_and_key_order_do_not_count() -> None:
    assert same_json('{"b": 1, "a": [2]}', '{"a":[2],"b":1}')


@pytest.mark.parametrize("answer", ['{"a":[2],"b":"1"}', '{"a":[2]}', 'Sure: {"a":[2],"b":1}', "", '{"a":[2],"b":1'])
def test_anything_else_is_wrong(answer: str) -> None:
    assert not same_json(answer, '{"a":[2],"b":1}')


def test_a_score_says_its_share_and_interval() -> None:
    assert str(Score(right=9, total=10)) == "90.0% (9/10, 95 % interval 59.6%–98.2%)"


def test_a_question_with_tools_is_asked_with_them_and_its_call_is_the_answer(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}
    tools = [{"type": "function", "function": {"name": "goto"}}]
    before = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "arrived"},
    ]
    line = {"messages": [*before, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": tools}
    (tmp_path / "eval.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = read_examples(tmp_path / "eval.jsonl")
    assert json.loads(found.answer) == {"name": "goto", "arguments": {"place": "door"}}
    assert list(found.tools) == tools
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"place": "door"}'
    answered = {"content": None, "tool_calls": [{"function": {"name": "goto", "arguments": '{"place":"door"}'}}]}
    assert same_json(said(answered), found.answer)
