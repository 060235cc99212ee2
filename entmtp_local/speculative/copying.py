"""Drafts by copying: what followed the last tokens when they stood in the text before. It knows nothing of models.

Quoting a document, editing code and repeating a name are copies; a look-up of a few microseconds finds them, and costs nothing
where there are none. How far a copy can be trusted is learnt from the text itself, at every token, drafted or not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from entmtp_local.speculative.tree import DraftTree, TreeShape

_KEY = 3  # tokens that have to match
_LONGEST = 24  # tokens of a match that are told apart
# Lengths of matches from which on they are counted together.
_STEPS = (4, 5, 6, 8, 12, 24)
_CANDIDATES = 8  # earlier places that are compared, the latest first
# Tokens that came as proposed, of two, before anything was seen: longer matches are better copies, short ones have to prove it.
_PRIOR = (0.4, 0.5, 0.7, 1.0, 1.4, 1.7, 1.9)
# Trees that copies make have so many nodes: kernels work in groups of four, and the engine keeps a graph for each size.
_SIZES = (16, 8, 4)
MAX_COPIED = _SIZES[0] - 1  # tokens of a proposal
_DECAY = 0.995


@dataclass(frozen=True, slots=True)
class Copy:
    """A proposed continuation."""

    tokens: tuple[int, ...]
    expected: float  # tokens of it that are expected to be accepted


NO_COPY = Copy((), 0.0)


class CopyDrafter:
    """The text so far, where each of its ends of three tokens stood before, and how often what came next came again.

    Args:
        max_tokens: longest proposal
        min_chance: a token is proposed while the chance that it is accepted, with all before it, is at least this
    """

    def __init__(self, max_tokens: int = MAX_COPIED, min_chance: float = 0.4) -> None:
        self.max_tokens, self._min_chance = max_tokens, min_chance
        self._tokens: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}  # the end of the latest place with these tokens
        self._earlier: list[int] = []  # [i]: the place before the one that ends at i with the same tokens, 0 = none
        self._place = 0  # what follows it is proposed; 0 = nothing
        self._length = 0  # of the match
        self._hits = list(_PRIOR)
        self._misses = [2.0 - hits for hits in _PRIOR]

    def restart(self, tokens: Sequence[int]) -> None:
        """Make these the text; what is known of how it begins is kept. What was learnt of copies is kept, too."""
        n = len(self._tokens)
        if n > len(tokens) or self._tokens != list(tokens[:n]):
            self._tokens, self._latest, self._earlier = [], {}, []
            self._place = self._length = 0
            n = 0
        self.extend(tokens[n:])

    def extend(self, tokens: Sequence[int]) -> None:
        """Add what was emitted, and learn from whether it was what would have been proposed."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        text = self._tokens
        if self._place:
            level = bisect_right(_STEPS, self._length)
            hit = text[self._place] == token
            self._hits[level] = _DECAY * self._hits[level] + hit
            self._misses[level] = _DECAY * self._misses[level] + (not hit)
            # a copy that goes on is the same copy, one token longer
            self._place = self._place + 1 if hit else 0
            self._length = min(_LONGEST, self._length + 1) if hit else 0
        text.append(token)
        n = len(text)
        if n < _KEY:
            self._earlier.append(0)
            return
        key = tuple(text[n - _KEY :])
        before = self._latest.get(key, 0)
        self._earlier.append(before)
        self._latest[key] = n
        if not self._place and before:
            self._place, self._length = self._best(before)

    def _best(self, place: int) -> tuple[int, int]:
        """The longest match among the latest places, the latest of equals."""
        text, n = self._tokens, len(self._tokens)
        best = (0, 0)
        for _ in range(_CANDIDATES):
            length = _KEY
            while length < min(_LONGEST, place) and text[place - 1 - length] == text[n - 1 - length]:
                length += 1
            if length > best[1]:
                best = (place, length)
            place = self._earlier[place - 1]
            if not place or length == _LONGEST:
                break
        return best

    def propose(self, limit: int) -> Copy:
        """What may come next, at most `limit` tokens."""
        place = self._place
        if not place:
            return NO_COPY
        text, n = self._tokens, len(self._tokens)
        chance, expected, found = 1.0, 0.0, 0
        for i in range(min(limit, self.max_tokens)):
            level = bisect_right(_STEPS, self._length + i)
            chance *= self._hits[level] / (self._hits[level] + self._misses[level])
            if chance < self._min_chance:
                break
            expected += chance
            found += 1
        # the text may end inside a copy of itself: it then goes round
        period = n - place
        return Copy(tuple(text[place + i % period] for i in range(found)), expected) if found else NO_COPY


def fitting(n_nodes: int) -> int:
    """The largest size of a tree with copies that so many nodes fill; 0 where they fill none."""
    return next((size for size in _SIZES if size <= n_nodes), 0)


def merge(tree: DraftTree, copy: Sequence[int]) -> DraftTree:
    """Add a proposed continuation to a tree, as far as it fills a size; what the tree holds of it already is not added again."""
    node, shared = 0, 0
    for token in copy:
        child = tree.child(node, token)
        if child is None:
            break
        node, shared = child, shared + 1
    n_drafted = tree.shape.n_nodes
    added = copy[shared : shared + max(0, fitting(n_drafted + len(copy) - shared) - n_drafted)]
    if not added:
        return tree
    shape, places, new = _grown(tree.shape, node, len(added))
    tokens = [0] * shape.n_nodes
    for old, place in enumerate(places):
        tokens[place] = tree.tokens[old]
    for place, token in zip(new, added, strict=True):
        tokens[place] = token
    return DraftTree(shape, tuple(tokens), copied=frozenset(new))


def chain_of(pending: int, copy: Sequence[int]) -> DraftTree | None:
    """A proposed continuation alone, as far as it fills a size; None where it fills none."""
    n = fitting(1 + len(copy)) - 1
    if n <= 0:
        return None
    shape, _, new = _grown(_ROOT, 0, n)
    return DraftTree(shape, (pending, *copy[:n]), copied=frozenset(new))


_ROOT = TreeShape.chain(0)


@lru_cache(maxsize=512)
def _grown(shape: TreeShape, node: int, n: int) -> tuple[TreeShape, tuple[int, ...], tuple[int, ...]]:
    """A shape with a chain of n nodes below a node; where the old nodes went, and where the new ones are."""
    parents, ranks, depths = list(shape.parents), list(shape.ranks), list(shape.depths)
    siblings = shape.children[node]
    depth = depths[node]
    for i in range(n):
        parents.append(node if i == 0 else len(parents) - 1)
        ranks.append(max((ranks[s] for s in siblings), default=-1) + 1 if i == 0 else 0)
        depths.append(depth + 1 + i)
    order = sorted(range(len(parents)), key=depths.__getitem__)
    place = [0] * len(order)
    for i, old in enumerate(order):
        place[old] = i
    grown = TreeShape.from_parents([-1 if parents[o] < 0 else place[parents[o]] for o in order], [ranks[o] for o in order])
    return grown, tuple(place[: shape.n_nodes]), tuple(place[shape.n_nodes :])
