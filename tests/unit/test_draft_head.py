"""What drafts are read from, chosen on texts and prices that are known.

| test | failure it catches |
|---|---|
| accepted | lengths that are counted past a miss, past the text's end, or from tokens that could not be drafted |
| fastest chain | a speed that leaves out what a level or a node costs, or takes one chain for all texts |
| begin | a choice of calibration that is not where it begins, or is never left |
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from entmtp_local.calibration.head import accepted, fastest_chain
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.draft_vocab import DraftVocab, PassCost


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("known", [None, (6, 9)])
def test_lengths_are_those_found_one_token_at_a_time(seed: int, known: tuple[int, int] | None) -> None:
    rng = random.Random(seed)
    n, depth = rng.randrange(2, 40), rng.randrange(1, 6)
    tokens = [rng.randrange(10) for _ in range(n)]
    # mostly what follows, so that some chains are right to their end
    drafts = [
        [t if rng.random() < 0.7 else 0 for t in (*tokens[i + 1 : i + 1 + depth], *[3] * depth)][:depth] for i in range(n - 1)
    ]
    expected = []
    for i, chain in enumerate(drafts):
        length = 0
        for token, follows in zip(chain, tokens[i + 1 :], strict=False):
            if token != follows or (known is not None and known[0] <= token < known[1]):
                break
            length += 1
        expected.append(length)
    found = accepted(np.array(drafts, dtype=np.int32).reshape(n - 1, depth), np.array(tokens, dtype=np.int32), known)
    assert found.tolist() == expected


def test_the_speed_is_that_of_the_best_chain_for_each_kind_of_text() -> None:
    costs = CostTable({1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}, step=0.1)
    easy, hard = np.full(8, 3, dtype=np.int32), np.zeros(8, dtype=np.int32)
    # three levels: 4 tokens in 1.3 + 0.1 + 0.2 + 3 * 0.1 seconds; where nothing is accepted one level loses least
    speed, beside = fastest_chain([easy, hard], 3, costs, fixed=0.2, level=0.1)
    assert speed == pytest.approx(((4 / 1.9) * (1 / 1.5)) ** 0.5)
    assert beside == pytest.approx((1.6 + 1.4) / 2)
    dear, _ = fastest_chain([easy], 3, costs, fixed=0.2, level=10.0)
    assert dear == pytest.approx(2 / (1.1 + 0.1 + 0.2 + 10))


def test_a_choice_of_calibration_is_where_it_begins() -> None:
    cost = PassCost(target=0.02, level=4e-4, row=2e-8)
    vocab = DraftVocab(248_320, 320, PassCost(490e6, 11.5e6, 840))
    vocab.begin(8192, cost)
    assert (vocab.size, vocab.usual, vocab.cost) == (8192, 8192, cost)
    vocab.begin(5000, cost)
    assert vocab.size == 0, "no size of this vocabulary: all of it"
    vocab.begin(8192, cost)
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens = rng.integers(40_000, 60_000, 3).tolist()
        vocab.observe_draft(tokens[:2], tokens[2], 3, 3)
        vocab.observe(tokens)
        vocab.due(3)
    assert vocab.size > 32_768 or vocab.size == 0, "rarer ids than calibration saw"
