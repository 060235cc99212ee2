"""The line editor: history, completion, lines that go on. Knows neither commands nor models: it is told what to complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from entmtp_local.chat.quoting import goes_on
from entmtp_local.files import open_file

#: What completes a command's argument: words, or the names of files.
PATHS = "paths"
Complete = Callable[[str], "Iterable[str] | str"]


class LineEditor:
    """Reads lines on a terminal.

    Args:
        stdin, stdout: the terminal.
        history: file of the lines entered before; made where there is none, and done without where it cannot be.
        complete: given the words of a line but the last, what the last may be; PATHS for files.
        term: the terminal's kind.
    """

    def __init__(self, stdin: TextIO, stdout: TextIO, history: Path, complete: Complete, term: str | None) -> None:
        def size() -> Size:
            columns, rows = os.get_terminal_size(stdout.fileno())
            # a terminal that says nothing of itself
            return Size(rows or 24, columns or 80)

        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            completer=_Completer(complete),
            complete_while_typing=False,
            multiline=True,
            key_bindings=_keys(),
            # a request for the cursor's place would be answered into the middle of an answer
            output=Vt100_Output(stdout, size, term=term, enable_cpr=False),
            input=create_input(stdin),
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
            prompt_continuation=lambda width, _number, _wrapped: " " * width,
            reserve_space_for_menu=4,
            enable_open_in_editor=True,
            enable_suspend=True,
        )

    def read(self, prompt: str, default: str = "") -> str:
        """Read an entry, which may have several lines.

        Args:
            default: what stands there already.
        Raises: EOFError at Ctrl-D, and at Ctrl-C, where nothing has been entered.
        """
        return self._session.prompt(prompt, default=default)


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
        open_file(path).close()  # a pipe would be waited for
        return _SafeHistory(str(path))
    except OSError:
        return InMemoryHistory()


class _SafeHistory(FileHistory):
    """A full disc does not end the chat."""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            return

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def accept(event: KeyPressEvent) -> None:
        if goes_on(event.current_buffer.text):
            event.current_buffer.newline()
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    @keys.add("c-c")
    def clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return keys


class _Completer(Completer):
    def __init__(self, complete: Complete) -> None:
        self._complete = complete
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before, space, word = document.text_before_cursor.rpartition(" ")
        if not document.text.startswith("/") or "\n" in document.text_before_cursor:
            return
        known: Any = self._complete(before + space)
        if known == PATHS:
            # names of files may hold spaces: everything behind the command is one
            command, _, path = document.text_before_cursor.partition(" ")
            yield from self._paths.get_completions(Document(path), complete_event)
            return
        for each in known:
            if each.startswith(word):
                yield Completion(each, start_position=-len(word))
