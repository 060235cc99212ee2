"""Entropy of what is being generated: of one distribution, over steps, in bins. Everything in nats.

The entropy of a step is that of the target's distribution from which the pending token was chosen: the newest one that is known
before anything is drafted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# A head that is sure gives entropies of 1e-6 and less; below this they say nothing more.
_FLOOR = 1e-4


def row_entropy(logits: npt.NDArray[np.float32]) -> float:
    """Shannon entropy of the softmax of a row of logits.

    Args:
        logits: (n_vocab,) f32
    """
    return softmax(logits)[2]


def softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> tuple[npt.NDArray[np.float32], float, float]:
    """The softmax of a row of logits at a temperature, not divided by its sum yet, and its Shannon entropy.

    H = ln sum exp z - sum p z, with z measured from the largest logit. Tokens with a logit of -inf have no part in it.

    Args:
        logits: (n_vocab,) f32, not changed
        temperature: above 0
    Returns: weights, (n_vocab,) f32; their sum, so that p = weights / sum; H.
    """
    z = logits - logits.max()
    if temperature != 1.0:
        z /= np.float32(temperature)
    weights = np.exp(z)
    total = float(weights.sum(dtype=np.float64))
    entropy = math.log(total) - float(np.dot(weights, np.maximum(z, np.float32(-1e30)))) / total
    return weights, total, max(0.0, entropy)


class RunningEntropy:
    """Local entropy: a bias-corrected exponential average over steps.

    Args:
        window: steps that it looks back over, roughly; the newest weighs 1 / window.
    Source: EntMTP, arXiv 2606.27550, whose released code takes beta = 1 - 1 / window with windows of 4 to 64 steps.
    """

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise ValueError("a window has at least one step")
        self._beta = 1.0 - 1.0 / window
        self._sum, self._weight = 0.0, 0.0

    def add(self, entropy: float) -> float:
        """Take the entropy of a step. Returns: the average with it."""
        self._sum = self._beta * self._sum + (1.0 - self._beta) * entropy
        self._weight = self._beta * self._weight + (1.0 - self._beta)
        return self.value

    @property
    def value(self) -> float:
        """The average so far, NaN before the first step."""
        return self._sum / self._weight if self._weight else math.nan


def log_entropy(entropy: float) -> float:
    """Logarithm of an entropy, which spreads the values near zero where most of a text lies."""
    return math.log(max(entropy, _FLOOR))


def quantile_edges(entropies: Sequence[float] | npt.NDArray[np.float64], n_bins: int) -> tuple[float, ...]:
    """Edges that cut the log-entropies of a text into bins of equal counts.

    Bins that would be empty, because many values are equal, are left out.

    Returns: up to n_bins - 1 ascending log-entropies.
    """
    logs = np.log(np.maximum(np.asarray(entropies, dtype=np.float64), _FLOOR))
    if not len(logs):
        return ()
    # edges are values themselves, each of which belongs to the bin above it
    edges = np.unique(np.quantile(logs, np.arange(1, n_bins) / n_bins, method="higher"))
    return tuple(float(edge) for edge in edges if edge > logs.min())


def entropy_bin(entropy: float, edges: Sequence[float]) -> int:
    """The bin of an entropy, from 0, by edges of `quantile_edges`."""
    return bisect_right(edges, log_entropy(entropy))


def acceptance_bound(entropy: float, gamma: float) -> float:
    """A lower bound on the chance of a token that a drafter of this entropy proposes: 1 - sqrt(gamma H), at least 0.

    Source: AdaEDL, arXiv 2410.18351; gamma is fitted.
    """
    return max(0.0, 1.0 - math.sqrt(gamma * max(entropy, 0.0)))
