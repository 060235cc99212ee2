"""Streamed Markdown as blocks: what is finished can be drawn for good. It looks at lines only; what is in them is for a parser.

A block is what can be drawn on its own: a paragraph, a heading, an item of a list with what is nested in it, a table, a fence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"(`{3,}|~{3,})\s*([^`]*)$")
_HEADING = re.compile(r"#{1,6}(\s|$)")
_RULE = re.compile(r"([-*_])(\s*\1){2,}\s*$")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)])(\s|$)")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of Markdown.

    Args:
        source: its lines, without what they are indented by.
        indent: columns that it is indented by, as what belongs to an item of a list is.
        gap: an empty line stands before it.
    """

    source: str
    indent: int
    gap: bool

    @property
    def code(self) -> tuple[str, str] | None:
        """The lines in a fence, and its language; None for another block."""
        opening, newline, code = self.source.partition("\n")
        fence = _FENCE.match(opening)
        if fence is None:
            return None
        begin, _, last = code.rpartition("\n")
        closed = last.startswith(fence[1]) and not last.strip(fence[1][0] + " ")
        return (begin if closed else code) + newline, fence[2].partition(" ")[0]


class BlockSplitter:
    """Takes text in pieces of any size and gives blocks as they are finished."""

    def __init__(self) -> None:
        self._lines: list[str] = []  # of the unfinished block
        self._line = ""  # the unfinished line
        self._fence = ""  # what closes the fence that is open
        self._opening = ""  # its first line
        self._indent = 0
        self._gap = False
        self._any = False  # a block has been given

    @property
    def tail(self) -> Block | None:
        """The unfinished block, None where nothing is unfinished."""
        lines = [*self._lines, *([self._dedent(self._line)] if self._line.strip() or self._fence else [])]
        if not any(line.strip() for line in lines):
            return None
        indent = self._indent if self._lines else _indent_of(self._line)
        return Block("\n".join(lines if self._lines else [line.strip() for line in lines]), indent, self._gap and self._any)

    @property
    def in_fence(self) -> bool:
        return bool(self._fence)

    def feed(self, text: str) -> list[Block]:
        """Add text; the blocks that it finished."""
        lines = (self._line + text).split("\n")
        self._line = lines.pop()
        finished: list[Block] = []
        for line in lines:
            self._add(line.rstrip("\r"), finished)
        return finished

    def cut(self) -> list[Block]:
        """Finish what there is of the block under way, because there is no more room to draw it again; a fence goes on."""
        finished: list[Block] = []
        fence, opening, indent = self._fence, self._opening, self._indent
        if not self._lines or (fence and len(self._lines) == 1):
            # one endless line: cut it at a space
            at = self._line.rfind(" ")
            begin, self._line = (self._line[:at], self._line[at + 1 :]) if at > 0 else (self._line, "")
            if not self._lines:
                self._indent = _indent_of(begin)
            self._lines.append(self._dedent(begin))
        self._finish(finished)
        if fence:
            self._lines, self._fence, self._opening, self._indent = [opening], fence, opening, indent
        return finished

    def finish(self) -> list[Block]:
        """All that is left."""
        finished: list[Block] = []
        if self._line:
            self._add(self._line, finished)
            self._line = ""
        self._finish(finished)
        return finished

    def _dedent(self, line: str) -> str:
        return line[min(self._indent, _indent_of(line)) :]

    def _add(self, line: str, finished: list[Block]) -> None:
        text = line.strip()
        if self._fence:
            self._lines.append(self._dedent(line))
            if text.startswith(self._fence) and not text.strip(self._fence[0]):
                self._finish(finished)
            return
        if not text:
            self._finish(finished)
            self._gap = True
            return
        fence = _FENCE.match(text)
        item = _ITEM.match(text)
        if fence or _HEADING.match(text) or (item and self._starts_item(line)) or (text[0] == "|") != self._is_table():
            self._finish(finished)
        if not self._lines:
            self._indent = _indent_of(line)
        self._lines.append(self._dedent(line))
        if fence:
            self._fence, self._opening = fence.group(1), self._lines[0]
        elif _HEADING.match(text) or _RULE.match(text):
            self._finish(finished)

    def _starts_item(self, line: str) -> bool:
        """An item that is not nested in the one under way."""
        return not self._lines or not _ITEM.match(self._lines[0]) or _indent_of(line) <= self._indent + 1

    def _is_table(self) -> bool:
        return bool(self._lines) and self._lines[0].startswith("|")

    def _finish(self, finished: list[Block]) -> None:
        if self._lines:
            finished.append(Block("\n".join(self._lines), self._indent, self._gap and self._any))
            self._any = True
            self._gap = False
        self._lines, self._fence, self._opening, self._indent = [], "", "", 0


def _indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
