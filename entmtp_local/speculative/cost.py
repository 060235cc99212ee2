"""What passes cost: seconds of a verification by its number of nodes, and of drafts by level. Measured, then kept up to date.

A verification's seconds are a staircase over its size. A step that takes longer or shorter moves its own size most; sizes that
were not seen lately follow it, near ones more, because whatever makes one size dearer makes its neighbours so. Sizes that were
not measured are never recommended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

from entmtp_local.speculative.tree import TreeShape

# Sizes of trees, the root included, that are measured and used: each has a graph of its own in the engine.
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)
_OWN, _ALL = 0.1, 0.03  # weights of the newest step
# In a size that was not seen for _STALE steps or more; in one that was, in proportion, and _FAR tells how much less per doubling.
_OTHERS, _FAR = 0.06, 2.0
_TABLE = 0.02  # in what sizes are taken to cost beside each other
_STALE, _MOST_OWN = 16, 0.5  # a size that was not seen for so many steps has twice the weight, and so on up to this
_FOLLOWS = 1.15  # times what they took when they were last seen that plain steps are believed to take at most
_DRAFT = 0.05
# A pass of fewer nodes takes no more than this many times one of more nodes: staircases go down by less, interruptions by more.
_STEEPEST = 1.3
# A step that was interrupted by something else says nothing of its size: one that took more than this many times what is usual.
_MOST = 3.0
# So many of them in a row were not interrupted: what was known was wrong, or the machine is another now.
_IN_A_ROW = 3
# How many plain steps in a row take longer than those that follow them, where one takes at most _CACHED seconds and where it is
# slower: processors' caches hold a small model, which other passes push out of them (docs/LOG.md, 2026-11-30).
_UNSETTLED, _CACHED = (6, 2), 0.003
# What has been measured is never nothing, and is divided by.
_LEAST = 1e-9
_MOST_LEVELS = 3  # plain passes that a level of drafts can take
_MOST_SECONDS = 1e6  # of a pass, in a table that is read
_MOST_NODES = 4096  # of one
# Steps differ by less than this factor, drafts and verification of many nodes included.
_LONGEST = 20.0


@dataclass(frozen=True, slots=True)
class CostTable:
    """What passes took on a device, seconds.

    Args:
        verify: of one verification by number of nodes, the root included, behind a single token; at least of one node.
        per_token: that each committed token adds to a verification; 0 where it was not measured.
        draft_fixed: of a draft beside its levels.
        level: of one level of a draft by the number of nodes that are continued there; None where nothing can be drafted.
        step: of a step beside draft and verification.
        source: where the figures are from.
    """

    verify: dict[int, float]
    per_token: float = 0.0
    draft_fixed: float = 0.0
    level: dict[int, float] | None = None
    step: float = 0.0
    source: str = "measured"

    def verify_seconds(self, n_nodes: int, n_past: int = 0) -> float:
        """Of a verification; between measured sizes on a straight line, beyond the last one along the last line, or level."""
        return _between(self.verify, n_nodes) + self.per_token * n_past

    def draft_seconds(self, shape: TreeShape) -> float:
        """Of drafting a tree."""
        if shape.n_nodes == 1 or not self.level:
            return 0.0
        widths = Counter(depth for depth, children in zip(shape.depths, shape.children, strict=True) if children)
        return self.draft_fixed + sum(_between(self.level, n) for n in widths.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: Any) -> CostTable:
        """Raises: ValueError where the content is not that of a table."""
        try:
            table = CostTable(
                verify=_numbers(content["verify"]),
                per_token=_seconds(content["per_token"]),
                draft_fixed=_seconds(content["draft_fixed"]),
                level=None if content["level"] is None else _numbers(content["level"]),
                step=_seconds(content["step"]),
                source=content["source"],
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no table of costs: {error}") from None
        if not isinstance(table.source, str):
            raise ValueError("no table of costs: its source is no text")
        return table


def mean_of(one: CostTable, other: CostTable) -> CostTable:
    """Of two measurements of one device, the mean; sizes that only one has are left out."""

    def means(some: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
        return {size: (seconds + others[size]) / 2 for size, seconds in some.items() if size in others}

    return CostTable(
        means(one.verify, other.verify),
        per_token=(one.per_token + other.per_token) / 2,
        draft_fixed=(one.draft_fixed + other.draft_fixed) / 2,
        level=means(one.level, other.level) if one.level and other.level else None,
        step=(one.step + other.step) / 2,
        source=one.source,
    )


def is_disturbed(table: CostTable) -> bool:
    """Whether something else must have run while a table was measured: a level of drafts is a layer or two of the model."""
    return table.level is not None and table.level[1] > _MOST_LEVELS * table.verify[1]


def without_interruptions(seconds: Mapping[int, float]) -> dict[int, float]:
    """Measured seconds by number of nodes, less what another program took in between."""
    found = dict(sorted(seconds.items(), reverse=True))
    least = float("inf")
    for size, taken in found.items():
        found[size] = min(taken, _STEEPEST * least)
        least = min(least, found[size])
    return dict(sorted(found.items()))


def n_unsettled(seconds: float) -> int:
    """How many plain steps in a row take longer than those that follow them, by what one takes."""
    return _UNSETTLED[seconds > _CACHED]


def in_a_row(weight: float, n: int) -> float:
    """The weight in a moving average of the mean of n values, of which each would have this one."""
    return weight if n == 1 else 1 - (1 - weight) ** n


def without_pause(seconds: float, usual: float) -> float:
    """Seconds of a step, less what they hold of a pause: a process that was suspended goes on as if nothing had been.

    Args:
        usual: of the steps before, an average. It follows steps that do take longer all the same.
    """
    return min(seconds, _LONGEST * usual)


def _numbers(content: Any) -> dict[int, float]:
    found = {int(size): _seconds(seconds) for size, seconds in content.items()}
    if 1 not in found or min(found) < 1 or max(found) > _MOST_NODES or min(found.values()) < _LEAST:
        raise ValueError(f"no table of costs: sizes are from 1 to {_MOST_NODES}, seconds above 0")
    if list(map(str, found)) != list(map(str, content)):
        raise ValueError("no table of costs: sizes are numbers, each there once")
    return dict(sorted(found.items()))


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST_SECONDS:
        raise ValueError("no table of costs: seconds are numbers, not negative, and no more than some days")
    return float(value)


def _between(known: Mapping[int, float], n: int) -> float:
    sizes = sorted(known)
    if len(sizes) == 1 or n <= sizes[0]:
        return known[sizes[0]]
    i = min(bisect_left(sizes, n), len(sizes) - 1)
    low, high = sizes[i - 1], sizes[i]
    if n > high:
        # a staircase may end with a step down, which does not go on
        return known[high] + max(0.0, known[high] - known[low]) * (n - high) / (high - low)
    return known[low] + (known[high] - known[low]) * (n - low) / (high - low)


class CostModel:
    """Costs that follow what steps really take.

    Args:
        table: where they begin; only its sizes that are among SIZES are used.
    """

    def __init__(self, table: CostTable) -> None:
        self.sizes = [size for size in sorted(table.verify) if size in SIZES]
        # a size that is far dearer than larger ones would not be tried, and so never be found to be as cheap
        plausible = without_interruptions({size: table.verify[size] for size in self.sizes})
        self._table = [max(_LEAST, plausible[size]) for size in self.sizes]
        self._base = list(self._table)
        self._near = [[_OTHERS / (1 + _FAR * abs(log2(a / b))) for b in self.sizes] for a in self.sizes]
        self._per_token, self._past = table.per_token, 0.0
        self.seconds = list(self._base)
        self._fixed, self.level_seconds = (table.draft_fixed, table.level[1]) if table.level else (0.0, 0.0)
        # passes, and of each size the newest one and how many
        self._n_seen, self._last, self._n_own = 0, [0] * len(self.sizes), [0] * len(self.sizes)
        # times what trees took at first, lately; and what plain steps took when they were last seen, and the times of then. A
        # machine is slower in some seconds than in others, by a sixth and for everything: were plain steps believed to be as
        # fast as ever, drafts would be given up for it. What is dearer by more is taken to be so for trees alone, or plain
        # steps would never be used
        self._times, self._plain = 1.0, (self._base[0], 1.0)
        self._built = {1}  # sizes of which a pass was seen
        # by size, 0 for drafts: what was taken for interruptions since the last time that was none
        self._strange: dict[int, list[float]] = {}

    def at(self, n_past: int) -> None:
        """Let `seconds` be those of a context with so many tokens."""
        if self._per_token:
            self._past = self._per_token * n_past
            self.seconds = [seconds + self._past for seconds in self._base]

    def draft_seconds(self, n_levels: float) -> float:
        """Of a draft of so many levels."""
        return self._fixed + n_levels * self.level_seconds if n_levels else 0.0

    def observe_verify(self, n_nodes: int, seconds: float, n: int = 1) -> None:
        """Count a verification; sizes that are none of `sizes` are passed over.

        Args:
            n: verifications of that size in a row, of which `seconds` is the mean.
        """
        if n_nodes not in self.sizes:
            return
        own = self.sizes.index(n_nodes)
        known, seconds = self.seconds[own], max(_LEAST, seconds)
        if n_nodes not in self._built:
            self._built.add(n_nodes)
            if seconds > known:
                # it may have built its graph
                return
        taken = self._believed(n_nodes, known, seconds)
        if taken is None:
            return
        factor, others = taken / known, 1.0  # by how much the own size changes, and all others
        if taken * _MOST < known:
            # nothing makes a pass that much faster by chance. All sizes follow: one that seems too dear is never tried again
            others = factor
        elif taken > _MOST * known:
            # the others are asked themselves: they seem cheap until then
            others = 1 + _ALL * (_MOST - 1)
        else:
            weight = min(_MOST_OWN, _OWN * (1 + (self._n_seen - self._last[own]) / _STALE))
            if taken < known or (own == 0 and taken < _STEEPEST * known):
                # What was measured before the first step counts for one: what seems too dear is not used, and not seen. Plain
                # steps are seen again soon, unless they seem so much dearer that nothing looks at them.
                weight = max(weight, 1 / (2 + self._n_own[own]))
            if own:
                self._follow(own, factor * self._base[own] / self._table[own])
            factor = 1 + in_a_row(weight, n) * (factor - 1)
        self._n_seen += n
        self._n_own[own] += n
        self._last[own] = self._n_seen
        self._base = [max(_LEAST, base * (factor if i == own else others)) for i, base in enumerate(self._base)]
        self._times *= others
        if own == 0:
            self._plain = (self._base[0], self._times)
        else:
            plain, times = self._plain
            change = self._times / times
            if change > 1:
                # what plain steps themselves had shown of it is not counted twice
                change = max(1.0, min(_FOLLOWS, self._times / max(times, plain / self._table[0])))
            self._base[0] = max(_LEAST, plain * change)
        self.seconds = [base + self._past for base in self._base]

    def _follow(self, own: int, times: float) -> None:
        """Let trees of sizes that were not seen lately take what one that was seen takes, as times of the table.

        What is rarely used would otherwise keep what a single step of it happened to take. Plain steps say little of what a node
        more takes, and follow by `_times` alone.
        """
        base, table, near = self._base, self._table, self._near[own]
        for i in range(1, len(base)):
            unseen = self._n_seen + 1 - self._last[i]
            if i != own and unseen > 1:
                base[i] += near[i] * min(1.0, unseen / _STALE) * (times * table[i] - base[i])
        self._times += _ALL * (times - self._times)
        # a size that is always dearer than the table has it, beside the others, is dearer
        table[own] *= 1 + _TABLE * (times / self._times - 1)

    def observe_draft(self, n_levels: int, seconds: float) -> None:
        """Count a draft of so many levels: whatever makes it dearer makes all of it dearer."""
        known, seconds = self.draft_seconds(n_levels), max(_LEAST, seconds)
        if not known:
            self.level_seconds = seconds / n_levels
            return
        taken = self._believed(0, known, seconds)
        if taken is None:
            return
        strange = not 1 / _MOST <= taken / known <= _MOST
        factor = taken / known if strange else 1 + _DRAFT * (seconds / known - 1)
        self._fixed, self.level_seconds = self._fixed * factor, self.level_seconds * factor

    def _believed(self, what: int, known: float, seconds: float) -> float | None:
        """What a pass takes by its newest time; None where that may have been an interruption."""
        if seconds <= _MOST * known:
            self._strange.pop(what, None)
            return seconds
        strange = self._strange.setdefault(what, [])
        strange.append(seconds)
        if len(strange) < _IN_A_ROW:
            return None
        del self._strange[what]
        return min(strange)
