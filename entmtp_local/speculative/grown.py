"""Static trees that calibration grew on logged texts, the kinds that the paper compares with."""

from __future__ import annotations

from math import inf

from entmtp_local.errors import ProfileError
from entmtp_local.speculative.profile import ALL, MAX_DEPTH, Profile, shape_of
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy, Restless
from entmtp_local.speculative.static import OFF, chain
from entmtp_local.speculative.tree import DraftTree, TreeShape

#: Medusa's growth takes each rank at each depth for independent of what is above; Hydra's measures what each node adds.
WAYS = ("medusa", "hydra")


class GrownTree(Restless):
    """The same tree at every step: the first nodes that growth on a task's log chose.

    Args:
        way: one of WAYS.
        n_nodes: drafted nodes; fewer where calibration grew fewer.
        task: whose tree to take from the profile.
    """

    needs_profile = True
    needs_entropy = False
    least = -inf

    def __init__(self, way: str, n_nodes: int, task: str = ALL) -> None:
        self.name = f"{way}:{n_nodes}" + (f":{task}" if task != ALL else "")
        self._way, self._task = way, task
        self.max_nodes, self.max_depth = n_nodes, min(n_nodes, MAX_DEPTH)
        self._shape: TreeShape | None = None

    def calibrated(self, profile: Profile) -> None:
        """Raises: ProfileError where the profile has nothing for the task."""
        fit = profile.task(self._task)
        self._shape = shape_of((fit.medusa if self._way == "medusa" else fit.hydra)[: self.max_nodes + 1])

    def plan(self, evidence: Evidence) -> TreeShape:
        if self._shape is None:
            raise ProfileError(f"the policy {self.name} needs a profile; run entmtp-local calibrate MODEL first.")
        return self._shape

    def select(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, outcome: Outcome) -> None:
        pass

    def within(self, limits: Limits) -> Policy:
        if min(limits.max_depth, limits.max_nodes) == 0:
            return OFF
        if limits.trees and limits.max_depth >= self.max_depth and limits.max_nodes >= self.max_nodes:
            return self
        if limits.trees and limits.max_nodes > 1:
            # a tree that is not known yet may be a chain
            most = limits.max_nodes if limits.max_depth >= MAX_DEPTH else min(limits.max_nodes, limits.max_depth)
            return GrownTree(self._way, min(self.max_nodes, most), self._task)
        # the spine of such a tree: no longer than the tree is deep
        return chain(min(3, self.max_depth, limits.max_depth, limits.max_nodes))
