"""Tells whether a text has fallen into a loop. Knows nothing of models: tokens are numbers.

Small models, and larger ones at temperature 0, often end in repeating themselves. Looped text is predicted perfectly by any
draft head, so figures of acceptance and speed mean little without the share of texts that loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_PERIOD = 64
MIN_REPEATED = 24


@dataclass(frozen=True, slots=True)
class Loop:
    """Where a text begins to repeat itself."""

    start: int  # index of the first copy's first token
    period: int  # tokens of a copy


def find_loop(tokens: Sequence[int], *, max_period: int = MAX_PERIOD, min_repeated: int = MIN_REPEATED) -> Loop | None:
    """Find the earliest loop of a text.

    A text loops where, for some period p of at most `max_period`, at least max(2 p, `min_repeated`) consecutive tokens each
    equal the one p places before: at least three copies in a row, all tokens the same. A list that counts up is no loop, since
    its numbers differ; a long row of one token, such as a line of zeros, is one. What follows the loop does not matter.

    Args:
        tokens: the generated tokens, prompt left out.
    Returns: the loop that begins first, of the shortest period where several do; None without one.
    """
    text = np.asarray(tokens, dtype=np.int64)
    found: Loop | None = None
    for period in range(1, max_period + 1):
        needed = max(2 * period, min_repeated)
        if len(text) < period + needed:
            break
        differs = np.flatnonzero(text[period:] != text[:-period])
        edges = np.concatenate([[-1], differs, [len(text) - period]])
        long_enough = np.flatnonzero(np.diff(edges) - 1 >= needed)
        if len(long_enough):
            start = int(edges[long_enough[0]]) + 1
            if found is None or start < found.start:
                found = Loop(start, period)
    return found
