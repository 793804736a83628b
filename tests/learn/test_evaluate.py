import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.api.app import make_app
from fieldlm.core.errors import UnavailableError
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.inference.warmup import warm
from fieldlm.network.http_client import HttpClient
from fieldlm.network.http_server import listening
from fieldlm_compiler.learn import evaluate
from fieldlm_compiler.learn.evaluate import EvaluationItem, Reply, Score, main, read_examples, said, same_json, score
from fieldlm_compiler.verify.task import is_same
from tests.inference.test_thoughts import OPENED, QWEN3
from tests.support.material import tiny_bundle

LONG = "word " * 900


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    """A server with a context of 256 tokens."""
    live = Generations(base_bundle, EngineOptions(threads=1, context=256, parallel=2))
    with listening(make_app(live, lambda _: None, ready=warm(live))) as server:
        yield server.url
    live.close()


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


def test_what_nests_without_end_is_compared_as_text() -> None:
    deep = "[" * 100_000
    assert same_json(deep, f" {deep}")
    assert not same_json(deep, "[]")
    assert is_same(deep, f" {deep}")
    assert not is_same(deep, "[]")


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


def test_an_example_longer_than_the_context_is_wrong_and_counted(url: str) -> None:
    server, answers = HttpClient(url), list[Reply]()
    short = EvaluationItem([{"role": "user", "content": "Hello"}], "?")
    score(server, [short], max_tokens=4, on_reply=lambda _, reply: answers.append(reply))
    known = short._replace(answer=answers[0].text)
    long = EvaluationItem([{"role": "user", "content": LONG}], "anything")
    found = score(server, [known, long, known], clients=1, max_tokens=4)
    assert (found.right, found.total, found.too_long) == (2, 3, 1)
    assert "1 of the wrong ones longer than the server's context" in str(found)


def test_another_refusal_is_no_wrong_answer(url: str) -> None:
    strange = EvaluationItem([{"role": "user", "content": "Hello"}], "?", ({"type": "nonsense"},))
    with pytest.raises(UnavailableError, match="example 0 got no answer"):
        score(HttpClient(url), [strange], max_tokens=4)


def test_the_command_goes_on_where_one_example_is_too_long(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"role": "user", "content": LONG}], [{"role": "user", "content": "a"}]
    lines = [{"messages": [*messages, {"role": "assistant", "content": "!"}]} for messages in asked]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(tmp_path / "eval.jsonl"), "--url", url, "--max-tokens", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["total"], document["too_long"]) == (2, 1)


@pytest.mark.parametrize("source", [QWEN3, OPENED])
def test_an_evaluation_of_a_model_that_thinks_counts_what_it_answers(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "THOUGHT_TOKENS", 24)
    bundle = tiny_bundle(tmp_path, template=source)  # its own words never end a thought
    live = Generations(bundle, EngineOptions(threads=1, context=256, parallel=1))
    answers = list[Reply]()
    with listening(make_app(live, lambda _: None, ready=warm(live))) as server:
        item = EvaluationItem([{"role": "user", "content": "What is the sea?"}], "?")
        score(HttpClient(server.url), [item], max_tokens=4, on_reply=lambda _, reply: answers.append(reply))
        known = item._replace(answer=answers[0].text)
        assert score(HttpClient(server.url), [known], max_tokens=4).right == 1
    live.close()
    assert answers[0].text.strip()
    assert "think>" not in answers[0].text
    assert (answers[0].completion_tokens > 24) is (source == OPENED)
