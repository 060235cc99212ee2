"""Text in rows of a terminal: by columns, of which some characters take two and some none."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells


def columns_of(text: str) -> int:
    """Columns that a text without control characters takes."""
    return cell_len(text)


def cut(text: str, width: int) -> str:
    """As much of a text from its beginning as fits into columns."""
    return (*chop_cells(text, width), "")[0] if width > 0 else ""


def wrap(text: str, width: int) -> list[str]:
    """Rows of at most `width` columns, cut at spaces where that is possible; every newline begins a row."""
    rows: list[str] = []
    for line in text.split("\n"):
        while cell_len(line) > width:
            # a character of two columns stands alone where there is but one; joiners without anything to join give no piece
            fits = (*chop_cells(line, width), line)[0] or line[0]
            if fits == line:
                break
            # a space that does not fit any more is dropped
            at = len(fits) if line[len(fits) : len(fits) + 1] == " " else fits.rfind(" ")
            if at <= len(line) - len(line.lstrip(" ")):
                rows.append(fits)
                line = line[len(fits) :]
            else:
                rows.append(line[:at])
                line = line[at + 1 :]
        rows.append(line)
    return rows
