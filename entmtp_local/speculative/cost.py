"""What passes cost: seconds of a verification by its number of nodes, and of a level of drafts. Measured, then kept up to date.

A verification's seconds are a staircase over its size, measured once per session; longer contexts make every size dearer, which
one factor follows. Sizes that were not measured are never recommended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

# Sizes of trees, the root included, that are measured and used: each has a graph of its own in the engine.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
_RATE = 0.05  # weight of the newest step in the averages
# A step that was interrupted by something else says nothing of its size.
_MOST = 3.0


class CostModel:
    """Args:
    verify_seconds: of one pass by number of nodes, the root included; at least {1: seconds}
    """

    def __init__(self, verify_seconds: Mapping[int, float]) -> None:
        self.sizes = sorted(verify_seconds)
        # dearer sizes of fewer nodes are never worth it, but the staircase is kept as it was measured
        self.seconds = [verify_seconds[size] for size in self.sizes]
        self.factor = 1.0  # what the context has grown by, and the machine got slower, since they were measured
        self.level_seconds = 0.0

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def verify(self) -> npt.NDArray[np.float64]:
        """Seconds of a pass of each of `sizes`."""
        return np.array(self.seconds) * self.factor

    def size_for(self, n_nodes: int) -> int:
        """Index of the largest measured size of at most so many nodes."""
        return max(0, bisect_right(self.sizes, n_nodes) - 1)

    def observe_verify(self, n_nodes: int, seconds: float) -> None:
        i = self.size_for(n_nodes)
        if self.sizes[i] != n_nodes:
            return
        ratio = seconds / self.seconds[i]
        if ratio < _MOST * self.factor:
            self.factor += _RATE * (ratio - self.factor)
            self.seconds[i] *= 1 + 0.1 * _RATE * (ratio / self.factor - 1)

    def observe_draft(self, n_levels: int, seconds: float) -> None:
        level = seconds / n_levels
        if self.level_seconds == 0.0:
            self.level_seconds = level
        elif level < _MOST * self.level_seconds:
            self.level_seconds += _RATE * (level - self.level_seconds)
