"""The errors a user sees: one line that says what, with which value, and what to do next.

They are split by who can act. `exit_code` is what the command returns: 1 when the answer is no (a gate failed, a
device refused), 2 when the use or the input is wrong.
"""


class FieldlmError(Exception):
    """Shown to the user as one line, without a traceback."""

    exit_code = 2


class InputError(FieldlmError):
    """The user's argument, file or request is wrong; correct it and try again."""


class NotFoundError(InputError):
    """What a request names is not here."""


class ConflictError(InputError):
    """What a request asks for does not go with what is here already."""


class ConfigError(FieldlmError):
    """A setting is wrong; the message names where it came from."""


class ProfileError(FieldlmError):
    """A device profile is unknown or impossible."""


class BundleError(FieldlmError):
    """A bundle is broken, foreign or untrusted; compile or fetch it again."""


class EngineError(FieldlmError):
    """The engine cannot load or run the model."""


class MissingDependencyError(FieldlmError):
    """A part that is not installed is needed; the message holds the command that installs it."""


class NoSpaceError(FieldlmError):
    """The disk is full; nothing that stood before was touched."""

    exit_code = 1


class GateError(FieldlmError):
    """The result was made and found wanting; it is not handed out."""

    exit_code = 1


class TrustError(FieldlmError):
    """A signature, digest or version says no."""

    exit_code = 1


class UnavailableError(FieldlmError):
    """The other side is away; try again later."""

    exit_code = 1
