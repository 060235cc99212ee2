"""Random trees, many in a row, on every kind of memory that verifies them, against llama.cpp's ordinary decoding."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.conftest import SEQ, Bench

Open = Callable[..., Bench]

ROOT = Path(__file__).resolve().parents[2]

MAX_NODES, MAX_DEPTH, MAX_WIDTH = 64, 16, 8
N_CTX = 512
TREES = int(os.environ.get("ENTMTP_LOCAL_RANDOM_TREES", "120"))  # per kind and cache type: 2,160 in all

# Tiny models are in F32. With keys and values in F32, too, a row is that of its path to this; one other ancestor, the one that
# mattered least in 40 trees, moved a leaf's row by six times as much, gemma4's by twice as much.
EXACT = {"gemma4": 3e-3}
EXACT_ELSEWHERE = 5e-5
# With anything in F16, sums are rounded, in the order of the cells, which trees and the holes that they leave change. Rare rows
# are further away than any bound that says something, so there is one for 99 of 100 and one for all: twice what was seen with
# seven seeds and two versions of the shipped model. Another parent moves most rows of it by 0.2 to 0.5.
MOST, ALL = 0.04, 0.2
# Where routers chose the same experts, rounding alone was never seen above this.
OTHER_EXPERTS = 0.1

CACHES = {"f32": {"type_k": 0, "type_v": 0, "flash_attn_type": 0}, "f16": {"type_k": 1, "type_v": 1}}
EXPERTS = {"glm4moe", "hy_v3", "mimo2", "qwen35moe", "qwen3next"}
KINDS = ["llama", "glm4moe", "hy_v3", "mimo2", "gemma4", "qwen35", "qwen35moe", "qwen3next"]


def random_tree(rng: np.random.Generator) -> list[int]:
    """Parents, breadth first: 1 to 64 nodes, at most 16 deep, at most 8 children a node."""
    n = int(rng.integers(1, MAX_NODES + 1))
    # from chains to bushes
    habit = rng.random()
    parents, depths, n_children = [-1], [0], [0]
    while len(parents) < n:
        open_nodes = [i for i in range(len(parents)) if depths[i] < MAX_DEPTH - 1 and n_children[i] < MAX_WIDTH]
        parent = open_nodes[-1] if rng.random() < habit else int(rng.choice(open_nodes))
        n_children[parent] += 1
        parents.append(parent)
        depths.append(depths[parent] + 1)
        n_children.append(0)
        if not any(depths[i] < MAX_DEPTH - 1 and n_children[i] < MAX_WIDTH for i in range(len(parents))):
            break
    order = sorted(range(len(parents)), key=lambda i: depths[i])
    number = {node: i for i, node in enumerate(order)} | {-1: -1}
    return [number[parents[node]] for node in order]


def path_of(node: int, parents: Sequence[int]) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


class Reference:
    """A context on which paths are decoded as ordinary batches and taken back."""

    def __init__(self, bench: Bench, **cache: Any) -> None:
        self._bench, self._llama = bench, bench.llama
        self.ctx = bench.context(n_ctx=N_CTX, n_batch=N_CTX, n_ubatch=N_CTX, **cache)

    def begin(self, text: Sequence[int]) -> None:
        self._bench.api.clear(self.ctx)
        self._feed(text)

    def extend(self, tokens: Sequence[int]) -> None:
        self._restore()
        self._feed(tokens)

    def _feed(self, tokens: Sequence[int]) -> None:
        self._bench.feed(tokens, self.ctx)
        size = self._llama.llama_state_seq_get_size(self.ctx, SEQ)
        self._saved = (ctypes.c_uint8 * size)()
        assert self._llama.llama_state_seq_get_data(self.ctx, self._saved, size, SEQ) == size

    def _restore(self) -> None:
        self._bench.api.clear(self.ctx)
        size = len(self._saved)
        assert self._llama.llama_state_seq_set_data(self.ctx, self._saved, size, SEQ) == size

    def rows(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits of every token, decoded in one batch behind the text."""
        llama, bench = self._llama, self._bench
        self._restore()
        n_past = bench.n_past(self.ctx)
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, n_past + i, 1, SEQ, 1
        assert llama.llama_decode(self.ctx, batch) == 0
        llama.llama_batch_free(batch)
        return np.array([bench.logits(i, self.ctx) for i in range(len(tokens))])


def check_trees(
    bench: Bench, n_trees: int, *, seed: int, most: float, every: float, n_other_experts: int = 0, **cache: Any
) -> int:
    """Decode random trees one after the other, commit random nodes, compare every row; returns the number of rows.

    Args:
        most: how near 99 of 100 rows are to those of their paths
        every: how near all of them are
        n_other_experts: trees that may differ because rounding made a router choose other experts, which is no small difference
    """
    rng = np.random.default_rng(seed)
    n_vocab = min(bench.n_vocab, 300)
    ours = bench.context(n_ctx=N_CTX, n_batch=N_CTX, n_ubatch=N_CTX, **cache)
    reference = Reference(bench, **cache)

    def random_tokens(n: int) -> list[int]:
        return [int(token) for token in rng.integers(3, n_vocab, n)]

    differences: list[float] = []  # of a row and its path's
    strays: list[Any] = []
    text: list[int] = []
    for i_tree in range(n_trees):
        if not text or len(text) + MAX_NODES + MAX_DEPTH > N_CTX:
            text = random_tokens(int(rng.integers(1, 60)))
            bench.api.clear(ours)
            bench.feed(text, ours)
            reference.begin(text)
        parents = random_tree(rng)
        tokens = random_tokens(len(parents))
        assert bench.decode(tokens, parents, ctx=ours) == 0, (i_tree, parents)
        rows = np.array([bench.logits(i, ours) for i in range(len(parents))])
        assert np.isfinite(rows).all()
        found: list[float] = []
        for leaf in sorted(set(range(len(parents))) - set(parents)):
            path = path_of(leaf, parents)
            found += np.abs(rows[path] - reference.rows([tokens[i] for i in path])).max(axis=1).tolist()
        if max(found) > OTHER_EXPERTS and n_other_experts:
            strays.append((i_tree, parents, max(found)))
            # the states of two contexts that chose other experts go separate ways
            assert bench.commit(-1, ctx=ours) == 0
            text = []
            continue
        assert max(found) <= every, (i_tree, parents, found)
        differences += found
        node = int(rng.integers(-1, len(parents)))
        assert bench.commit(node, ctx=ours) == 0
        if node >= 0:
            committed = [tokens[i] for i in path_of(node, parents)]
            text += committed
            reference.extend(committed)
    assert len(strays) <= n_other_experts, strays
    print(f"{len(differences)} rows, 99 of 100 within {np.quantile(differences, 0.99):.1e}, all within {max(differences):.1e}")
    assert np.quantile(differences, 0.99) <= most
    if text:
        # what was committed by trees is a text like any other
        after = bench.feed([200], ours)
        reference.begin(text)
        assert float(np.abs(after - reference.rows([200])[0]).max()) <= every
    return len(differences)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_that_of_its_path(bench: Open, kind: str, cache: str) -> None:
    exact = EXACT.get(kind, EXACT_ELSEWHERE)
    most, every = (exact, exact) if cache == "f32" else (MOST, ALL)
    # 6 were seen, on a processor with AVX2 alone; in F32, where every row is exact, there are none
    n_other_experts = 8 if kind in EXPERTS and cache == "f16" else 0
    seed = KINDS.index(kind)
    n_rows = check_trees(bench(kind), TREES, seed=seed, most=most, every=every, n_other_experts=n_other_experts, **CACHES[cache])
    assert n_rows > 20 * TREES


@pytest.mark.parametrize("cache", CACHES)
def test_every_row_of_the_shipped_model(cache: str) -> None:
    b = Bench(ROOT / "models" / "reference-11m.gguf")
    try:
        assert check_trees(b, TREES, seed=99, most=MOST, every=ALL, **CACHES[cache]) > 20 * TREES
    finally:
        b.close()


def test_random_trees_are_what_they_should_be() -> None:
    rng = np.random.default_rng(0)
    trees = [random_tree(rng) for _ in range(500)]
    sizes = [len(parents) for parents in trees]
    depths = [max(len(path_of(node, parents)) for node in range(len(parents))) for parents in trees]
    widths = [max(np.bincount([p for p in parents if p >= 0]), default=0) for parents in trees]
    assert (min(sizes), max(sizes)) == (1, MAX_NODES)
    assert max(depths) == MAX_DEPTH and max(widths) == MAX_WIDTH
