"""What the commands say of themselves: every option explained, every example real, the page and the completion in step."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from entmtp_local.chat.store import Store
from entmtp_local.cli import models
from entmtp_local.cli.main import main
from entmtp_local.errors import UsageError
from scripts import commands_page

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(main.commands)


def help_of(command: str | None) -> str:
    result = CliRunner().invoke(main, [*([command] if command else []), "--help"])
    assert result.exit_code == 0
    return result.stdout


def examples() -> Iterator[tuple[str, str]]:
    for name, command in [("", main), *main.commands.items()]:
        lines = (command.help or "").partition("Examples:\n")[2].splitlines()
        found = [line.strip() for line in lines if "entmtp-local" in line]
        for line in found or ["none"]:
            yield name, line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    text = help_of(command)
    for option in main.commands[command].params:
        if isinstance(option, click.Option):
            assert option.opts[-1] in text and option.help


@pytest.mark.parametrize(("command", "line"), list(examples()))
def test_every_command_has_examples_and_they_are_understood(command: str, line: str) -> None:
    assert line != "none" and line.split("   ")[0].strip() in help_of(command or None)
    words = shlex.split(re.sub(r"^eval \"\$\((.*)\)\"$", r"\1", line.split("|")[-1].split("   ")[0].split(" > ")[0]))
    program, name, *arguments = words
    assert program == "entmtp-local" and (not command or name == command)
    # parses, and calls nothing
    assert main.commands[name].make_context(name, arguments).info_name == name


def test_without_arguments_the_commands_are_listed() -> None:
    result = CliRunner().invoke(main, [])
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", result.output, re.MULTILINE)
    assert "entmtp-local chat  " in result.output


# -- the page


def test_the_page_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8") == commands_page.page(), "run scripts/commands_page.py"


def test_the_page_has_every_command_and_option() -> None:
    sections = commands_page.page().split("\n## ")
    for name, command in main.commands.items():
        (section,) = [each for each in sections if each.startswith(f"entmtp-local {name}\n")]
        for param in command.params:
            assert all(f"`{option}`" in section for option in param.opts) or isinstance(param, click.Argument)
        assert "\b" not in section and "\n```\nentmtp-local " in section or name == "completion"


def test_a_page_that_is_behind_is_found_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "COMMANDS.md"
    page.write_text("# Commands\n")
    monkeypatch.setattr(sys, "argv", ["commands_page.py", "--check", "--page", str(page)])
    with pytest.raises(UsageError, match="run scripts/commands_page.py"):
        commands_page.main()
    assert page.read_text() == "# Commands\n"
    monkeypatch.setattr(sys, "argv", ["commands_page.py", "--page", str(page)])
    commands_page.main()
    monkeypatch.setattr(sys, "argv", ["commands_page.py", "--check", "--page", str(page)])
    commands_page.main()
    assert page.read_text() == commands_page.page()


# -- completion


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    monkeypatch.setenv("_ENTMTP_LOCAL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    return [each.split(",", 1)[1] for each in CliRunner().invoke(main, []).stdout.splitlines()]


def test_commands_options_and_models_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "cached_models", lambda: ["o/r:Q4_K_M", "p/q:Q8_0"])
    assert completed(monkeypatch, "entmtp-local ca") == ["calibrate"]
    assert completed(monkeypatch, "entmtp-local chat --mtp") == ["--mtp-model"]
    assert completed(monkeypatch, "entmtp-local run o") == ["o/r:Q4_K_M", "o"]
    assert completed(monkeypatch, "entmtp-local bench p/q:Q8_0 ") == ["o/r:Q4_K_M", "p/q:Q8_0", ""]
    assert completed(monkeypatch, "entmtp-local completion ") == ["bash", "zsh", "fish"]
    assert completed(monkeypatch, "entmtp-local run --policy ent") == ["entmtp", "entropy-chain"]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Store.default().journal("talk", "Hi", 0).close()
    assert completed(monkeypatch, "entmtp-local chat --load t") == ["talk"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_this_program(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_ENTMTP_LOCAL_COMPLETE" in result.stdout and f"{shell}_complete" in result.stdout
    program = shutil.which(shell)
    if program:
        subprocess.run([program, "-n"], input=result.stdout, text=True, check=True)


def test_an_unknown_shell_is_refused_with_the_known_ones() -> None:
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2 and "'bash', 'zsh', 'fish'" in result.stderr
