"""The `entmtp-local` command: its subcommands, and how every failure ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from entmtp_local import __version__
from entmtp_local.cli.bench import bench
from entmtp_local.cli.calibrate import calibrate_command
from entmtp_local.cli.chat import chat
from entmtp_local.cli.completion import PROGRAM, completion
from entmtp_local.cli.info import info
from entmtp_local.cli.pull import pull
from entmtp_local.cli.run import run
from entmtp_local.errors import EntMTPError

# What a shell reports for a program that SIGINT ended.
EXIT_INTERRUPTED = 130


class Program(click.Group):
    """A click group whose errors are one line on standard error and an exit code, never a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        options["prog_name"] = PROGRAM
        _accept_any_text()
        try:
            # click itself ends quietly, with exit code 1, when the reader of a pipe has left.
            code = super().main(arguments, *rest, **options)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            code = EXIT_INTERRUPTED
        except Exception as error:
            code = _report(error, debug="--debug" in arguments)
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, EntMTPError):
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        # A full disk, a directory that may not be read: the system's words say it best.
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"error: the system refused: {error.strerror}{where}.", err=True)
        return 1
    hint = "" if debug else " Run the command again with --debug to see where."
    click.echo(f"error: this should not have happened: {type(error).__name__}: {error}.{hint}", err=True)
    return 1


def _accept_any_text() -> None:
    # Python gives None for a stream that was closed before the program began.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - lives as long as the process
    # A model writes any character; a terminal that cannot show one shows a question mark instead of ending the program.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
def main() -> None:
    """Run local language models whose tokens are drafted by their MTP head and verified by the model itself.

    \b
    Examples:
      entmtp-local chat                           talk with the small model that is shipped
      entmtp-local chat owner/model-GGUF:Q4_K_M   with one of the hub, which is fetched first
      entmtp-local info model.gguf                what a file needs, and what this machine will do with it
    """


main.add_command(chat)
main.add_command(run)
main.add_command(info)
main.add_command(pull)
main.add_command(calibrate_command, "calibrate")
main.add_command(bench)
main.add_command(completion)
