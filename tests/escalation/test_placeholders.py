"""What identifies a person is hidden from the large model, and comes back in its answer."""

import json

from fieldlm.escalation.placeholders import Placeholders


def test_the_same_words_have_the_same_placeholder_all_through_a_conversation() -> None:
    hidden = Placeholders()
    said = hidden.hide(
        [
            {"role": "user", "content": "My name is Anna Berg, mail anna@example.com"},
            {"role": "assistant", "content": "Thank you, Anna Berg."},
            {"role": "user", "content": "Send it to anna@example.com and bert@example.com"},
        ]
    )
    texts = [message["content"] for message in said]
    assert texts[0] == "My name is <NAME_1>, mail <EMAIL_1>"
    assert texts[1] == "Thank you, <NAME_1>."
    assert texts[2] == "Send it to <EMAIL_1> and <EMAIL_2>"
    assert hidden.show("For <NAME_1>: <EMAIL_2>, not <EMAIL_9>") == "For Anna Berg: bert@example.com, not <EMAIL_9>"


def test_calls_keep_their_functions_names_and_ids() -> None:
    hidden = Placeholders()
    call = {
        "id": "anna@example.com",
        "type": "function",
        "function": {"name": "mail", "arguments": {"to": "anna@example.com", "name": "bert@example.com"}},
    }
    (said,) = hidden.hide([{"role": "assistant", "content": "", "tool_calls": [call]}])
    function = said["tool_calls"][0]["function"]
    assert (said["tool_calls"][0]["id"], function["name"]) == ("anna@example.com", "mail")
    assert function["arguments"] == {"to": "<EMAIL_1>", "name": "<EMAIL_2>"}


def test_a_text_that_holds_nothing_personal_is_the_same() -> None:
    said = [{"role": "user", "content": "two teas < three {teas}"}]
    assert Placeholders().hide(said) == said


def test_schemas_keep_their_terms_and_say_nothing_personal() -> None:
    hidden = Placeholders()
    schema = {
        "type": "object",
        "properties": {"to": {"type": "string", "enum": ["anna@example.com"], "description": "not bert@example.com"}},
    }
    tool = {"type": "function", "function": {"name": "mail", "description": "", "parameters": schema}}
    said = hidden.hide_body({"tools": [tool], "stop": ["carl@example.com"], "max_tokens": 4})
    assert "@" not in str(said)
    to = said["tools"][0]["function"]["parameters"]["properties"]["to"]
    assert to == {"type": "string", "enum": ["<EMAIL_1>"], "description": "not <EMAIL_2>"}
    assert hidden.show('{"to": "<EMAIL_1>"}', is_json=True) == '{"to": "anna@example.com"}'


def test_words_come_back_into_json_as_json_spells_them() -> None:
    hidden = Placeholders()
    hidden.numbered("ADDRESS", 'Am "Markt"\n1')
    assert json.loads(hidden.show('{"at": "<ADDRESS_1>"}', is_json=True)) == {"at": 'Am "Markt"\n1'}
