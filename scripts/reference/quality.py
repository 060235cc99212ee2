"""Judges what a reference model wrote: does the Python parse, is the answer right, does the turn end. Text in, figures out.

Knows neither models nor tokens. Everything here is exact and mechanical; none of it says whether a text is any good.
"""

from __future__ import annotations

import ast
import codeop
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from scripts.reference.corpus import held_out
from scripts.reference.math_problems import KINDS, topic

# A completion parses where at least this share of its lines lies in the longest prefix that does.
PARSES = 0.8

_STRAY = re.compile(r"<\|[a-z_]+\|>")


def python_share(prompt: str, completion: str, *, finished: bool) -> float | None:
    """How much of a completion is Python.

    Of the completion's whole lines (the last one is dropped where the text was cut), the longest prefix is taken with which
    prompt and completion parse together; its share of the completion's lines that are not blank is given. Blocks may be open
    at the end of the prefix: a final `if x:` gets a `pass`, an open `try` an `except`.

    Args:
        finished: the model ended the text itself.
    Returns: 0 to 1, 0 for a completion without a whole line; None where the prompt is not Python either.
    """
    if not _begins_python(prompt):
        return None
    lines = completion.split("\n") if finished else completion.split("\n")[:-1]
    n_written = sum(bool(line.strip()) for line in lines)
    for n in range(len(lines), 0, -1):
        if _parses(prompt + "\n".join(lines[:n]) + "\n"):
            return sum(bool(line.strip()) for line in lines[:n]) / n_written if n_written else 0.0
    return 0.0


def _parses(text: str) -> bool:
    return _is_python(text) or _is_python(text.rstrip("\n") + "\n" + _closing(text))


def _begins_python(text: str) -> bool:
    """Whether more lines could make it Python: brackets may be open too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codeop.compile_command(text, symbol="exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return _parses(text)
    return True


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _closing(text: str) -> str:
    """Lines that give the blocks which are open at the end of the text what they lack."""
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        return ""
    last = lines[-1]
    tail = []
    open_until = _indent(last)
    if last.rstrip().endswith(":"):
        tail.append(last[:open_until] + (" pass" if "\t" not in last[:open_until] else "\tpass"))
        open_until += 1  # the last line is itself the header of the innermost block
    for line in reversed(lines):
        if _indent(line) < open_until:
            open_until = _indent(line)
            if re.match(r"try\s*:", line.lstrip()):
                tail.append(f"{line[:open_until]}except Exception: pass")
    return "\n".join(tail) + "\n"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def given_answer(completion: str) -> str | None:
    """What follows the first "Answer:" at the beginning of a line; None where there is none."""
    match = re.search(r"^Answer:(.*)$", completion, re.MULTILINE)
    return match.group(1).strip() if match else None


@dataclass(frozen=True, slots=True)
class Question:
    """A problem with its right answer."""

    topic: str
    text: str
    answer: str


def held_out_questions(n_per_topic: int, seed: int = 1) -> Iterator[Question]:
    """Problems that no training text of a corpus with this seed contains, up to n of each topic.

    Some topics have so few questions that fewer are held out.
    """
    for make, _ in KINDS:
        rng = Random(f"{seed}/measure/{topic(make)}")
        seen: set[str] = set()
        for _ in range(400 * n_per_topic):
            text, _, answer = make(rng)
            if text not in seen and held_out(text, seed):
                seen.add(text)
                yield Question(topic(make), text, answer)
            if len(seen) == n_per_topic:
                break


def has_stray_marks(text: str) -> bool:
    """Whether a chat answer spells out marks of a template, such as <|im_start|>."""
    return _STRAY.search(text) is not None
