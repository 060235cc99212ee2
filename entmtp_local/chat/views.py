"""An answer on a terminal while it is streamed: Markdown that is drawn as it grows, or plain text.

What is finished is written once. Of the block under way the new characters are appended, and now and then it is drawn anew in
place, as often as the time for drawing allows. Everything goes out in one write, at most thirty times a second, between steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from entmtp_local.chat.blocks import Block, BlockSplitter
from entmtp_local.chat.stream import without_control
from entmtp_local.chat.terminal import Terminal
from entmtp_local.chat.wrapping import columns_of, cut, wrap

#: Seconds between two writes.
INTERVAL = 1 / 30
# Of the time that passes, what may be spent on drawing unfinished blocks; every block is drawn once more when it is finished.
_SHARE = 0.002
_CODES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class View(Protocol):
    """Shows an answer."""

    def feed(self, text: str) -> None:
        """More of the answer."""

    def reason(self, text: str) -> None:
        """More of what the model thinks before it."""

    def tick(self) -> None:
        """A step is over: show what has come, if it is time."""

    def forget(self) -> None:
        """What was drawn is not where it was: go on below."""

    def finish(self) -> None:
        """Show the rest, and end the line."""


class PlainView:
    """Text as it is; where a terminal would break words at its edge, in rows.

    Args:
        shows_reasoning: False leaves it out.
    """

    def __init__(self, terminal: Terminal, *, shows_reasoning: bool = True, clock: Callable[[], float] = perf_counter) -> None:
        self._terminal = terminal
        self._shows_reasoning = shows_reasoning
        self._clock = clock
        self._pending: list[str] = []
        self._ends_line = False
        self._next = 0.0
        # elsewhere text is copied from, and has no more rows than the model gave it
        self._wraps = not terminal.can_move and terminal.stdout.isatty()
        self._row = ""  # what stands in the last row

    def feed(self, text: str) -> None:
        self._pending.append(text)

    def reason(self, text: str) -> None:
        if self._shows_reasoning:
            self._pending.append(text)

    def tick(self) -> None:
        if self._pending and (now := self._clock()) >= self._next:
            self._next = now + INTERVAL
            self._flush()

    def forget(self) -> None:
        return

    def finish(self) -> None:
        self._flush(last=True)
        # Piped answers end with exactly one newline; a terminal must not go on in the middle of a line.
        if not self._ends_line:
            self._terminal.write("\n")

    def _flush(self, *, last: bool = False) -> None:
        text = "".join(self._pending)
        self._pending.clear()
        if self._wraps:
            text = self._in_rows(text, last=last)
        if text:
            self._terminal.write(text)
            self._ends_line = text.endswith("\n")

    def _in_rows(self, text: str, *, last: bool) -> str:
        width = max(1, self._terminal.size[0] - 1)
        text = without_control(text).expandtabs(4)
        # a word goes on, and nothing can be taken back; other scripts break anywhere
        word = re.split(r"\s", text)[-1]
        if not last and word.isascii() and len(word) < width:
            text = text.removesuffix(word)
            self._pending.append(word)
        if not text:
            return ""
        rows = wrap(self._row + text, width)
        if not rows[0].startswith(self._row.rstrip()):
            # the row ends in a word that does not fit, and what of it is there stays
            begun = cut(text, width - columns_of(self._row))
            rows = [self._row + begun, *wrap(text[len(begun) :], width)]
        out = "\n".join([rows[0][len(self._row) :], *rows[1:]])
        self._row = rows[-1]
        return out


class MarkdownView:
    """Markdown, with the reasoning before it dimmed or as a count.

    Args:
        terminal: one that can move its cursor.
        shows_reasoning: False shows only that there is some.
        clock: seconds that pass; `timer` those that drawing takes.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        shows_reasoning: bool = True,
        clock: Callable[[], float] = perf_counter,
        timer: Callable[[], float] = perf_counter,
    ) -> None:
        # only here: with its parser it takes a sixth of a second to import
        from entmtp_local.chat.markdown import Painter

        self._terminal = terminal
        self._shows_reasoning = shows_reasoning
        self._clock, self._timer = clock, timer
        self._painter = Painter(colored=terminal.colored)
        self._splitter = BlockSplitter()
        self._pending = ""
        self._thought = ""  # reasoning that is not shown yet
        self._n_thoughts = 0
        self._column = 0  # where the reasoning has got to in its row
        self._begin = clock()
        self._spent = 0.0
        self._next = 0.0
        # The unfinished block on the screen: the rows that the cursor has to go up, and what stands in the last one.
        self._n_above = 0
        self._last = ""
        self._drawn = False  # something of it is on the screen
        self._shown = ""  # its source as far as it is on the screen

    def feed(self, text: str) -> None:
        self._pending += without_control(text).expandtabs(4)

    def reason(self, text: str) -> None:
        self._thought += without_control(text).expandtabs(4)

    def tick(self) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + INTERVAL
        self._flush(now)

    def forget(self) -> None:
        self._n_above, self._last, self._drawn, self._shown = 0, "", False, ""
        self._column = 0

    def finish(self) -> None:
        self._flush(self._clock(), last=True)
        if self._column:
            self._terminal.draw(f"{_PLAIN}\n")

    # -- drawing

    def _flush(self, now: float, *, last: bool = False) -> None:
        out = self._reasoning()
        if self._pending or last:
            if self._n_thoughts and self._pending.strip():
                out += self._end_reasoning()
            width, height = self._room()
            finished = self._splitter.feed(self._pending)
            self._pending = ""
            if last:
                finished += self._splitter.finish()
            if finished:
                out += self._erase() + self._paint(finished, width)
            out += self._fitting_tail(width, max(4, height - 2), now)
        self._terminal.draw(out)

    def _fitting_tail(self, width: int, most: int, now: float) -> str:
        """The unfinished block, less what of it has to be finished because no row that has left the screen can be drawn anew."""
        out = ""
        left: int | None = None  # characters of the unfinished block after the last cut
        while True:
            before = self._n_above, self._last, self._drawn, self._shown
            tail = self._tail(width, now)
            n = len(self._shown)
            # a cut that left as much as before: the line that opens a fence alone fills the screen
            if self._n_above < most or n == left:
                return out + tail
            left = n
            self._n_above, self._last, self._drawn, self._shown = before
            out += self._erase() + self._paint(self._splitter.cut(), width)

    def _room(self) -> tuple[int, int]:
        """Columns and rows to draw in. The last column stays free: a row that fills it has no place for the cursor after it."""
        width, height = self._terminal.size
        return max(1, width - 1), height

    def _erase(self) -> str:
        """Go to where the unfinished block begins; what is drawn there next takes its place row by row."""
        codes = (f"\x1b[{self._n_above}A" if self._n_above else "") + ("\r" if self._drawn else "")
        self._n_above, self._last, self._drawn, self._shown = 0, "", False, ""
        return codes

    def _paint(self, blocks: list[Block], width: int) -> str:
        begin = self._timer()
        rows = [row for block in blocks for row in self._painter.rows(block, width)]
        self._spent += self._timer() - begin
        return "".join(f"{row}\x1b[K\n" for row in rows) + "\x1b[J"

    def _tail(self, width: int, now: float) -> str:
        """The unfinished block: drawn anew where there is time for it, else what is new of it appended."""
        tail = self._splitter.tail
        if tail is None or tail.source == self._shown:
            return ""
        if self._spent > _SHARE * (now - self._begin):
            return self._append(width)
        out = self._erase()
        begin = self._timer()
        rows = self._painter.rows(tail, width)
        self._spent += self._timer() - begin
        if not rows or rows == [""]:
            return out
        self._n_above, self._drawn, self._shown = len(rows) - 1, True, tail.source
        self._last = _CODES.sub("", rows[-1])
        return out + "".join(f"{row}\x1b[K\n" for row in rows[:-1]) + rows[-1] + "\x1b[J"

    def _append(self, width: int) -> str:
        """Add what is new of the unfinished block to what is on the screen, as it is."""
        tail = self._splitter.tail
        if tail is None:
            return ""
        if not self._drawn or not tail.source.startswith(self._shown):
            out, new = self._erase() + ("\x1b[K\n" if tail.gap else "") + "\x1b[J", tail.source
            self._n_above, self._last = int(tail.gap), " " * min(tail.indent, width // 2)
            out += self._last
        else:
            out, new = "", tail.source[len(self._shown) :]
        self._drawn, self._shown = True, tail.source
        rows = wrap(self._last + new, width)
        kept = self._last
        if not rows[0].startswith(kept):
            # the word that the last row ends with has become too long for it: it goes to the next
            common = columns_of(rows[0])
            out += f"\r\x1b[{common}C\x1b[K" if common else "\r\x1b[K"
            kept = rows[0]
        out += rows[0][len(kept) :] + "".join(f"\x1b[K\n{row}" for row in rows[1:])
        self._n_above += len(rows) - 1
        self._last = rows[-1]
        return out

    def _reasoning(self) -> str:
        if not self._thought:
            return ""
        text, self._thought = self._thought, ""
        if not self._n_thoughts:
            text = text.lstrip("\n")
        self._n_thoughts += len(text)
        if not self._shows_reasoning:
            self._column = 1
            return f"\r{_DIM}(thinking, {self._n_thoughts} characters){_PLAIN}\x1b[K"
        width, _ = self._room()
        rows = wrap(" " * self._column + text, width) if text else [""]
        out = _DIM + rows[0][self._column :] + "".join(f"\n{row}" for row in rows[1:]) + _PLAIN
        self._column = columns_of(rows[-1])
        return out

    def _end_reasoning(self) -> str:
        self._n_thoughts = 0
        ended = self._column > 0
        self._column = 0
        if not self._shows_reasoning:
            return "\r\x1b[K"
        return "\n\n" if ended else "\n"
