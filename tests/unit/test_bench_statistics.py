"""Ratios, intervals and tests against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from entmtp_local.bench.statistics import (
    FEW,
    NOISY,
    Cells,
    Ratio,
    chi_square_tail,
    combined,
    geometric_mean,
    ratio_of,
    same_distribution,
    sign_test,
)


def cells(ratios: list[list[float]]) -> Cells:
    """One text a cell, of 100 tokens and 1 s in the base's."""
    values = np.array(ratios)
    return Cells(100 * values, np.ones_like(values), np.full_like(values, 100.0), np.ones_like(values))


def ratio(values: list[list[float]]) -> Ratio:
    found = ratio_of(cells(values))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("n_wins", "n", "p"),
    [(5, 5, 2 / 32), (0, 5, 2 / 32), (6, 6, 2 / 64), (4, 6, 2 * (15 + 6 + 1) / 64), (3, 6, 1.0), (0, 0, 1.0)],
)
def test_the_sign_test_counts_coins(n_wins: int, n: int, p: float) -> None:
    assert sign_test(n_wins, n) == pytest.approx(p)


def test_the_geometric_mean_is_that_of_logarithms() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([1.1]) == pytest.approx(1.1)


def test_a_ratio_is_the_median_of_its_pairs() -> None:
    found = ratio([[1.0], [1.2], [1.1], [1.3], [1.05]])
    assert found.value == pytest.approx(1.1)
    assert found.pairs == pytest.approx((1.0, 1.2, 1.1, 1.3, 1.05))
    assert (found.wins, found.p_value) == (4, pytest.approx(2 / 16))  # a tie decides nothing
    assert 1.0 <= found.low <= found.value <= found.high <= 1.3


def test_equal_pairs_have_no_width() -> None:
    found = ratio([[1.5, 1.5]] * 6)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert found.doubts == () and found.p_value == pytest.approx(2 / 64)


def test_a_pair_is_all_tokens_over_all_seconds() -> None:
    found = ratio_of(
        Cells(np.array([[300.0, 100.0]]), np.array([[1.0, 1.0]]), np.array([[100.0, 100.0]]), np.array([[1.0, 3.0]]))
    )
    assert found is not None and found.value == pytest.approx(200 / 50)


def test_the_interval_is_that_of_the_median_of_resampled_rounds() -> None:
    """Of 3 rounds with values a < b < c the median of 3 draws is a or c with 7/27 each: both lie within any 95 % interval."""
    found = ratio([[1.0], [1.1], [1.2]])
    assert (found.low, found.high) == pytest.approx((1.0, 1.2))
    shares = [float(np.mean(np.isclose(found.draws, value))) for value in (1.0, 1.1, 1.2)]
    assert shares == pytest.approx([7 / 27, 13 / 27, 7 / 27], abs=0.04)


def test_the_choice_of_prompts_widens_the_interval() -> None:
    same, other = ratio([[1.5, 1.5]] * 6), ratio([[1.0, 2.0]] * 6)
    assert same.value == pytest.approx(other.value)
    assert (other.low, other.high) == pytest.approx((1.0, 2.0))


def test_intervals_are_the_same_each_time() -> None:
    values = [[1.0, 1.4], [1.2, 1.1], [1.1, 1.3], [1.3, 1.2], [1.05, 1.0]]
    assert ratio(values) == ratio(values)


def test_few_and_noisy_pairs_are_doubted() -> None:
    assert ratio([[1.1]] * 4).doubts == (FEW,)
    assert math.isnan(ratio([[1.1]]).low)
    noisy = ratio([[1.0], [2.0], [1.0], [2.0], [1.5]])
    assert noisy.doubts == (NOISY,) and noisy.spread == pytest.approx(1.0 / 1.5)


def test_what_does_not_count_is_left_out() -> None:
    table = cells([[1.5, 9.0], [1.5, 9.0], [1.5, 9.0]])
    for array in (table.tokens, table.seconds, table.base_tokens, table.base_seconds):
        array[:, 1] = 0
        array[2] = 0
    found = ratio_of(table)
    assert found is not None and found.pairs == pytest.approx((1.5, 1.5)) and found.high == pytest.approx(1.5)
    table.seconds[:] = 0
    assert ratio_of(table) is None
    assert ratio_of(Cells(*(np.zeros((0, 0)) for _ in range(4)))) is None


def test_workloads_are_combined_by_their_geometric_mean() -> None:
    found = combined([ratio([[2.0]] * 5), ratio([[0.5]] * 5)])
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert len(found.pairs) == 10 and found.wins == 5
    doubtful = combined([ratio([[2.0]] * 5), ratio([[2.0]] * 3)])
    assert doubtful.doubts == (FEW,)


@pytest.mark.parametrize(("statistic", "n_free", "p"), [(18.307, 10, 0.05), (23.209, 10, 0.01), (124.342, 100, 0.05)])
def test_the_tail_of_chi_square_is_that_of_the_tables(statistic: float, n_free: int, p: float) -> None:
    assert chi_square_tail(statistic, n_free) == pytest.approx(p, rel=0.03)


def test_samples_of_one_distribution_are_told_from_others() -> None:
    rng = np.random.default_rng(4)
    chances = np.array([0.4, 0.3, 0.15, 0.1, 0.03, 0.01, 0.01])
    one, other = (rng.choice(7, 2000, p=chances).tolist() for _ in range(2))
    assert same_distribution(one, other) > 1e-3
    shifted = np.roll(chances, 1)
    assert same_distribution(one, rng.choice(7, 2000, p=shifted).tolist()) < 1e-10
    assert same_distribution([3] * 50, [3] * 80) == 1.0
    # p values of right arms are spread evenly: one in ten is under 0.1
    low = [same_distribution(*(rng.choice(7, 300, p=chances).tolist() for _ in range(2))) < 0.1 for _ in range(300)]
    assert 0.05 < np.mean(low) < 0.16
