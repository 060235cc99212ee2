#!/usr/bin/env python3
"""Writes docs/COMMANDS.md from the commands themselves, or checks that it says what they say.

.venv/bin/python scripts/commands_page.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.cli.completion import PROGRAM  # noqa: E402
from entmtp_local.cli.main import main as program  # noqa: E402
from entmtp_local.errors import UsageError  # noqa: E402
from scripts.reference.script import run  # noqa: E402

WIDTH = 130
REST = """\
## Exit codes

| code | |
|---|---|
| 0 | done |
| 1 | it failed, or the model cannot be run; one line on standard error says why and what to do |
| 2 | the command line, or a file that it names to be read besides the model, is wrong; a profile that does not fit is no error |
| 130 | Ctrl-C; what there was to keep is kept |

## Environment

| variable | |
|---|---|
| `ENTMTP_LOCAL_ENGINE` | a folder of engine libraries to use instead of the one that is built |
| `XDG_CACHE_HOME` | where profiles and, for an installed package, the engine are kept; `~/.cache` (`~/Library/Caches` on macOS) |
| `XDG_DATA_HOME` | conversations are in its `entmtp-local/chats`; `~/.local/share` (`~/Library/Application Support` on macOS) |
| `HF_HUB_CACHE`, `HF_HOME` | where models of the hub are kept: `HF_HUB_CACHE`, or `hub/` in `HF_HOME` |
| `HF_TOKEN` | sent to the hub for private and gated repositories |
| `HF_ENDPOINT` | another hub |
| `HF_HUB_OFFLINE` | 1: nothing is asked of any hub, models that are here are found |
| `NO_COLOR` | no colours |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail where the page says something else")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "COMMANDS.md")
    options = parser.parse_args()
    wanted = page()
    if options.page.is_file() and options.page.read_text(encoding="utf-8") == wanted:
        return
    if options.check:
        raise UsageError(f"{options.page.name} is not what the commands say of themselves; run scripts/commands_page.py.")
    options.page.write_text(wanted, encoding="utf-8")


def page() -> str:
    """The page, as Markdown."""
    lines = ["# Commands", "", "<!-- written by scripts/commands_page.py from the commands themselves -->", ""]
    lines += text_of(program)
    lines += ["", "| command | does |", "|---|---|"]
    lines += [f"| [`{PROGRAM} {name}`](#{PROGRAM}-{name}) | {first_sentence(each)} |" for name, each in program.commands.items()]
    for name, command in program.commands.items():
        lines += ["", f"## {PROGRAM} {name}", "", f"`{usage(name, command)}`", "", *text_of(command), ""]
        lines += ["| option | |", "|---|---|", *options_of(command)]
    return "\n".join(lines) + "\n\n" + REST


def usage(name: str, command: click.Command) -> str:
    """How it is called; click's own line for that differs between its versions."""
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    return " ".join([PROGRAM, name, "[OPTIONS]", *map(argument_of, arguments)])


def argument_of(argument: click.Argument) -> str:
    if isinstance(argument.type, click.Choice):
        return "|".join(map(str, argument.type.choices))
    name = argument.metavar or str(argument.name).upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def first_sentence(command: click.Command) -> str:
    paragraph = inspect.cleandoc(command.help or "").split("\n\n")[0]
    return " ".join(paragraph.split()).removesuffix(".")


def text_of(command: click.Command) -> Iterator[str]:
    """Its help: paragraphs as they are, what stands in lines of its own as code."""
    for i, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        if i:
            yield ""
        if not paragraph.startswith("\b"):
            yield textwrap.fill(escaped(" ".join(paragraph.split())), WIDTH, break_long_words=False, break_on_hyphens=False)
            continue
        lines = paragraph.split("\n")[1:]
        if not lines[0].startswith(" "):
            yield lines.pop(0)
            yield ""
        yield from ["```", *(line.removeprefix("  ") for line in lines), "```"]


def options_of(command: click.Command) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            value = "" if option.is_flag else f" `{metavar(option)}`"
            yield f"| {names}{value} | {escaped(option.help or '')} |"


def metavar(option: click.Option) -> str:
    if option.metavar:
        return option.metavar.replace("|", "\\|")
    if isinstance(option.type, click.Choice):
        return "\\|".join(map(str, option.type.choices))
    return option.type.name.upper()


def escaped(text: str) -> str:
    """With what Markdown would take for its own as it is."""
    return re.sub(r"([|*<>])", r"\\\1", text)


if __name__ == "__main__":
    run(main)
