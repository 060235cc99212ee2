"""The statistics of rows of logits, on the CPU, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.ggml import Ggml

EVERY = 2**30  # columns are shown as they are


class Stats:
    def __init__(
        self, ggml: Ggml, rows: npt.NDArray[np.float32], k: int, *, front: int = EVERY, shift: int = 0, n_threads: int = 2
    ):
        tensor, _ = ggml.tensor(rows)
        shape = (len(rows), 2 * k + 2)
        result = ggml.compute("ggml_row_stats", tensor, k, front, shift, shape=shape, n_threads=n_threads, dtype=np.int32)
        values = result.view(np.float32)
        self.ids, self.values = result[:, :k], values[:, k : 2 * k]
        self.lse, self.entropy = values[:, 2 * k], values[:, 2 * k + 1]


def check(stats: Stats, rows: npt.NDArray[np.float32], k: int) -> None:
    z = np.where(np.isnan(rows), -np.inf, rows).astype(np.float64)
    order = np.argsort(-z, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(stats.ids, order)
    np.testing.assert_array_equal(stats.values, np.take_along_axis(rows, order, axis=1))
    top = z.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    p = np.exp(z - lse)
    np.testing.assert_allclose(stats.lse, lse[:, 0], rtol=1e-6, atol=1e-5)
    entropy = -(p * np.where(p > 0, z - lse, 0.0)).sum(axis=1)
    np.testing.assert_allclose(stats.entropy, entropy, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize(("n_rows", "n"), [(1, 20), (1, 4096), (2, 100_003), (5, 8192), (7, 1000), (3, 248_320)])
def test_against_float64(ggml: Ggml, n_rows: int, n: int, n_threads: int) -> None:
    rng = np.random.default_rng(n + n_rows)
    for scale in (0.01, 3.0, 40.0):
        rows = (rng.standard_normal((n_rows, n)) * scale).astype(np.float32)
        for k in (1, 16):
            check(Stats(ggml, rows, k, n_threads=n_threads), rows, k)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_among_equals_the_first_comes_first(ggml: Ggml, n_threads: int) -> None:
    rows = np.random.default_rng(1).integers(0, 4, (3, 9001)).astype(np.float32)
    check(Stats(ggml, rows, 40, n_threads=n_threads), rows, 40)


@pytest.mark.parametrize("missing", [-np.inf, np.nan])
def test_what_is_not_there_has_no_part(ggml: Ggml, missing: float) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((2, 5000)).astype(np.float32)
    rows[:, rng.random(5000) < 0.9] = missing
    check(Stats(ggml, rows, 8), rows, 8)
    assert np.isfinite(Stats(ggml, rows, 8).entropy).all()


def test_fewer_values_than_asked_for(ggml: Ggml) -> None:
    """Columns stay such as can be looked up."""
    rows = np.full((2, 4500), -np.inf, np.float32)
    rows[0, 4321] = 2.5
    stats = Stats(ggml, rows, 4)
    assert stats.ids.tolist() == [[4321, 0, 0, 0], [0, 0, 0, 0]]
    assert stats.values.tolist() == [[2.5, -np.inf, -np.inf, -np.inf], [-np.inf] * 4]
    assert stats.lse[0] == 2.5
    assert stats.entropy[0] == 0


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_row_without_numbers_has_no_tokens(ggml: Ggml, n_threads: int) -> None:
    """And leaves the other rows alone."""
    rows = np.random.default_rng(3).standard_normal((3, 9001)).astype(np.float32)
    rows[1] = np.nan
    stats = Stats(ggml, rows, 4, n_threads=n_threads)
    assert stats.ids[1].tolist() == [0] * 4
    assert stats.values[1].tolist() == [-np.inf] * 4
    for i in (0, 2):
        check(Stats(ggml, rows[[i]], 4), rows[[i]], 4)
        np.testing.assert_array_equal(stats.ids[i], np.argsort(-rows[i], kind="stable")[:4])


def test_infinity_is_the_best(ggml: Ggml) -> None:
    rows = np.random.default_rng(4).standard_normal((1, 9001)).astype(np.float32)
    rows[0, [7000, 40]] = np.inf
    stats = Stats(ggml, rows, 3)
    assert stats.ids[0, :2].tolist() == [40, 7000]
    assert stats.values[0, :2].tolist() == [np.inf, np.inf]


def test_two_pieces_of_a_longer_row(ggml: Ggml) -> None:
    rows: Any = np.zeros((1, 10), np.float32)
    rows[0, [2, 7]] = 5.0, 6.0
    assert Stats(ggml, rows, 2, front=6, shift=100).ids.tolist() == [[107, 2]]


def test_a_certain_row_has_no_entropy(ggml: Ggml) -> None:
    rows = np.zeros((1, 6000), np.float32)
    rows[0, 100] = 200.0
    stats = Stats(ggml, rows, 1)
    assert stats.entropy[0] == 0
    assert stats.lse[0] == 200
