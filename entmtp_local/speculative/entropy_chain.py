"""Chains whose length follows the entropy of the head's own distributions.

A head of entropy H proposes tokens that are accepted with a chance of about 1 - sqrt(gamma H). The chain is cut where that falls
below a bound; gamma, the bound and the number of levels to draft are calibrated.

Source: AdaEDL, arXiv 2410.18351, and SVIP, arXiv 2411.18462.
"""

from __future__ import annotations

from math import inf

from entmtp_local.errors import ProfileError
from entmtp_local.speculative.entropy import acceptance_bound
from entmtp_local.speculative.profile import ALL, MAX_DEPTH, Profile
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy, Restless
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape


class EntropyChain(Restless):
    """See the module.

    Args:
        task: whose figures to take from the profile.
        depth: levels that may be drafted at most.
    """

    needs_profile = True
    needs_entropy = False
    least = -inf

    def __init__(self, task: str = ALL, depth: int = MAX_DEPTH) -> None:
        self.name = "entropy-chain" + (f":{task}" if task != ALL else "")
        self._task = task
        self.max_depth = self.max_nodes = depth
        self._chains = [ROOT_ONLY, *(TreeShape.chain(length) for length in range(1, depth + 1))]
        self._depth: int | None = None
        self._gamma = self._bound = 0.0

    def calibrated(self, profile: Profile) -> None:
        """Raises: ProfileError where the profile has nothing for the task."""
        fit = profile.task(self._task)
        self._depth, self._gamma, self._bound = min(fit.chain_depth, self.max_depth), fit.gamma, fit.chain_bound

    def plan(self, evidence: Evidence) -> TreeShape:
        if self._depth is None:
            raise ProfileError(f"the policy {self.name} needs a profile; run entmtp-local calibrate MODEL first.")
        return self._chains[self._depth]

    def select(self, tree: DraftTree) -> DraftTree:
        if tree.entropy is None or tree.logp is None:
            return tree
        length = 0
        # the entropy below a node is that of the distribution from which the next one is drafted
        for entropy in tree.entropy[:-1]:
            if acceptance_bound(entropy, self._gamma) < self._bound:
                break
            length += 1
        if length == tree.shape.max_depth:
            return tree
        return DraftTree(self._chains[length], tree.tokens[: length + 1], tree.logp[: length + 1])

    def learn(self, outcome: Outcome) -> None:
        pass

    def within(self, limits: Limits) -> Policy:
        depth = min(self.max_depth, limits.max_depth, limits.max_nodes)
        if depth == 0:
            return OFF
        return self if depth == self.max_depth else EntropyChain(self._task, depth)
