"""The kiosk file: how the page looks and speaks on a screen in a public place.

TOML, all of it optional:

    title = "Café Nord"
    logo = "logo.svg"        # PNG, JPEG, WebP or SVG beside this file
    idle_s = 90              # until the next customer finds nothing of the last one
    language = "de"          # without it, the one of the browser's that is here, else English
    pin = "scrypt$…"         # of who may leave the kiosk; `fieldlm kiosk --pin` prints it
    [colours.light]          # and dark: ground card ink soft line accent on_accent mine bad
    accent = "#0b4f6b"
    [languages.de]           # sentences by their names; `fieldlm kiosk FILE` lists those that are missing
    greeting = "Was darf es sein?"

A pair of colours that cannot be read is an error. A sentence that is missing is said in English, so that a file goes on
working with a version that says more.
"""

import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import ConfigError
from fieldlm.core.pages import stylesheet, words

CONTRAST = 4.5
"""WCAG 2.2, 1.4.3: text on its ground, by relative luminance."""
PAIRS = (
    ("ink", "ground"), ("ink", "card"), ("ink", "mine"), ("soft", "ground"), ("soft", "card"), ("accent", "ground"),
    ("accent", "card"), ("on_accent", "accent"), ("bad", "card"), ("bad", "ground"),
)  # fmt: skip
"""Which colour of words is read on which ground."""
COLOURS = ("ground", "card", "ink", "soft", "line", "accent", "on_accent", "mine", "bad")
MOST_LOGO = 256 << 10
MOST_TITLE, MOST_SENTENCE = 60, 300
_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_PIN = re.compile(r"scrypt\$[0-9a-f]{32}\$[0-9a-f]{64}")
_BLANK = re.compile(r"\{(\w+)\}")
_LOGOS = ((b"\x89PNG\r\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


class Kiosk(msgspec.Struct, frozen=True, kw_only=True):
    """What a kiosk file says, checked. `logo` is its media type and bytes; `colours` are those of light and dark."""

    title: str = ""
    language: str = ""
    idle_s: int | None = None
    pin: str = ""
    logo: tuple[str, bytes] | None = None
    colours: Mapping[str, Mapping[str, str]] = {}
    languages: Mapping[str, Mapping[str, str]] = {}

    def missing(self) -> dict[str, list[str]]:
        """Return the names of the sentences that each language does not have."""
        return {tag: [name for name in words() if name not in said] for tag, said in self.languages.items()}

    def stylesheet(self) -> str:
        """Return the colours as CSS that goes after the page's own."""
        if not self.colours:
            return ""
        light, dark = (
            ":root{" + "".join(f"--{_css(name)}:{value};" for name, value in self.colours[theme].items()) + "}"
            for theme in ("light", "dark")
        )
        return f"{light}\n@media (prefers-color-scheme: dark){{{dark}}}\n"


def load_kiosk(path: Path) -> Kiosk:
    """Read and check a kiosk file; raises ConfigError with what is wrong and what is wanted."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the kiosk file {path} cannot be read: {error}") from error
    checks = {
        "title": _title, "language": _language, "idle_s": _idle, "pin": _pin, "logo": str, "colours": _colours,
        "languages": _languages,
    }  # fmt: skip
    try:
        if unknown := table.keys() - checks.keys():
            raise ValueError(f"{sorted(unknown)[0]!r} is nothing that it can say; it has {', '.join(checks)}")
        said: dict[str, Any] = {name: checks[name](value) for name, value in table.items()}
        if "logo" in said:
            said["logo"] = _logo(path.parent / said["logo"])
        if said.get("language", "en") not in {"en", *said.get("languages", {})}:
            raise ValueError(
                f"language is {said['language']!r}; write its sentences under [languages.{said['language']}]"
            )
    except (ValueError, OSError) as error:
        raise ConfigError(f"kiosk file {path}: {error}") from error
    if said.get("pin") and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"every user of this machine can open {path} with the PIN's digest; run: chmod 600 {path}")
    return Kiosk(**said)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours #rrggbb, 1 to 21 (WCAG 2.2, contrast ratio)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _css(name: str) -> str:
    return name.replace("_", "-")


def page_colours() -> dict[str, dict[str, str]]:
    """Return the page's own colours, of light and dark, by their names in a kiosk file."""
    blocks = re.findall(r":root \{([^}]*)\}", stylesheet().decode())
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks[:2]]
    return {
        theme: {name: colours[_css(name)] for name in COLOURS}
        for theme, colours in zip(("light", "dark"), found, strict=True)
    }


def _title(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= MOST_TITLE:
        raise ValueError(f"title has to be a text of 1 to {MOST_TITLE} characters")
    return value.strip()


def _language(value: object) -> str:
    if not isinstance(value, str) or not _TAG.fullmatch(value):
        raise ValueError(f"language is {value!r}; want a tag as in de or pt-BR")
    return value


def _idle(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not (value == 0 or 10 <= value <= 86_400):
        raise ValueError(f"idle_s is {value!r}; want 10 to 86400 seconds, or 0 for never")
    return value


def _pin(value: object) -> str:
    if not isinstance(value, str) or not _PIN.fullmatch(value):
        raise ValueError("pin has to be a PIN's digest, not the PIN; run: fieldlm kiosk --pin")
    return value


def _logo(path: Path) -> tuple[str, bytes]:
    content = path.read_bytes()
    if len(content) > MOST_LOGO:
        raise ValueError(f"logo {path} has {len(content)} bytes; it may have {MOST_LOGO}")
    kind = next((kind for start, kind in _LOGOS if content.startswith(start)), "")
    if not kind and b"<svg" in content[:4096]:
        kind = "image/svg+xml"
    if not kind:
        raise ValueError(f"logo {path} is no PNG, JPEG, WebP or SVG")
    return kind, content


def _colours(value: object) -> dict[str, dict[str, str]]:
    own = page_colours()
    for theme, colours in _tables("colours", value).items():
        if theme not in own:
            raise ValueError(f"colours.{theme} is no theme; want light or dark")
        for name, colour in colours.items():
            if name not in COLOURS:
                raise ValueError(f"colours.{theme}.{name} is no colour of the page; it has {', '.join(COLOURS)}")
            if not isinstance(colour, str) or not _COLOUR.fullmatch(colour):
                raise ValueError(f"colours.{theme}.{name} is {colour!r}; want #rrggbb")
            own[theme][name] = colour.lower()
        for text, ground in PAIRS:
            ratio = contrast(own[theme][text], own[theme][ground])
            if ratio < CONTRAST:
                raise ValueError(
                    f"colours.{theme}: {text} {own[theme][text]} on {ground} {own[theme][ground]} has a contrast "
                    f"of {ratio:.1f}; words need {CONTRAST} to be read"
                )
    return own


def _languages(value: object) -> dict[str, dict[str, str]]:
    known = words()
    found = dict[str, dict[str, str]]()
    for tag, said in _tables("languages", value).items():
        _language(tag)
        for name, sentence in said.items():
            if name not in known:
                raise ValueError(f"languages.{tag}.{name} is no sentence of the page; run: fieldlm kiosk FILE")
            if not isinstance(sentence, str) or not 0 < len(sentence) <= MOST_SENTENCE:
                raise ValueError(f"languages.{tag}.{name} has to be a text of 1 to {MOST_SENTENCE} characters")
            if set(_BLANK.findall(sentence)) != set(_BLANK.findall(known[name])):
                raise ValueError(f"languages.{tag}.{name} has to have the blanks of {known[name]!r}")
        found[tag] = said
    return found


def _tables(name: str, value: object) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise ValueError(f"{name} has to be tables, as in [{name}.{'light' if name == 'colours' else 'de'}]")
    return value
