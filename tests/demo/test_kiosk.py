import itertools
import json

import pytest

from fieldlm_compiler.demo.customers import STOP
from fieldlm_compiler.demo.kiosk import (
    CHOICE,
    Customer,
    Utterance,
    count_readings,
    held_out_customers,
    plural,
    strangers,
    training_customers,
)
from fieldlm_compiler.demo.menu import FUNCTIONS, HELD_OUT, STRANGERS, TRAINING
from fieldlm_compiler.demo.spelling_words import HOUSE


def sentences(customers: list[Customer]) -> list[Utterance]:
    return [utterance for customer in customers for utterance in customer.utterances]


def readings(template: str) -> set[str]:
    """Every sentence that a template with alternatives in brackets stands for."""
    pieces = CHOICE.split(template)
    ways = [piece.split("|") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    return {" ".join("".join(way).split()) for way in itertools.product(*ways)}


def test_a_template_stands_for_every_choice_of_its_brackets() -> None:
    assert readings("(can|may) i have (the|) {item}") == {
        "can i have the {item}", "can i have {item}", "may i have the {item}", "may i have {item}",
    }  # fmt: skip
    assert count_readings("(can|may) i have (the|) {item}") == 4


def test_a_thousand_training_sentences_are_all_different() -> None:
    said = sentences(training_customers(1200))
    assert len({utterance.text for utterance in said}) == len(said) == 1200


def test_every_function_of_the_menu_is_asked_for() -> None:
    names = {utterance.call["name"] for utterance in sentences(training_customers(400))}
    assert names == {function.partition("(")[0] for function in FUNCTIONS}
    assert len(names) >= 5


def test_held_out_customers_share_no_sentence_with_training_ones() -> None:
    trained = {utterance.text.lower() for utterance in sentences(training_customers(1200))}
    asked = sentences(held_out_customers(200)) + sentences(strangers(200))
    assert not trained & {utterance.text.lower() for utterance in asked}


@pytest.mark.parametrize(
    "kind", ["order", "swap_item", "swap_number", "remove_item", "price", "allergen", "opening_hours", "book_table",
             "call_staff", "personal", "hello", "thanks", "places", "drinks", "plain"],
)  # fmt: skip
def test_held_out_words_are_disjoint_from_training_words(kind: str) -> None:
    def phrases(words: object) -> set[str]:
        entries = (entry[0] if isinstance(entry, tuple) else entry for entry in getattr(words, kind))
        return {reading for entry in entries for reading in readings(entry)}

    trained = phrases(TRAINING)
    assert not trained & phrases(HELD_OUT)
    assert not trained & phrases(STRANGERS)


def test_no_training_customer_names_an_item_that_is_held_out() -> None:
    held_out = {*HELD_OUT.drinks, *HELD_OUT.plain, *STRANGERS.drinks, *STRANGERS.plain}
    for utterance in sentences(training_customers(2500)):
        arguments = utterance.call["arguments"]
        named = {item["item"] for item in arguments.get("items", [arguments]) if "item" in item}
        assert not named & held_out


def test_strangers_order_by_words_no_training_customer_says() -> None:
    trained = {word for name in TRAINING.drinks + TRAINING.plain for word in name.split()} | {*HOUSE.split()}
    names = STRANGERS.drinks + STRANGERS.plain
    assert sum(not trained & {*name.split()} for name in names) >= 6
    assert all({*name.split()} - trained for name in names if name != "iced cappuccino")


def test_every_answer_is_compact_json_with_the_functions_own_arguments() -> None:
    allowed = {f.partition("(")[0]: f for f in FUNCTIONS}
    for utterance in sentences(training_customers(500)) + sentences(held_out_customers(100)):
        call = json.loads(utterance.answer)
        assert set(call) == {"name", "arguments"}
        assert all(argument in allowed[call["name"]] for argument in call["arguments"])
        assert ": " not in utterance.answer


def test_every_argument_is_said_in_the_sentence() -> None:
    for utterance in sentences(held_out_customers(200)) + sentences(strangers(200)):
        for item in utterance.call["arguments"].get("items", []):
            assert item["item"] in utterance.text.lower()
            assert item.get("milk", "") in utterance.text.lower()


def test_a_seed_gives_the_same_customers_again() -> None:
    assert training_customers(50, seed=7) == training_customers(50, seed=7)
    assert training_customers(50, seed=7) != training_customers(50, seed=8)


def test_some_customers_keep_their_words_to_themselves() -> None:
    share = sum(c.has_consented for c in training_customers(1000)) / len(training_customers(1000))
    assert 0.8 < share < 0.97


@pytest.mark.parametrize(
    ("one", "many"), [("latte", "lattes"), ("peach", "peaches"), ("pastry", "pastries"), ("chai", "chais")]
)
def test_plurals_are_english(one: str, many: str) -> None:
    assert plural(one) == many


def test_no_right_answer_is_cut_off_where_the_kiosk_stops_a_chatty_model() -> None:
    for utterance in sentences(training_customers(1500)) + sentences(held_out_customers(200)):
        assert not any(stop in utterance.answer for stop in STOP)
