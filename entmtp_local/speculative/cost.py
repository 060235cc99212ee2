"""What passes cost: seconds of a verification by its number of nodes, and of a level of drafts. Measured, then kept up to date.

A verification's seconds are a staircase over its size, measured once per session. A step that takes longer or shorter moves its
own size most and the others a little, because longer contexts make every size dearer. Sizes that were not measured are never
recommended.
"""

from __future__ import annotations

from collections.abc import Mapping

# Sizes of trees, the root included, that are measured and used: each has a graph of its own in the engine.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
_OWN, _OTHERS = 0.1, 0.03  # weights of the newest step
_LEVEL = 0.05
# A step that was interrupted by something else says nothing of its size.
_MOST = 3.0


class CostModel:
    """Seconds of passes; `seconds[i]` are those of `sizes[i]` nodes.

    Args:
        verify_seconds: of one pass by number of nodes, the root included; at least of one node.
    """

    def __init__(self, verify_seconds: Mapping[int, float]) -> None:
        self.sizes = sorted(verify_seconds)
        self.seconds = [verify_seconds[size] for size in self.sizes]
        self.level_seconds = 0.0

    def observe_verify(self, n_nodes: int, seconds: float) -> None:
        """Count a verification; sizes that are none of `sizes` are passed over."""
        if n_nodes not in self.sizes:
            return
        own = self.sizes.index(n_nodes)
        change = seconds / self.seconds[own] - 1
        if change < _MOST - 1:
            for i in range(len(self.seconds)):
                self.seconds[i] *= 1 + (_OWN if i == own else _OTHERS) * change

    def observe_draft(self, n_levels: int, seconds: float) -> None:
        level = seconds / n_levels
        if self.level_seconds == 0.0:
            self.level_seconds = level
        elif level < _MOST * self.level_seconds:
            self.level_seconds += _LEVEL * (level - self.level_seconds)
