"""What a schema's grammar lets be written is valid under the schema: by the official suite, and by a kept library.

The other way round is no promise: a grammar may be narrower (objects are closed, keys have an order), and a schema
that cannot be honoured is refused. What is refused or narrower in the suite is listed in `known.json`: a change shows.
"""

import json
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from fieldlm.core.errors import InputError
from fieldlm.engines.constraint import Grammars
from tests.support.depth import SEED, scaled
from tests.support.schema_samples import SchemaMaker, byte_grammars, compiled, written

SUITE = Path(__file__).parents[1] / "fixtures" / "json_schema_suite"
KNOWN = SUITE / "known.json"


@pytest.fixture(scope="module")
def known() -> Grammars:
    return byte_grammars()


def cases() -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    for path in sorted(SUITE.glob("draft*/**/*.json")):
        for case in cast(list[dict[str, Any]], json.loads(path.read_text())):
            yield f"{path.relative_to(SUITE)}: {case['description']}", case["schema"], case["tests"]


def found(known: Grammars) -> dict[str, list[str]]:
    """Return what of the suite is refused, narrower and wider here."""
    lists: dict[str, list[str]] = {"refused": [], "narrower": [], "wider": []}
    for name, schema, tests in cases():
        try:
            rule = compiled(known, schema)
        except InputError:
            lists["refused"].append(name)
            continue
        for test in tests:
            is_accepted = rule.accepts(json.dumps(test["data"], ensure_ascii=False))
            if is_accepted != test["valid"]:
                lists["wider" if is_accepted else "narrower"].append(f"{name}: {test['description']}")
    return lists


def test_the_official_suite_is_answered_as_it_was(known: Grammars) -> None:
    told, now = json.loads(KNOWN.read_text()), found(known)
    assert sum(len(tests) for _, _, tests in cases()) > 1000
    assert now["wider"] == []
    for kind in ("refused", "narrower"):
        assert now[kind] == told[kind], f"what is {kind} has changed: {set(now[kind]) ^ set(told[kind])}"


def faults(schema: Any, text: str) -> list[str]:
    """Return why `text` is not valid under `schema`; of a key without a name that comes twice, the last one counts."""
    # As decimals: 0.07 is a multiple of 0.01, and in binary floating point it is not.
    value = json.loads(text, parse_float=Decimal)
    schema = json.loads(json.dumps(schema), parse_float=Decimal)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    return [error.message for error in cast(Iterator[Any], validator.iter_errors(value))]


SPACE = r"[\t-\r \xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF]"
"""ECMA-262's; that of Python's expressions, by which the library matches, has U+001C to U+001F and U+0085 too."""


def put(schema: Any) -> Any:
    """Return `schema` as the library understands it: without OpenAPI's `nullable`, and with ECMA-262's space."""
    if isinstance(schema, list):
        return [put(part) for part in cast(list[Any], schema)]
    if isinstance(schema, str):
        return schema.replace("\\s", SPACE).replace("\\S", SPACE.replace("[", "[^"))
    if not isinstance(schema, dict):
        return schema
    made = {name: put(part) for name, part in cast(dict[str, Any], schema).items()}
    if made.get("nullable") is True and "type" in made and not {"enum", "const"} & made.keys():
        kinds = cast(list[str], made["type"]) if isinstance(made["type"], list) else [made["type"]]
        made["type"] = [*kinds, *({"null"} - set(kinds))]
    return made


def test_what_a_grammar_lets_be_written_is_valid(known: Grammars) -> None:
    tried = compared = refused = 0
    for i in range(scaled(200, most=10_000)):
        chance = random.Random(f"{SEED} {i}")
        maker = SchemaMaker(chance)
        schema = maker.schema()
        try:
            rule = compiled(known, schema)
        except InputError:
            refused += 1
            continue
        tried += 1
        texts = {written(rule, chance) for _ in range(3)} - {None}
        others = [json.dumps(maker.value(), ensure_ascii=False) for _ in range(5)]
        texts |= {text for text in others if rule.accepts(text)}
        for text in texts:
            assert text is not None
            compared += 1
            assert not (why := faults(put(schema), text)), (i, schema, text, why)
    assert compared > tried > refused
