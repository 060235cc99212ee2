"""The shape of a draft tree and a drafted tree. It knows nothing of models: tokens are numbers.

Nodes are numbered breadth first. Node 0 is the root: the pending token, sampled but not decoded yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index

_MOST_RANK = 2**31 - 1  # that the engine can be asked for


@dataclass(slots=True, eq=False)
class TreeShape:
    """Which nodes a tree has, before they have tokens. It is not changed once it is built.

    Shapes are reused for many steps: the engine recognises the one that it was given last by identity.
    """

    parents: tuple[int, ...]  # (n_nodes,), parents[0] = -1, parents[i] < i
    ranks: tuple[int, ...]  # (n_nodes,), node i is its parent's ranks[i]-th best continuation, from 0
    depths: tuple[int, ...]  # (n_nodes,), not decreasing
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
        try:
            parents = [index(parent) for parent in parents]
            ranks = None if ranks is None else [index(rank) for rank in ranks]
        except TypeError:
            raise ValueError("parents and ranks are whole numbers") from None
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
            len({ranks[child] for child in siblings}) < len(siblings) for siblings in children
        ):
            raise ValueError("every node needs a rank of its own among its siblings")
        elif not all(0 <= rank <= _MOST_RANK for rank in ranks[1:]):
            raise ValueError(f"ranks go from 0 to {_MOST_RANK}")
        ranks[0] = 0  # the root has no siblings
        return TreeShape(
            parents=tuple(parents),
            ranks=tuple(ranks),
            depths=tuple(depths),
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

    def part(self, nodes: Sequence[int]) -> TreeShape:
        """The tree with some of its nodes only, numbered in their order.

        Args:
            nodes: ascending; the root, and the parent of every other one, are among them.
        """
        place = {-1: -1}
        children: list[list[int]] = []
        for i, node in enumerate(nodes):
            place[node] = i
            children.append([])
        of, by = self.parents, self.ranks
        parents = tuple([place[of[node]] for node in nodes])
        ranks = tuple([by[node] for node in nodes])
        for i in range(1, len(parents)):
            children[parents[i]].append(i)
        for siblings in children:
            if len(siblings) > 1:
                siblings.sort(key=ranks.__getitem__)
        depths = tuple([self.depths[node] for node in nodes])
        return TreeShape(parents, ranks, depths, tuple(map(tuple, children)), len(parents), depths[-1])

    def spine(self) -> TreeShape:
        """The chain along the best-ranked nodes: what remains of the tree where only chains can be verified."""
        depth, node = 0, 0
        while self.children[node] and self.ranks[self.children[node][0]] == 0:
            node = self.children[node][0]
            depth += 1
        return TreeShape.chain(depth)


@lru_cache(maxsize=1024)
def _upto(shape: TreeShape, depth: int) -> TreeShape:
    return shape.part(range(bisect_right(shape.depths, depth)))


#: Nothing is drafted: the pass verifies the pending token alone.
ROOT_ONLY = TreeShape.chain(0)


@dataclass(slots=True, eq=False)
class DraftTree:
    """A shape whose nodes have tokens. It is not changed once it is built."""

    shape: TreeShape
    tokens: tuple[int, ...]  # (n_nodes,), tokens[0] is the pending token
    logp: Sequence[float] | None = None  # (n_nodes,) the head's, given the parent; None of nodes copied or selected
    copied: frozenset[int] = frozenset()  # nodes that were found in the text, not drafted by the head
    entropy: Sequence[float] | None = None  # (n_nodes,) of the head's distribution below each node, nats; NaN at leaves
    ends: tuple[int, ...] = ()  # nodes that end the text and need no row of their own, where the drafter tells

    def child(self, node: int, token: int) -> int | None:
        """The child of a node that carries the token."""
        for candidate in self.shape.children[node]:
            if self.tokens[candidate] == token:
                return candidate
        return None
