"""An answer with how each of its tokens came: coloured, the entropy behind each above it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import perf_counter

from entmtp_local.chat.stream import without_control
from entmtp_local.chat.terminal import Terminal
from entmtp_local.chat.trace import COPIED, ROOT, SIBLING, SPINE, TokenTrace
from entmtp_local.chat.views import INTERVAL
from entmtp_local.chat.wrapping import columns_of, wrap

# Marks stand beside the colours: they tell the kinds apart where there are none.
_KINDS = {ROOT: ("", ""), SPINE: ("32", ">"), SIBLING: ("33", "+"), COPIED: ("36", "=")}
_DEEP = "92"  # of the spine, from this depth on
_DEEP_FROM = 3
_JOINED = "\N{NO-BREAK SPACE}"
_WITHOUT = "/trace on writes the entropies of answers to come above their tokens"


class TraceView:
    """Draws tokens in pairs of rows; the last pair is drawn anew as it fills."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = perf_counter) -> None:
        self._terminal = terminal
        self._clock = clock
        self._cells: list[TokenTrace] = []  # of the row under way
        self._columns = 0
        self._numbered = False  # there have been entropies
        self._n_open = -1  # rows above the cursor that the row under way has on the screen; -1 = it is not there
        self._out = ""
        self._next = 0.0

    def add(self, tokens: Iterable[TokenTrace]) -> None:
        """Show more tokens."""
        width, _ = self._terminal.size
        for each in tokens:
            self._numbered |= not math.isnan(each.entropy)
            if self._cells and self._columns + self._width(each) >= width:
                self._end_row()
            self._cells.append(each)
            self._columns += self._width(each)
            if each.text.endswith("\n"):
                self._end_row()

    def tick(self) -> None:
        now = self._clock()
        if now >= self._next and (self._cells or self._out):
            self._next = now + INTERVAL
            if self._cells and self._terminal.can_move:
                self._out += self._pair()
                self._n_open = int(self._has_numbers())
            self._terminal.draw(self._out)
            self._out = ""

    def forget(self) -> None:
        """What was drawn is not where it was: the row under way is drawn again below."""
        self._n_open = -1

    def finish(self) -> None:
        """Show the rest, and what the colours mean."""
        if self._cells:
            self._end_row()
        self._terminal.draw(self._out)
        self._out = ""
        above = "above each token the entropy that it was chosen at, in nats" if self._numbered else _WITHOUT
        colored = self._terminal.colored
        self._terminal.note(legend(f"; {above}", self._terminal.size[0], colored=colored), has_codes=colored)

    def _end_row(self) -> None:
        self._out += self._pair() + "\n"
        self._cells, self._columns, self._n_open = [], 0, -1

    def _has_numbers(self) -> bool:
        return not all(math.isnan(each.entropy) for each in self._cells)

    def _pair(self) -> str:
        begin = end = ""
        if self._terminal.can_move:
            begin = "\r" * (self._n_open >= 0) + "\x1b[1A" * (self._n_open > 0)
            end = "\x1b[K"
        above = "".join(_number(each).ljust(self._width(each)) for each in self._cells).rstrip()
        below = "".join(self._token(each) for each in self._cells).rstrip(" ")
        return begin + (f"{above}{end}\n" if self._has_numbers() else "") + below + end

    def _token(self, each: TokenTrace) -> str:
        text = self._text(each)
        color = _DEEP if each.how == SPINE and each.depth >= _DEEP_FROM else _KINDS[each.how][0]
        padding = " " * (self._width(each) - columns_of(text))
        return f"\x1b[{color}m{text}\x1b[0m{padding}" if color and self._terminal.colored else text + padding

    def _text(self, each: TokenTrace) -> str:
        text = without_control(each.text).replace("\n", "⏎").replace("\t", "⇥")
        text = text if text.strip() else "·" * len(text)
        most = max(1, self._terminal.size[0] - 4)
        if columns_of(text) > most:
            text = wrap(text, most)[0][:-1] + "…"
        return mark_of(each.how, self._terminal.colored) + text

    def _width(self, each: TokenTrace) -> int:
        return max(columns_of(self._text(each)), len(_number(each))) + 1


def mark_of(how: str, colored: bool) -> str:
    """What stands before a token of this kind; the spine, which is most of a text, has a colour where there are any."""
    return "" if how == SPINE and colored else _KINDS[how][1]


def legend(rest: str, width: int, *, colored: bool) -> str:
    """What colours and marks mean, and what else is to be said, in rows that end between words."""
    known = {ROOT: "the model's own", SPINE: "best draft", SIBLING: "second choice", COPIED: "copied"}
    names = {how: mark_of(how, colored) + name for how, name in known.items()}
    if not colored:
        return f"({', '.join(names.values())}{rest})"
    # codes have no columns, so that they come last; a name that is one word stays in its row
    whole = {how: name.replace(" ", _JOINED) for how, name in names.items()}
    text = "\n".join(wrap(f"({', '.join(whole.values())}{rest})", width))
    for how, name in whole.items():
        if color := _KINDS[how][0]:
            text = text.replace(name, f"\x1b[{color}m{name}\x1b[0m", 1)
    return text.replace(_JOINED, " ")


def _number(each: TokenTrace) -> str:
    return "" if math.isnan(each.entropy) else f"{each.entropy:.1f}"
