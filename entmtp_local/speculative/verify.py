"""Acceptance: which drafted tokens the target confirms.

A rule is given the verified tree and asks the target and the user's sampler for what it needs. Only strict acceptance is
lossless: the text is the one that the target and the sampler would have written without drafts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import UsageError
from entmtp_local.speculative.entropy import softmax
from entmtp_local.speculative.sampling import MIN_TEMP, SamplingOptions
from entmtp_local.speculative.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of a verification pass."""

    path: tuple[int, ...]  # accepted nodes, root first
    tokens: tuple[int, ...]  # what is emitted: the tokens of path[1:], then the bonus token

    @property
    def bonus(self) -> int:
        """The token after the last accepted node: the next pending one."""
        return self.tokens[-1]


def accept(tree: DraftTree, choose: Callable[[int], int], is_last: Callable[[int], bool], limit: int) -> Accepted:
    """Follow the target's own tokens down the tree until they leave it.

    Args:
        tree: the drafted tree.
        choose: the target's token at a node's row: its arg-max or a sample. Called once per visited node, in order of depth,
            so that a seeded sampler gives the same tokens whatever was drafted.
        is_last: whether a token ends the generation.
        limit: the number of tokens that may still be emitted, at least 1.
    Returns: accepted nodes, and the tokens to emit. A last token is never descended into: it is emitted as the bonus.
    Source: the rule of llama.cpp's common_sampler_sample_and_accept_n, from a chain to a tree.
    """
    path = [0]
    tokens: list[int] = []
    while True:
        token = choose(path[-1])
        tokens.append(token)
        node = tree.child(path[-1], token)
        if node is None or len(tokens) >= limit or is_last(token):
            return Accepted(tuple(path), tuple(tokens))
        path.append(node)


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule may ask about the nodes of the last pass."""

    choose: Callable[[int], int]  # the token at a node's row, chosen by the user's sampler and taken as part of the text
    take: Callable[[int], None]  # let the sampler take a token as part of the text that it did not choose
    logits: Callable[[int], npt.NDArray[np.float32]]  # (n_vocab,) f32 at a node's row, with the user's biases; not to be changed
    is_last: Callable[[int], bool]  # whether a token ends the generation


class AcceptanceRule(Protocol):
    """Chooses the path that is kept of a verified tree."""

    @property
    def name(self) -> str: ...

    @property
    def lossless(self) -> bool:
        """Whether the text has the distribution that it would have without drafts."""
        ...

    def accept(self, tree: DraftTree, target: Target, limit: int) -> Accepted:
        """Accept drafted tokens.

        Args:
            limit: the number of tokens that may still be emitted, at least 1.
        Returns: a path from the root, and the tokens to emit. A last token is never part of the path: it is the bonus.
        """
        ...


class Strict:
    """A drafted token is accepted where it is the one that the user's sampler chooses from the target's row."""

    name = "strict"
    lossless = True

    def accept(self, tree: DraftTree, target: Target, limit: int) -> Accepted:
        return accept(tree, target.choose, target.is_last, limit)


STRICT = Strict()


@dataclass(frozen=True, slots=True)
class Typical:
    """A drafted token is accepted where it is typical of the target's row, chosen or not: this changes the distribution.

    With p the target's distribution at a node, at the user's temperature, and H its entropy, a token x drafted below the node is
    typical where p(x) > min(epsilon, delta exp(-H)): the less certain the target is, the less is asked. Of the paths whose
    tokens are all typical the longest is kept, of equally long ones the most probable. The token after it is chosen by the
    user's sampler, whose top-k, top-p and min-p concern such tokens alone. Where nothing is drafted, all of them are such.

    The sampler draws no random number for a drafted token: a seed gives the same text only where the same drafts are verified.

    Args:
        temperature: the sampler's, at least MIN_TEMP. In the limit of 0 the arg-max alone is typical, which is strict acceptance.
        epsilon: what is enough whatever the entropy.
        delta: what is enough in relation to exp(-H), the probability of each of so many equally probable tokens.
    Source: Medusa, arXiv 2401.10774, section 3.3.1, and evaluate_posterior of its code, where epsilon is posterior_threshold and
        delta is posterior_alpha; the values are the defaults of its medusa_generate, and those that EntMTP's code measures with.
    """

    temperature: float
    epsilon: float = 0.09
    delta: float = 0.3
    name: ClassVar[str] = "typical"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.temperature < MIN_TEMP:
            raise ValueError("at temperature 0 typical acceptance is strict acceptance")

    def accept(self, tree: DraftTree, target: Target, limit: int) -> Accepted:
        path = [0]
        tokens: list[int] = []
        for node in self._longest(tree, target):
            token = tree.tokens[node]
            target.take(token)
            tokens.append(token)
            if len(tokens) >= limit or target.is_last(token):
                return Accepted(tuple(path), tuple(tokens))
            path.append(node)
        tokens.append(target.choose(path[-1]))
        return Accepted(tuple(path), tuple(tokens))

    def _longest(self, tree: DraftTree, target: Target) -> list[int]:
        """The nodes below the root on the path that is kept; nothing follows a last token."""
        shape = tree.shape
        reached = {0: 0.0}  # nodes whose path is typical, and its log-probability
        # breadth first: a node's path is known before its children's
        for node, children in enumerate(shape.children):
            if not children or node not in reached or (node > 0 and target.is_last(tree.tokens[node])):
                continue
            weights, total, entropy = softmax(target.logits(node), self.temperature)
            threshold = min(self.epsilon, self.delta * math.exp(-entropy))
            for child in children:
                p = float(weights[tree.tokens[child]]) / total
                if p > threshold:
                    reached[child] = reached[node] + math.log(p)
        node = max(reached, key=lambda node: (shape.depths[node], reached[node]))
        path = []
        while node > 0:
            path.append(node)
            node = shape.parents[node]
        return path[::-1]


#: What `--acceptance` accepts.
ACCEPTANCES = (Strict.name, Typical.name)


def parse_acceptance(name: str, sampling: SamplingOptions) -> AcceptanceRule:
    """The rule of one of these names for a sampler with these options: strict at temperature 0, where the two are the same.

    Raises: UsageError where the sampler's rules depend on the tokens before, which typical acceptance does not follow.
    """
    if name == Strict.name or sampling.temp < MIN_TEMP:
        return STRICT
    what = "a grammar or a JSON schema" if sampling.constrained else "penalties" if sampling.penalizes else ""
    if what:
        remedy = "leave it out" if sampling.constrained else "give --repeat-penalty 1 and --presence-penalty 0"
        raise UsageError(
            f"--acceptance typical cannot be combined with {what}, which drafted tokens would slip past; "
            f"{remedy}, or use --acceptance strict."
        )
    return Typical(sampling.temp)
