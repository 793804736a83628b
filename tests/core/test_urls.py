"""A URL is shown without who logs in and with what, also one that is wrong."""

import pytest

from fieldlm.core.urls import shown, shown_all, shown_in


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("mqtt://u:pw@host:1883", "mqtt://host:1883"),
        ("https://u:pw@host/v1/@me?x=a@b", "https://host/v1/@me?x=a@b"),
        ("http://user@host", "http://host"),
        ("mqtt://u:p@w@host", "mqtt://host"),
        ("mqtt://u:p/w@host", "mqtt://host"),
        ("mqtt:/u:pw@host", "mqtt:/host"),
        ("u:pw@host", "host"),
        ("u:p/w@host", "host"),
        ("http://u:pw@[::1]:80/a", "http://[::1]:80/a"),
    ],
)
def test_a_password_is_left_out(given: str, told: str) -> None:
    assert shown(given) == told
    assert shown_all([given, ("x", given), 7]) == [told, ["x", told], 7]


@pytest.mark.parametrize(
    "text",
    [
        "", "::", "7", "mqtt://host:1883/a@b", "https://[::1]:8080/@me", "unix:/run/fieldlm@1/api", "/srv/@snap/repo",
        "repo@2/x", "file:///srv/@snap", "file:///srv@2/x", "kiosk@place", "http://host?a=b@c",
    ],
)  # fmt: skip
def test_what_has_no_password_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("there is no file http:/u:p@h/model.gguf", "there is no file http:/h/model.gguf"),
        ("'ftp://u:p/q@h' is a URL; see: https://example.com/a@b", "'ftp://h' is a URL; see: https://example.com/a@b"),
        ("from a://u:p@b to c://u:p@d: refused", "from a://b to c://d: refused"),
        ("write to ana@example.com: at 10:30, 3/4 is done", "write to ana@example.com: at 10:30, 3/4 is done"),
    ],
)
def test_in_a_message_every_url_is_shown_without_its_password(text: str, said: str) -> None:
    assert shown_in(text) == said
