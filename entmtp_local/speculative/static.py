"""Policies that draft the same shape at every step."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

_FOREVER = 1 << 62  # steps


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """The same shape at every step: nothing, a chain, or a tree."""

    name: str
    shape: TreeShape

    @property
    def max_depth(self) -> int:
        return self.shape.max_depth

    @property
    def max_nodes(self) -> int:
        return self.shape.n_nodes - 1

    def plan(self, evidence: Evidence) -> TreeShape:
        return self.shape

    @property
    def least(self) -> float:
        return -inf

    @property
    def needs_profile(self) -> bool:
        return False

    @property
    def needs_entropy(self) -> bool:
        return False

    def calibrated(self, profile: Profile) -> None:
        pass

    def select(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, outcome: Outcome) -> None:
        pass

    def rest(self, n_past: int) -> tuple[int, float]:
        return (_FOREVER, inf) if self.shape is ROOT_ONLY else (0, 0.0)

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        pass

    def within(self, limits: Limits) -> Policy:
        if self.max_depth <= limits.max_depth and self.max_nodes <= limits.max_nodes and (limits.trees or self.shape.is_chain):
            return self
        depth = min(self.shape.spine().max_depth, limits.max_depth, limits.max_nodes)
        return chain(depth) if depth > 0 else OFF


OFF = StaticPolicy("off", ROOT_ONLY)


def chain(depth: int) -> StaticPolicy:
    """Draft `depth` tokens one after another: what stock llama.cpp does."""
    return StaticPolicy(f"chain:{depth}", TreeShape.chain(depth))


# Hand-made until calibration grows trees from measured acceptance: a spine, and siblings where the head is least sure
# relative to what is at stake, near the root.
NARROW = StaticPolicy("tree:narrow", TreeShape.from_parents([-1, 0, 0, 1, 1, 3, 5]))
WIDE = StaticPolicy("tree:wide", TreeShape.from_parents([-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7, 7, 10]))
