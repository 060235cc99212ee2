"""What the generation loop needs of an engine, of a sampler and of a policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.tree import DraftTree, TreeShape


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine can verify for the loaded model."""

    trees: bool  # False: chains only
    max_depth: int  # deepest drafted node, 0 = nothing can be drafted
    max_nodes: int  # most drafted nodes, the root not counted
    reason: str  # why it is not more, a clause for the user; empty where nothing is missing
    max_copied: int = 0  # copied nodes that a tree may have beyond those; where trees is False, the longest chain of them


class TokenChooser(Protocol):
    """The user's sampler, seen from the loop."""

    @property
    def greedy(self) -> bool:
        """The chosen token is the arg-max of the row, whatever came before."""
        ...

    @property
    def n_best(self) -> int:
        """So many of a row's best tokens are all that it looks at; 0 = the whole row."""
        ...

    def sample(self, ctx: object, row: int) -> int:
        """Choose the token after an output row and take it as part of the text."""
        ...

    def take(self, token: int) -> None:
        """Take a token as part of the text that it did not choose; the random numbers stay where they are."""
        ...

    def biased(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A row of logits with the user's biases; the row itself where there are none."""
        ...

    def reset(self) -> None:
        """Begin a new text: the random numbers and what was taken before start anew."""
        ...

    def prime(self, tokens: Sequence[int]) -> None:
        """Show it the prompt."""
        ...


class SpeculativeEngine(Protocol):
    """One timeline of tokens that can be extended speculatively."""

    @property
    def limits(self) -> Limits: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def n_past(self) -> int:
        """Committed tokens; the pending token is not among them."""
        ...

    @property
    def turn(self) -> int:
        """Changes whenever the committed tokens are changed by anything but `commit`."""
        ...

    def prefill(self, prompt: Sequence[int], stop: Callable[[], bool]) -> int:
        """Make the prompt the committed tokens, reusing what is already there; `stop` is polled between passes.

        Returns: tokens that had to be computed. Where `stop` ended it, n_past is less than the prompt's length.
        """
        ...

    def chooser(self, sampler: TokenChooser) -> Callable[[int], int]:
        """The target's token at an output row of the last pass; row -1 is the prompt's last."""
        ...

    def rows(self, sampler: TokenChooser) -> Callable[[int], npt.NDArray[np.float32]]:
        """The target's logits at an output row of the last pass, biased by the sampler: (n_vocab,) f32.

        A row may lie in the engine's own memory: it is not to be changed, and the next pass overwrites it.
        """
        ...

    def start(self, pending: int) -> None:
        """Take the token sampled from the prompt's last row as pending."""
        ...

    def draft(self, shape: TreeShape, least: float = -math.inf) -> DraftTree:
        """Give the shape tokens, below the pending one. Lasting effects: none.

        Args:
            least: a level that is continued from no node whose path has at least this log-probability by the head is not drafted,
                nor what is below it: the drafted tree has the first levels of the shape. No path to a token that ends the text is
                likely; -inf drafts all levels, even so.
        """
        ...

    def verify(self, tree: DraftTree) -> None:
        """Compute the target's rows of every node in one pass."""
        ...

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Keep the path, forget the other nodes: the only lasting change of a step."""
        ...

    def discard(self) -> None:
        """Forget a verified tree that will not be committed."""
        ...

    def follow(self, tree: DraftTree, path: Sequence[int], pending: int | None) -> None:
        """Show the committed path and the new pending token to the drafter; None: the generation ends here."""
        ...

    def entropy(self, row: int) -> float:
        """Entropy of the target's distribution at an output row of the last pass, nats; row -1 is the prompt's last."""
        ...

    def is_eog(self, token: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a policy may look at before a step."""

    n_past: int
    n_accepted_last: int  # drafted tokens that the previous step accepted
    entropy: float = math.nan  # of the distribution that the pending token was chosen from, nats; NaN unless the policy needs it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step gave and took."""

    drafted: DraftTree
    verified: DraftTree
    path: tuple[int, ...]  # accepted nodes of the verified tree, root first
    draft_seconds: float
    verify_seconds: float  # with acceptance, which is where a device's results are waited for
    seconds: float


class Policy(Protocol):
    """Chooses the shape of each step's tree."""

    @property
    def name(self) -> str: ...

    @property
    def max_depth(self) -> int:
        """Deepest node that it ever drafts."""
        ...

    @property
    def max_nodes(self) -> int:
        """Most nodes that it ever has verified, the root not counted."""
        ...

    @property
    def needs_profile(self) -> bool:
        """Whether `calibrated` has to be called before the first step."""
        ...

    @property
    def needs_entropy(self) -> bool:
        """Whether `Evidence` is to have the entropy, which on some devices takes a look at a whole row."""
        ...

    def calibrated(self, profile: Profile) -> None:
        """Take what was measured of this model on this device."""
        ...

    def plan(self, evidence: Evidence) -> TreeShape:
        """What the head is to draft."""
        ...

    @property
    def least(self) -> float:
        """How likely, by the head, the best path to a level of the planned tree has to be, so that the level is drafted.

        A log-probability; -inf drafts all of it, even what is below a token that ends the text.
        """
        ...

    def select(self, tree: DraftTree) -> DraftTree:
        """What of the drafted tree is to be verified, perhaps the root alone."""
        ...

    def learn(self, outcome: Outcome) -> None:
        """See what a step gave and took."""
        ...

    def rest(self, n_past: int) -> tuple[int, float]:
        """How many of the steps to come draft nothing, whatever they bring, and need not be planned nor learnt from one by one.

        It is asked where a text begins, before `plan`, and then behind every step that was learnt from and every rest.

        Args:
            n_past: committed tokens. Where they are not those behind the last step, another text begins, which may be told by no
                `plan`.
        Returns: the number, and the seconds that such a step counts for at most. The rest ends early with the text, or with a
            step that verifies something else.
        """
        ...

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        """See what so many steps of a rest took together."""
        ...

    def within(self, limits: Limits) -> Policy:
        """The nearest policy that stays within what the engine can verify; itself where nothing is missing."""
        ...


class Restless:
    """Policies that are asked at every step, and learn from every one."""

    __slots__ = ()

    def rest(self, n_past: int) -> tuple[int, float]:
        return 0, 0.0

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        raise AssertionError("no rest was asked for")
