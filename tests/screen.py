"""A terminal that only remembers what it shows, for the views of an answer."""

from __future__ import annotations

import pyte


class Screen:
    """What chat's views use of `Terminal`, and what a person would see.

    Args:
        columns, rows: its size, which may be changed.
    """

    can_move = True

    def __init__(self, columns: int = 80, rows: int = 24, *, colored: bool = False) -> None:
        self.size = (columns, rows)
        self.colored = colored
        self.written = ""
        self.n_writes = 0
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.Stream(self._screen)

    def draw(self, codes: str) -> None:
        if codes:
            self.written += codes
            self.n_writes += 1
            # what the line discipline of a terminal does
            self._stream.feed(codes.replace("\n", "\r\n"))

    write = draw

    def note(self, text: str, end: str = "\n", *, has_codes: bool = False) -> None:
        self.draw(text + end)

    def resize(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)
        self._screen.resize(rows, columns)

    @property
    def lines(self) -> list[str]:
        """Everything from the first row on, scrolled off or not, without blanks at ends."""
        columns = self._screen.columns
        above = ["".join(row[i].data for i in range(columns)) for row in self._screen.history.top]
        found = [line.rstrip() for line in (*above, *self._screen.display)]
        while found and not found[-1]:
            found.pop()
        return found

    @property
    def cursor(self) -> tuple[int, int]:
        return self._screen.cursor.x, self._screen.cursor.y
