"""How much of the vocabulary drafts choose from: numbers of tokens, bytes or seconds, no engine.

The output matrix is most of what a draft reads. Byte-pair vocabularies are ordered by frequency, so its first rows serve most
of a text; a token beyond them is never drafted, which costs the rest of that draft and never changes what is emitted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAME = "same"  # what rows are called that are read as they are
DRAFT_HEAD_TYPES = ("Q8_0", "Q4_0")  # of copies, as GGUF names them
USUAL = 16_384  # what most texts are drafted from; where it begins
_SMALLEST = 1024
# Below this the output matrix is a small part of any model worth drafting for, and what a pass costs is not its bytes.
_WORTH_CUTTING = 32_768
_HALF_LIFE = 512  # tokens after which a token counts half
_INTERVAL = 32  # tokens between two looks at the counts
_TOGETHER = 128  # steps that are counted together at most, and tokens
_PRIOR = 2.0  # tokens that the prior counts for
_ACCEPTED, _REFUSED = 3.0, 1.0  # drafted tokens of frequent ids that are believed to have been seen before the first one
_LIKE_BEFORE = 4.0  # drafted tokens that what is known of more frequent ids counts for
# The engine builds another graph for another size: a change has to be worth it.
_MIN_GAIN = 0.01
# And more where its costs were not measured, nor how often its rare tokens are drafted right: promised 4 % have been -10.
_MIN_GAIN_BEYOND = 0.05


@dataclass(frozen=True, slots=True)
class PassCost:
    """What a pass of few tokens takes: seconds where calibration has measured them, otherwise bytes of the weights that it reads.

    Such passes are bound by memory, and only ratios count.
    """

    target: float  # one pass of the target, its output matrix included
    level: float  # one level of drafts, without the output matrix
    row: float  # one token's row of the output matrix that drafts use


@dataclass(frozen=True, slots=True)
class DraftHead:
    """The rows of the output matrix that calibration found to draft from fastest.

    Args:
        kind: type of the copy that is read, SAME for the matrix itself.
        size: tokens to begin with; 0 is the whole vocabulary.
        cost: seconds, with rows of this type.
        speeds: tokens per second by kind, then by size as text, of what was compared: forecasts for chains.
    """

    kind: str
    size: int
    cost: PassCost
    speeds: Mapping[str, Mapping[str, float]]

    @property
    def rows(self) -> str:
        """What is read, in words."""
        rows = f"{self.size:,} rows of the output matrix" if self.size else "the output matrix"
        return f"{rows} as in the file" if self.kind == SAME else f"{rows}, copied in {self.kind}"


@dataclass(slots=True)
class Beyond:
    """Rows of the output matrix that no measured draft has read.

    Args:
        n_rows: those that come before them, which stay in the processor's caches where these may not.
        row: seconds of one of them in each level.
        copy: seconds that it takes to make a copy of a row; 0 where none is made. A larger copy is made from its first row on.
        n_copied: rows of which there is a copy.
    """

    n_rows: int
    row: float
    copy: float
    n_copied: int


class DraftVocab:
    """Chooses the size that promises most tokens a byte, from the ids of the text so far and the drafts' success.

    The share of tokens below a size is counted over the prompt and what has been emitted, recent tokens more; before there are
    any it is taken to grow with the logarithm of the size, as it does where frequencies follow Zipf's law. Rare tokens are
    drafted right less often than frequent ones, by half in some texts and hardly in others, so that is counted by ids too.
    """

    def __init__(self, n_vocab: int, n_tail: int, cost: PassCost) -> None:
        """
        Args:
            n_vocab: tokens of the vocabulary
            n_tail: tokens at its end that every size includes
        """
        self.cost = cost
        self._n_tail, self._n_front = n_tail, n_vocab - n_tail
        self.sizes = [_SMALLEST << i for i in range(max(0, math.ceil(math.log2(max(1, n_vocab) / _SMALLEST))))]
        self.sizes = [size for size in self.sizes if size < self._n_front and n_vocab > _WORTH_CUTTING]
        reached = [math.log(size) / math.log(self._n_front) for size in self.sizes] + [1.0]
        # _counts[i]: tokens, weighted, whose smallest size is sizes[i]; the last one needs the whole vocabulary
        self._counts = [_PRIOR * (b - a) for a, b in zip([0.0, *reached], reached, strict=False)]
        self._seen = 0
        # what was observed and is not counted yet: at every step it would have to be fetched into the processor's caches anew
        self._uncounted: list[tuple[Sequence[int], tuple[Sequence[int], int | None, int, int] | None]] = []
        # tokens that drafts could contain, by their smallest size as above, weighted, and those of them that were drafted right
        self._draftable, self._drafted = [0.0] * len(reached), [0.0] * len(reached)
        self._n_drafted = self._n_verified = 3.0  # levels of a draft, and those of them that are verified, on average
        self.usual = USUAL if USUAL in self.sizes else 0
        self.size = self.usual  # in use; 0 = the whole vocabulary
        self._beyond: Beyond | None = None

    def begin(self, size: int, cost: PassCost, beyond: Beyond | None = None) -> None:
        """Begin anew from another size and other costs; what was seen of the text stays.

        Args:
            size: 0, or one of `sizes`.
            beyond: what more rows take than were measured; None where nothing else is known of them.
        """
        self._count_all()
        self.size = self.usual = size if size in self.sizes else 0
        self.cost, self._beyond = cost, beyond

    def observe(self, tokens: Sequence[int]) -> None:
        """Count tokens of the prompt or of the answer."""
        self._seen += len(tokens)
        self._uncounted.append((tokens, None))
        # a part of a prompt is counted while it is read, and not with the first draft
        if len(tokens) > _TOGETHER or len(self._uncounted) >= _TOGETHER:
            self._count_all()

    def observe_draft(self, accepted: Sequence[int], refused: int | None, depth: int, n_drafted: int) -> None:
        """Count a draft.

        Args:
            accepted: tokens of it.
            refused: the token that came instead of the next one, or of the first one where none was found worth verifying; None
                where all that were verified were accepted.
            depth: levels that were verified.
            n_drafted: levels.
        """
        self._uncounted.append(((), (accepted, refused, depth, n_drafted)))

    def _count_all(self) -> None:
        steps, self._uncounted = self._uncounted, []
        for tokens, draft in steps:
            if draft is not None:
                self._count_draft(*draft)
                continue
            self._forget(len(tokens), self._counts)
            for token in tokens:
                self._counts[self._smallest(token)] += 1.0

    def _count_draft(self, accepted: Sequence[int], refused: int | None, depth: int, n_drafted: int) -> None:
        self._forget(len(accepted) + (refused is not None), self._draftable, self._drafted)
        for token in accepted:
            i = self._smallest(token)
            self._draftable[i] += 1.0
            self._drafted[i] += 1.0
        if refused is not None and (i := self._smallest(refused)) <= self._index(self.size):
            self._draftable[i] += 1.0
        self._n_verified += 0.1 * (depth - self._n_verified)
        self._n_drafted += 0.1 * (n_drafted - self._n_drafted)

    def _smallest(self, token: int) -> int:
        """Index of the smallest size that has a token; the whole vocabulary's is one beyond those of `sizes`."""
        return 0 if token >= self._n_front else bisect_right(self.sizes, token)

    def _index(self, size: int) -> int:
        return self.sizes.index(size) if size else len(self.sizes)

    @staticmethod
    def _forget(n_tokens: int, *counts: list[float]) -> None:
        share = 0.5 ** (n_tokens / _HALF_LIFE)
        for some in counts:
            some[:] = [count * share for count in some]

    def _chances(self) -> list[float]:
        """By size, the whole vocabulary last: the share of tokens that a draft from so many is right about."""
        self._count_all()
        total, right, found = sum(self._counts), 0.0, []
        rate, weight = _ACCEPTED / (_ACCEPTED + _REFUSED), _ACCEPTED + _REFUSED
        for count, draftable, drafted in zip(self._counts, self._draftable, self._drafted, strict=True):
            rate = (drafted + weight * rate) / (draftable + weight)
            weight = _LIKE_BEFORE
            right += count / total * rate
            found.append(right)
        return found

    def due(self, depth: int) -> bool:
        """Look at the counts if that is due; True when `size` changed.

        Args:
            depth: levels that drafts to come have at most
        """
        if self._seen < _INTERVAL or not self.sizes:
            return False
        self._seen = 0
        chances = self._chances()
        rates = {size: self._rate(size, depth, chance) for size, chance in zip((*self.sizes, 0), chances, strict=True)}
        worth = {size: self._rate_with_copy(size, rate) for size, rate in rates.items()}
        here, now = self._n_beyond(self.size), rates[self.size]
        least = {size: _MIN_GAIN_BEYOND if self._n_beyond(size) > here else _MIN_GAIN for size in rates}
        better = [size for size in rates if size != self.size and worth[size] >= (1 + least[size]) * now]
        if not better:
            return False
        self.size = max(better, key=worth.__getitem__)
        return True

    def price(self, cost: PassCost) -> None:
        """Go on with other costs; of rows beyond nothing else is known."""
        self.cost, self._beyond = cost, None

    def copied(self, n_rows: int) -> None:
        """Take note of how many rows there is a copy of."""
        if self._beyond is not None:
            self._beyond.n_copied = n_rows

    def _n_beyond(self, size: int) -> int:
        """Rows of a size that no measured draft has read."""
        return max(0, (size or self._n_front) - self._beyond.n_rows) if self._beyond is not None else 0

    def _rate_with_copy(self, size: int, rate: float) -> float:
        """Tokens for each second over the next tokens that count, making a copy included; the whole vocabulary is not copied."""
        if self._beyond is None or size <= self._beyond.n_copied:
            return rate
        return _HALF_LIFE / (_HALF_LIFE / rate + self._beyond.copy * size)

    def _rate(self, size: int, depth: int, chance: float) -> float:
        """Expected tokens of a step for each byte or second that it takes.

        Args:
            chance: that a drafted token is right.
        """
        cost = self.cost
        n_rows, n_beyond = (size or self._n_front) + self._n_tail, self._n_beyond(size)
        rows = n_rows * cost.row
        if self._beyond is not None:
            rows += n_beyond * max(0.0, self._beyond.row - cost.row)
        # all levels that are drafted are paid for, and those that are verified can bring a token
        n_drafted = min(depth, self._n_drafted)
        n_levels = min(depth, max(1, round(self._n_verified)))
        return sum(chance**level for level in range(n_levels + 1)) / (cost.target + n_drafted * (cost.level + rows))
