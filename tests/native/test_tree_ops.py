"""The recurrent operators over trees, on the CPU, against the recursion in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.ggml import Ggml

Array = npt.NDArray[Any]


def make_plan(
    commit: int, path: Sequence[int], first_slot: int, parents: Sequence[int], *, room: int = 64
) -> npt.NDArray[np.int32]:
    header = [commit, len(path), first_slot, len(parents), 6 + room, 0]
    return np.array([*header, *path, *[-1] * (room - len(path)), *parents], dtype=np.int32)


def random_parents(rng: np.random.Generator, n: int) -> list[int]:
    """Breadth first, as the engine numbers nodes."""
    depths, parents = [-1], [-1]
    while len(parents) <= n:
        parent = int(rng.integers(max(0, len(parents) - 6), len(parents)))
        parents.append(parent)
        depths.append(depths[parent] + 1)
    order = sorted(range(1, n + 1), key=lambda i: depths[i])
    number = {0: -1} | {node: i for i, node in enumerate(order)}
    return [number[parents[node]] for node in order]


def path_to(parents: Sequence[int], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


@dataclass
class Nodes:
    """Inputs of a tree's nodes to the gated delta rule."""

    q: Array  # (n, H_k, S)
    k: Array
    v: Array  # (n, H_v, S)
    g: Array  # (n, H_v, 1 or S)
    beta: Array  # (n, H_v, 1)

    @staticmethod
    def random(rng: np.random.Generator, n: int, size: int, n_k: int, n_v: int, per_channel: bool) -> Nodes:
        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(np.float32)

        q, k = normal(n, n_k, size), normal(n, n_k, size)
        q /= np.linalg.norm(q, axis=-1, keepdims=True)
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
        g = -rng.exponential(0.3, (n, n_v, size if per_channel else 1)).astype(np.float32)
        beta = rng.random((n, n_v, 1), dtype=np.float32)
        return Nodes(q, k, normal(n, n_v, size), g, beta)

    def step(self, state: Array, node: int) -> tuple[Array, Array]:
        """The recursion: a new state (H_v, key, value) and the output (H_v, S)."""
        n_k, size = self.q.shape[1:]
        new, out = np.empty_like(state), np.empty(state.shape[:2])
        for head in range(len(state)):
            k, q = (x[node, head % n_k].astype(np.float64) for x in (self.k, self.q))
            decayed = state[head] * np.exp(self.g[node, head].astype(np.float64))[:, None]
            update = self.beta[node, head, 0] * (self.v[node, head] - k @ decayed)
            new[head] = decayed + np.outer(k, update)
            out[head] = q @ new[head] / np.sqrt(size)
        return new, out


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("size", "n_k", "n_v"), [(128, 2, 4), (128, 1, 1), (64, 2, 2), (32, 1, 3), (16, 2, 4), (48, 1, 2)])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_gated_delta_net_over_trees(ggml: Ggml, size: int, n_k: int, n_v: int, per_channel: bool, n_threads: int) -> None:
    rng = np.random.default_rng(size + n_v + per_channel)
    n_slots = 48
    n_store = (n_v + n_k) * size + n_v * (size if per_channel else 1)
    state_true = rng.standard_normal((n_v, size, size))
    state, state_now = ggml.tensor(state_true.transpose(0, 2, 1).astype(np.float32))
    store, _ = ggml.tensor(np.zeros((n_slots, n_store), np.float32))
    applied, _ = ggml.tensor(np.zeros((n_v, size), np.int32))
    path: list[int] = []
    commit = 0
    for step in range(12):
        n = [1, 24, 7, 2, 16, 1, 1, 12, 24, 3, 9, 24][step]
        parents = random_parents(rng, n)
        nodes = Nodes.random(rng, n, size, n_k, n_v, per_channel)
        first_slot = 24 * (step % 2)
        plan, _ = ggml.tensor(make_plan(commit, path, first_slot, parents))
        inputs = [ggml.tensor(x)[0] for x in (nodes.q, nodes.k, nodes.v, nodes.g, nodes.beta)]
        for _ in range(2):  # a pass that is repeated must not advance the state twice
            out = ggml.compute(
                "ggml_gated_delta_net_tree",
                *inputs,
                state,
                store,
                applied,
                plan,
                shape=(n, n_v, size),
                n_threads=n_threads,
            )
        np.testing.assert_allclose(state_now.transpose(0, 2, 1), state_true, rtol=2e-4, atol=2e-4)
        states: list[Array] = []
        for node, parent in enumerate(parents):
            new, wanted = nodes.step(states[parent] if parent >= 0 else state_true, node)
            states.append(new)
            np.testing.assert_allclose(out[node], wanted, rtol=2e-4, atol=2e-4)
        # commit a node, or sometimes nothing at all
        if step == 5:
            path = []
        else:
            last = int(rng.integers(n))
            path = [first_slot + node for node in path_to(parents, last)]
            state_true = states[last]
            commit += 1


@pytest.mark.parametrize(("n_channels", "d_conv"), [(256, 4), (100, 4), (64, 3), (700, 5)])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_short_convolution_over_trees(ggml: Ggml, n_channels: int, d_conv: int, n_threads: int) -> None:
    rng = np.random.default_rng(n_channels)
    before = rng.standard_normal((d_conv - 1, n_channels)).astype(np.float32)
    weight = rng.standard_normal((n_channels, d_conv)).astype(np.float32)
    window, window_now = ggml.tensor(before.T)
    kernel, _ = ggml.tensor(weight)
    store, _ = ggml.tensor(np.zeros((48, n_channels), np.float32))
    applied, _ = ggml.tensor(np.zeros(n_channels, np.int32))
    path: list[int] = []
    for commit in range(10):
        n = [1, 24, 5, 1, 1, 2, 24, 3, 9, 24][commit]
        parents = random_parents(rng, n)
        first_slot = 24 * (commit % 2)
        x = rng.standard_normal((n, n_channels)).astype(np.float32)
        plan, _ = ggml.tensor(make_plan(commit, path, first_slot, parents))
        inputs, _ = ggml.tensor(x)
        for _ in range(2):
            out = ggml.compute(
                "ggml_ssm_conv_tree", inputs, kernel, window, store, applied, plan, shape=(n, n_channels), n_threads=n_threads
            )
        np.testing.assert_array_equal(window_now.T, before)
        for node in range(n):
            seen = np.concatenate([before, x[path_to(parents, node)]])[-d_conv:]
            total = (seen * weight.T).sum(0)
            np.testing.assert_allclose(out[node], total / (1 + np.exp(-total)), rtol=1e-4, atol=1e-5)
        last = int(rng.integers(n))
        path = [first_slot + node for node in path_to(parents, last)]
        before = np.concatenate([before, x[path_to(parents, last)]])[-(d_conv - 1) :]
