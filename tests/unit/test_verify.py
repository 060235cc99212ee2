"""Acceptance: the target's tokens are followed until they leave the tree."""

from __future__ import annotations

import pytest

from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from entmtp_local.speculative.verify import Accepted, accept

#        0
#       1  2
#      3    4 5
#     6
TREE = DraftTree(TreeShape.from_parents([-1, 0, 0, 1, 2, 2, 3]), (100, 11, 12, 13, 14, 15, 16))


def run(rows: dict[int, int], limit: int = 99, last: int = -1) -> tuple[Accepted, list[int]]:
    """Accept with a target that answers `rows[node]` at each node; also the nodes that were asked."""
    asked: list[int] = []

    def choose(node: int) -> int:
        asked.append(node)
        return rows[node]

    return accept(TREE, choose, lambda token: token == last, limit), asked


@pytest.mark.parametrize(
    ("rows", "path", "tokens"),
    [
        ({0: 99}, (0,), (99,)),
        ({0: 11, 1: 99}, (0, 1), (11, 99)),
        ({0: 12, 2: 15, 5: 13}, (0, 2, 5), (12, 15, 13)),  # 13 is in the tree, but not below node 5
        ({0: 11, 1: 13, 3: 16, 6: 16}, (0, 1, 3, 6), (11, 13, 16, 16)),
    ],
)
def test_the_path_of_the_targets_tokens(rows: dict[int, int], path: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    accepted, asked = run(rows)
    assert accepted.path == path
    assert accepted.tokens == tokens
    assert accepted.bonus == tokens[-1]
    assert asked == list(path), "each visited row is sampled once, in order of depth"


def test_nothing_is_emitted_past_the_limit() -> None:
    accepted, asked = run({0: 11, 1: 13, 3: 16, 6: 1}, limit=2)
    assert accepted == Accepted((0, 1), (11, 13))
    assert asked == [0, 1]


def test_a_last_token_is_the_bonus_even_where_it_was_drafted() -> None:
    accepted, asked = run({0: 11, 1: 13, 3: 16, 6: 1}, last=13)
    assert accepted == Accepted((0, 1), (11, 13))
    assert asked == [0, 1]


def test_without_drafts_one_token_comes_out() -> None:
    assert accept(DraftTree(ROOT_ONLY, (7,)), lambda node: 3, lambda token: False, 5) == Accepted((0,), (3,))
