"""A small model that thinks beside a large one: whose words are an answer, and what of a thought leaves the device."""

import json
from pathlib import Path

from tests.inference.test_thoughts import OPENED
from tests.support.material import tiny_bundle
from tests.support.pairs import Start


def test_the_large_ones_words_are_no_thought_though_the_small_ones_prompt_begins_one(
    start: Start, tmp_path: Path
) -> None:
    pair = start(bundle=tiny_bundle(tmp_path / "thinker", template=OPENED))
    told = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "reasoning_content": "secret"},
        {"role": "user", "content": "Hello again"},
    ]
    large = pair.ask(large="always", messages=told).json()
    assert large["choices"][0]["message"] == {"role": "assistant", "content": "from the large one", "refusal": None}
    assert large["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert "secret" not in json.dumps(pair.large.asked)
    deltas = [choice["delta"] for event in pair.events(large="always") for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "from the large one"
    goes_on = {str(token): -100 for token in pair.server.engine.stop_tokens}
    small = pair.ask(large="never", max_tokens=16, logit_bias=goes_on).json()["choices"][0]["message"]
    assert small["reasoning_content"]
    assert small["content"] == ""
