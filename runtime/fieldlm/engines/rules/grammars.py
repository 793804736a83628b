"""The grammars of an engine. Their compiler is imported with the first of them: most starts are for other answers."""

from typing import TYPE_CHECKING

from fieldlm.engines import Engine

if TYPE_CHECKING:
    from fieldlm.engines.constraint import Grammars


def grammars(engine: Engine) -> "Grammars":
    """Return what compiles rules for `engine`; the first call reads its whole vocabulary, half a second of work."""
    from fieldlm.engines import constraint

    return constraint.grammars(engine)
