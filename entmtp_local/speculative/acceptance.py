"""How likely the model is to confirm a drafted token: what the head says, corrected by what was seen.

The head's probability orders candidates well and is wrong by a factor that differs with rank, temperature, task and draft
vocabulary. So nodes are counted by rank and by bins of their log-probability, and each bin's share of accepted nodes replaces the
head's word as evidence grows.

Plain lists: a step asks for some twenty numbers, and NumPy's calls cost more than these.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import exp

_N_RANKS = 4  # ranks from here on are counted together
_EDGES = (-7.0, -5.5, -4.5, -3.5, -2.8, -2.2, -1.7, -1.3, -0.9, -0.6, -0.4, -0.25, -0.12, -0.05, -0.01)
_STRENGTH = 6.0  # nodes that the head's own word counts for
# Instead of all counts getting lighter with each step, the newest get heavier.
_GROWTH = 1 / 0.999
_HEAVY = 1e3


class AcceptanceModel:
    """Chances of nodes given that their parents are accepted."""

    def __init__(self) -> None:
        self._hits = [[0.0] * (len(_EDGES) + 1) for _ in range(_N_RANKS)]
        self._tries = [[0.0] * (len(_EDGES) + 1) for _ in range(_N_RANKS)]
        self._weight = 1.0

    def chances(self, logp: Sequence[float], ranks: Sequence[int]) -> list[float]:
        """P(accepted | parent accepted).

        Args:
            logp: (n,) the head's log-probability of each node given its parent, nats
            ranks: (n,) its rank among the continuations of its parent, from 0
        Returns: (n,)
        """
        hits, tries, own, top = self._hits, self._tries, _STRENGTH * self._weight, _N_RANKS - 1
        found = []
        for value, rank in zip(logp, ranks, strict=True):
            row = rank if rank < top else top
            cell = bisect_right(_EDGES, value)
            found.append((hits[row][cell] + own * exp(value)) / (tries[row][cell] + own))
        return found

    def observe(self, logp: float, rank: int, accepted: bool) -> None:
        """Count a node whose parent was accepted."""
        row, cell = min(rank, _N_RANKS - 1), bisect_right(_EDGES, logp)
        self._tries[row][cell] += self._weight
        if accepted:
            self._hits[row][cell] += self._weight

    def age(self) -> None:
        """A step has passed: what was counted before counts a little less."""
        self._weight *= _GROWTH
        if self._weight > _HEAVY:
            for counts in (*self._hits, *self._tries):
                counts[:] = [count / self._weight for count in counts]
            self._weight = 1.0
