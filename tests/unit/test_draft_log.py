"""What follows from the drafts at every position: counted by hand, and against the generation loop itself."""

from __future__ import annotations

import math
import random

import fakes
import numpy as np
import pytest

from entmtp_local.bench.draft_log import AcceptanceCounts, ChainRun, DraftLog
from entmtp_local.engine import generate
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.static import chain
from entmtp_local.speculative.tree import DraftTree, TreeShape

MAX_TOKENS = 40


def make_log(tokens: list[int], combs: list[list[list[int]]], ended: bool = False) -> DraftLog:
    shape = np.array(combs).shape if combs else (0, 2, 2)
    return DraftLog(np.array(tokens, dtype=np.int32), np.array(combs, dtype=np.int32).reshape(shape), ended)


def test_a_comb_is_a_spine_with_siblings() -> None:
    shape = TreeShape.comb(3, 2)
    assert list(shape.parents) == [-1, 0, 0, 1, 1, 3, 3]
    assert list(shape.ranks) == [0, 0, 1, 0, 1, 0, 1]
    assert shape.spine().max_depth == 3
    assert TreeShape.comb(4, 1).is_chain


def test_acceptance_is_counted_below_a_right_spine_only() -> None:
    log = make_log(
        [1, 2, 3, 4],
        [
            [[2, 9], [9, 3]],  # depth 1 right; depth 2 right in second place
            [[9, 3], [4, 9]],  # right in second place: what hangs below the wrong spine does not count
            [[4, 9], [5, 6]],  # right; depth 2 lies beyond the text
        ],
    )
    counts = AcceptanceCounts(2, 2)
    counts.add(log)
    assert counts.reached.tolist() == [3, 1]
    assert counts.hits.tolist() == [[2, 1], [0, 1]]
    assert counts.conditional() == [[2 / 3, 1 / 3], [0.0, 1.0]]
    counts.add(log)
    assert counts.reached.tolist() == [6, 2]


def test_a_text_of_one_token_says_nothing() -> None:
    counts, run = AcceptanceCounts(2, 2), ChainRun(2)
    for log in (make_log([1], []), make_log([0], [], ended=True)):
        counts.add(log)
        run.add(log)
    assert counts.conditional() == [[None, None], [None, None]]
    assert (run.n_steps, run.n_tokens, run.tokens_per_step) == (0, 0, 0.0)


class Drafting(fakes.FakeSession):
    """Drafts what a log says."""

    def __init__(self, log: DraftLog) -> None:
        tokens = log.tokens.tolist()
        super().__init__([tokens[:-1] if log.ended else tokens])
        self._log = log

    def draft(self, shape: TreeShape, least: float = -math.inf) -> DraftTree:
        spine = self._log.combs[self._n_emitted, :, 0].tolist()
        return DraftTree(shape, (int(self._log.tokens[self._n_emitted]), *spine[: shape.max_depth]))


def random_log(rng: random.Random) -> DraftLog:
    ended = rng.random() < 0.5
    n = rng.randrange(2, MAX_TOKENS) if ended else MAX_TOKENS
    tokens = [rng.randrange(4) for _ in range(n - ended)] + [fakes.EOG] * ended
    following = [*tokens, *[9] * 8]
    combs = [
        [[following[i + d] if rng.random() < 0.7 else 8, 7] for d in range(1, 7)]  # now and then the token that ends the text
        for i in range(n - 1)
    ]
    return make_log(tokens, combs, ended)


@pytest.mark.parametrize("length", range(1, 7))
def test_replaying_a_chain_gives_what_the_loop_gives(length: int) -> None:
    rng = random.Random(length)
    total = ChainRun(length)
    n_tokens = n_steps = 0
    for _ in range(30):
        log = random_log(rng)
        session = Drafting(log)
        sampler = session.new_sampler(SamplingOptions(temp=0))
        generation = generate(session, [1], policy=chain(length), sampler=sampler, max_tokens=MAX_TOKENS)
        accepted = [len(step.accepted) for step in generation][1:]
        run = ChainRun(length)
        run.add(log)
        assert run.accepted == accepted
        assert run.accepted_per_depth == generation.stats.accepted_per_depth
        n, stats = max(0, generation.stats.n_generated - 1), generation.stats
        assert run.tokens_per_step == pytest.approx(n / stats.n_steps if stats.n_steps else 0.0)
        total.add(log)
        n_steps += stats.n_steps
        n_tokens += n
    assert (total.n_steps, total.n_tokens) == (n_steps, n_tokens)
