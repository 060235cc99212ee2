"""Entries of several lines: what stands between two times three quotation marks."""

from __future__ import annotations

QUOTES = '"""'


def goes_on(entry: str) -> bool:
    """Whether an entry has begun with quotation marks that are not closed yet."""
    return entry.startswith(QUOTES) and not entry[len(QUOTES) :].rstrip().endswith(QUOTES)


def unquoted(entry: str) -> str | None:
    """What stands between the quotation marks; None where an entry has none. It is no command, whatever it begins with."""
    if not entry.startswith(QUOTES):
        return None
    return entry[len(QUOTES) :].rstrip().removesuffix(QUOTES).strip("\n")
