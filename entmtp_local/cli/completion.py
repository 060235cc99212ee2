"""`entmtp-local completion`: the script with which a shell completes commands, options and models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")
PROGRAM, VARIABLE = "entmtp-local", "_ENTMTP_LOCAL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def completion(ctx: click.Context, shell: str, debug: bool) -> None:
    """Print the script with which a shell completes commands, options and models that were fetched.

    The first line below belongs in ~/.bashrc, the second one into ~/.zshrc; the third one is run once.

    \b
    Examples:
      eval "$(entmtp-local completion bash)"
      eval "$(entmtp-local completion zsh)"
      entmtp-local completion fish > ~/.config/fish/completions/entmtp-local.fish
    """
    # click knows each of the shells that are offered
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
