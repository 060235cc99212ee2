"""The choice of the draft vocabulary against arithmetic done by hand.

| test | failure it catches |
|---|---|
| common ids | a choice that ignores what the head costs |
| rare ids | a text of rare ids drafted from too few tokens |
| changing text | counts that never forget |
| control tokens | the end of the vocabulary taken for rare text |
| cheap head | a small vocabulary where it saves nothing |
| declined drafts | rows paid for whose drafts are not verified anyway |
| hard tokens | rows paid for whose tokens are never drafted right |
| together | counts that depend on when they are made up |
| rate | a choice that is not the best by the stated rule |
| beyond | rows that were not measured believed to be as cheap; copies that a text never makes good, or pays for twice |
"""

from __future__ import annotations

import numpy as np
import pytest

from entmtp_local.speculative import draft_vocab
from entmtp_local.speculative.draft_vocab import Beyond, DraftVocab, PassCost

N_VOCAB, N_TAIL = 248_320, 320
# the 27B shape: a quarter of a byte a weight more or less does not matter here
LARGE = PassCost(target=15_000_000_000, level=250_000_000, row=5120 * 0.8)
SMALL = PassCost(target=490_000_000, level=11_500_000, row=840)


def after(vocab: DraftVocab, tokens: list[int], depth: int = 3, accepted: int = 2) -> int:
    """The size in use once the tokens came by in steps of three."""
    for i in range(0, len(tokens), 3):
        step = tokens[i : i + 3]
        vocab.observe_draft(step[:accepted], step[accepted] if accepted < min(depth, len(step)) else None, depth, depth)
        vocab.observe(step)
        vocab.due(depth)
    return vocab.size


# on the large shape what still smaller sizes gain is under the threshold for a change
FEW = 16_384


def test_what_it_begins_with() -> None:
    assert DraftVocab(N_VOCAB, N_TAIL, SMALL).size == FEW
    assert DraftVocab(32_000, N_TAIL, SMALL).size == 0, "as small a vocabulary is not cut"


@pytest.mark.parametrize("cost", [LARGE, SMALL])
def test_common_ids_need_few_rows(cost: PassCost) -> None:
    tokens = np.random.default_rng(1).integers(0, 3000, 900).tolist()
    assert 0 < after(DraftVocab(N_VOCAB, N_TAIL, cost), tokens) <= FEW


@pytest.mark.parametrize("cost", [LARGE, SMALL])
def test_rare_ids_need_many(cost: PassCost) -> None:
    tokens = np.random.default_rng(1).integers(140_000, 248_000, 900).tolist()
    assert after(DraftVocab(N_VOCAB, N_TAIL, cost), tokens) == 0


def test_text_that_changes_changes_the_choice() -> None:
    rng = np.random.default_rng(1)
    vocab = DraftVocab(N_VOCAB, N_TAIL, LARGE)
    assert 0 < after(vocab, rng.integers(0, 3000, 3000).tolist()) <= FEW
    assert after(vocab, rng.integers(100_000, 130_000, 3000).tolist()) in (131_072, 0)
    assert 0 < after(vocab, rng.integers(0, 3000, 6000).tolist()) <= FEW


def test_control_tokens_are_always_included() -> None:
    tokens = np.random.default_rng(1).integers(N_VOCAB - N_TAIL, N_VOCAB, 900).tolist()
    assert 0 < after(DraftVocab(N_VOCAB, N_TAIL, LARGE), tokens) <= FEW


def test_nothing_is_left_out_where_the_head_is_cheap() -> None:
    rng = np.random.default_rng(1)
    # one token in fifty beyond the first half
    tokens = [int(rng.integers(200_000, 248_000)) if rng.random() < 0.02 else int(rng.integers(0, 3000)) for _ in range(3000)]
    assert after(DraftVocab(N_VOCAB, N_TAIL, PassCost(15_000_000_000, 250_000_000, 1.0)), tokens) == 0


def test_drafts_that_are_declined_need_fewer_rows() -> None:
    """Eight levels are drafted at every step, and one token in four is rare."""
    sizes = []
    for steps in ([(8, 8)], [(3, 3), (0, 0), (0, 0), (0, 0)]):  # accepted and verified levels
        vocab = DraftVocab(N_VOCAB, N_TAIL, SMALL)
        rng = np.random.default_rng(2)
        for i, token in enumerate(np.where(rng.random(900) < 0.25, 50_000, 100).tolist()):
            accepted, depth = steps[i % len(steps)]
            vocab.observe_draft([token] * accepted, None if accepted else token, depth, 8)
            vocab.observe([token])
            vocab.due(8)
        sizes.append(vocab.size)
    assert sizes[0] == 65_536 and 0 < sizes[1] <= 4096


def test_tokens_that_are_never_drafted_right_need_no_rows() -> None:
    """One token in four is rare; frequent ones are drafted right."""
    sizes = []
    for rare_is_drafted in (True, False):
        vocab = DraftVocab(N_VOCAB, N_TAIL, SMALL)
        rng = np.random.default_rng(2)
        for token in np.where(rng.random(900) < 0.25, 12_000, 100).tolist():
            accepted = rare_is_drafted or token == 100
            vocab.observe_draft([token] if accepted else [], None if accepted else token, 1, 3)
            vocab.observe([token])
            vocab.due(3)
        sizes.append(vocab.size)
    assert sizes == [16_384, 1024]


def test_when_it_is_counted_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def choices(together: int) -> list[tuple[int, list[float]]]:
        monkeypatch.setattr(draft_vocab, "_TOGETHER", together)
        vocab, rng, found = DraftVocab(N_VOCAB, N_TAIL, SMALL), np.random.default_rng(4), []
        for part in range(8):
            high = (3_000, 200_000)[part % 2]
            # a stretch of steps that draft nothing is in between
            for step in range(200):
                tokens = rng.integers(0, high, 3).tolist()
                vocab.observe(tokens)
                if step % 100 < 50:
                    vocab.observe_draft(tokens[: step % 3], tokens[2], 3, 4)
                    vocab.due(4)
            # what was refused counts by the size that was in use then
            vocab.begin((4096, 65_536)[part % 2], SMALL)
            found.append((vocab.size, vocab._chances()))
        return found

    assert choices(1) == choices(128)


def test_the_choice_is_the_best_by_tokens_a_byte() -> None:
    rng = np.random.default_rng(2)
    tokens = np.minimum(rng.zipf(1.3, 3000), N_VOCAB - N_TAIL - 1).tolist()
    vocab = DraftVocab(N_VOCAB, N_TAIL, SMALL)
    chosen = after(vocab, tokens, depth=3, accepted=3)

    def rate(size: int) -> float:
        limit = size or N_VOCAB
        # counted afresh, with the stated half-life and without the prior, whose weight has faded
        weights = 0.5 ** (np.arange(len(tokens))[::-1] / 512)
        share = float(weights[np.array(tokens) < limit].sum() / weights.sum())
        rows = limit if size == 0 else size + N_TAIL
        return float(sum(share**d for d in range(4)) / (SMALL.target + 3 * (SMALL.level + rows * SMALL.row)))

    best = max((*vocab.sizes, 0), key=rate)
    assert rate(chosen) >= 0.98 * rate(best)


@pytest.mark.parametrize("n_vocab", [32, 512, 32_000])
def test_a_small_vocabulary_is_left_whole(n_vocab: int) -> None:
    vocab = DraftVocab(n_vocab, 8, SMALL)
    assert vocab.sizes == []
    assert after(vocab, list(range(300))) == 0


# as calibrated on a processor whose caches hold 32,768 rows
SECONDS = PassCost(target=27e-3, level=0.4e-3, row=16e-9)


def grown(beyond: Beyond | None, share: float, vocab: DraftVocab | None = None) -> int:
    """The size that a text is drafted from of which so much is between 65,536 and 131,072, and the rest is frequent."""
    if vocab is None:
        vocab = DraftVocab(N_VOCAB, N_TAIL, SECONDS)
        vocab.begin(32_768, SECONDS, beyond)
    rng = np.random.default_rng(1)
    rare = rng.random(900) < share
    return after(vocab, np.where(rare, rng.integers(70_000, 130_000, 900), rng.integers(0, 30_000, 900)).tolist(), 3, 3)


def test_rows_that_were_not_measured_cost_what_memory_does() -> None:
    assert grown(None, 0.12) == 131_072
    assert grown(Beyond(32_768, 32e-9, 0.0, 32_768), 0.12) == 32_768
    assert grown(Beyond(32_768, 32e-9, 0.0, 32_768), 0.5) == 131_072
    assert grown(Beyond(32_768, 0.0, 0.0, 32_768), 0.3) == 131_072, "not less than those that were"


def test_a_copy_has_to_be_made_good() -> None:
    assert grown(Beyond(32_768, 16e-9, 0.0, 32_768), 0.2) == 131_072
    assert grown(Beyond(32_768, 16e-9, 2e-6, 32_768), 0.2) == 131_072, "a quarter of a second"
    assert grown(Beyond(32_768, 16e-9, 100e-6, 32_768), 0.2) == 32_768, "thirteen"
    assert grown(Beyond(32_768, 16e-9, 100e-6, 131_072), 0.2) == 131_072, "it is there"
    # the whole vocabulary is read as it is, which needs no copy
    assert grown(Beyond(32_768, 16e-9, 100e-6, 32_768), 0.25) == 0


def test_a_copy_that_is_gone_has_to_be_made_again() -> None:
    sizes = []
    for n_copied in (131_072, 0):
        vocab = DraftVocab(N_VOCAB, N_TAIL, SECONDS)
        vocab.begin(32_768, SECONDS, Beyond(32_768, 16e-9, 100e-6, 32_768))
        vocab.copied(n_copied)
        sizes.append(grown(None, 0.2, vocab))
    assert sizes == [131_072, 0], "the whole vocabulary needs none"


def test_of_sizes_that_promise_enough_the_best_is_taken() -> None:
    """One that was not measured and promises a little more than needed of others does not stand in the way of these."""
    vocab = DraftVocab(N_VOCAB, N_TAIL, SECONDS)
    vocab.begin(1024, SECONDS, Beyond(32_768, 16e-9, 0.0, 32_768))
    rates = {1024: 100.0, 32_768: 103.9, 65_536: 104.0}
    vocab._rate = lambda size, depth, chance: rates.get(size, 1.0)  # type: ignore[method-assign]
    vocab.observe([1] * 64)
    assert vocab.due(3) and vocab.size == 32_768


def test_what_was_not_measured_has_to_promise_more() -> None:
    """Costs and chances of rare tokens are beliefs there."""

    def size(period: int, beyond: Beyond | None) -> int:
        vocab = DraftVocab(N_VOCAB, N_TAIL, SECONDS)
        vocab.begin(32_768, SECONDS, beyond)
        return after(vocab, [100_000 if i % period == 0 else 20_000 for i in range(1, 1800)], 3, 3)

    periods = range(5, 60)
    known, beyond = ([size(period, some) for period in periods] for some in (None, Beyond(32_768, 16e-9, 0.0, 32_768)))
    assert known[0] == beyond[0] == 131_072 and known[-1] == beyond[-1] == 32_768
    more = sum(a > b for a, b in zip(known, beyond, strict=True))
    assert more >= 2 and not any(a < b for a, b in zip(known, beyond, strict=True))
