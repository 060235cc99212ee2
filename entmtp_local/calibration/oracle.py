"""What could have been reached on a log: upper bounds that policies are held against, and the best static tree there is.

An oracle is a statement about a log and a table of costs, nothing that can be run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement

from entmtp_local.calibration.fit import Positions, fit_acceptance, grow_hydra, grow_medusa, speed
from entmtp_local.calibration.fit import accepted_by_rank as by_rank
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.levels import ANY_PATH
from entmtp_local.speculative.profile import NodePath, Profile, shape_of
from entmtp_local.speculative.protocol import Evidence, Outcome
from entmtp_local.speculative.static import OFF, StaticPolicy
from entmtp_local.speculative.throughput import DEPTH, WIDTH, Throughput
from entmtp_local.speculative.tree import TreeShape

# All trees of so many drafted nodes are tried; larger ones only as they are grown.
N_EXHAUSTIVE = 6
_ROUNDS = 6
_LEAST = (-0.2, -0.4, -0.7, -1.0, -1.4, -1.8, -2.4, -3.0, -4.0)  # log-probabilities below which no further level is drafted


class _Informed(Throughput):
    """The throughput policy that knows the log's acceptance, the costs, the rate and when to stop drafting from the start."""

    def __init__(self, log: WideLog, weights: object, rate: float, levels: int, least: float) -> None:
        super().__init__(depth=min(DEPTH, log.shape.max_depth), width=1 if log.shape.is_chain else WIDTH)
        self.acceptance.weights = weights  # type: ignore[assignment]
        self._known_rate = rate
        self._shape, self.least = self._plans[levels], least

    @property
    def _rate(self) -> float:
        return self._known_rate

    def plan(self, evidence: Evidence) -> TreeShape:
        assert self.cost is not None
        self.cost.at(evidence.n_past)
        return self._shape

    def learn(self, outcome: Outcome) -> None:
        pass


def same_information(log: WideLog, costs: CostTable) -> float:
    """Tokens per second of the throughput policy fitted on the very log that it is judged on."""
    positions = Positions(log)
    weights = fit_acceptance(positions).weights
    profile = Profile(costs)
    best = 0.0
    depth = min(DEPTH, log.shape.max_depth)
    # all levels down to some depth, or as far as paths are likely enough
    for levels, least in [(levels, ANY_PATH) for levels in range(1, depth + 1)] + [(depth, least) for least in _LEAST]:
        rate = 1.0 / costs.verify_seconds(1)
        for _ in range(_ROUNDS):
            found = replay(log, _Informed(log, weights, rate, levels, least), profile).tokens_per_second
            best = max(best, found)
            if not found or abs(found / rate - 1) < 2e-3:
                break
            rate = found
    return max(best, replay(log, OFF, profile).tokens_per_second)


def all_seeing(log: WideLog, costs: CostTable) -> float:
    """Tokens per second of somebody who knows what the target will say, and verifies just that as far as the head drafted it."""
    n_tokens, seconds = 0, 0.0
    depth = log.shape.max_depth
    largest = max(*costs.verify, depth + 1)
    # the cheapest tree that holds a chain so long: staircases have steps down
    price = [
        min(costs.verify_seconds(size) for size in range(length + 1, largest + 1))
        + costs.step
        + costs.draft_seconds(TreeShape.chain(length))
        for length in range(depth + 1)
    ]
    positions = Positions(log)
    for text, followed in zip(positions.texts, positions.followed, strict=True):
        n = len(followed)
        least = [0.0] * (n + depth + 2)
        for at in range(n - 1, -1, -1):
            context = costs.per_token * (text.n_prompt + at)
            least[at] = context + min(price[length] + least[at + length + 1] for length in range(len(followed[at]) + 1))
        n_tokens += n
        seconds += least[0]
    return n_tokens / seconds if seconds else 0.0


def small_trees(n_nodes: int, depth: int) -> Iterator[tuple[NodePath, ...]]:
    """Every tree of so many drafted nodes that has a rank only beside all better ones, its root's () included."""

    def forests(n: int, depth: int) -> list[tuple[NodePath, ...]]:
        """Of the children of a node: rank 0's subtree, then rank 1's, and so on."""
        found: list[tuple[NodePath, ...]] = [()] if n == 0 else []
        if n > 0 and depth > 0:
            for sizes in _compositions(n):
                partial: list[tuple[NodePath, ...]] = [()]
                for rank, size in enumerate(sizes):
                    partial = [
                        (*done, (rank,), *((rank, *path) for path in below))
                        for done in partial
                        for below in forests(size - 1, depth - 1)
                    ]
                found += partial
        return found

    for forest in forests(n_nodes, depth):
        yield ((), *forest)


def _compositions(n: int) -> Iterator[tuple[int, ...]]:
    """Ways to write n as a sum of positive numbers, the order counting."""
    for k in range(1, n + 1):
        for cuts in combinations_with_replacement(range(n - k + 1), k - 1):
            edges = (0, *cuts, n - k)
            yield tuple(b - a + 1 for a, b in zip(edges, edges[1:], strict=False))


def best_static(log: WideLog, costs: CostTable) -> tuple[float, TreeShape]:
    """The fastest static tree in hindsight: every small one, and the larger ones that growth gives. Returns: tokens/s, shape."""
    positions = Positions(log)
    candidates: list[tuple[NodePath, ...]] = [((),)]
    for n in range(1, N_EXHAUSTIVE + 1):
        candidates += small_trees(n, log.shape.max_depth)
    candidates += [tuple((0,) * length for length in range(n + 1)) for n in range(N_EXHAUSTIVE, log.shape.max_depth + 1)]
    largest = max(costs.verify)
    for grown in (grow_hydra(positions, largest - 1), grow_medusa(by_rank(positions), largest - 1)):
        # small ones too: on a short log they may have a rank without a better one
        candidates += [tuple(grown[:size]) for size in range(2, len(grown) + 1)]
    # every step also takes what the context adds, which makes fewer and longer steps better
    before = sum(len(text.drafts) * (text.n_prompt + len(text.drafts) / 2) for text in positions.texts)
    there = replace(costs, step=costs.step + costs.per_token * before / max(1, len(positions)))
    best = max(candidates, key=lambda tree: speed(positions, tree, there))
    shape = shape_of(best)
    # with what the context adds, as every other policy is judged
    return replay(log, StaticPolicy("best static tree", shape), Profile(costs)).tokens_per_second, shape
