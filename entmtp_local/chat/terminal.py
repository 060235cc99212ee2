"""The three standard streams, on a terminal or in a pipe: reading entries, and saying what is not the model's words."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.chat.quoting import goes_on
from entmtp_local.chat.stream import dimmed, without_control
from entmtp_local.chat.wrapping import columns_of, cut, wrap
from entmtp_local.errors import UsageError
from entmtp_local.files import user_data

if TYPE_CHECKING:
    from entmtp_local.chat.editing import Complete, LineEditor

PROMPT = "> "
_CHANGES = "edit> "
_GOES_ON = "... "


class Leave(EOFError):
    """The user wants to leave."""


class Terminal:
    """The three standard streams, and what the user sees of them.

    Args:
        stdin, stdout, stderr: text streams.
        show_stats: write the line of figures after each answer.
    """

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO, show_stats: bool) -> None:
        self.stdin, self.stdout, self.stderr, self.show_stats = stdin, stdout, stderr, show_stats
        self.pressed = Interrupt()  # while entered: Ctrl-C raises where entries are read, and is counted elsewhere
        self._editor: LineEditor | None = None
        self._readline: Any = None
        self._leaving = False
        self._keys: tuple[list[Any], list[Any]] | None = None  # settings of the terminal: as the shell had them, and quiet

    @property
    def interactive(self) -> bool:
        """A person types: prompt, hints and line editing are wanted."""
        return self.stdin.isatty()

    @property
    def can_move(self) -> bool:
        """What was written can be written over: Markdown is drawn, and a status line."""
        return self.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

    @property
    def colored(self) -> bool:
        return self.can_move and not os.environ.get("NO_COLOR")

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self.stdout.fileno())
        except (OSError, ValueError):
            columns, rows = shutil.get_terminal_size()
        return columns or 80, rows or 24

    @property
    def edits(self) -> bool:
        """Entries are edited, so that one can stand there already."""
        return self._editor is not None

    def use_editor(self, complete: Complete, *, writes_history: bool = True) -> None:
        """Edit lines from now on, where this terminal can.

        Args:
            writes_history: they are found again at the next start.
        """
        if not self.interactive:
            return
        if self.can_move:
            # only here: its import takes as long as all others together
            from entmtp_local.chat.editing import LineEditor

            history = user_data() / "entmtp-local" / "history"
            term = os.environ.get("TERM")
            self._editor = LineEditor(
                self.stdin, self.stdout, history, complete, term, self.pressed, writes_history=writes_history
            )
        elif self.stdout.isatty():
            # Importing it is what switches input() over; some Pythons lack it.
            with suppress(ImportError):
                self._readline = importlib.import_module("readline")

    def read_entry(self) -> str:
        """Read one entry, without its newline; one that begins with three quotation marks goes on until three more.

        Raises: EOFError at the end of input and where the user leaves, KeyboardInterrupt at Ctrl-C in a pipe,
            UsageError for bytes that are not UTF-8.
        """
        while True:
            try:
                entry = self._read(PROMPT, "")
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                if self._editor is None:
                    self.note("")
                    # a line that had something on it is cleared; without readline nobody knows
                    if self._readline is not None and self._readline.get_line_buffer():
                        self._leaving = False
                        continue
                elif self._editor.cleared:
                    self._leaving = False
                if self._leaving:
                    raise Leave from None
                self._leaving = True
                self.note("(Ctrl-C again or Ctrl-D leaves)")
                continue
            self._leaving = False
            return entry

    def change_entry(self, entry: str) -> str:
        """Let an entry be changed where lines are edited, or another one be given in its place.

        Raises: EOFError and KeyboardInterrupt where it is to stay as it was, UsageError for bytes that are not UTF-8.
        """
        return self._read(_CHANGES, entry)

    def _read(self, prompt: str, default: str) -> str:
        try:
            if self._editor is not None:
                entry = self._editor.read(prompt, default)
            else:
                entry = self._read_line(prompt)
                while goes_on(entry):
                    try:
                        entry += "\n" + self._read_line(_GOES_ON)
                    except EOFError:
                        break
            entry.encode("utf-8")
        except UnicodeError:
            raise UsageError("the input is not UTF-8 text; convert it first, for instance with iconv.") from None
        return entry

    def _read_line(self, prompt: str) -> str:
        with self.pressed.raising():
            return self._raw_line(prompt)

    def _raw_line(self, prompt: str) -> str:
        if self.interactive and self.stdout.isatty():
            # input() is the one way to the line editing of the readline module.
            return input(prompt)
        if self.interactive:
            self.note(prompt, end="")
        line = self.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    def write(self, text: str) -> None:
        """Show text at once."""
        if text:
            self.stdout.write(without_control(text) if self.stdout.isatty() else text)
            self.stdout.flush()

    def draw(self, codes: str) -> None:
        """Write text with control sequences at once, in one piece so that nothing flickers."""
        if codes:
            self.stdout.write(codes)
            self.stdout.flush()

    def note(self, text: str, end: str = "\n", *, has_codes: bool = False) -> None:
        """Tell the user something that is not the model's words, in whole words where it has several rows.

        Args:
            has_codes: there are control sequences in it that the terminal is to obey; in any other text they are dropped.
        """
        if self.stderr.isatty() and not has_codes:
            text = "\n".join(wrap(without_control(text), self.size[0]))
        self.stderr.write(dimmed(text, self.stderr) + end)
        self.stderr.flush()

    def in_a_row(self, text: str) -> str:
        """What of a note fits into one row of the terminal, with an ellipsis where that is not all of it."""
        width = self.size[0]
        if not self.stderr.isatty() or columns_of(text := without_control(text)) <= width:
            return text
        return cut(text, width - 1).rstrip() + "…"

    def status(self, text: str) -> None:
        """Show a line that the next one replaces, on a terminal only; "" takes it away."""
        if self.stderr.isatty() and self.can_move:
            columns, _ = self.size
            self.stderr.write("\r" + dimmed(text[: columns - 1], self.stderr) + "\x1b[K")
            self.stderr.flush()

    @contextmanager
    def quiet_keys(self) -> Iterator[None]:
        """What is typed meanwhile is not shown, and is there when the next entry is read. Ctrl-C works as ever."""
        if not self.interactive or not self.can_move or sys.platform == "win32":
            yield
            return
        import termios

        file = self.stdin.fileno()
        try:
            before = termios.tcgetattr(file)
            quiet = list(before)
            quiet[3] &= ~(termios.ECHO | termios.ICANON)
            quiet[3] |= termios.NOFLSH  # or Ctrl-C would throw away what has been typed, and half of what is being drawn
            termios.tcsetattr(file, termios.TCSANOW, quiet)
        except termios.error:
            yield
            return
        self._keys = before, quiet
        try:
            yield
        finally:
            self.shell_keys(True)
            self._keys = None

    def shell_keys(self, on: bool) -> None:
        """Inside `quiet_keys`, have the keys as the shell had them, and quiet again."""
        if self._keys is None:
            return
        import termios

        with suppress(termios.error):
            termios.tcsetattr(self.stdin.fileno(), termios.TCSANOW, self._keys[not on])
