"""The kiosk file: what it may say, that it can be read, and that nothing of it surprises a device."""

import io
import json
import re
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from fieldlm.cli.models import kiosk as command
from fieldlm.core.errors import ConfigError, InputError
from fieldlm.core.pages import words
from fieldlm.formats.kiosk import CONTRAST, PAIRS, Kiosk, contrast, load_kiosk, page_colours
from fieldlm.network.pin import ALL_TRIES, FREE_TRIES, PinGate, digest_pin

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/kiosk.toml"
STATIC = files("fieldlm.api").joinpath("static")


def written(folder: Path, text: str) -> Path:
    path = folder / "kiosk.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_example_speaks_german_whole_and_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    kiosk = load_kiosk(EXAMPLE)
    assert kiosk.missing()["de"] == []
    assert "--accent:#0b4f6b" in kiosk.stylesheet()
    assert command.main([str(EXAMPLE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == {}


def test_an_empty_file_is_a_kiosk_with_the_pages_own_look(tmp_path: Path) -> None:
    assert load_kiosk(written(tmp_path, "")) == Kiosk()
    assert Kiosk().stylesheet() == ""


def test_contrast_is_wcags() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the usual example of too little


def test_the_pages_own_colours_pass_what_a_kiosk_files_must() -> None:
    for theme in page_colours().values():
        assert all(contrast(theme[one], theme[other]) >= CONTRAST for one, other in PAIRS)


def test_the_page_says_nothing_that_has_no_name_and_no_name_is_left_over() -> None:
    text = "".join(
        STATIC.joinpath(name).read_text()
        for name in ("page.html", "words.js", "figures.js", "conversation.js", "markdown.js", "attendant.js", "page.js")
    )
    said = set(re.findall(r'\bt\("(\w+)"|data-(?:word|label|placeholder)="(\w+)"', text))
    named = {one or other for one, other in said}
    made = {"leaves_nothing", "leaves_figures", "leaves_text", "asks_large", "asks_large_redacted", "staff", "lock"}
    made |= {"copied", "not_copied", "busy", "status"} | {name for name in words() if name.startswith("ended_")}
    assert named - set(words()) == set()
    assert set(words()) - named - made == set()


WRONG = {
    'colour = "red"': "'colour' is nothing that it can say",
    "title = 7": "title has to be a text",
    'title = "' + "x" * 61 + '"': "1 to 60 characters",
    "idle_s = 5": "want 10 to 86400 seconds, or 0",
    'language = "klingon language"': "want a tag",
    'language = "fr"': r"write its sentences under \[languages.fr\]",
    'pin = "1234"': "not the PIN; run: fieldlm kiosk",
    'logo = "kiosk.toml"': "no PNG, JPEG, WebP or SVG",
    'logo = "away.png"': "No such file",
    '[colours.light]\naccent = "#ffff00"': "accent #ffff00 on ground .* has a contrast of 1.0; words need 4.5",
    '[colours.light]\naccent = "yellow"': "want #rrggbb",
    '[colours.light]\nsky = "#0000ff"': "is no colour of the page; it has ground",
    '[colours.noon]\nink = "#000000"': "want light or dark",
    "colours = 3": r"has to be tables, as in \[colours.light\]",
    '[languages.de]\nhello = "Hallo"': "is no sentence of the page",
    '[languages.de]\nsend = ""': "1 to 300 characters",
    '[languages.de]\nidle_in = "Gleich."': "has to have the blanks of",
    "title": "cannot be read",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_one_line_with_what_is_wanted(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[text]) as refused:
        load_kiosk(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_pins_digest_is_nobody_elses_to_read(tmp_path: Path) -> None:
    path = written(tmp_path, f'pin = "{digest_pin("4711")}"')
    assert load_kiosk(path).pin
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_kiosk(path)


@pytest.mark.parametrize("pin", ["123", "1" * 13, "12a4", "١٢٣٤", ""])
def test_a_pin_has_digits_alone(pin: str) -> None:
    with pytest.raises(InputError, match="4 to 12 digits"):
        digest_pin(pin)


def test_the_command_prints_the_line_of_a_pin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("4711\n"))
    assert command.main(["--pin"]) == 0
    line = capsys.readouterr().out
    assert "4711" not in line
    assert PinGate(load_kiosk(written(tmp_path, line)).pin).try_open("4711", "here") is None
    with pytest.raises(InputError, match="or --pin alone"):
        command.main([])


def test_who_guesses_waits_longer_and_longer_and_others_do_not() -> None:
    now_s = 0.0
    gate = PinGate(digest_pin("4711"), now_s=lambda: now_s)
    assert [gate.try_open("0000", "a") for _ in range(FREE_TRIES)] == [0.0] * (FREE_TRIES - 1) + [30.0]
    assert gate.try_open("4711", "a") == 30.0, "while it waits not even the right one is compared"
    assert gate.try_open("4711", "b") is None
    now_s = 30.0
    assert gate.try_open("0000", "a") == 60.0
    now_s = 90.0
    assert gate.try_open("4711", "a") is None
    assert gate.try_open("0000", "a") == 0.0, "it begins anew"


def test_many_addresses_have_no_more_tries_than_a_few() -> None:
    gate = PinGate(digest_pin("4711"), now_s=lambda: 0.0)
    waits = [gate.try_open("0000", str(caller)) for caller in range(ALL_TRIES)]
    assert waits[-1] == 30.0
    assert gate.try_open("4711", "another") == 30.0
