"""Ratios of speeds from pairs of measurements, with their doubts. Knows nothing of what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MIN_PAIRS = 5
# Half of the pairs lie within this share of the median, or the ratio is called noisy.
MAX_SPREAD = 0.10
FEW = f"fewer than {MIN_PAIRS} pairs, without those that loop; more --rounds help, with --json and --resume beside what there is"
NOISY = (
    f"noise: the middle half of the pairs spreads over more than {100 * MAX_SPREAD:.0f} %; nothing else may run meanwhile, and "
    "more --rounds or longer answers (-n) help"
)
N_DRAWS = 2000
SEED = 20260901
_TAIL = 2.5  # percent left out on either side


@dataclass(frozen=True, slots=True)
class Cells:
    """What two arms did on the same prompts in the same rounds; what does not count is 0 in all four.

    Args:
        tokens, base_tokens: (n_rounds, n_prompts) after the first one of each text.
        seconds, base_seconds: (n_rounds, n_prompts) that they took.
    """

    tokens: FloatArray
    seconds: FloatArray
    base_tokens: FloatArray
    base_seconds: FloatArray


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much faster one arm is than another.

    Args:
        value: median of the rounds' ratios.
        low, high: 95 % interval; NaN where one pair alone is there.
        pairs: ratio of each round.
        p_value: of the sign test, two-sided.
        spread: range of the middle half of the pairs, as a share of the median.
        doubts: why it should not be relied on, clauses; empty where nothing speaks against it.
        draws: (N_DRAWS,) what the interval is taken from.
    """

    value: float
    low: float
    high: float
    pairs: tuple[float, ...]
    p_value: float
    spread: float
    doubts: tuple[str, ...]
    draws: FloatArray = field(repr=False, compare=False)

    @property
    def wins(self) -> int:
        return sum(pair > 1 for pair in self.pairs)


def ratio_of(cells: Cells) -> Ratio | None:
    """The ratio of the speeds of two arms.

    A pair is a round: all its tokens over all its seconds, of either arm. The interval resamples prompts, the same ones for both
    arms, and rounds: it covers the noise of the machine and the choice of the texts.

    Returns: None where no pair is left.
    """
    there = (cells.seconds > 0) & (cells.base_seconds > 0)
    rows = there.any(axis=1)
    tokens, seconds, base_tokens, base_seconds = (
        np.where(there, array, 0.0)[rows] for array in (cells.tokens, cells.seconds, cells.base_tokens, cells.base_seconds)
    )
    n_rounds, n_prompts = tokens.shape
    if n_rounds == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = (tokens.sum(axis=1) / seconds.sum(axis=1)) / (base_tokens.sum(axis=1) / base_seconds.sum(axis=1))
    pairs = pairs[np.isfinite(pairs) & (pairs > 0)]
    if not len(pairs):
        return None
    draws = _draws(tokens, seconds, base_tokens, base_seconds)
    low, high = (float(value) for value in np.percentile(draws, [_TAIL, 100 - _TAIL])) if n_rounds > 1 else (math.nan, math.nan)
    median = float(np.median(pairs))
    spread = float(np.subtract(*np.percentile(pairs, [75, 25]))) / median
    doubts = []
    if len(pairs) < MIN_PAIRS:
        doubts.append(FEW)
    if spread > MAX_SPREAD:
        doubts.append(NOISY)
    found = tuple(float(pair) for pair in pairs)
    n_wins = sum(pair > 1 for pair in found)
    n_ties = sum(pair == 1 for pair in found)
    return Ratio(median, low, high, found, sign_test(n_wins, len(found) - n_ties), spread, tuple(doubts), draws)


def _draws(tokens: FloatArray, seconds: FloatArray, base_tokens: FloatArray, base_seconds: FloatArray) -> FloatArray:
    n_rounds, n_prompts = tokens.shape
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=N_DRAWS).T.astype(float)  # (n_prompts, N_DRAWS)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (tokens @ times) / (seconds @ times) * (base_seconds @ times) / (base_tokens @ times)  # (n_rounds, N_DRAWS)
    chosen = rng.integers(n_rounds, size=(n_rounds, N_DRAWS))
    resampled = np.take_along_axis(ratios, chosen, axis=0)
    good = np.isfinite(resampled).any(axis=0)
    # a draw whose prompts all fell out of its rounds says nothing
    found = np.full(N_DRAWS, float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else math.nan)
    found[good] = np.nanmedian(np.where(np.isfinite(resampled), resampled, np.nan)[:, good], axis=0)
    return found


def combined(ratios: Sequence[Ratio]) -> Ratio:
    """The geometric mean of ratios of several workloads; its interval resamples each of them by itself.

    Its pairs are the workloads' own, one after another.
    """
    assert ratios, "there is something to combine"
    value = geometric_mean([ratio.value for ratio in ratios])
    rng = np.random.default_rng(SEED + 1)
    # the draws of all ratios come from one seed: shuffled, they are independent
    draws = np.exp(np.mean([np.log(rng.permutation(ratio.draws)) for ratio in ratios], axis=0))
    certain = all(math.isfinite(ratio.low) for ratio in ratios)
    low, high = (float(each) for each in np.percentile(draws, [_TAIL, 100 - _TAIL])) if certain else (math.nan, math.nan)
    pairs = tuple(pair for ratio in ratios for pair in ratio.pairs)
    doubts = tuple(dict.fromkeys(doubt for ratio in ratios for doubt in ratio.doubts))
    p_value = sign_test(sum(pair > 1 for pair in pairs), sum(pair != 1 for pair in pairs))
    return Ratio(value, low, high, pairs, p_value, max(ratio.spread for ratio in ratios), doubts, draws)


def geometric_mean(values: Sequence[float]) -> float:
    """Of values above 0."""
    return math.exp(sum(map(math.log, values)) / len(values))


def sign_test(n_wins: int, n: int) -> float:
    """Two-sided: the chance of at least so uneven a split of n fair coins."""
    tail = sum(math.comb(n, k) for k in range(max(n_wins, n - n_wins), n + 1))
    return min(1.0, 2.0 * tail / 2.0**n)


def chi_square_tail(statistic: float, n_free: int) -> float:
    """Upper tail probability, by the normal approximation of Wilson and Hilferty."""
    if n_free <= 0:
        return 1.0
    z = ((statistic / n_free) ** (1 / 3) - (1 - 2 / (9 * n_free))) / math.sqrt(2 / (9 * n_free))
    return 0.5 * math.erfc(z / math.sqrt(2))


def same_distribution(one: Sequence[int], other: Sequence[int]) -> float:
    """The chance that two samples of one distribution differ as much as these do, by Pearson's test of homogeneity.

    Args:
        one, other: drawn tokens; those that are expected fewer than 5 times in either are put together.
    """
    cells: list[tuple[int, int]] = []
    rare_one = rare_other = 0
    share = len(one) / (len(one) + len(other))
    for token in set(one) | set(other):
        a, b = sum(x == token for x in one), sum(x == token for x in other)
        if (a + b) * min(share, 1 - share) >= 5:
            cells.append((a, b))
        else:
            rare_one, rare_other = rare_one + a, rare_other + b
    if rare_one + rare_other:
        cells.append((rare_one, rare_other))
    statistic = 0.0
    for a, b in cells:
        expected = (a + b) * share
        statistic += (a - expected) ** 2 / expected + (b - (a + b - expected)) ** 2 / (a + b - expected)
    return chi_square_tail(statistic, len(cells) - 1)
