"""The paper's policy: a set of static trees, chosen among by a running signal. And the controls that show what the signal brings.

Low local entropy: what follows is easy to guess, and a large tree pays. Trees and thresholds are calibrated per task. A tree is
kept for some steps and across small changes, so that one odd token does not change it.

Source: EntMTP, arXiv 2606.27550. Its published runs accept by verify.Typical, which is not lossless.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import inf

from entmtp_local.errors import ProfileError
from entmtp_local.speculative.entropy import RunningEntropy, log_entropy
from entmtp_local.speculative.profile import ALL, MAX_DEPTH, MAX_NODES, Profile, TreeSet, shape_of
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy, Restless
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

#: By name: the paper's running entropy; the product of the head's best probabilities, as in its released code; nothing at all.
SIGNALS: Mapping[str, str] = {"entropy": "running", "path": "path", "constant": "constant"}
WINDOW = 16  # steps of the running signal
MARGIN = 0.1  # of the signal beyond an edge, before another tree is chosen
DWELL = 8  # steps that a tree stays at least


class RunningSignal:
    """The value that thresholds are applied to, from one step to the next."""

    def __init__(self, signal: str, window: int = WINDOW) -> None:
        self._signal = signal
        self._mean = RunningEntropy(window)

    def before(self, entropy: float) -> float:
        """The value for a step whose pending token is from a distribution of this entropy, nats."""
        if self._signal == "running":
            return log_entropy(self._mean.add(entropy))
        return self._mean.value if self._signal == "path" else 0.0

    def after(self, tree: DraftTree) -> None:
        """Take note of a drafted tree."""
        if self._signal != "path" or tree.logp is None or tree.shape.n_nodes == 1:
            return
        total, node, depth = 0.0, 0, 0
        # the best-ranked chain, per level, so that trees of all depths are compared
        while tree.shape.children[node]:
            node = tree.shape.children[node][0]
            total += tree.logp[node]
            depth += 1
        self._mean.add(-total / depth)


class Choice:
    """Which tree of a set a running signal asks for, with hysteresis and a minimum dwell."""

    def __init__(self, trees: TreeSet, margin: float = MARGIN, dwell: int = DWELL) -> None:
        self._trees, self._margin, self._dwell = trees, margin, dwell
        self.current: int | None = None
        self._since = 0

    def step(self, value: float) -> int:
        """The tree of a step by the signal's value, an index of the set's trees."""
        edges, choice = self._trees.edges, self._trees.choice
        if self.current is None:
            # nothing is known of the signal yet: the tree of the middle
            self.current = choice[bisect_right(edges, value) if value == value else len(choice) // 2]
            return self.current
        self._since += 1
        if self._since >= self._dwell and value == value:
            low, high = (choice[bisect_right(edges, value + side)] for side in (-self._margin, self._margin))
            if self.current not in range(min(low, high), max(low, high) + 1):
                self.current, self._since = choice[bisect_right(edges, value)], 0
        return self.current


class EntMTP(Restless):
    """See the module.

    Args:
        signal: a key of SIGNALS.
        task: whose trees and thresholds to take from the profile.
    """

    needs_profile = True
    least = -inf
    max_depth = MAX_DEPTH
    max_nodes = MAX_NODES

    def __init__(self, signal: str = "entropy", task: str = ALL) -> None:
        self._signal_name, self._task = signal, task
        self.name = "entmtp" + (f":{signal}" if signal != "entropy" else "") + (f":{task}" if task != ALL else "")
        self.needs_entropy = signal == "entropy"
        self._signal = RunningSignal(SIGNALS[signal])
        self._choice: Choice | None = None
        self._shapes: list[TreeShape] = []

    def calibrated(self, profile: Profile) -> None:
        """Take the trees and thresholds.

        Raises: ProfileError where the profile has none for the task.
        """
        trees = profile.task(self._task).sets[SIGNALS[self._signal_name]]
        self._shapes = [shape_of(paths) for paths in trees.trees]
        self._choice = Choice(trees)

    def plan(self, evidence: Evidence) -> TreeShape:
        if self._choice is None:
            raise ProfileError(f"the policy {self.name} needs a profile; run entmtp-local calibrate MODEL first.")
        return self._shapes[self._choice.step(self._signal.before(evidence.entropy))]

    def select(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, outcome: Outcome) -> None:
        self._signal.after(outcome.drafted)

    def within(self, limits: Limits) -> Policy:
        """Itself, or chains by the same thresholds where no trees can be verified."""
        if min(limits.max_depth, limits.max_nodes) == 0:
            return OFF
        if limits.trees and limits.max_depth >= self.max_depth and limits.max_nodes >= self.max_nodes:
            return self
        return _Chains(self, limits)


class _Chains(Restless):
    """A policy of trees where only chains, or smaller trees, can be verified: the spine of each tree, as deep as it may be."""

    needs_profile = True
    least = -inf

    def __init__(self, policy: EntMTP, limits: Limits) -> None:
        self._policy = policy
        self.name, self.needs_entropy = policy.name, policy.needs_entropy
        self.max_depth = self.max_nodes = min(policy.max_depth, limits.max_depth, limits.max_nodes)
        self._chains = [ROOT_ONLY, *(TreeShape.chain(depth) for depth in range(1, self.max_depth + 1))]

    def calibrated(self, profile: Profile) -> None:
        self._policy.calibrated(profile)

    def plan(self, evidence: Evidence) -> TreeShape:
        return self._chains[min(self._policy.plan(evidence).spine().max_depth, self.max_depth)]

    def select(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, outcome: Outcome) -> None:
        self._policy.learn(outcome)

    def within(self, limits: Limits) -> Policy:
        found = self._policy.within(limits)
        # the engine knows shapes by identity
        return self if isinstance(found, _Chains) and found.max_depth == self.max_depth else found
