"""Whether to draft, and how likely a path has to be for another level below it: by what levels have lately promised.

A level's nodes are worth no more than the path that leads to them. So what drafting one more level brings is averaged by the
head's own probability of the best path so far, and levels go on down to where that no longer pays for itself.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import exp, inf

from entmtp_local.speculative.cost import CostModel

ANY_PATH = -1e9  # log-probability that every path has, but for those to a token that ends the text
# Share of a step's tokens by which drafts are better than none where they are begun, and given up: what plain steps of a small
# model take is not known better (docs/LOG.md, 2026-12-01).
_BEGIN, _END = 0.05, 0.02
_EXPECTED = 16  # looks that what calibration saw counts for
_FADED = 2  # looks that what was seen counts for when drafts are looked at anew
_ENOUGH = 4  # looks, _FADED included, after which drafts are begun or given up
_WEIGHT = 1 / 64  # weight of the newest look
_WEIGHT_MISSED, _PRIOR_MISSED = 1 / 128, 16  # of the newest step in `_missed` and `_late`, which are believed to be 0 as often
_INTERRUPTED = 2.0  # times the seconds that were expected: more is something else's
# Paths by their log-probability: ranges of a third of a nat. What the path promises by itself counts for some looks.
_WIDTH, _N_RANGES, _PRIOR = 1 / 3, 15, 4.0
_EDGES = [-_WIDTH * i for i in range(_N_RANGES, 0, -1)]  # lower edges of all but the first, ascending
_NEXT = 0.7  # chance of the best token of a level, where the one before it is accepted
_AT_REST = _N_RANGES - 7  # the last range below which levels are looked at where nothing is drafted: paths of one in ten


class Levels:
    """What drafts bring and take, tokens and seconds averaged apart, so that both can be weighed at today's rates."""

    def __init__(self) -> None:
        # [i]: tokens and seconds of one more level, and of those that followed it, below a path of range i
        self._gains, self._prices, self._seen = [0.0] * (_N_RANGES + 1), [0.0] * (_N_RANGES + 1), [0] * (_N_RANGES + 1)
        # of all levels that are worth it: tokens, seconds of verifying them, and how many they are
        self._tokens, self._seconds, self._n_levels, self._n_looks = 0.0, 0.0, 1.0, 0
        # tokens and seconds of steps with drafts beyond what was expected
        self._missed, self._late, self._n_steps = 0.0, 0.0, 0
        self.pays = True  # whether to draft
        self._lowest = 0  # the last range below which levels pay

    @property
    def deeper(self) -> bool:
        """Whether there are levels that seem not to pay."""
        return self._lowest > 0

    def least(self, explores: bool) -> float:
        """The log-probability that a path must have for another level.

        Args:
            explores: look at some that seem not to pay.
        """
        lowest = self._lowest
        if explores:
            # at rest nothing else tells of deeper levels
            lowest = lowest - 1 if self.pays else min(lowest - 1, _AT_REST)
        return ANY_PATH if lowest <= 0 else inf if lowest > _N_RANGES else _EDGES[lowest - 1]

    def expect(self, n_tokens: float, seconds: float, n_levels: int) -> None:
        """Begin with what drafts of so many levels bring and take beyond a plain step, as if it had been seen some times.

        Args:
            seconds: of verifying them, without those of a plain step.
        """
        self._tokens, self._seconds, self._n_levels = n_tokens, seconds, max(1, n_levels)
        self._n_looks = _EXPECTED

    def fade(self) -> None:
        """Let what was seen, perhaps of another text, count no more than what is seen next.

        Looks that were too few to decide anything, as where a text ended, are added to.
        """
        if self._n_looks < _ENOUGH:
            return
        self._n_looks = _FADED
        self._seen = [min(n, _FADED) for n in self._seen]
        self._n_steps = 0

    def look(self, values: list[float], spine: Sequence[float], width: int, rate: float, cost: CostModel) -> int:
        """Note what the levels of a drafted tree promise.

        Args:
            values: by node, breadth first, the chance that it is accepted.
            spine: log-probability, by the head, of the best path to each level.
            width: nodes of a level.
            rate: tokens per second that a second must bring.
        Returns: levels that were worth drafting by what was known before.
        """
        sizes, seconds = cost.sizes, cost.seconds
        tokens, taken = [1.0], [seconds[0]]
        ascending = [-1.0]  # negative values of the nodes so far
        prices = [rate * each for each in seconds]
        for level in range(len(spine)):
            for value in values[1 + width * level : 1 + width * (level + 1)]:
                insort(ascending, -value)
            expected = list(accumulate(ascending[: sizes[-1]]))
            n_sizes = bisect_right(sizes, len(expected))
            worth = [-expected[size - 1] - price for size, price in zip(sizes[:n_sizes], prices, strict=False)]
            best = worth.index(max(worth))
            tokens.append(-expected[sizes[best] - 1])
            taken.append(seconds[best])
        least = self.least(False)
        n_worth = next((i + 1 for i, logp in enumerate(spine[:-1]) if logp < least), len(spine))
        self._n_looks += 1
        weight = max(_WEIGHT, 1 / self._n_looks)
        self._tokens += weight * (tokens[n_worth] - 1.0 - self._tokens)
        self._seconds += weight * (taken[n_worth] - taken[0] - self._seconds)
        self._n_levels += weight * (n_worth - self._n_levels)
        gain = price = 0.0
        for level in range(len(spine) - 1, 0, -1):
            # a level that would not have been gone on from is worth what itself is
            if level + 1 >= len(spine) or spine[level] < least:
                gain = price = 0.0
            gain += tokens[level + 1] - tokens[level]
            price += taken[level + 1] - taken[level] + cost.level_seconds
            i = bisect_right(_EDGES, spine[level - 1])
            self._seen[i] += 1
            weight = max(_WEIGHT, 1 / self._seen[i])
            self._gains[i] += weight * (gain - self._gains[i])
            self._prices[i] += weight * (price - self._prices[i])
        return n_worth

    def compare(self, n_tokens: float, seconds: float, expected: tuple[float, float]) -> None:
        """Note what a step with drafts brought and took, beside the tokens and seconds that were expected of it."""
        self._n_steps += 1
        weight = max(_WEIGHT_MISSED, 1 / (self._n_steps + _PRIOR_MISSED))
        self._missed += weight * (n_tokens - expected[0] - self._missed)
        self._late += weight * (min(seconds, _INTERRUPTED * expected[1]) - expected[1] - self._late)

    def choose(
        self, rate: float, plain_rate: float, n_tokens: float, cost: CostModel, draft_seconds: Callable[[float], float]
    ) -> None:
        """Decide whether to draft from now on, and down to which paths.

        Args:
            rate: tokens per second that a second must bring.
            plain_rate: those of plain steps. Drafts that bring more than these pay, although they may bring less than they did in
                a text that was easier.
            n_tokens: of a step, lately.
            draft_seconds: what so many levels take beside their verification.
        """
        # as cheap as a node can be: what seems to pay is drafted, and then it is seen
        steps = zip(pairwise(cost.seconds), pairwise(cost.sizes), strict=True)
        node = max(0.0, min(((b - a) / (m - n) for (a, b), (n, m) in steps), default=0.0))
        lowest = _N_RANGES + 1
        for i in range(_N_RANGES, -1, -1):
            chance = _NEXT * exp(_WIDTH * (i - _N_RANGES - 0.5))
            gain = chance if chance > rate * node else 0.0
            price = cost.level_seconds + (node if gain else 0.0)
            n = min(self._seen[i], 1 / _WEIGHT)
            if n * (self._gains[i] - rate * self._prices[i]) + _PRIOR * (gain - rate * price) <= 0:
                break
            lowest = i
        self._lowest = lowest
        if self._n_looks < _ENOUGH:
            return
        seconds = self._late + self._seconds + draft_seconds(self._n_levels)
        worth = self._missed + self._tokens - plain_rate * seconds
        self.pays = worth > n_tokens * (_END if self.pays else _BEGIN)
