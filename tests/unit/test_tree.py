"""Shapes: breadth-first order, ranks, spines."""

from __future__ import annotations

import numpy as np
import pytest

from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape


def test_a_shape_knows_depths_ranks_and_children() -> None:
    shape = TreeShape.from_parents([-1, 0, 0, 1, 2, 2, 3])
    assert shape.depths.tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert shape.ranks.tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert shape.children == ((1, 2), (3,), (4, 5), (6,), (), (), ())
    assert (shape.n_nodes, shape.max_depth, shape.is_chain) == (7, 3, False)
    assert shape.parents.dtype == shape.ranks.dtype == np.int32


def test_ranks_can_be_given() -> None:
    shape = TreeShape.from_parents([-1, 0, 0], [0, 3, 1])
    assert shape.ranks.tolist() == [0, 3, 1]
    assert shape.children[0] == (2, 1)


@pytest.mark.parametrize(
    ("parents", "complaint"),
    [
        ([], "root"),
        ([0], "root"),
        ([-1, 1], "parents come before"),
        ([-1, -1], "parents come before"),
        ([-1, 0, 1, 0], "level by level"),
    ],
)
def test_what_is_no_tree(parents: list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TreeShape.from_parents(parents)


@pytest.mark.parametrize("ranks", [[0, 0, 0], [0, 1], [0, 0, -1]])
def test_siblings_need_different_ranks(ranks: list[int]) -> None:
    with pytest.raises(ValueError, match="rank"):
        TreeShape.from_parents([-1, 0, 0], ranks)


def test_chains_and_spines() -> None:
    assert TreeShape.chain(3).parents.tolist() == [-1, 0, 1, 2]
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
