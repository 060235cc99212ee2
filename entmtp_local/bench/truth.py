"""Whether an arm writes what the model writes: agreement with plain decoding, loops, and what a difference means.

At temperature 0 an arm's text is compared with plain decoding of this runtime. Passes of different widths round differently, in
stock llama.cpp too: where two tokens are nearly tied, either is the model's own, and what follows cannot be compared. Any other
difference makes the arm invalid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entmtp_local.bench.repetition import find_loop
from entmtp_local.bench.text import Text
from entmtp_local.bench.worker import END, Gap

# Logits closer than this are a tie; on a CPU passes of different widths differ by less than 0.01.
NEAR_TIE = 0.03
# Where a device rounds more coarsely, so many times what was measured at that very row, but never more than this: a wrong row is
# not to be taken for rounding.
_ROUNDINGS = 4
MAX_NEAR_TIE = 0.25
# How much less likely than the right one a number is that is no token of the model's: a large one, since JSON has no infinity.
NO_TOKEN = 1e300
# Of the chi-square test: one in ten thousand right arms would be refused.
MIN_P = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a text leaves plain decoding.

    Args:
        at: index of the first token that differs.
        token: the arm's, END where its text ended.
    """

    at: int
    token: int


def ending(text: Text) -> list[int]:
    """The tokens of a text, with END where the model ended it."""
    assert text.tokens is not None
    return [*text.tokens, END] if text.ended else list(text.tokens)


def first_difference(plain: Sequence[int], text: Text) -> Difference | None:
    """
    Args:
        plain: tokens of plain decoding, with END where it ended.
    """
    found = ending(text)
    for i, (a, b) in enumerate(zip(plain, found, strict=False)):
        if a != b:
            return Difference(i, b)
    if len(found) != len(plain):
        # one of them stopped before the number of tokens that was asked for, and without a reason
        return Difference(min(len(found), len(plain)), found[len(plain)] if len(found) > len(plain) else END)
    return None


def checked(plain: Sequence[int] | None, text: Text) -> dict[str, Any]:
    """What is kept of a text's truth.

    Args:
        plain: None where texts cannot be compared, as at temperatures above 0.
    """
    found: dict[str, Any] = {"loops": text.tokens is not None and find_loop(text.tokens) is not None, "compared": False}
    if plain is None or text.tokens is None:
        return found
    difference = first_difference(plain, text)
    found["compared"] = True
    found["difference"] = None if difference is None else {"at": difference.at, "token": difference.token}
    return found


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one difference: how far apart plain decoding's token and the other one are in the model's own row."""

    gap: float
    tolerance: float

    @property
    def near_tie(self) -> bool:
        return self.gap <= self.tolerance

    @staticmethod
    def of(gap: Gap, *, foreign: bool) -> Judgement:
        """
        Args:
            foreign: the arm has kernels of its own, whose rounding is not known.
        """
        tolerance = MAX_NEAR_TIE if foreign else min(MAX_NEAR_TIE, max(NEAR_TIE, _ROUNDINGS * gap.rounding))
        return Judgement(gap.gap, tolerance)


def verdict(texts: Iterable[Mapping[str, Any]], judged: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Sum up the texts of one arm.

    Args:
        texts: with what `checked` keeps, and the "key" of their difference in `judged`.
        judged: gap and tolerance by key; a difference that is not among them has not been judged yet.
    Returns: numbers of texts compared, same, near_ties, wrong, unjudged; and the first wrong one, or else the first near-tie.
    """
    counts = dict.fromkeys(("compared", "same", "near_ties", "wrong", "unjudged"), 0)
    first: dict[str, Any] | None = None
    for text in texts:
        if not text["compared"]:
            continue
        counts["compared"] += 1
        difference = text["difference"]
        if difference is None:
            counts["same"] += 1
            continue
        judgement = judged.get(text["key"])
        if judgement is None:
            counts["unjudged"] += 1
            continue
        near = judgement["gap"] <= judgement["tolerance"]
        counts["near_ties" if near else "wrong"] += 1
        if first is None or (first["near_tie"] and not near):
            first = {**difference, **judgement, "near_tie": near}
    return {**counts, "first_difference": first}
