"""Copied text: what is proposed, what is learnt of it, and how it joins a tree.

| test | failure it catches |
|---|---|
| longest match | a copy from the wrong place |
| against brute force | an index that misses places, or finds what is not there |
| a text that repeats itself | a proposal past the end of the text |
| nothing to copy | proposals out of nothing |
| trust | copies that never come true proposed for ever; those that do never trusted |
| going on | a new prompt that begins like the last one read differently from a fresh one |
| merging | nodes twice, wrong parents, another order than breadth first |
"""

from __future__ import annotations

import random

import pytest

from entmtp_local.speculative.copying import CopyDrafter, chain_of, fitting, merge
from entmtp_local.speculative.tree import DraftTree, TreeShape


def eager(max_tokens: int = 8) -> CopyDrafter:
    return CopyDrafter(max_tokens, min_chance=0.0)


def test_the_longest_match_is_copied() -> None:
    drafter = eager(3)
    #                 1 2 3 4 -> 50, and 9 2 3 4 -> 60; the text ends in 1 2 3 4
    drafter.restart([1, 2, 3, 4, 50, 51, 52, 9, 2, 3, 4, 60, 61, 62, 1, 2, 3, 4])
    assert drafter.propose(3).tokens == (50, 51, 52)
    assert drafter.propose(2).tokens == (50, 51)
    assert drafter.propose(0).tokens == ()


def longest_match(text: list[int]) -> int:
    """Tokens, at least 3, that the text ends in and that stand in it before."""
    for length in range(min(24, len(text) - 1), 2, -1):
        if any(text[i - length : i] == text[-length:] for i in range(length, len(text))):
            return length
    return 0


def test_what_is_found_is_there() -> None:
    rng = random.Random(4)
    for _ in range(300):
        text = [rng.randrange(3) for _ in range(rng.randrange(2, 60))]
        drafter = eager(1)
        drafter.restart(text)
        found = drafter.propose(1).tokens
        length = longest_match(text)
        assert bool(found) == (length >= 3)
        if found:
            # what is proposed follows a place with the same three tokens
            assert any(text[i - 3 : i + 1] == [*text[-3:], *found] for i in range(3, len(text)))


def test_the_index_grows_with_the_text() -> None:
    rng = random.Random(5)
    text = [rng.randrange(4) for _ in range(400)]
    whole, parts = eager(), eager()
    whole.restart(text)
    i = 0
    while i < len(text):
        n = rng.randrange(1, 5)
        parts.extend(text[i : i + n])
        i += n
    assert whole.propose(8) == parts.propose(8)


def test_a_text_that_repeats_itself_goes_round() -> None:
    drafter = eager(7)
    drafter.restart([5, 6, 7, 5, 6, 7, 5])
    assert drafter.propose(7).tokens == (6, 7, 5, 6, 7, 5, 6)


def test_nothing_is_proposed_where_there_is_nothing_to_copy() -> None:
    drafter = eager()
    drafter.restart(list(range(100)))
    assert drafter.propose(8).tokens == ()
    drafter.restart([])
    assert drafter.propose(8).tokens == ()


def test_trust_is_learnt() -> None:
    rng = random.Random(6)
    phrase = [1, 2, 3]
    false, true = CopyDrafter(), CopyDrafter()
    for _ in range(60):
        # the same three tokens, never followed by the same one
        false.extend([*phrase, 1000 + rng.randrange(10**6)])
    false.extend(phrase)
    assert false.propose(8).tokens == ()
    line = list(range(100, 130))
    for _ in range(20):
        true.extend(line)
    copy = true.propose(8)
    assert copy.tokens == tuple(line[:8])
    assert copy.expected > 6
    assert CopyDrafter().propose(8).expected == 0


def test_a_conversation_goes_on() -> None:
    rng = random.Random(7)
    first = [rng.randrange(5) for _ in range(80)]
    going_on = eager()
    going_on.restart(first)
    for prompt in ([*first, 1, 2, 3, 4, 1, 2, 3], first[:40] + [1, 2, 3, 1, 2, 3], [4, 4, 4, 4]):
        going_on.restart(prompt)
        fresh = eager()
        fresh.restart(prompt)
        assert going_on.propose(8).tokens == fresh.propose(8).tokens


def tokens_of(tree: DraftTree, node: int) -> tuple[int, ...]:
    path = []
    while node > 0:
        path.append(tree.tokens[node])
        node = tree.shape.parents[node]
    return tuple(reversed(path))


def check(tree: DraftTree, drafted: DraftTree, copy: tuple[int, ...]) -> None:
    lines = {tokens_of(tree, node) for node in range(tree.shape.n_nodes)}
    assert len(lines) == tree.shape.n_nodes, "no line twice"
    expected = {tokens_of(drafted, node) for node in range(drafted.shape.n_nodes)}
    missing = [copy[:i] for i in range(1, len(copy) + 1) if copy[:i] not in expected]
    size = fitting(len(expected) + len(missing))
    added = missing[: max(0, size - len(expected))]
    assert lines == expected | set(added)
    assert {tokens_of(tree, node) for node in tree.copied} == set(added)
    assert tree.tokens[0] == drafted.tokens[0]
    assert sorted(tree.shape.depths) == list(tree.shape.depths)


def test_sizes() -> None:
    assert [fitting(n) for n in (1, 3, 4, 7, 8, 15, 16, 40)] == [0, 0, 4, 4, 8, 8, 16, 16]


@pytest.mark.parametrize(
    "copy", [(7,), (7, 8), (1,), (1, 2, 3), (1, 2, 9, 9, 9), (1, 8, 1), (4, 5), (6, 1, 2, 3, 4, 5), tuple(range(20, 35))]
)
def test_a_copy_joins_a_tree_where_they_part(copy: tuple[int, ...]) -> None:
    drafted = DraftTree(TreeShape.from_parents([-1, 0, 0, 1, 1, 3]), (0, 1, 4, 2, 5, 3))
    check(merge(drafted, copy), drafted, copy)


def test_random_trees_and_copies() -> None:
    rng = random.Random(8)
    for _ in range(200):
        parents = [-1]
        for _ in range(rng.randrange(12)):
            parents.append(rng.randrange(len(parents)))
        order = sorted(range(len(parents)), key=lambda i: depth_of(parents, i))
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        shape = TreeShape.from_parents([place[parents[old]] for old in order])
        # siblings differ, as ranks of one row do
        tokens = (99, *(shape.ranks[node] for node in range(1, shape.n_nodes)))
        drafted = DraftTree(shape, tokens)
        copy = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 16)))
        check(merge(drafted, copy), drafted, copy)


def depth_of(parents: list[int], node: int) -> int:
    return 0 if parents[node] < 0 else 1 + depth_of(parents, parents[node])


def test_a_copy_alone_is_a_chain() -> None:
    tree = chain_of(3, (4, 5, 6, 7))
    assert tree is not None
    assert tree.tokens == (3, 4, 5, 6)
    assert tree.shape.is_chain
    assert tree.copied == {1, 2, 3}
    assert chain_of(3, (4, 5)) is None
