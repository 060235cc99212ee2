"""How likely the model is to confirm a drafted token: what the head says, corrected by what was seen.

The head's probability orders candidates well and is wrong by a factor that differs with rank, temperature, task and draft
vocabulary. A logistic regression on what is known of a node corrects it. It begins as the head's own word, or as a profile's
fit, learns from the steps that it is shown, and forgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, nan
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.speculative.entropy import log_entropy
from entmtp_local.speculative.tree import DraftTree, TreeShape

FloatArray = npt.NDArray[np.float64]

# Of each node, always: 1, ln p and ln(1 - p) of the head, its rank, and the entropy of the head's distribution that it is from.
_HEAD = ("one", "logp", "rest", "rank1", "rank2", "rank3", "head", "head2")
# Of each node or step, where asked for.
OPTIONAL = ("depth", "path", "entropy", "running", "accepted")
_SMALLEST, _LARGEST = -12.0, 1.0 - 1e-4  # log-probabilities and probabilities of the head are cut there
# Below such a log-probability ln(1 - p) is next to nothing, and below such a logit without it so is the chance, which counts as
# none. Most of the siblings of a draft are there, and need not be gone through.
_UNLIKELY, _NEVER = -5.0, -5.5
_LEAST_ENTROPY = 1e-3  # of the head, nats
_FORGET = 1e-3  # share of what is known that a step forgets that is learnt from
# Observations of each feature's usual size that a prior counts for: the head's own word, or a fit to few tokens; and a fit to
# many (replays on texts that were not fitted, docs/LOG.md, 2026-11-30).
_STRENGTH, _STRENGTH_OF_MANY = 8.0, 64.0
_LARGEST_WEIGHT = 100.0  # fits have weights of a few units
_STEEPEST = 700.0  # of negative logits: beyond, chances are nothing, and exp leaves the range of a float
_MAX_SHAPES = 64


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of a step before its drafts; NaN where it is not watched."""

    entropy: float = nan  # nats, of the distribution that the pending token was chosen from
    running: float = nan  # nats, of the last steps
    accepted: float = nan  # drafted tokens accepted lately, a step


class AcceptanceModel:
    """Chances of nodes given that their parents are accepted.

    Args:
        extra: features beyond what the head says, of OPTIONAL.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self.features = (*_HEAD, *extra)
        self._extra = tuple(extra)
        n = len(self.features)
        weights = np.zeros(n)
        # ln p - ln(1 - p) is the logit of the head's own word
        weights[1:3] = 1.0, -1.0
        self.weights = self._prior = weights
        self._floor: FloatArray = np.eye(n) * (_STRENGTH / 4)  # a certainty of p has a curvature of p (1 - p) <= 1 / 4
        self._curvature = self._floor.copy()
        self._shapes: dict[int, tuple[TreeShape, FloatArray, npt.NDArray[np.int64]]] = {}

    @property
    def weights(self) -> FloatArray:
        """Of each feature."""
        return self._weights

    @weights.setter
    def weights(self, weights: FloatArray) -> None:
        self._weights, self._each = weights, weights.tolist()

    def rows(self, tree: DraftTree, context: Context) -> FloatArray:
        """Features of a drafted tree's nodes.

        Returns: (n_nodes, n_features) f64; the root's row means nothing.
        """
        assert tree.logp is not None
        shape = tree.shape
        known = self._shapes.get(id(shape))
        if known is None:
            known = self._shape(shape)
        _, fixed, parents = known
        rows: FloatArray = fixed.copy()
        logp = np.array(tree.logp)
        _of_head(rows, logp, np.ones(len(logp)) if tree.entropy is None else np.array(tree.entropy)[parents])
        for i, name in enumerate(self._extra, len(_HEAD)):
            if name == "path":
                rows[:, i] = _path(rows[:, 1], parents)
            elif name == "entropy":
                rows[:, i] = log_entropy(context.entropy)
            elif name == "running":
                rows[:, i] = log_entropy(context.running)
            elif name == "accepted":
                rows[:, i] = log(1.0 + context.accepted)
        return rows

    def _shape(self, shape: TreeShape) -> tuple[TreeShape, FloatArray, npt.NDArray[np.int64]]:
        """What all trees of a shape have in common."""
        fixed = np.zeros((shape.n_nodes, len(self.features)))
        fixed[:, 0] = 1.0
        _of_rank(fixed, np.array(shape.ranks))
        if "depth" in self._extra:
            fixed[:, self.features.index("depth")] = np.array(shape.depths) / 8
        parents = np.maximum(np.array(shape.parents), 0)
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        self._shapes[id(shape)] = (shape, fixed, parents)  # the shape is kept so that its id stays its own
        return self._shapes[id(shape)]

    def chances(self, rows: FloatArray) -> FloatArray:
        """P(accepted | parent accepted) by `rows`. Returns: (n,) f64."""
        chances: FloatArray = 1.0 / (1.0 + np.exp(np.minimum(-(rows @ self.weights), _STEEPEST)))
        return chances

    def values(self, tree: DraftTree, context: Context) -> list[float]:
        """The chance of each node that it is accepted, and all above it: what `chances` of its `rows` say, multiplied.

        What is hopeless by the head and by what was learnt counts as 0, and so does what a broken head calls NaN.

        Node by node where there are no extra features: a pass leaves nothing of NumPy in the processor's caches, and for the few
        nodes of a draft that would cost more than the arithmetic does.

        Returns: n_nodes of them, 1 for the root.
        """
        assert tree.logp is not None
        parents, ranks = tree.shape.parents, tree.shape.ranks
        values = [1.0]
        # breadth first: a parent's value is final before its children ask for it
        if self._extra:
            chances = self.chances(self.rows(tree, context)).tolist()
            for node in range(1, len(chances)):
                values.append(chances[node] * values[parents[node]])
            return values
        one, own, rest, rank1, rank2, rank3, head, head2 = self._each
        by_rank = (0.0, rank1, rank2, rank3)
        entropy = tree.entropy
        above = -1
        for parent, rank, logp in zip(parents[1:], ranks[1:], tree.logp[1:], strict=True):
            if parent != above:
                above, base, value = parent, one, values[parent]
                if entropy is not None:
                    below = log(max(_LEAST_ENTROPY, entropy[parent]))
                    base += (head + head2 * below) * below
            logp = max(_SMALLEST, logp)
            logit = base + own * logp + (by_rank[rank] if rank < 3 else rank3)
            if logp < _UNLIKELY and logit < _NEVER:
                values.append(0.0)
                continue
            logit += rest * log(1.0 - min(exp(logp), _LARGEST))
            values.append(value / (1.0 + exp(min(-logit, _STEEPEST))))
        return values

    def rows_of(self, seen: Sequence[tuple[DraftTree, Context, Sequence[int]]]) -> FloatArray:
        """The `rows` of some nodes of some trees, all of them one below the other."""
        if self._extra:
            return np.concatenate([self.rows(tree, context)[list(nodes)] for tree, context, nodes in seen])
        logp: list[float] = []
        entropies: list[float] = []
        ranks: list[int] = []
        for tree, _, nodes in seen:
            assert tree.logp is not None
            own, entropy, parents, by = tree.logp, tree.entropy, tree.shape.parents, tree.shape.ranks
            logp += [own[node] for node in nodes]
            ranks += [by[node] for node in nodes]
            entropies += [1.0] * len(nodes) if entropy is None else [entropy[parents[node]] for node in nodes]
        rows = np.zeros((len(logp), len(_HEAD)))
        rows[:, 0] = 1.0
        _of_head(rows, np.array(logp), np.array(entropies))
        _of_rank(rows, np.array(ranks))
        return rows

    def observe(self, rows: FloatArray, accepted: FloatArray, n_steps: int = 1) -> None:
        """Learn from nodes whose parents were accepted.

        One step of Newton's on the newest nodes, with the curvature of everything seen so far: older nodes count less with each
        step, and what was forgotten is replaced by the prior. A node's curvature is the quadratic bound's, which one surprise
        among certain nodes cannot overthrow as it can with p (1 - p).

        Args:
            rows: (n, n_features) f64
            accepted: (n,) 1 or 0
            n_steps: that they are from.
        Source: the bound is Jaakkola and Jordan's, "Bayesian parameter estimation via variational methods" (2000).
        """
        logits = rows @ self.weights
        size = np.maximum(np.abs(logits), 1e-3)
        forgotten = n_steps * _FORGET
        self._curvature += forgotten * (self._floor - self._curvature)
        self._curvature += (rows * (np.tanh(size / 2) / (2 * size))[:, None]).T @ rows
        slope = rows.T @ (accepted - 1.0 / (1.0 + np.exp(-logits))) + forgotten * (self._floor @ (self._prior - self.weights))
        self.weights = self.weights + np.linalg.solve(self._curvature, slope)

    def fit(self, rows: FloatArray, accepted: FloatArray, n_iterations: int = 12) -> None:
        """Fit to many nodes at once; what was learnt before is forgotten, and the prior counts as it does for `observe`."""
        weights = self._prior
        for _ in range(n_iterations):
            logits = rows @ weights
            p = 1.0 / (1.0 + np.exp(-logits))
            # the bound's curvature makes every iteration a step down
            size = np.maximum(np.abs(logits), 1e-3)
            curvature = (rows * (np.tanh(size / 2) / (2 * size))[:, None]).T @ rows + self._floor
            weights = weights + np.linalg.solve(curvature, rows.T @ (accepted - p) + self._floor @ (self._prior - weights))
        self.weights = weights

    def as_json(self) -> dict[str, Any]:
        return {"features": list(self.features), "weights": self.weights.tolist()}

    def load(self, content: Any, of_few: bool = False) -> None:
        """Begin as a fit; features that it does not have keep no weight.

        Args:
            of_few: it was fitted to few tokens, and counts for less beside what is observed.
        Raises: ValueError where the content is no fit.
        """
        try:
            features, weights = content["features"], content["weights"]
            if not all(type(weight) in (int, float) for weight in weights) or not all(type(name) is str for name in features):
                raise TypeError("weights that are no numbers, or features without names")
            fitted = dict(zip(features, map(float, weights), strict=True))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no fit of acceptance: {error}") from None
        if not set(_HEAD) <= set(fitted) or len(fitted) < len(features) or not all(map(isfinite, fitted.values())):
            raise ValueError("no fit of acceptance: it lacks weights")
        if max(map(abs, fitted.values())) > _LARGEST_WEIGHT:
            raise ValueError("no fit of acceptance: no text gives such weights")
        self.weights = np.array([fitted.get(name, 0.0) for name in self.features])
        self._prior = self.weights
        self._floor = np.eye(len(self.features)) * ((_STRENGTH if of_few else _STRENGTH_OF_MANY) / 4)
        self._curvature = self._floor.copy()


def _of_head(rows: FloatArray, logp: FloatArray, entropies: FloatArray) -> None:
    """Fill in what the head says: log-probabilities, and entropies of the distributions that they are of, nats."""
    rows[:, 1] = np.fmax(logp, _SMALLEST)
    rows[:, 2] = np.log1p(-np.minimum(np.exp(rows[:, 1]), _LARGEST))
    rows[:, 6] = np.log(np.fmax(entropies, _LEAST_ENTROPY))
    rows[:, 7] = rows[:, 6] ** 2


def _of_rank(rows: FloatArray, ranks: npt.NDArray[np.int64]) -> None:
    """Fill in the ranks, all beyond the third one alike."""
    for rank in (1, 2, 3):
        rows[:, 2 + rank] = np.minimum(ranks, 3) == rank


def _path(logp: FloatArray, parents: npt.NDArray[np.int64]) -> FloatArray:
    """The head's log-probability of each node's parent, from the root on, cut at _SMALLEST."""
    total = [0.0] * len(logp)
    for node, (own, parent) in enumerate(zip(logp.tolist()[1:], parents.tolist()[1:], strict=True), 1):
        total[node] = total[parent] + own
    above = [0.0, *(total[parent] for parent in parents.tolist()[1:])]
    return np.array([max(value, _SMALLEST) for value in above])
