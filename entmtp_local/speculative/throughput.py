"""The policy that asks of every node whether it pays for itself.

Over a long run tokens per second is the ratio of two sums, so a step is worth `tokens - R * seconds`, with R the rate that is
achieved, and is maximised node by node. Two decisions a step: how many levels to draft, from what levels have lately promised;
then, once the head has spoken, which of the drafted nodes to verify.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from entmtp_local.speculative.acceptance import OPTIONAL, AcceptanceModel, Context
from entmtp_local.speculative.cost import SIZES, CostModel, without_pause
from entmtp_local.speculative.entropy import RunningEntropy
from entmtp_local.speculative.profile import ALL, Profile
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.static import OFF, chain
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

DEPTH, WIDTH = 8, 3
_REVIEW = 4  # steps between two looks at what each level promises
_EXPLORE = 24  # at least so many steps lie between two that draft more levels than seem to pay
_SPENT = 0.01  # share of the time that such drafts may take
_DEEPER = 5  # levels more
_FIRST_LOOKS = 8  # at the beginning every step is looked at,
_ENOUGH = 4  # and after so many of them levels are given up
_WEIGHT = 1 / 64  # weight of the newest step in the averages
_MAX_SHAPES = 4096


@dataclass(frozen=True, slots=True)
class Variant:
    """What a variant of the policy looks at; the ablations show what each part brings.

    Args:
        extra: features of acceptance beyond what the head says.
        constant: entropies are held constant, whatever they are.
        learns: chances are calibrated; False takes the head's own word.
        budget: nodes of every tree, in place of weighing what they cost; 0 weighs.
        local: how far the rate that nodes must beat is that of the step's own best tree, from 0 to 1. Replays of the reference
            model's texts are 0.5 to 1 % faster with 0.5 to 1 than with 0.
    """

    extra: tuple[str, ...] = ()
    constant: bool = False
    learns: bool = True
    budget: int = 0
    local: float = 0.75


VARIANTS: Mapping[str, Variant] = {
    "": Variant(),
    "entropy": Variant(extra=("entropy", "running")),
    "constant": Variant(extra=("entropy", "running"), constant=True),
    "history": Variant(extra=("accepted",)),
    "everything": Variant(extra=OPTIONAL),
    "uncalibrated": Variant(learns=False),
    "costless": Variant(budget=8),
    "global": Variant(local=0.0),
}


class Throughput:
    """Draft a spine with siblings, verify those nodes whose chance exceeds what they cost.

    One object serves one model on one device: it learns from every step.

    Args:
        variant: a key of VARIANTS.
        depth, width: levels that are drafted at most, and candidates of each.
    """

    needs_profile = True

    def __init__(self, variant: str = "", depth: int = DEPTH, width: int = WIDTH) -> None:
        self.name = "throughput" + (f":{variant}" if variant else "")
        self._variant_name, self._variant = variant, VARIANTS[variant]
        self.needs_entropy = not self._variant.constant and bool({"entropy", "running"} & set(self._variant.extra))
        self._depth, self._width = depth, width
        self._plans = [ROOT_ONLY, *(TreeShape.comb(d, width) for d in range(1, depth + 1))]
        self.acceptance = AcceptanceModel(self._variant.extra)
        self._running = RunningEntropy()
        self._accepted = 0.0  # drafted tokens accepted lately, a step
        self.cost: CostModel | None = None
        self._tokens, self._seconds = 1.0, 1.0  # of a step, averages
        # [d]: tokens beyond their price that level d + 1 promised where it was drafted, on average, and how often one looked
        self._surplus, self._n_looks = [0.0] * depth, [0] * depth
        self._best = depth  # levels that pay: all, until it has been seen what they bring
        self._n_steps = self._n_learnt = 0
        self._since, self._exploring = 0, False  # steps since the last one that explored
        self._drafted_last = False
        self._context = Context()
        self._rows = np.zeros((0, 0))  # of the last drafted tree
        self._kept: tuple[int, ...] = ()  # what of it was verified
        self._saved, self._price = 0.0, 0.0  # seconds that may be spent on exploring, and what it took the last time
        self._shapes: OrderedDict[tuple[int, tuple[int, ...]], TreeShape] = OrderedDict()
        self._planned: dict[int, tuple[TreeShape, list[int], list[int]]] = {}  # the shape is kept so that its id stays its own

    @property
    def _rate(self) -> float:
        """Tokens per second that are being achieved."""
        return self._tokens / self._seconds

    @property
    def max_depth(self) -> int:
        return self._depth

    @property
    def max_nodes(self) -> int:
        """Of the trees that are verified; more are drafted."""
        return SIZES[-1] - 1

    def within(self, limits: Limits) -> Policy:
        depth = min(self._depth, limits.max_depth, limits.max_nodes)
        if depth <= 0:
            return OFF
        width = self._width if limits.trees and limits.max_nodes >= self.max_nodes else 1
        if (depth, width) == (self._depth, self._width):
            return self
        return Throughput(self._variant_name, depth, width)

    def calibrated(self, profile: Profile) -> None:
        """Take the costs of the device and what is known of acceptance; without them chains of three are drafted."""
        self.cost = CostModel(profile.costs)
        if ALL in profile.tasks and self._variant.learns:
            self.acceptance.load(profile.tasks[ALL].acceptance)
        self._tokens, self._seconds = 1.0, self.cost.seconds[0]

    def plan(self, evidence: Evidence) -> TreeShape:
        if self.cost is None:
            return chain(min(3, self._depth)).shape
        self.cost.at(evidence.n_past)
        if self._variant.extra:
            entropy = 1.0 if self._variant.constant or not self.needs_entropy else evidence.entropy
            self._context = Context(entropy, self._running.add(entropy), self._accepted)
        if self._variant.budget:
            return self._plans[-1]
        self._n_steps += 1
        self._since += 1
        self._exploring = self._since >= _EXPLORE and self._saved >= self._price
        if self._exploring:
            self._since = 0
        return self._plans[min(self._depth, self._best + _DEEPER) if self._exploring else self._best]

    def _look(self, values: list[float], shape: TreeShape, cost: CostModel) -> None:
        """Note what each level of a drafted tree promises, and decide how many to draft from now on."""
        rate, seconds, sizes = self._rate, cost.seconds, cost.sizes
        n_levels, before = shape.max_depth, 1.0 - rate * seconds[0]
        for level in range(n_levels):
            # breadth first: the first so many nodes are those of the first levels
            expected = list(accumulate(sorted(values[: 1 + self._width * (level + 1)], reverse=True)))
            worth = max(expected[size - 1] - rate * seconds[i] for i, size in enumerate(sizes) if size <= len(expected))
            self._n_looks[level] += 1
            weight = max(_WEIGHT, 1 / self._n_looks[level])
            self._surplus[level] += weight * (worth - before - self._surplus[level])
            before = worth
        price = self._rate * cost.level_seconds
        promised = list(accumulate(surplus - price for surplus in self._surplus))
        if self._n_looks[0] < _ENOUGH:
            return
        deepest = max(range(self._depth), key=promised.__getitem__)
        self._best = deepest + 1 if promised[deepest] > 0 else 0

    def select(self, tree: DraftTree) -> DraftTree:
        cost = self.cost
        if cost is None or tree.logp is None:
            return tree
        shape = tree.shape
        parents, _ = self._lists(shape)
        self._rows = self.acceptance.rows(tree, self._context)
        # breadth first: a parent's value is final before its children ask for it
        values = self.acceptance.chances(self._rows).tolist()
        values[0] = 1.0
        for node in range(1, len(values)):
            values[node] *= values[parents[node]]
        if self._exploring or self._n_looks[0] < _FIRST_LOOKS or self._n_steps % _REVIEW == 0:
            self._look(values, shape, cost)
        # no child is worth more than its parent, and of equals the parent comes first: the best few nodes are a tree
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        expected = list(accumulate(values[node] for node in order))
        sizes, seconds, budget = cost.sizes, cost.seconds, self._variant.budget
        allowed = [i for i, size in enumerate(sizes) if size <= min(budget or len(values), len(values))]
        # a text has stretches that are easier or harder than the rest of it, and they are gone through at what is to be had
        # there: the rate that a node must beat lies between that of the run and this step's own best
        here = max(expected[sizes[i] - 1] / seconds[i] for i in allowed)
        rate = self._rate + self._variant.local * (here - self._rate)
        best = max(allowed, key=lambda i: expected[sizes[i] - 1] - (0.0 if budget else rate * seconds[i]))
        self._kept = tuple(sorted(order[: cost.sizes[best]]))
        return self._subtree(tree, self._kept)

    def _lists(self, shape: TreeShape) -> tuple[list[int], list[int]]:
        """Parents and ranks of a planned shape."""
        found = self._planned.get(id(shape))
        if found is None:
            found = self._planned[id(shape)] = (shape, shape.parents.tolist(), shape.ranks.tolist())
        return found[1], found[2]

    def _subtree(self, tree: DraftTree, kept: tuple[int, ...]) -> DraftTree:
        """The tree with these nodes only; every kept node's parent is kept."""
        if len(kept) == tree.shape.n_nodes:
            return tree
        key = (id(tree.shape), kept)
        shape = self._shapes.get(key)
        if shape is None:
            parents, ranks = self._lists(tree.shape)
            place = {node: i for i, node in enumerate(kept)} | {-1: -1}
            shape = TreeShape.from_parents([place[parents[node]] for node in kept], [ranks[node] for node in kept])
            self._shapes[key] = shape
            if len(self._shapes) > _MAX_SHAPES:
                self._shapes.popitem(last=False)
        assert tree.logp is not None
        return DraftTree(shape, tuple(tree.tokens[node] for node in kept), tree.logp[list(kept)])

    def learn(self, outcome: Outcome) -> None:
        drafted, verified, path = outcome.drafted, outcome.verified, outcome.path
        if self.cost is None or verified.copied:
            return
        cost, shape = self.cost, verified.shape
        cost.observe_verify(shape.n_nodes, outcome.verify_seconds)
        n_levels = drafted.shape.max_depth
        taken = without_pause(outcome.seconds, self._seconds)
        self._saved += _SPENT * taken
        if self._exploring:
            # the first draft after so many plain steps builds its graph, those after it do not
            self._price = min(outcome.draft_seconds, taken, 3 * n_levels * cost.level_seconds)
            self._saved -= self._price
        # after steps that drafted nothing, a draft also feeds the head what was accepted meanwhile
        if n_levels and self._drafted_last:
            cost.observe_draft(n_levels, outcome.draft_seconds)
        self._drafted_last = n_levels > 0
        self._accepted += 0.1 * (len(path) - 1 - self._accepted)
        self._n_learnt += 1
        # the rate of plain decoding, with which it begins, counts for two steps
        weight = max(_WEIGHT, 1 / (self._n_learnt + 2))
        self._tokens += weight * (len(path) - self._tokens)
        self._seconds += weight * (taken - self._seconds)
        if verified.logp is None or shape.n_nodes == 1 or not self._variant.learns:
            return
        seen = [child for node in path for child in shape.children[node]]
        accepted = np.array([child in path for child in seen], dtype=np.float64)
        self.acceptance.observe(self._rows[[self._kept[child] for child in seen]], accepted)
