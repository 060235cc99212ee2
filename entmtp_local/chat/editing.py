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
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from entmtp_local.chat.interrupt import Interrupt
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
        writes_history: lines that are entered from now on are added to it.
        complete: given the words of a line but the last, what the last may be; PATHS for files.
        term: the terminal's kind.
        pressed: counts the times that Ctrl-C is pressed from Enter on.
    """

    def __init__(
        self,
        stdin: TextIO,
        stdout: TextIO,
        history: Path,
        complete: Complete,
        term: str | None,
        pressed: Interrupt,
        *,
        writes_history: bool = True,
    ) -> None:
        def size() -> Size:
            columns, rows = os.get_terminal_size(stdout.fileno())
            # a terminal that says nothing of itself
            return Size(rows or 24, columns or 80)

        self._pressed, self._size = pressed, size
        self._changes = False  # what is there already is being changed
        self.cleared = False  # Ctrl-C has cleared the line
        self._session: PromptSession[str] = PromptSession(
            history=_history(history, writes_history),
            completer=_Completer(complete, self._make_room),
            complete_while_typing=False,
            multiline=True,
            key_bindings=self._keys(),
            # a request for the cursor's place would be answered into the middle of an answer
            output=Vt100_Output(stdout, size, term=term, enable_cpr=False),
            input=create_input(stdin),
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
            prompt_continuation=lambda width, _number, _wrapped: " " * width,
            enable_open_in_editor=True,
            enable_suspend=True,
        )

    def read(self, prompt: str, default: str = "") -> str:
        """Read an entry, which may have several lines.

        Args:
            default: what stands there already.
        Raises: EOFError at Ctrl-D where nothing has been entered, KeyboardInterrupt at Ctrl-C there and where something is
            changed that stood there already.
        """
        self._changes, self.cleared = bool(default), False
        entry = self._session.prompt(prompt, default=default, handle_sigint=False)
        # Ctrl-C behind Enter that came before it was a signal again
        keys = [*get_typeahead(self._session.input), *self._session.input.read_keys()]
        self._pressed.count += sum(key.key == Keys.ControlC for key in keys)
        store_typeahead(self._session.input, [key for key in keys if key.key != Keys.ControlC])
        return entry

    def _make_room(self, n: int) -> None:
        """For n lines below that of the entry, as far as the window has them."""
        self._session.reserve_space_for_menu = max(1, min(n + 1, self._size().rows - 1))

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        # not while the history is searched, where these keys end the search
        edits = has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=edits)
        def accept(event: KeyPressEvent) -> None:
            if goes_on(event.current_buffer.text):
                event.current_buffer.newline()
            else:
                self._pressed.take()
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=edits)
        def newline(event: KeyPressEvent) -> None:
            event.current_buffer.newline()

        @keys.add("c-c", filter=edits)
        def clear_or_leave(event: KeyPressEvent) -> None:
            if event.current_buffer.text and not self._changes:
                event.current_buffer.reset()
                self.cleared = True
            else:
                event.app.exit(exception=KeyboardInterrupt)

        return keys


def _history(path: Path, writes: bool) -> History:
    try:
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600, exist_ok=True)
        open_file(path).close()  # a pipe would be waited for
        return _SafeHistory(str(path)) if writes else _ReadHistory(str(path))
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


class _ReadHistory(_SafeHistory):
    """What was entered before, and what is entered now in memory alone."""

    def store_string(self, string: str) -> None:
        return


class _Completer(Completer):
    def __init__(self, complete: Complete, make_room: Callable[[int], None]) -> None:
        self._complete, self._make_room = complete, make_room
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        found = list(self._found(document, complete_event))
        self._make_room(len(found))
        yield from found

    def _found(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before, space, word = document.text_before_cursor.rpartition(" ")
        if not document.text.startswith("/") or "\n" in document.text_before_cursor:
            return
        known: Any = self._complete(before + space)
        if known == PATHS:
            # names of files may hold spaces: everything behind the command is one
            command, _, path = document.text_before_cursor.partition(" ")
            yield from self._files(path, complete_event)
            return
        for each in known:
            if each.endswith(":") and word.startswith(each):
                yield from self._paths.get_completions(Document(word[len(each) :]), complete_event)
            elif each.startswith(word):
                yield Completion(each, start_position=-len(word))

    def _files(self, path: str, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Names of files, in quotation marks where there is a blank in them, so that more may follow."""
        mark = path[:1] if path[:1] in ("'", '"') else ""
        begun = path[len(mark) :]
        for each in self._paths.get_completions(Document(begun), complete_event):
            name = begun + each.text
            quote = mark or ("'" if '"' in name or "\\" in name else '"') * (" " in name)
            # there is more to come of a folder
            end = "" if os.path.isdir(os.path.expanduser(name)) else quote
            yield Completion(quote + name + end, start_position=-len(path), display=each.display)
