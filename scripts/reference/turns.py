"""What one exchange of a generated dialogue is made of.

Does not know any particular exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from scripts.reference import facts

Turn = tuple[str, str]  # what the user says, what the assistant answers


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What dialogues may draw on.

    Args:
        definitions: documented names.
        functions: (what a function does as an imperative sentence, or nothing, and its source).
        sentences: plain sentences from documentation, for tasks on text.
    """

    definitions: Sequence[facts.Definition]
    functions: Sequence[tuple[str, str]]
    sentences: Sequence[str]


def an(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


NUMBER_WORDS = ("", "", "", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


Intent = Callable[[Random, Knowledge], Turn]
