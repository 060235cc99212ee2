"""Acceptance: which drafted tokens the target confirms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from entmtp_local.speculative.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of a verification pass."""

    path: tuple[int, ...]  # accepted nodes, root first
    tokens: tuple[int, ...]  # what is emitted: the tokens of path[1:], then the bonus token

    @property
    def bonus(self) -> int:
        """The token sampled at the last accepted node: the next pending one."""
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
