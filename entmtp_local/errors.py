"""Every error a user can cause or meet; the message is the whole sentence."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text for a terminal, on one line: characters that it would act on are escaped, such as those of names from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class EntMTPError(Exception):
    """Base of the errors that end a command with one sentence and no traceback."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # sentences hold names from files
        super().__init__("\n".join(map(visible, message.split("\n"))))


class UsageError(EntMTPError):
    """The command line or an option's value is wrong."""

    exit_code = 2


class ModelFileError(EntMTPError):
    """A model file is missing, damaged or of a kind this program cannot run."""


class EngineError(EntMTPError):
    """The native engine is missing, does not match, or failed."""


class ContextFullError(EntMTPError):
    """The tokens do not fit into the context."""


class ProfileError(EntMTPError):
    """A profile is missing, damaged, of another version, or of another model or device."""

    exit_code = 2


class StateError(EntMTPError):
    """A session's saved state is missing, damaged, or of another model, build or version: it has to be computed again."""


class TranscriptError(EntMTPError):
    """A saved conversation or trace is missing, damaged, or of another version."""

    exit_code = 2


class ServerError(EntMTPError):
    """A program that is measured against is missing, fails, or contradicts itself."""


class HubError(EntMTPError):
    """A model cannot be fetched from the hub, or is not there."""
