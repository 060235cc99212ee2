"""Code as rows of a terminal, with the colours that its theme gives to the first eight: they are readable on its background."""

from __future__ import annotations

from functools import lru_cache

from pygments.lexer import Lexer
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.token import Token, _TokenType
from pygments.util import ClassNotFound
from rich.cells import cell_len, chop_cells

_COLORS: dict[_TokenType, str] = {
    Token.Comment: "2",
    Token.Keyword: "35",
    Token.Literal.String: "32",
    Token.Literal.Number: "36",
    Token.Name.Builtin: "36",
    Token.Name.Class: "34",
    Token.Name.Decorator: "34",
    Token.Name.Function: "34",
    Token.Name.Tag: "34",
    Token.Generic.Deleted: "31",
    Token.Generic.Inserted: "32",
    Token.Generic.Heading: "1",
}


def code_rows(code: str, language: str, width: int, *, colored: bool) -> list[str]:
    """The rows of a piece of code; longer lines go on in the next row.

    Args:
        language: a name that Pygments knows, or any other for none.
    """
    rows: list[str] = []
    row: list[str] = []
    column = 0
    if not code.strip("\n"):
        return [""] * code.count("\n")
    for kind, text in _lexer(language).get_tokens(code):
        color = _color(kind) if colored else ""
        first = True
        for line in text.split("\n"):
            if not first:
                rows.append("".join(row))
                row, column = [], 0
            first = False
            while line and column + cell_len(line) > width:
                head = chop_cells(line, width - column)[0] if width - column > 1 else ""
                if not head and column == 0:
                    head = line[0]
                row.append(_painted(head, color))
                rows.append("".join(row))
                row, column, line = [], 0, line[len(head) :]
            if line:
                row.append(_painted(line, color))
                column += cell_len(line)
    return rows


def _painted(text: str, color: str) -> str:
    return f"\x1b[{color}m{text}\x1b[0m" if color and text.strip() else text


@lru_cache(maxsize=512)
def _color(kind: _TokenType) -> str:
    while kind is not Token:
        if kind in _COLORS:
            return _COLORS[kind]
        kind = kind.parent
    return ""


@lru_cache(maxsize=64)
def _lexer(language: str) -> Lexer:
    # the code as it is, with exactly one newline at its end
    options = {"stripnl": False, "ensurenl": True}
    try:
        return get_lexer_by_name(language, **options)
    except ClassNotFound:
        return TextLexer(**options)
