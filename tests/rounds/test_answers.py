"""An answer is right or wrong by what it says, and calls: as JSON, or to the letter."""

from pathlib import Path

import pytest

from fieldlm.formats.profile import load_profile
from fieldlm.telemetry.redaction.redact import redact
from fieldlm_compiler.rounds.answers import HeldOutQuestion, answer_all, is_right
from tests.support.closed_bundles import DRINK, TEA, with_classifier, word_classifier
from tests.support.material import tiny_bundle

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


def test_a_question_that_a_device_told_redacted_is_asked_behind_the_prompt_that_it_has(tmp_path: Path) -> None:
    """The model of this bundle knows nothing of drinks: what is right comes from the classifier."""
    own = "Serve. Whoever wants more writes to ada.novak@example.com."
    bundle = with_classifier(tiny_bundle(tmp_path / "bundle", system_prompt=own), word_classifier(system_prompt=own))
    questions = [
        HeldOutQuestion(
            messages=[{"role": "system", "content": prompt}, {"role": "user", "content": DRINK}], answer=TEA
        )
        for prompt in (own, redact(own), "Sing.")
    ]
    assert answer_all(bundle.folder, load_profile("generic-x86-64-avx2"), questions) == [True, True, False]
