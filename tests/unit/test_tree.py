"""Shapes: breadth-first order, ranks, spines."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest

from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape


def test_a_shape_knows_depths_ranks_and_children() -> None:
    shape = TreeShape.from_parents([-1, 0, 0, 1, 2, 2, 3])
    assert shape.depths == (0, 1, 1, 2, 2, 2, 3)
    assert shape.ranks == (0, 0, 1, 0, 0, 1, 0)
    assert shape.children == ((1, 2), (3,), (4, 5), (6,), (), (), ())
    assert (shape.n_nodes, shape.max_depth, shape.is_chain) == (7, 3, False)
    assert shape.parents == (-1, 0, 0, 1, 2, 2, 3)


def test_ranks_can_be_given() -> None:
    shape = TreeShape.from_parents([-1, 0, 0], [0, 3, 1])
    assert shape.ranks == (0, 3, 1)
    assert TreeShape.from_parents([-1, 0, 0], [-1, 3, 1]).ranks == (0, 3, 1), "the root's means nothing"
    assert shape.children[0] == (2, 1)


@pytest.mark.parametrize(
    ("parents", "complaint"),
    [
        ([], "root"),
        ([0], "root"),
        ([-1, 1], "parents come before"),
        ([-1, -1], "parents come before"),
        ([-1, 0, 1, 0], "level by level"),
        ([-1.0, 0], "whole numbers"),
        ([-1, 0.0], "whole numbers"),
    ],
)
def test_what_is_no_tree(parents: list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TreeShape.from_parents(parents)


@pytest.mark.parametrize("ranks", [[0, 0, 0], [0, 1], [0, 0, -1], [0, 0, 2**31], [0, 0, 1.0], []])
def test_siblings_need_different_ranks(ranks: list[int]) -> None:
    with pytest.raises(ValueError, match="rank"):
        TreeShape.from_parents([-1, 0, 0], ranks)


@pytest.mark.parametrize("seed", range(20))
def test_a_part_is_the_shape_that_its_nodes_have(seed: int) -> None:
    rng = random.Random(seed)
    parents, depths = [-1], [0]
    while len(parents) < 16:
        parent = rng.choice([node for node in range(len(parents)) if depths[node] + 1 >= depths[-1]])
        parents.append(parent)
        depths.append(depths[parent] + 1)
    # siblings in any order
    shape = TreeShape.from_parents(parents, [0, *rng.sample(range(40), 15)])
    kept = [0]
    for node in range(1, 16):
        if parents[node] in kept and rng.random() < 0.8:
            kept.append(node)
    part = shape.part(kept)
    place = {node: i for i, node in enumerate(kept)} | {-1: -1}
    expected = TreeShape.from_parents([place[parents[node]] for node in kept], [shape.ranks[node] for node in kept])
    assert asdict(part) == asdict(expected)


def test_chains_and_spines() -> None:
    assert TreeShape.chain(3).parents == (-1, 0, 1, 2)
    assert TreeShape.chain(3).is_chain
    assert ROOT_ONLY.n_nodes == 1 and ROOT_ONLY.max_depth == 0 and ROOT_ONLY.is_chain
    assert TreeShape.from_parents([-1, 0, 0, 1, 2, 3]).spine().max_depth == 3
    assert TreeShape.from_parents([-1, 0, 0, 2, 3]).spine().max_depth == 1  # the deep branch is below a sibling
    assert TreeShape.from_parents([-1, 0], [0, 1]).spine().max_depth == 0


def test_a_child_is_found_by_its_token() -> None:
    tree = DraftTree(TreeShape.from_parents([-1, 0, 0, 1]), (9, 5, 6, 5))
    assert tree.child(0, 5) == 1
    assert tree.child(0, 6) == 2
    assert tree.child(1, 5) == 3
    assert tree.child(0, 9) is None
    assert tree.child(3, 5) is None
