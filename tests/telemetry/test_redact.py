import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldlm.telemetry.redaction.redact import redact, redact_messages

PERSONAL = [
    ("Hi, my name is Xiulan and I'd like a latte", "Hi, my name is <NAME> and I'd like a latte"),
    ("my name is xiulan", "my name is <NAME>"),
    ("A flat white for Maria please", "A flat white for <NAME> please"),
    ("this is for Ahmed Patel", "this is for <NAME>"),
    ("thank you, i'm Anna Keller", "thank you, i'm <NAME>"),
    ("I'm Ngozi, cancel it", "I'm <NAME>, cancel it"),
    ("Thanks, Emma's order", "Thanks, <NAME>'s order"),
    ("call me at +1 (415) 555-0199", "call me at <PHONE>"),
    ("my number is 555-0199", "my number is <PHONE>"),
    ("reach me on 0151 23456789", "reach me on <PHONE>"),
    ("it's five five five, one two three four", "it's <PHONE>"),
    ("write to ana.b+x@mail.example.com", "write to <EMAIL>"),
    ("jane dot doe at gmail dot com", "<EMAIL>"),
    ("card 4111 1111 1111 1111 exp 10/27", "card <CARD> exp 10/27"),
    ("card 4111-1111-1111-1111", "card <CARD>"),
    ("IBAN DE89 3704 0044 0532 0130 00 ok", "IBAN <IBAN> ok"),
    ("bring it to 12 Baker Street", "bring it to <ADDRESS>"),
    ("Hauptstraße 5, please", "<ADDRESS>, please"),
    ("use sk-abcdefghijklmnopqrstuvwx", "use <KEY>"),
    ("the password is hunter22", "the password is <KEY>"),
]
HARMLESS = [
    "two lattes for here", "that's for me", "a table for Friday", "for friday, two lattes", "For Here", "for Christmas",
    "I'm fine, thanks", "I'm Allergic to nuts", "Iced Latte For Here", "an Earl Grey and one jasmine tea",
    "a rose lemonade with basil and ginger", "an Oat Flat White for Takeaway", "2 coffees on the way",
    "3 large hot drinks for the road", "order 1234567", "2 lattes, 3.50 each, at 10:30 on 2026-11-22",
    "4 mochas, double shot, extra hot, for Lunch", "For Maple Latte", "it's Hot today", "the Victoria sponge",
    "call me when it's ready", "a table for six people today at 5 pm", "Benedict eggs for two",
    '{"name":"order","arguments":{"items":[{"item":"earl grey","quantity":2}],"place":"here"}}',
]  # fmt: skip


@pytest.mark.parametrize(("text", "clean"), PERSONAL)
def test_what_identifies_a_person_becomes_a_placeholder(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize("text", HARMLESS)
def test_an_order_survives_byte_for_byte(text: str) -> None:
    assert redact(text) == text


def test_a_number_that_fails_its_checksum_is_neither_card_nor_iban() -> None:
    assert "<CARD>" not in redact("card 4111 1111 1111 1112")
    assert "<IBAN>" not in redact("IBAN DE89 3704 0044 0532 0130 01")


def test_json_stays_json_and_keeps_its_style() -> None:
    spaced = '{"function": "set_name", "arguments": {"customer_name": "Xiu", "phone": 4155550199, "item": "latte"}}'
    assert redact(spaced) == (
        '{"function": "set_name", "arguments": {"customer_name": "<NAME>", "phone": "<PHONE>", "item": "latte"}}'
    )
    assert redact('{"to":"Maria"}') == '{"to":"<NAME>"}'


def test_a_name_that_was_introduced_is_found_everywhere() -> None:
    messages = [{"role": "user", "content": "my name is Xiulan"}, {"role": "user", "content": "xiulan wants tea"}]
    clean = redact_messages(messages, names=["xiulan"])
    assert [message["content"] for message in clean] == ["my name is <NAME>", "<NAME> wants tea"]
    assert [message["role"] for message in clean] == ["user", "user"]


@given(st.text(max_size=200))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(
    st.dictionaries(
        st.text(max_size=5), st.text(max_size=20) | st.integers() | st.lists(st.text(max_size=9)), max_size=4
    )
)
def test_any_json_stays_json(value: dict[str, object]) -> None:
    assert isinstance(json.loads(redact(json.dumps(value))), dict)


def test_a_fleets_own_patterns_are_redacted_wherever_text_stands() -> None:
    members = [re.compile(r"\bMB-\d{5}\b")]
    assert redact("I'm member MB-12345, a latte", patterns=members) == "I'm member <CUSTOM>, a latte"
    assert (
        redact('{"member":"MB-12345","n":[1,"MB-54321"]}', patterns=members)
        == '{"member":"<CUSTOM>","n":[1,"<CUSTOM>"]}'
    )
    assert redact_messages([{"content": "MB-12345"}], patterns=members) == [{"content": "<CUSTOM>"}]


def test_a_number_in_json_is_judged_by_its_key() -> None:
    assert redact('{"ticket":4155550132}') == '{"ticket":4155550132}'
    assert redact('{"call":4155550132}') == '{"call":"<PHONE>"}'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("call 820.261.5129x75383 please", "call <PHONE> please"),
        ("my number is 415-555-0132 ext. 12", "my number is <PHONE>"),
        ("我的手机13812345678谢谢", "我的手机<PHONE>谢谢"),
        ("携帯09012345678です", "携帯<PHONE>です"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = <KEY>"),
        ("DB_PASSWORD=hunter2", "DB_PASSWORD=<KEY>"),
        ("the server 192.168.17.4 is down", "the server <IP> is down"),
        ("ping 2001:db8::8a2e:370:7334 now", "ping <IP> now"),
        ("its MAC is 00:1B:44:11:3A:B7.", "its MAC is <MAC>."),
        ("I was born on 12 March 1984 in Ulm", "I was born on <DATE> in Ulm"),
        ("DOB: 1984-03-12", "DOB: <DATE>"),
        ("geboren am 12.03.1984", "geboren am <DATE>"),
        ("my passport number is C01X00T47", "my passport number is <ID>"),
        ("SSN 536-22-8726", "SSN <ID>"),
        ("Kennzeichen: UL-AB 1234", "Kennzeichen: <ID>"),
    ],
)
def test_what_names_a_person_or_a_machine_by_its_form_goes(text: str, wanted: str) -> None:
    assert redact(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4 of the firmware", "at 12:30:15 it rang", "the meeting on 12 March 2026", "born in Ulm",
        "a passport photo please", "the id card is blue", "std::vector::size", "set 3 alarms at 7:30",
        "order 4155550132", "my passport expired in 2024", "the plate number four is hot",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("card: 4111\u00a01111\u00a01111\u00a01111", "card: <CARD>"),
        ("card: 4111\u202f1111\u202f1111\u202f1111", "card: <CARD>"),
        ("4111  1111 - 1111_1111", "<CARD>"),
        ("\u0664\u0661\u0661\u0661 " + "\u0661\u0661\u0661\u0661 " * 3, "<CARD> "),
        ("IBAN FR14\u00a02004\u00a01010\u00a00505\u00a00001\u00a03M02\u00a0606", "IBAN <IBAN>"),
        ("call 415\u2011555\u20110199", "call <PHONE>"),
        ("\u202a+49\u2009151\u200923456789\u202c", "<PHONE>"),
        ("SSN 078\u201005\u20101120", "SSN <ID>"),
        ("anna.keller\u200e@mail.example.com", "<EMAIL>"),
        ("Hauptstra\u00dfe\u00a05, please", "<ADDRESS>, please"),
        ("my name is Zoe\u0308 Mu\u0308ller", "my name is <NAME>"),
        ("for\u00a0Ahmed\u00a0Patel", "for <NAME>"),
        ("I'm \uff38iulan", "I'm <NAME>"),
        ('{"note": "4111\u00a01111\u00a01111\u00a01111"}', '{"note": "<CARD>"}'),
        ("ticket AB\u201012", "ticket <CUSTOM>"),
    ],
)
def test_what_looks_like_plain_characters_is_read_as_these(text: str, wanted: str) -> None:
    assert redact(text, patterns=(re.compile(r"AB-\d+"),)) == wanted


@pytest.mark.parametrize(
    "text",
    ["zwei\u00a0Lattes \u2013 bitte", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0645", "\U0001f469\u200d\U0001f373"],
)
def test_a_text_that_holds_nothing_stays_byte_for_byte(text: str) -> None:
    assert redact(text) == text


def test_an_identifier_that_is_a_key_goes_and_a_word_stays() -> None:
    said = {"ana@example.com": "tea", "+1 (415) 555-0199": {"grace": 1, "AB-7": 2}, "order 4155550132": 3, "rose": 4}
    clean = {"<EMAIL>": "tea", "<PHONE>": {"grace": 1, "<CUSTOM>": 2}, "order 4155550132": 3, "rose": 4}
    patterns = (re.compile(r"AB-\d+"),)
    assert json.loads(redact(json.dumps(said), patterns=patterns)) == clean
    assert redact_messages([said], patterns=patterns) == [clean]


@pytest.mark.parametrize("letter", ["\u0130", "\u0131", "\u017f", "\u212a"])
def test_letters_that_a_pattern_takes_for_latin_break_nothing(letter: str) -> None:
    assert redact(f"kod AB12 {letter}STANBULDA 17") == f"kod AB12 {letter}STANBULDA 17"
    assert redact(f"{letter} IBAN AB12 {letter}STANBULDA, ana@example.com").endswith("<EMAIL>")
