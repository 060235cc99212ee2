"""What goes wrong between this machine and the hub, as one sentence that names what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

# HTTPError is that of whichever HTTP client the package uses; every failed connection and every time-out is one.
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_token

from entmtp_local.errors import EntMTPError, HubError
from entmtp_local.hub.cache import cache_folder
from entmtp_local.hub.names import Reference


@contextmanager
def explained(reference: Reference, command: str = "pull") -> Iterator[None]:
    """Turn every failure inside into a HubError that advises to run the command again."""
    try:
        yield
    except EntMTPError:
        raise
    except Exception as error:
        raise HubError(_explain(error, reference, command)) from error


def _explain(error: Exception, reference: Reference, command: str) -> str:
    repo, again = reference.repo, f"run entmtp-local {command} {reference}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{reference} is not on this machine and HF_HUB_OFFLINE forbids fetching it; unset HF_HUB_OFFLINE and {again}."
    if isinstance(error, HFValidationError):
        return f"{repo!r} cannot be the name of a repository; write OWNER/NAME:QUANT."
    if isinstance(error, GatedRepoError):
        account = "the account of your token" if get_token() else "your account, put a token of it into HF_TOKEN"
        return f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo} with {account}, and {again}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no file {repo} here, and the hub shows no such repository: check the name, or, if it is private, put a "
            f"token that may read it into HF_TOKEN, and {again}."
        )
    if isinstance(error, (EntryNotFoundError, RevisionNotFoundError)):
        return f"a file of {reference} has just been removed from the repository; {again} again."
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error.response.status_code, repo, again)
    if isinstance(error, HTTPError):
        return (
            f"the connection to {constants.ENDPOINT} failed ({type(error).__name__}: {_first_line(error)}); check the network "
            f"and {again}: it goes on from what is there."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {cache_folder()} is full; make room and {again}: it goes on from what is there."
    if isinstance(error, OSError) and error.strerror:
        where = Path(error.filename) if isinstance(error.filename, str) else cache_folder()
        return f"{where} cannot be written ({error.strerror}); name another folder with HF_HUB_CACHE and {again}."
    return (
        f"what {constants.ENDPOINT} answers is not what a hub answers ({type(error).__name__}: {_first_line(error)}); check "
        f"HF_ENDPOINT and {again}."
    )


def _explain_status(status: int, repo: str, again: str) -> str:
    if status == 401:
        return f"the hub does not accept your token for {repo} (401); put a valid one into HF_TOKEN, or none, and {again}."
    if status == 403:
        return f"your token may not read {repo} (403); put one into HF_TOKEN that may, and {again}."
    if status == 429:
        return f"the hub has had too many requests from here (429); wait some minutes and {again}."
    if status >= 500:
        return f"the hub fails at present ({status}); {again} later: it goes on from what is there."
    return f"the hub refuses {repo} ({status}); check the name and {again}."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:200]
