"""Every error a user can cause or meet; the message is the whole sentence."""

from __future__ import annotations


class EntMTPError(Exception):
    """Base of the errors that end a command with one sentence and no traceback."""

    exit_code = 1


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


class ServerError(EntMTPError):
    """A program that is measured against is missing, fails, or contradicts itself."""


class HubError(EntMTPError):
    """A model cannot be fetched from the hub, or is not there."""
