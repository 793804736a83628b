"""Wrong labels are found by what others say of requests like theirs, and right ones stay."""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import main
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.quality.label_errors import in_doubt, label_errors

WHAT = {
    "lamp": ("dim the lamp in the {}", "switch the light in the {} off", "make it brighter in the {}"),
    "music": ("play some jazz in the {}", "play my favourite song in the {}", "turn the radio up in the {}"),
    "taxi": ("call a taxi to the {}", "order a cab to the {}", "i need a ride to the {}"),
    "weather": ("will it rain at the {}", "what is the weather like at the {}", "is it sunny at the {} tomorrow"),
}
WHERE = ("kitchen", "station", "garden", "office", "museum", "attic", "harbour", "library", "school", "market")


@dataclass
class Said:
    """A request, what somebody says is right, and who."""

    utterance: str
    answer: str
    voter: str


LEADS = ("hey, {}", "{} please", "could you {}", "{}")


def requests() -> list[tuple[str, str]]:
    every = [
        (lead.format(text.format(where)), kind)
        for kind in WHAT
        for lead, text, where in itertools.product(LEADS, WHAT[kind], WHERE)
    ]
    return random.Random(0).sample(every, len(every))


def call(kind: str) -> str:
    return json.dumps({"name": kind})


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_wrong_labels_and_refusals_are_in_doubt_and_right_ones_are_not(embedder: Embedder) -> None:
    said = [Said(text, call(kind), f"s{number // 4}") for number, (text, kind) in enumerate(requests())]
    wrong = set(range(3, 480, 12))
    refused = set(range(40, 480, 20)) - wrong
    for number in wrong:
        said[number].answer = call("taxi" if "taxi" not in said[number].answer else "lamp")
    for number in refused:
        said[number].answer = "I'm sorry, I cannot do that."
    found = {number for number, doubt in enumerate(label_errors(said, embedder)) if doubt}
    assert len(wrong & found) > 0.35 * len(wrong), (
        "few kinds: what is unlikely is not told from what is next to nothing"
    )
    assert len(refused & found) > 0.5 * len(refused)
    assert found <= wrong | refused


def test_a_customer_is_no_witness_for_themselves(embedder: Embedder) -> None:
    said = [Said(text, call(kind), f"s{number // 4}") for number, (text, kind) in enumerate(requests())]
    flood = [Said(f"{text} now", call("weather"), "hostile") for text, kind in requests()[:200] if kind == "lamp"]
    found = label_errors([*said, *flood], embedder)
    assert sum(found[len(said) :]) > 0.7 * len(flood)


def test_without_functions_or_with_few_examples_nothing_is_in_doubt(embedder: Embedder) -> None:
    plain = [Said(text, f"answer {number}", f"s{number}") for number, (text, _) in enumerate(requests())]
    assert not any(label_errors(plain, embedder))
    few = [Said(text, call(kind), f"s{number}") for number, (text, kind) in enumerate(requests()[:60])]
    assert not any(label_errors(few, embedder))


def test_a_label_is_in_doubt_where_its_chance_is_next_to_nothing_and_another_is_likely() -> None:
    labels = np.array([0] * 5 + [1] * 5)
    chances = np.array([[0.9, 0.1]] * 4 + [[0.01, 0.99]] + [[0.1, 0.9]] * 4 + [[0.3, 0.7]])
    assert in_doubt(chances, labels).tolist() == [False] * 4 + [True] + [False] * 5


def test_the_benchmark_counts_what_was_found_and_what_was_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": text, "name": kind}) for text, kind in requests()]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:50]))
    asked = [str(tmp_path / "rows.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    assert main(["--rows", "dirty", *asked, "--json"]) == 0
    as_it_is, checked, clean = json.loads(capsys.readouterr().out)["results"]
    assert as_it_is["wrong"] == checked["wrong"] > 30
    assert float(as_it_is["found"].rstrip("%")) < 10
    assert float(checked["found"].rstrip("%")) > 35
    assert float(checked["clean lost"].rstrip("%")) < 2
    assert (as_it_is["renamed found"], checked["renamed found"], checked["old names kept"]) == (0, 2, 0)
    assert checked["refusals kept"] == checked["cut kept"] == 0
    shares = [float(each["right"].rstrip("%")) for each in (as_it_is, checked, clean)]
    assert shares[0] < shares[1]
    assert shares[2] - 3 <= shares[1]
