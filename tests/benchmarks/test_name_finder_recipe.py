"""How the name finder's weights are made and measured."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import name_finder as maker
from benchmarks.name_finder_texts import LANGUAGES, LATIN, PEOPLE
from benchmarks.redaction_second_pass import UNSEEN, beside_placeholders, in_templates, named, recall
from benchmarks.redaction_texts import LOCALES, SENTENCES
from fieldlm_compiler.learn.redacted import name_finder
from fieldlm_compiler.learn.redacted.name_features import BUCKETS
from fieldlm_compiler.learn.redacted.name_finder import NameWeights, found_names


def test_the_recipe_makes_the_same_weights_again_and_they_find_names(tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    rows: list[dict[str, Any]] = [
        {"text": "turn on the heater in the bathroom", "name": "iot_on", "arguments": {}},
        {"text": "send an email to rosamund", "name": "email_send", "arguments": {"person": "rosamund"}},
        {"text": "who is rosamund pike", "name": "qa_factoid", "arguments": {"person": "rosamund pike"}},
    ]
    task.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    made = [maker.make([task], tmp_path / each, share=0.03) for each in "ab"]
    first, second = ((tmp_path / each / "name_weights.bin").read_bytes() for each in "ab")
    assert first == second
    assert made[0] == made[1]
    assert len(first) == BUCKETS
    few = NameWeights(memoryview(first).cast("b"), 1, 1)
    assert (5, 13) in found_names("tell thandeka that dinner is ready", weights=few)
    texts = {sentence.text: sentence.persons for sentence in maker.sentences([task], 0.03)}
    assert texts["send an email to rosamund"] == ((17, 25),)
    assert "who is rosamund pike" not in texts, "nobody can say whether that is a private person"


def test_nothing_that_measures_the_finder_made_it() -> None:
    measured = {sentence.lstrip("!") for sentences in SENTENCES.values() for sentence in sentences}
    assert not measured & {template for templates in PEOPLE.values() for template in templates}
    used = {*LATIN, *(locale for locales in LANGUAGES.values() for locale in locales)}
    assert not used & {*LOCALES, *UNSEEN}
    # Of a locale that it has no people of Faker makes American ones.
    assert all(find_spec(f"faker.providers.person.{locale}") for locale in used)


def test_the_benchmark_counts_names_by_kind(tmp_path: Path) -> None:
    table = recall(list(named(["fi_FI"], 1)))
    assert set(table) == {"all", "whole", "first", "last", "lower"}
    assert table["all"]["names"] == 4 * len(SENTENCES["en_US"])
    assert table["all"]["second pass"] >= table["all"]["first pass"]
    templates = tmp_path / "templates.txt"
    templates.write_text("My name is {{name}} of {{city}}\nno slot\nask {{last_name}}\n")
    assert [each.kind for each in in_templates(templates, ["de_DE"])] == ["whole", "lower", "last"]


def test_the_shipped_weights_are_of_this_recipe() -> None:
    card = msgspec.json.decode(name_finder.CARD.read_bytes())
    assert (card["seed"], card["passes"], card["share"]) == (maker.SEED, maker.PASSES, 1.0)


def test_beside_a_placeholder_of_a_device_nothing_else_is_taken() -> None:
    assert beside_placeholders(["en_US"]) == []
