"""The MODEL argument: a file, a model of the hub, or the one that is shipped."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from entmtp_local.errors import HubError, ModelFileError, UsageError
from entmtp_local.hub.cache import ModelFiles, cached_models, find_cached
from entmtp_local.hub.names import Reference
from entmtp_local.native.model_file import read_model

_PACKAGE = Path(__file__).resolve().parents[1]


def find_model(model: str | None, mtp_model: Path | None = None, *, fetch: bool = True) -> ModelFiles:
    """Turn the MODEL argument into files.

    Args:
        model: the path of a file, OWNER/NAME[:QUANT] on the hub, or None for the shipped model.
        mtp_model: the file with the MTP head that the user gave; it takes precedence over one that belongs to the model.
        fetch: fetch what is not on this machine; else that is an error.
    Raises: UsageError when it names nothing, HubError when it cannot be fetched.
    """
    if model is None:
        shipped = shipped_model()
        if shipped is None:
            raise UsageError(
                "no model was named and none is shipped with this installation; give the path of a .gguf file, or one of the "
                "hub: entmtp-local chat OWNER/NAME:QUANT."
            )
        return ModelFiles(shipped, mtp_model)
    path = Path(model)
    if path.exists() or not _is_reference(model):
        return ModelFiles(path, mtp_model)
    reference = Reference.parse(model)
    files = find_cached(reference)
    if files is None and not fetch:
        raise HubError(f"{model} is neither a file nor a model that was fetched; run entmtp-local pull {model} first.")
    files = files or fetch_model(reference)
    try:
        read_model(files.path)
    except ModelFileError as error:
        raise ModelFileError(
            f"{str(error).removesuffix('.')}: entmtp-local pull {model} checks it and fetches it again."
        ) from error
    return ModelFiles(files.path, mtp_model or files.mtp_path)


def fetch_model(reference: Reference) -> ModelFiles:
    """Fetch a model from the hub, with progress on standard error.

    Raises: HubError, and click.Abort at Ctrl-C, which loses nothing of what was fetched.
    """
    # loads an HTTP client, which no other start of the program needs
    from entmtp_local.hub.download import pull

    try:
        return pull(reference, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted: entmtp-local pull {reference} goes on from here.", err=True)
        raise click.Abort from None


def shipped_model() -> Path | None:
    """The model that comes with the checkout or the installed package, None if there is none."""
    for directory in (_PACKAGE.parent / "models", _PACKAGE / "_models"):
        files = sorted(directory.glob("*.gguf"))
        if files:
            return files[0]
    return None


def complete_model(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What the shell offers for MODEL: models of the hub that are here, and files."""
    found = [CompletionItem(name) for name in cached_models() if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def _is_reference(model: str) -> bool:
    # a single file name is none, nor is the path of a file that does not exist
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:.*)?", model) is not None and (":" in model or not model.endswith(".gguf"))
