"""HTML pages: Jinja2 templates with autoescape and one stylesheet; nothing in them is fetched from elsewhere.

A room keeps its templates in its folder `templates`; here are the frame of every page, its parts and the stylesheet.
"""

import functools
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED = "fieldlm.core"


def stylesheet() -> bytes:
    return files(SHARED).joinpath("templates", "style.css").read_bytes()


@functools.cache
def words() -> dict[str, str]:
    """Return what the device's page says in English, by name; a kiosk file has it in other languages."""
    return json.loads(files(SHARED).joinpath("templates", "words.json").read_bytes())


def render(room: str, template: str, **values: Any) -> str:
    """Return the page that a template of the package `room` makes of `values`, all of which are escaped."""
    return _environment(room).get_template(template).render(style=stylesheet().decode(), **values)


@functools.cache
def _environment(room: str) -> "Environment":
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(room), PackageLoader(SHARED)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
