"""What `scripts/bench_policies.py` says of hindsight, on speeds that are known.

| test | failure it catches |
|---|---|
| noise | arms that are equally fast, of which the luckiest counts as what should have been reached |
| no time | texts that end at once, which make everything not a number; certainty from one text |
| rounds | answers of several rounds that are taken for other texts; a token that ends a text and does not count |
| best | an arm that is faster and is not found, or an interval that does not hold the ratio |
"""

from __future__ import annotations

import numpy as np
import pytest

from entmtp_local.engine import Stats
from scripts.bench_policies import FloatArray, by_text, in_hindsight
from scripts.reference.arms import n_tokens


def texts_of(rng: np.random.Generator, noise: float, **speeds: float) -> dict[str, FloatArray]:
    """Twelve texts of a hundred tokens that each arm decodes at a speed of its own, with noise."""
    return {
        name: np.column_stack([np.full(12, 100.0), 100 / (speed * np.exp(rng.normal(0, noise, 12)))])
        for name, speed in speeds.items()
    }


def test_the_luckiest_of_equal_arms_is_no_better() -> None:
    rng, arms = np.random.default_rng(1), [f"chain:{n}" for n in range(6)]
    found = [in_hindsight(texts_of(rng, 0.1, ours=50.0, **dict.fromkeys(arms, 50.0)), "ours", arms) for _ in range(200)]
    assert np.mean([one.ratio for one in found]) < 0.97
    assert np.mean([one.unseen for one in found]) == pytest.approx(1.0, abs=0.01)


def test_the_best_arm_is_found() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        texts = texts_of(rng, 0.02, ours=66.0, slow=40.0, fast=60.0)
        found = in_hindsight(texts, "ours", ["slow", "fast"])
        assert found.best == "fast" and found.unseen == found.ratio
        assert found.ratio == pytest.approx(1.1, rel=0.03) and found.low < found.ratio < found.high < 1.1 * found.low


def test_texts_that_take_no_time_are_left_out() -> None:
    two = {"ours": np.array([[10, 1.0], [0, 0.0]]), "off": np.array([[10, 2.0], [0, 0.0]])}
    found = in_hindsight(two, "ours", ["off"])
    assert found.ratio == 2.0 and np.isnan([found.low, found.high, found.unseen]).all()


def test_answers_of_several_rounds_belong_to_their_texts() -> None:
    rounds = [[Stats(n_generated=10 * i + 1, n_ends=i % 2) for i in range(1, 4)] for _ in range(3)]
    same = by_text([stats for each in rounds for stats in each], 3)
    assert [n_tokens(each) for each in same] == [3 * 11, 3 * 20, 3 * 31], "one that ends a text takes a step, too"
