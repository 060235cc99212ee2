"""The shape of a draft tree and a drafted tree. It knows nothing of models: tokens are numbers.

Nodes are numbered breadth first. Node 0 is the root: the pending token, sampled but not decoded yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class TreeShape:
    """Which nodes a tree has, before they have tokens.

    Shapes are built once and reused for many steps: the engine recognises a shape by identity.
    """

    parents: Int32Array  # (n_nodes,) i32, parents[0] = -1, parents[i] < i
    ranks: Int32Array  # (n_nodes,) i32, node i is its parent's ranks[i]-th best continuation, from 0
    depths: Int32Array  # (n_nodes,) i32, not decreasing
    parent_of: tuple[int, ...]  # parents and ranks once more, for what goes through them node by node
    rank_of: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]  # of every node, by rank
    n_nodes: int  # including the root
    max_depth: int

    @property
    def is_chain(self) -> bool:
        return self.max_depth == self.n_nodes - 1

    @staticmethod
    def from_parents(parents: Sequence[int], ranks: Sequence[int] | None = None) -> TreeShape:
        """Build a shape; without ranks, siblings are ranked in the order in which they appear.

        Args:
            parents: (n_nodes,) the parent of each node, -1 for node 0, breadth first.
            ranks: (n_nodes,) or None.
        Raises: ValueError when the parents are not those of one tree in breadth-first order.
        """
        if len(parents) == 0 or parents[0] != -1:
            raise ValueError("node 0 must be the root, with parent -1")
        depths = [0]
        children: list[list[int]] = [[]]
        for node, parent in enumerate(parents[1:], start=1):
            if not 0 <= parent < node:
                raise ValueError(f"node {node} has parent {parent}: parents come before their children")
            depth = depths[parent] + 1
            if depth < depths[-1]:
                raise ValueError(f"node {node} at depth {depth} follows one at depth {depths[-1]}: list the nodes level by level")
            depths.append(depth)
            children.append([])
            children[parent].append(node)
        if ranks is None:
            ranks = [0] * len(parents)
            for siblings in children:
                for rank, node in enumerate(siblings):
                    ranks[node] = rank
        elif len(ranks) != len(parents) or any(
            len({ranks[c] for c in s}) < len(s) or min((ranks[c] for c in s), default=0) < 0 for s in children
        ):
            raise ValueError("every node needs a rank of its own among its siblings, 0 or higher")
        return TreeShape(
            parents=np.array(parents, dtype=np.int32),
            ranks=np.array(ranks, dtype=np.int32),
            depths=np.array(depths, dtype=np.int32),
            parent_of=tuple(parents),
            rank_of=tuple(ranks),
            children=tuple(tuple(sorted(siblings, key=ranks.__getitem__)) for siblings in children),
            n_nodes=len(parents),
            max_depth=depths[-1],
        )

    @staticmethod
    def chain(depth: int) -> TreeShape:
        """A root followed by `depth` drafted tokens."""
        return TreeShape.from_parents(range(-1, depth))

    @staticmethod
    def comb(depth: int, width: int) -> TreeShape:
        """A spine of `depth` best-ranked nodes, each level with its `width` best continuations; only the spine has children.

        Node 1 + (d - 1) * width + r is the rank-r continuation at depth d.
        """
        parents, spine = [-1], 0
        for _ in range(depth):
            first = len(parents)
            parents += [spine] * width
            spine = first
        return TreeShape.from_parents(parents)

    def upto(self, depth: int) -> TreeShape:
        """The first levels of the tree: its nodes at most so deep, which are numbered as they are here."""
        return self if depth >= self.max_depth else _upto(self, depth)

    def spine(self) -> TreeShape:
        """The chain along the best-ranked nodes: what remains of the tree where only chains can be verified."""
        depth, node = 0, 0
        while self.children[node] and self.ranks[self.children[node][0]] == 0:
            node = self.children[node][0]
            depth += 1
        return TreeShape.chain(depth)


@lru_cache(maxsize=1024)
def _upto(shape: TreeShape, depth: int) -> TreeShape:
    n = int(np.searchsorted(shape.depths, depth, side="right"))
    return TreeShape.from_parents(shape.parent_of[:n], shape.rank_of[:n])


#: Nothing is drafted: the pass verifies the pending token alone.
ROOT_ONLY = TreeShape.chain(0)


@dataclass(frozen=True, slots=True)
class DraftTree:
    """A shape whose nodes have tokens."""

    shape: TreeShape
    tokens: tuple[int, ...]  # (n_nodes,), tokens[0] is the pending token
    logp: npt.NDArray[np.float32] | None = None  # (n_nodes,) the head's, given the parent; None of nodes copied or selected
    copied: frozenset[int] = frozenset()  # nodes that were found in the text, not drafted by the head
    entropy: npt.NDArray[np.float32] | None = None  # (n_nodes,) of the head's distribution below each node, nats; NaN at leaves
    ends: tuple[int, ...] = ()  # nodes that end the text and need no row of their own, where the drafter tells

    def child(self, node: int, token: int) -> int | None:
        """The child of a node that carries the token."""
        for candidate in self.shape.children[node]:
            if self.tokens[candidate] == token:
                return candidate
        return None
