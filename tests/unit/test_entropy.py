"""Entropy of rows, over steps and in bins.

| test | failure it catches |
|---|---|
| rows | f32 sums of a whole vocabulary that drift; forbidden tokens that give NaN |
| running | a first value that is pulled towards zero |
| edges, bins | empty bins where values are equal; a value on an edge in no bin or in two |
| bound | a chance below 0, or none at all for an entropy of 0 |
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from entmtp_local.speculative.entropy import (
    RunningEntropy,
    acceptance_bound,
    entropy_bin,
    log_entropy,
    quantile_edges,
    row_entropy,
    softmax,
)

N_VOCAB = 248_320


def exact(logits: np.ndarray) -> float:
    z = logits.astype(np.float64)
    z = z[np.isfinite(z)]
    p = np.exp(z - z.max())
    p /= p.sum()
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum())


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 1e4, -3e4])
@pytest.mark.parametrize("n", [2, 1000, N_VOCAB])
def test_rows_as_in_double_precision(scale: float, offset: float, n: int) -> None:
    logits = (np.random.default_rng(n).normal(0, scale, n) + offset).astype(np.float32)
    before = logits.copy()
    assert row_entropy(logits) == pytest.approx(exact(logits), abs=2e-4, rel=2e-5)
    assert np.array_equal(logits, before)


def test_uniform_certain_and_forbidden() -> None:
    assert row_entropy(np.full(N_VOCAB, 3.5, dtype=np.float32)) == pytest.approx(math.log(N_VOCAB), rel=1e-6)
    certain = np.full(N_VOCAB, -np.inf, dtype=np.float32)
    certain[17] = 2.0
    assert row_entropy(certain) == 0.0
    certain[99] = 2.0
    assert row_entropy(certain) == pytest.approx(math.log(2))
    nearly = np.zeros(N_VOCAB, dtype=np.float32)
    nearly[5] = 60.0
    assert 0.0 <= row_entropy(nearly) < 1e-12


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 2.5])
def test_temperature(temperature: float) -> None:
    logits = np.random.default_rng(2).normal(0, 3, 500).astype(np.float32)
    logits[3] = -np.inf
    weights, total, entropy = softmax(logits, temperature)
    assert entropy == pytest.approx(exact(logits / np.float32(temperature)), rel=1e-5)
    assert weights[3] == 0 and (weights / total).sum() == pytest.approx(1, rel=1e-5)


def test_the_running_entropy_is_the_weighted_mean_of_what_was_seen() -> None:
    running = RunningEntropy(4)
    assert math.isnan(running.value)
    assert running.add(2.0) == pytest.approx(2.0), "not 2 / 4"
    values = [2.0, *np.random.default_rng(0).uniform(0, 5, 40)]
    for value in values[1:]:
        running.add(value)
    weights = 0.75 ** np.arange(len(values))[::-1]
    assert running.value == pytest.approx(float(weights @ values / weights.sum()))
    one = RunningEntropy(1)
    one.add(3.0)
    assert one.add(5.0) == 5.0
    with pytest.raises(ValueError, match="one step"):
        RunningEntropy(0)


def test_edges_cut_into_equal_parts() -> None:
    entropies = np.exp(np.random.default_rng(1).normal(-1, 2, 4000))
    edges = quantile_edges(entropies, 8)
    assert len(edges) == 7 and list(edges) == sorted(set(edges))
    counts = np.bincount([entropy_bin(entropy, edges) for entropy in entropies], minlength=8)
    assert counts.min() > 480 and counts.max() < 520


@pytest.mark.parametrize(
    "entropies",
    [
        [],
        [1.0],
        [1.0] * 50,
        [0.0] * 50,
        [1.0] * 40 + [2.0] * 3,
        [1.0] * 3 + [2.0] * 40,
        [0.0] * 30 + list(range(20)),
        [1, 2, 2, 3],
    ],
)
@pytest.mark.parametrize("n_bins", [1, 2, 8])
def test_no_bin_is_empty(entropies: list[float], n_bins: int) -> None:
    edges = quantile_edges(entropies, n_bins)
    assert len(edges) < n_bins and list(edges) == sorted(set(edges))
    if entropies:
        assert {entropy_bin(entropy, edges) for entropy in entropies} == set(range(len(edges) + 1))
    else:
        assert edges == ()


def test_a_value_on_an_edge_is_in_the_bin_above_it() -> None:
    edges = (log_entropy(0.1), log_entropy(1.0))
    assert [entropy_bin(entropy, edges) for entropy in (0.0, 0.0999, 0.1, 0.5, 1.0, 9.0)] == [0, 0, 1, 1, 2, 2]
    assert log_entropy(0.0) == log_entropy(1e-9) == math.log(1e-4)


def test_the_bound_on_acceptance() -> None:
    assert acceptance_bound(0.0, 0.3) == acceptance_bound(-1e-9, 0.3) == 1.0
    assert acceptance_bound(0.5, 0.2) == pytest.approx(1 - math.sqrt(0.1))
    assert acceptance_bound(50.0, 0.2) == 0.0
    falling = [acceptance_bound(entropy, 0.2) for entropy in np.linspace(0, 8, 50)]
    assert falling == sorted(falling, reverse=True)
