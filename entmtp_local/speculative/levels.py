"""How many levels to draft, by what each of them has lately promised."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise

from entmtp_local.speculative.cost import CostModel

_SURELY = 0.02  # share of a step's tokens by which drafts must be better than none
_EXPECTED = 4  # looks that what calibration saw counts for
_ENOUGH = 4  # looks after which levels are given up
_WEIGHT = 1 / 64  # weight of the newest look
_WEIGHT_MISSED, _PRIOR_MISSED = 1 / 128, 16  # of the newest step in `_missed`, which is believed to be 0 as often
_INTERRUPTED = 2.0  # times the seconds that were expected: more is something else's


class Levels:
    """What each level of drafts brings and takes, averaged apart, so that both can be weighed at the rate of today.

    Args:
        depth: levels at most.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        # [d]: tokens that level d + 1 promised where it was drafted, and the seconds that verifying it took more
        self._gains, self._prices, self._n_looks = [0.0] * depth, [0.0] * depth, [0] * depth
        # tokens that steps with drafts bring beyond what was expected, less the price of their seconds
        self._missed, self._n_steps = 0.0, 0
        self.best = depth  # levels that pay: all, until it has been seen what they bring

    def expect(self, chains: Mapping[int, tuple[float, float]]) -> None:
        """Begin with what chains bring, as if it had been seen some times.

        Args:
            chains: by length, from 0: tokens of a step, and seconds of its verification.
        """
        for shorter, longer in pairwise(chains):
            self._gains[longer - 1] = chains[longer][0] - chains[shorter][0]
            self._prices[longer - 1] = chains[longer][1] - chains[shorter][1]
        self._n_looks = [_EXPECTED] * self._depth

    def fade(self) -> None:
        """Let what was seen, perhaps of another text, count no more than what is seen next."""
        self._n_looks = [min(n, _EXPECTED) for n in self._n_looks]
        self._n_steps = 0

    def look(self, values: list[float], width: int, rate: float, cost: CostModel) -> None:
        """Note what each level of a drafted tree promises.

        Args:
            values: by node, breadth first, the chance that it is accepted.
            width: nodes of a level.
            rate: tokens per second that a second must bring.
        """
        sizes, seconds = cost.sizes, cost.seconds
        n_tokens, taken = 1.0, seconds[0]
        ascending = [-1.0]  # negative values of the nodes so far
        for level in range((len(values) - 1) // width):
            for value in values[1 + width * level : 1 + width * (level + 1)]:
                insort(ascending, -value)
            expected = list(accumulate(ascending))
            worth = [-expected[size - 1] - rate * seconds[i] for i, size in enumerate(sizes) if size <= len(expected)]
            best = worth.index(max(worth))
            self._n_looks[level] += 1
            weight = max(_WEIGHT, 1 / self._n_looks[level])
            before, then = n_tokens, taken
            n_tokens, taken = -expected[sizes[best] - 1], seconds[best]
            self._gains[level] += weight * (n_tokens - before - self._gains[level])
            self._prices[level] += weight * (taken - then - self._prices[level])

    def compare(self, n_tokens: float, seconds: float, expected: tuple[float, float], rate: float) -> None:
        """Note what a step with drafts brought and took, beside the tokens and seconds that were expected of it."""
        self._n_steps += 1
        weight = max(_WEIGHT_MISSED, 1 / (self._n_steps + _PRIOR_MISSED))
        more = min(seconds, _INTERRUPTED * expected[1]) - expected[1]
        self._missed += weight * (n_tokens - expected[0] - rate * more - self._missed)

    def choose(self, rate: float, n_tokens: float, draft_seconds: Callable[[int], float]) -> None:
        """Decide how many levels to draft from now on.

        Args:
            rate: tokens per second that a second must bring.
            n_tokens: of a step, lately.
            draft_seconds: what so many levels take beside their verification.
        """
        if self._n_looks[0] < _ENOUGH:
            return
        promised, best = self._missed, 0
        # drafts are begun where they surely bring something, and given up where they surely do not
        most = _SURELY * n_tokens * (-1 if self.best else 1)
        for level, (gain, price) in enumerate(zip(self._gains, self._prices, strict=True), start=1):
            promised += gain - rate * price
            worth = promised - rate * draft_seconds(level)
            if worth > most:
                best, most = level, worth
        self.best = best
