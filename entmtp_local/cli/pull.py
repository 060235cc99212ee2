"""`entmtp-local pull`: fetch a model from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

import click

from entmtp_local.cli.models import complete_model, fetch_model
from entmtp_local.errors import ModelFileError, UsageError, visible
from entmtp_local.hub.names import Reference, readable
from entmtp_local.native.model_file import check_pair, read_model


@click.command()
@click.argument("reference", metavar="REPO[:QUANT]", shell_complete=complete_model)
@click.option("--list", "only_list", is_flag=True, help="Say what the repository has, and fetch nothing.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def pull(reference: str, only_list: bool, debug: bool) -> None:
    """Fetch a model from the Hugging Face hub, and check it against the hub's checksum.

    QUANT is a quantisation, a part of a file's name between separators, or the name of a file; without it the one nearest to
    Q4_K_M is taken. Where several files would do, one with an MTP head is; a head in a file of its own comes with its model, and
    so do all parts of a split one. Ctrl-C loses nothing: the same command goes on. A model that is here is checked again, and
    fetched again where it is damaged or where the repository has a newer one.

    Files are kept where all tools of the hub keep them: in HF_HUB_CACHE. HF_TOKEN is sent for private and gated repositories,
    HF_ENDPOINT names another hub, and with HF_HUB_OFFLINE=1 nothing is asked of any. The path of the file is printed.

    \b
    Examples:
      entmtp-local pull owner/model-GGUF              the usual choice
      entmtp-local pull owner/model-GGUF:Q8_0
      entmtp-local pull --list owner/model-GGUF       what there is
    """
    if Path(reference).is_file():
        raise UsageError(f"{reference} is a file that is here already; entmtp-local chat {reference} talks with it.")
    wanted = Reference.parse(_without_address(reference))
    if only_list:
        _list(wanted)
        return
    files = fetch_model(wanted)
    try:
        about = head = read_model(files.path)
        if files.mtp_path is not None:
            head = read_model(files.mtp_path, role="mtp")
            check_pair(about, head)
    except ModelFileError as error:
        # the checksum was right, so that fetching it again would not help
        raise ModelFileError(
            f"{str(error).removesuffix('.')}. The repository has it so: entmtp-local pull --list {wanted.repo} shows what else "
            "there is."
        ) from error
    what = "with an MTP head" if head.has_mtp else "without an MTP head"
    click.echo(visible(f"{about.name}: {about.quantisation}, {readable(about.size_bytes)}, {what}."), err=True)
    if files.mtp_path is not None:
        click.echo(f"its MTP head: {files.mtp_path}", err=True)
    click.echo(f"talk with it: entmtp-local chat {wanted}", err=True)
    click.echo(files.path)


def _without_address(text: str) -> str:
    """A reference for the address of a repository's page, or of one of its files, as a browser has it."""
    if "://" not in text:
        return text
    from huggingface_hub import constants

    place = text.partition("?")[0].removeprefix(constants.ENDPOINT + "/").rstrip("/")
    repo, _, file = re.sub("/(?:tree|blob|resolve)/[^/]+", ":", place, count=1).partition(":")
    return f"{repo}:{file.strip('/')}" if file.strip("/") else repo


def _list(wanted: Reference) -> None:
    # loads an HTTP client
    from entmtp_local.hub.download import list_models

    models = list_models(wanted)
    if not models:
        raise ModelFileError(
            f"the repository {wanted.repo} has no GGUF files; name one with GGUF in its name: entmtp-local pull OWNER/NAME."
        )
    for model in models:
        kind = "MTP head" if model.is_head else "model with MTP head" if model.is_marked else "model"
        click.echo(f"{model.quant or '-':12s} {readable(model.size):>9s}  {kind:20s} {model.name}")
