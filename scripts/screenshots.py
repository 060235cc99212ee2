#!/usr/bin/env python3
"""Takes the pictures of the chat that README shows: a real conversation with the shipped model on a pseudo-terminal.

What is typed is written below, what is answered is what the model says; the pictures are SVG with the terminal's own text.

    .venv/bin/python scripts/screenshots.py [--out docs/images] [MODEL]
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.reference.script import run  # noqa: E402

COLUMNS, ROWS = 88, 26
PATIENCE = 120.0

# what is typed, and what has to be on the screen before the picture is taken
SCENES: dict[str, Sequence[tuple[str, str]]] = {
    "chat": (("Hi! What can you do?\r", "t/s"), ("How do I keep a plant alive?\r", "t/s")),
    "trace": (("/trace on\r", "> "), ("Hi! What can you do?\r", "t/s")),
}

# rich's own, without the fonts that it has browsers fetch
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Terminal:
    """A program on a pseudo-terminal, and what it shows."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._raw = b""
        own = {"TERM": "xterm-256color", "XDG_DATA_HOME": str(folder), "XDG_CACHE_HOME": str(folder), "LANG": "C.UTF-8"}
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")} | own
        self.child = pexpect.spawn(command[0], list(command[1:]), env=environment, dimensions=(ROWS, COLUMNS), timeout=PATIENCE)

    def _read(self) -> None:
        try:
            data = self.child.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            raise SystemExit(f"the chat ended: {self.text}") from None
        self._raw += data
        self._stream.feed(data)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def wait_for(self, wanted: str, n: int) -> None:
        """Until something has been shown n times and the next prompt is being edited."""
        end = time.monotonic() + PATIENCE
        n_prompts = self._raw.count(b"\x1b[?2004h")
        while True:
            self._read()
            shown = len(re.findall(re.escape(wanted), self.text))
            if shown >= n and self._raw.count(b"\x1b[?2004h") > n_prompts:
                return
            if time.monotonic() > end:
                raise SystemExit(f"{wanted!r} did not appear: {self.text}")

    def picture(self, title: str) -> str:
        console = Console(
            record=True, width=COLUMNS, height=ROWS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
        )
        last = max((row for row in range(ROWS) if self.screen.display[row].strip()), default=0)
        for row in range(last + 1):
            line = Text()
            for column in range(COLUMNS):
                cell = self.screen.buffer[row][column]
                line.append(cell.data, _style(cell))
            line.rstrip()
            console.print(line, no_wrap=True)
        return console.export_svg(title=title, code_format=_SVG, unique_id="picture")


def _style(cell: pyte.screens.Char) -> Style:
    def color(name: str) -> str | None:
        if name == "default":
            return None
        return (
            f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))
        )

    return Style(
        color=color(cell.fg),
        bgcolor=color(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "entmtp_local", "chat", *([str(options.model)] if options.model else [])]
    for name, typed in SCENES.items():
        with tempfile.TemporaryDirectory() as folder:
            terminal = Terminal([*command, "--seed", "1", "--temp", "0.6", "--threads", "1"], Path(folder))
            terminal.wait_for("/help", 1)
            for n, (keys, wanted) in enumerate(typed, 1):
                terminal.child.send(keys)
                terminal.wait_for(wanted, sum(each == wanted for _, each in typed[:n]))
            path = options.out / f"{name}.svg"
            path.write_text(terminal.picture("entmtp-local chat"), encoding="utf-8")
            terminal.child.close(force=True)
        print(f"{path} written")


if __name__ == "__main__":
    run(main)
