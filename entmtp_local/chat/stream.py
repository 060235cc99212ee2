"""Generated tokens as text on a terminal or in a pipe: whole characters only, and one line of figures."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from typing import TextIO

from entmtp_local.engine import Stats
from entmtp_local.speculative.verify import STRICT, AcceptanceRule

# Steps from which an answer's speed can be held against the cost model's.
_MIN_STEPS = 32
# Models can generate escape sequences; a terminal would obey them. Tab and newline stay.
_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


class TextStream:
    """Turns token bytes into text, holding back what is not complete yet.

    Args:
        stop_texts: the text ends before the first of these.
    """

    def __init__(self, stop_texts: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop_texts = tuple(stop_texts)
        self._text = ""
        self._n_given = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything decoded so far; an incomplete last character is not part of it."""
        return self._text

    def feed(self, data: bytes) -> str:
        """Add the bytes of one token.

        Returns: the text that can be shown now.
        """
        if self.stopped:
            return ""
        n_before = len(self._text)
        self._text += self._decoder.decode(data)
        for stop in self._stop_texts:
            at = self._text.find(stop, max(0, n_before - len(stop)))
            if at >= 0:
                self._text = self._text[:at]
                self.stopped = True
        return self._give(len(self._text) if self.stopped else len(self._text) - self._n_held())

    def finish(self) -> str:
        """Give what was held back because a stop text might have begun."""
        return self._give(len(self._text))

    def _n_held(self) -> int:
        longest = 0
        for stop in self._stop_texts:
            for n in range(1, len(stop)):
                if self._text.endswith(stop[:n]):
                    longest = max(longest, n)
        return longest

    def _give(self, end: int) -> str:
        # A stop text found now may begin before the end of what was given: nothing is taken back.
        shown = self._text[self._n_given : end]
        self._n_given = max(self._n_given, end)
        return shown


def without_control(text: str) -> str:
    """Drop the control characters that a terminal would act on."""
    return text.translate(_CONTROL)


def stats_line(stats: Stats, rule: AcceptanceRule = STRICT, plain_step: float | None = None) -> str:
    """The line after an answer: rate, and where something was drafted what came of it; a rule that is not lossless is named.

    Args:
        plain_step: seconds of a step that drafts nothing, as the cost model has them.
    """
    # a few steps say more of what else the machine did
    return figures(stats, rule, plain_step if stats.n_steps >= _MIN_STEPS else None)


def figures(stats: Stats, rule: AcceptanceRule = STRICT, plain_step: float | None = None) -> str:
    """All figures in a line, as `stats_line` takes them."""
    parts = [f"{stats.n_generated} tokens", f"{stats.tokens_per_second:.1f} t/s"]
    if stats.n_nodes:
        # the end of an answer took its step, too: plain decoding has 1
        per_step = (stats.n_generated - 1 + stats.n_ends) / stats.n_steps
        parts += [
            f"{per_step:.2f} tokens/step",
            f"{100 * stats.acceptance:.0f} % accepted",
            f"{stats.nodes_per_step:.1f} nodes/step",
            f"{100 * stats.n_plain_steps / stats.n_steps:.0f} % plain steps",
        ]
        if plain_step:
            parts.append(f"{stats.tokens_per_second * plain_step:.2f}x plain")
    if not rule.lossless:
        parts.append(f"{rule.name} acceptance: not the model's own distribution")
    return "[" + ", ".join(parts) + "]"


def dimmed(text: str, stream: TextIO) -> str:
    """Make text less prominent where the stream is a terminal that shows it; see no-color.org."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[2m{text}\x1b[0m"
