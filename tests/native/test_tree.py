"""Trees on attention memories, chains on hybrid ones: rows, growth, commit, failure."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from native.conftest import Bench, ints

from entmtp_local.native import api as native

Open = Callable[..., Bench]

PROMPT = [3, 50, 7, 99, 120, 5, 44, 201, 17, 33]
# two levels of branching, a leaf beside inner nodes, a deep spine
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7]
TOKENS = [60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70]

HYBRIDS = ["qwen35", "qwen35moe", "qwen3next"]
TREE_KINDS = ["glm4moe", "hy_v3", "mimo2", "gemma4", "llama", *HYBRIDS]

# F16 keys and values and a different order of summation; measured differences are below 0.01 on logits of size 5
ATOL = 0.03


def path_of(node: int, parents: Sequence[int] = PARENTS) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def assert_rows_are_those_of_chains(b: Bench, prompt: Sequence[int], rows: Sequence[Any]) -> None:
    for node in range(len(TOKENS)):
        expected = b.chain_logits(prompt, [TOKENS[i] for i in path_of(node)])[-1]
        np.testing.assert_allclose(rows[node], expected, atol=ATOL, err_msg=f"node {node}")


@pytest.mark.parametrize("flash_attn", [0, 1], ids=["soft-max", "flash"])
@pytest.mark.parametrize("kind", TREE_KINDS)
def test_each_node_sees_its_ancestors_only(bench: Open, kind: str, flash_attn: int) -> None:
    b = bench(kind, flash_attn_type=flash_attn)
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    rows = [b.logits(i) for i in range(len(TOKENS))]
    assert_rows_are_those_of_chains(b, PROMPT, rows)


def test_quantised_keys_and_values(bench: Open) -> None:
    b = bench("glm4moe", flash_attn_type=1, type_k=8, type_v=8)  # GGML_TYPE_Q8_0
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    rows = [b.logits(i) for i in range(len(TOKENS))]
    assert_rows_are_those_of_chains(b, PROMPT, rows)


@pytest.mark.parametrize("kind", ["mimo2", "gemma4"])
def test_sliding_window_that_has_moved(bench: Open, kind: str) -> None:
    """The window (32) is passed, and so is the size of its cache (n_ubatch + window), so that cells are reused."""
    b = bench(kind, n_ctx=1024, n_batch=32, n_ubatch=32)
    prompt = [(7 * i) % 300 + 3 for i in range(400)]
    for i in range(0, len(prompt), 32):
        b.feed(prompt[i : i + 32])
    assert b.decode(TOKENS, PARENTS) == 0
    rows = [b.logits(i) for i in range(len(TOKENS))]
    assert b.commit(4) == 0

    def reference(path: Sequence[int]) -> Any:
        b.api.clear(b.ctx)
        for i in range(0, len(prompt), 32):
            b.feed(prompt[i : i + 32])
        return [b.feed([token]) for token in path][-1]

    after = b.feed([200])
    for node in (0, 3, 5, 9, 10):
        np.testing.assert_allclose(rows[node], reference([TOKENS[i] for i in path_of(node)]), atol=ATOL, err_msg=f"node {node}")
    np.testing.assert_allclose(after, reference([*(TOKENS[i] for i in path_of(4)), 200]), atol=ATOL)


@pytest.mark.parametrize("kind", ["glm4moe", "mimo2"])
def test_growing_level_by_level_is_the_same_tree(bench: Open, kind: str) -> None:
    b = bench(kind)
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    whole = [b.logits(i) for i in range(len(TOKENS))]
    assert b.commit(-1) == 0

    grown = []
    for level in ([0], [1, 2, 3], [4, 5, 6], [7, 8, 9], [10]):
        assert b.decode([TOKENS[i] for i in level], [PARENTS[i] for i in level]) == 0
        grown += [b.logits(i) for i in range(len(level))]
    assert b.api.n_nodes(b.ctx) == len(TOKENS)
    for node, (one, other) in enumerate(zip(whole, grown, strict=True)):
        np.testing.assert_allclose(one, other, atol=ATOL, err_msg=f"node {node}")


@pytest.mark.parametrize("kind", ["glm4moe", "mimo2", *HYBRIDS])
@pytest.mark.parametrize("node", [-1, 0, 3, 5, 9, 10])
def test_commit_keeps_one_path(bench: Open, kind: str, node: int) -> None:
    b = bench(kind)
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    assert b.commit(node) == 0
    path = path_of(node)
    assert b.api.n_nodes(b.ctx) == 0
    assert b.n_past() == len(PROMPT) + len(path)
    after = b.feed([200])
    expected = b.chain_logits(PROMPT, [*(TOKENS[i] for i in path), 200])[-1]
    np.testing.assert_allclose(after, expected, atol=ATOL)


def test_rejected_cells_are_used_again(bench: Open) -> None:
    """256 cells, 200 steps of 11 nodes: a leak of one cell a step would fill the cache."""
    b = bench("glm4moe", n_ctx=256)
    b.feed(PROMPT)
    for step in range(200):
        assert b.decode(TOKENS, PARENTS) == 0, f"step {step}"
        assert b.commit(0) == 0
    assert b.n_past() == len(PROMPT) + 200
    assert b.decode(TOKENS * 5, [-1, *range(54)]) == 1  # no room: 210 committed, 55 wanted
    assert b.api.n_nodes(b.ctx) == 0
    assert b.decode(TOKENS, PARENTS) == 0


def test_rows_only_where_asked(bench: Open) -> None:
    b = bench("glm4moe")
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    expected = b.logits(9)
    assert b.commit(-1) == 0
    wanted = [0] * len(TOKENS)
    wanted[9] = 1
    assert b.decode(TOKENS, PARENTS, wanted) == 0
    np.testing.assert_allclose(b.logits(9), expected, atol=1e-5)
    assert not b.llama.llama_get_logits_ith(b.ctx, 8)


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_alternating_sizes_build_no_graph_anew(bench: Open, kind: str) -> None:
    b = bench(kind)
    b.feed(PROMPT)
    sizes = [1, len(TOKENS), 4]

    def run_once() -> None:
        for n in sizes:
            assert b.decode(TOKENS[:n], PARENTS[:n]) == 0
            assert b.commit(0) == 0

    run_once()
    before = b.llama.llama_perf_context(b.ctx).n_reused
    for _ in range(20):
        run_once()
    assert b.llama.llama_perf_context(b.ctx).n_reused - before == 20 * len(sizes)
    # what graphs depend on has changed: they are built anew, and right
    b.llama.llama_set_causal_attn(b.ctx, True)
    b.api.set_nextn(b.ctx, True, False)
    after = [*TOKENS[:1] * (21 * len(sizes)), 200]
    assert b.decode([200], [-1]) == 0
    row = b.logits(0)
    np.testing.assert_allclose(row, b.chain_logits([*PROMPT, *after[:-1]], [200])[-1], atol=ATOL)


@pytest.mark.parametrize("kind", ["glm4moe", "mimo2"])
def test_the_greedy_path_in_one_call(bench: Open, kind: str) -> None:
    b = bench(kind)
    b.feed(PROMPT)
    # a tree that holds the model's own continuation along nodes 0, 2, 6, 9
    tokens = list(TOKENS)
    for parent, child in ((0, 2), (2, 6), (6, 9)):
        assert b.decode(tokens, PARENTS) == 0
        tokens[child] = int(b.logits(parent).argmax())
        assert b.commit(-1) == 0
    assert b.decode(tokens, PARENTS) == 0
    token, parent, best = ints(tokens), ints(PARENTS), ints([7] * len(tokens))
    arguments = (len(tokens), token.ctypes.data, parent.ctypes.data, best.ctypes.data)
    assert b.api.greedy(b.ctx, *arguments) == 4
    expected = [int(b.logits(node).argmax()) if node in (0, 2, 6, 9) else -1 for node in range(len(tokens))]
    assert best.tolist() == expected
    b.logits(6)
    np.ctypeslib.as_array(b.llama.llama_get_logits_ith(b.ctx, 6), shape=(b.n_vocab,))[:] = np.nan
    assert b.api.greedy(b.ctx, *arguments) == native.INVALID
    assert b.api.greedy(b.ctx, -1, *arguments[1:]) == native.INVALID


@pytest.mark.parametrize(
    ("tokens", "parents", "code"),
    [
        ([1, 2], [0, 0], native.INVALID),  # a node cannot be its own parent
        ([1, 2, 3], [-1, 2, 0], native.INVALID),  # parents come first
        ([1, 2, 3, 4], [-1, 0, 1, 0], native.INVALID),  # breadth first
        ([1, 2], [-1, -2], native.INVALID),
        ([1, 10**6], [-1, 0], native.INVALID),  # no such token
        ([1] * 257, list(range(-1, 256)), native.INVALID),  # more than LLAMA_ENTMTP_MAX_NODES
    ],
)
def test_shapes_that_are_no_tree(bench: Open, tokens: list[int], parents: list[int], code: int) -> None:
    b = bench("glm4moe", n_batch=300, n_ubatch=300)
    b.feed(PROMPT)
    assert b.decode(tokens, parents) == code
    assert b.api.n_nodes(b.ctx) == 0
    assert b.n_past() == len(PROMPT)
    np.testing.assert_allclose(b.feed([200]), b.chain_logits(PROMPT, [200])[-1], atol=ATOL)


def test_an_open_tree_is_protected(bench: Open) -> None:
    b = bench("glm4moe")
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    assert b.decode([80], [4]) == native.INVALID  # depth 3 is complete
    memory = b.llama.llama_get_memory(b.ctx)
    assert not b.llama.llama_memory_seq_rm(memory, 0, len(PROMPT) + 1, -1)
    array = (ctypes.c_int32 * 1)(5)
    assert b.llama.llama_decode(b.ctx, b.llama.llama_batch_get_one(array, 1)) == -1
    assert not b.api.truncate(b.ctx, 0, 2)
    assert b.commit(len(TOKENS)) == native.INVALID
    assert b.commit(10) == 0
    expected = b.chain_logits(PROMPT, [*(TOKENS[i] for i in path_of(10)), 200])[-1]
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    assert b.commit(10) == 0
    np.testing.assert_allclose(b.feed([200]), expected, atol=ATOL)


def test_committing_without_a_tree(bench: Open) -> None:
    b = bench("glm4moe")
    b.feed(PROMPT)
    assert b.commit(0) == native.INVALID


def abort_always(b: Bench) -> Callable[[], None]:
    """Make every pass fail; returns a function that ends this."""
    return abort_after(b, 0)


def abort_after(b: Bench, n_operators: int) -> Callable[[], None]:
    """Make every pass fail that has more operators; returns a function that ends this."""
    asked = iter(range(n_operators))
    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(lambda _: next(asked, None) is None)
    none = ctypes.cast(None, type(callback))
    b.llama.llama_set_abort_callback(b.ctx, callback, ctypes.c_void_p(0))

    def end() -> None:
        b.llama.llama_set_abort_callback(b.ctx, none, ctypes.c_void_p(0))
        assert callback is not None

    return end


@pytest.mark.parametrize("kind", ["glm4moe", "mimo2"])
def test_a_failed_pass_leaves_the_committed_tokens(bench: Open, kind: str) -> None:
    b = bench(kind)
    expected = b.chain_logits(PROMPT, [TOKENS[0], TOKENS[1], TOKENS[4]])
    b.feed(PROMPT)
    end = abort_always(b)
    assert b.decode(TOKENS, PARENTS) == 2
    end()
    assert b.api.n_nodes(b.ctx) == 0
    assert b.n_past() == len(PROMPT)
    assert b.decode(TOKENS[:4], PARENTS[:4]) == 0
    np.testing.assert_allclose(b.logits(1), expected[1], atol=ATOL)

    # the same while the tree grows
    end = abort_always(b)
    assert b.decode(TOKENS[4:7], PARENTS[4:7]) == 2
    end()
    assert b.api.n_nodes(b.ctx) == 4
    assert b.decode(TOKENS[4:7], PARENTS[4:7]) == 0
    np.testing.assert_allclose(b.logits(0), expected[2], atol=ATOL)


# -- recurrent layers: the committed path becomes part of the state with the next pass


def hybrid_with_pending_path(bench: Open, kind: str, **params: Any) -> tuple[Bench, list[int]]:
    """A context right after a commit, and the tokens that it holds."""
    b = bench(kind, **params)
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    assert b.commit(9) == 0
    return b, [*PROMPT, *(TOKENS[i] for i in path_of(9))]


@pytest.mark.parametrize("kind", HYBRIDS)
def test_many_steps_in_a_row(bench: Open, kind: str) -> None:
    b = bench(kind)
    rng = np.random.default_rng(5)
    text = list(PROMPT)
    b.feed(text)
    for step in range(40):
        node = int(rng.integers(-1, len(TOKENS)))
        tokens = [int(token) for token in rng.integers(3, 300, len(TOKENS))]
        assert b.decode(tokens, PARENTS) == 0
        assert b.commit(node) == 0
        text += [tokens[i] for i in path_of(node)]
        if step % 10 == 9:  # single tokens, by the tree's graph and by the ordinary one
            assert b.decode([7], [-1]) == 0
            assert b.commit(0) == 0
            b.feed([9])
            text += [7, 9]
    after = b.feed([200])
    np.testing.assert_allclose(after, b.chain_logits(text, [200])[-1], atol=ATOL)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_prompt_after_a_commit(bench: Open, kind: str) -> None:
    b, text = hybrid_with_pending_path(bench, kind)
    after = b.feed([5, 6, 7, 8])
    np.testing.assert_allclose(after, b.chain_logits([*text, 5, 6, 7], [8])[-1], atol=ATOL)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_state_saved_after_a_commit(bench: Open, kind: str) -> None:
    b, text = hybrid_with_pending_path(bench, kind)
    size = b.llama.llama_state_seq_get_size(b.ctx, 0)
    saved = (ctypes.c_uint8 * size)()
    assert b.llama.llama_state_seq_get_data(b.ctx, saved, size, 0) == size
    # the state goes into a context that has a path of its own pending
    b.api.clear(b.ctx)
    b.feed(PROMPT[::-1])
    assert b.decode(TOKENS, PARENTS) == 0
    assert b.llama.llama_state_seq_get_size(b.ctx, 0) == 0  # not while a tree is open
    assert b.commit(10) == 0
    assert b.llama.llama_state_seq_set_data(b.ctx, saved, size, 0) == size
    assert b.decode([200, 201], [-1, 0]) == 0
    rows = [b.logits(0), b.logits(1)]
    for row, expected in zip(rows, b.chain_logits(text, [200, 201]), strict=True):
        np.testing.assert_allclose(row, expected, atol=ATOL)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_sequence_copied_after_a_commit(bench: Open, kind: str) -> None:
    b, text = hybrid_with_pending_path(bench, kind, n_seq_max=2, kv_unified=True)
    memory = b.llama.llama_get_memory(b.ctx)
    b.llama.llama_memory_seq_cp(memory, 0, 1, -1, -1)
    token, parent = ints([200, 201]), ints([-1, 0])
    assert b.api.decode(b.ctx, 1, 2, token.ctypes.data, parent.ctypes.data, None) == 0
    copied = b.logits(1)
    assert b.api.commit(b.ctx, 1, 1) == 0
    assert b.decode([210, 211], [-1, 0]) == 0
    own = b.logits(1)
    assert b.commit(0) == 0
    assert b.llama.llama_memory_seq_rm(memory, 1, -1, -1)
    after = b.feed([212])
    b.api.clear(b.ctx)
    np.testing.assert_allclose(copied, b.chain_logits(text, [200, 201])[-1], atol=ATOL)
    np.testing.assert_allclose(own, b.chain_logits(text, [210, 211])[-1], atol=ATOL)
    np.testing.assert_allclose(after, b.chain_logits(text, [210, 212])[-1], atol=ATOL)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_truncating_within_the_last_commit(bench: Open, kind: str) -> None:
    b, text = hybrid_with_pending_path(bench, kind)
    n = len(PROMPT)
    assert not b.api.truncate(b.ctx, 0, n - 1)  # its state is gone
    assert b.n_past() == len(text)
    assert b.api.truncate(b.ctx, 0, n + 2)
    assert b.n_past() == n + 2
    assert b.decode([200], [-1]) == 0
    row = b.logits(0)
    assert b.commit(0) == 0
    assert b.api.truncate(b.ctx, 0, n + 2)  # the whole path
    assert not b.api.truncate(b.ctx, 0, n + 1)
    other = b.feed([201])
    assert not b.api.truncate(b.ctx, 0, n + 2)
    np.testing.assert_allclose(row, b.chain_logits(text[: n + 2], [200])[-1], atol=ATOL)
    np.testing.assert_allclose(other, b.chain_logits(text[: n + 2], [201])[-1], atol=ATOL)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_pass_of_a_hybrid_that_fails_anywhere(bench: Open, kind: str) -> None:
    """Aborted at every seventh operator, with a path pending: the layers before it have applied the path, the others not."""
    b, text = hybrid_with_pending_path(bench, kind)
    expected = b.chain_logits(text, [200, 201])
    n_failed = 0
    for n_operators in range(0, 10**6, 7):
        b.feed(PROMPT)
        assert b.decode(TOKENS, PARENTS) == 0
        assert b.commit(9) == 0
        end = abort_after(b, n_operators)
        code = b.decode([200, 201, 202], [-1, 0, 0])
        end()
        assert code in (0, 2)
        if code == 2:
            n_failed += 1
            assert b.api.n_nodes(b.ctx) == 0
            assert b.n_past() == len(text)
            assert b.decode([200, 201, 202], [-1, 0, 0]) == 0
        np.testing.assert_allclose(b.logits(0), expected[0], atol=ATOL, err_msg=f"after {n_operators}")
        np.testing.assert_allclose(b.logits(1), expected[1], atol=ATOL)
        b.api.clear(b.ctx)
        if code == 0:
            break
    assert n_failed > 10


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_tree_at_the_very_beginning(bench: Open, kind: str) -> None:
    b = bench(kind)
    for node in (9, -1, 3):
        assert b.decode(TOKENS, PARENTS) == 0
        rows = [b.logits(i) for i in range(len(TOKENS))]
        assert b.commit(node) == 0
        assert b.n_past() == len(path_of(node))
        after = b.feed([200])
        b.api.clear(b.ctx)
        expected = [b.feed([token]) for token in (*(TOKENS[i] for i in path_of(node)), 200)]
        b.api.clear(b.ctx)
        if node >= 0:
            np.testing.assert_allclose(rows[node], expected[-2], atol=ATOL)
        np.testing.assert_allclose(after, expected[-1], atol=ATOL)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_path_that_was_applied_in_part_is_not_shortened(bench: Open, kind: str) -> None:
    b, text = hybrid_with_pending_path(bench, kind)
    array = (ctypes.c_int32 * 1)(200)
    # aborted while the path is applied, before an ordinary pass
    end = abort_after(b, 3)
    assert b.llama.llama_decode(b.ctx, b.llama.llama_batch_get_one(array, 1)) < 0
    end()
    assert not b.api.truncate(b.ctx, 0, len(text) - 1)
    assert b.n_past() == len(text)
    np.testing.assert_allclose(b.feed([200]), b.chain_logits(text, [200])[-1], atol=ATOL)


def test_a_full_context_leaves_the_path_as_it_was(bench: Open) -> None:
    b = bench("qwen35", n_ctx=256)
    prompt = [(7 * i) % 250 + 3 for i in range(246)]
    b.feed(prompt)
    assert b.decode(TOKENS[:3], CHAIN[:3]) == 0
    assert b.commit(2) == 0
    assert b.decode(TOKENS, PARENTS) == 1
    assert b.api.truncate(b.ctx, 0, len(prompt) + 1)
    np.testing.assert_allclose(b.feed([200]), b.chain_logits([*prompt, TOKENS[0]], [200])[-1], atol=ATOL)


def test_a_state_that_two_sequences_share_is_not_shortened(bench: Open) -> None:
    b, text = hybrid_with_pending_path(bench, "qwen35", n_seq_max=2, kv_unified=True)
    memory = b.llama.llama_get_memory(b.ctx)
    b.llama.llama_memory_seq_cp(memory, 0, 1, -1, -1)
    assert not b.llama.llama_memory_seq_rm(memory, 0, len(text) - 1, -1)
    token, parent = ints([200]), ints([-1])
    assert b.api.decode(b.ctx, 1, 1, token.ctypes.data, parent.ctypes.data, None) == 0
    row = b.logits(0)
    b.api.commit(b.ctx, 1, 0)
    b.api.clear(b.ctx)
    np.testing.assert_allclose(row, b.chain_logits(text, [200])[-1], atol=ATOL)


def test_an_open_tree_of_a_hybrid_is_protected(bench: Open) -> None:
    b = bench("qwen35")
    b.feed(PROMPT)
    assert b.decode(TOKENS, PARENTS) == 0
    memory = b.llama.llama_get_memory(b.ctx)
    assert not b.llama.llama_memory_seq_rm(memory, 0, len(PROMPT) + 1, -1)
    assert not b.llama.llama_memory_seq_rm(memory, 0, -1, -1)
    assert b.decode([80], [10]) == native.UNSUPPORTED  # recurrent states are those of one pass
    assert b.api.reserve(b.ctx, 32) == native.INVALID
    assert b.commit(10) == 0
    after = b.feed([200])
    np.testing.assert_allclose(after, b.chain_logits(PROMPT, [*(TOKENS[i] for i in path_of(10)), 200])[-1], atol=ATOL)


def test_room_for_trees(bench: Open) -> None:
    b = bench("qwen35", n_rs_seq=0)  # nothing is reserved
    b.feed(PROMPT)
    assert b.decode(TOKENS[:2], [-1, 0]) == native.UNSUPPORTED
    for n_nodes in (0, -1, 257):
        assert b.api.reserve(b.ctx, n_nodes) == native.INVALID
    assert b.api.reserve(b.ctx, 4) == 0
    assert b.decode(TOKENS[:5], CHAIN) == native.UNSUPPORTED  # deeper than there is room
    assert b.decode(TOKENS[:5], [-1, 0, 0, 0, 0]) == native.INVALID
    assert b.decode(TOKENS[:4], CHAIN[:4]) == 0
    assert b.commit(2) == 0
    assert b.api.reserve(b.ctx, 8) == 0  # the pending path survives
    assert b.decode(TOKENS[3:8], CHAIN) == 0
    row = b.logits(0)
    assert b.commit(0) == 0
    assert b.api.reserve(b.ctx, 16) == 0  # and no graph refers to what was there before
    assert b.decode(TOKENS[4:9], CHAIN) == 0
    other = b.logits(0)
    np.testing.assert_allclose(row, b.chain_logits(PROMPT, TOKENS[:4])[-1], atol=ATOL)
    np.testing.assert_allclose(other, b.chain_logits(PROMPT, TOKENS[:5])[-1], atol=ATOL)
    planes = bench("qwen35", n_rs_seq=2)
    assert planes.api.reserve(planes.ctx, 8) == native.UNSUPPORTED
    assert b.api.recurrent_trees(b.model)
    other = bench("glm4moe")
    assert other.api.reserve(other.ctx, 8) == 0
    assert not other.api.recurrent_trees(other.model)


# -- hybrid memories with stored states: chains

CHAIN = list(range(-1, 4))


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.parametrize("node", range(5))
def test_hybrids_roll_back_to_any_node_of_a_chain(bench: Open, kind: str, node: int) -> None:
    b = bench(kind, n_rs_seq=4)
    expected = b.chain_logits(PROMPT, [*TOKENS[: node + 1], 200, 201])
    b.feed(PROMPT)
    assert b.decode(TOKENS[:5], CHAIN) == 0
    for i in range(node + 1):
        np.testing.assert_allclose(b.logits(i), expected[i], atol=ATOL)
    assert b.commit(node) == 0
    assert b.n_past() == len(PROMPT) + node + 1
    # twice, so that a rollback right after another one is seen too
    assert b.decode([200, 77, 78], [-1, 0, 1]) == 0
    np.testing.assert_allclose(b.logits(0), expected[node + 1], atol=ATOL)
    assert b.commit(0) == 0
    assert b.decode([201, 79], [-1, 0]) == 0
    np.testing.assert_allclose(b.logits(0), expected[node + 2], atol=ATOL)


def test_hybrids_refuse_what_they_cannot_roll_back(bench: Open) -> None:
    b = bench("qwen35", n_rs_seq=4)
    b.feed(PROMPT)
    assert b.decode(TOKENS[:3], [-1, 0, 0]) == native.UNSUPPORTED
    assert b.decode(TOKENS[:6], list(range(-1, 5))) == native.UNSUPPORTED  # five deep, four states
    assert b.decode(TOKENS[:3], [-1, 0, 1]) == 0
    assert b.commit(-1) == native.UNSUPPORTED
    assert b.commit(2) == 0


def test_a_failed_pass_of_a_hybrid_is_not_forgotten(bench: Open) -> None:
    b = bench("qwen35", n_rs_seq=4)
    expected = b.chain_logits(PROMPT, [TOKENS[0]])[-1]
    b.feed(PROMPT)
    end = abort_always(b)
    assert b.decode(TOKENS[:3], [-1, 0, 1]) == native.LOST
    end()
    assert b.decode(TOKENS[:1], [-1]) == native.LOST
    b.api.clear(b.ctx)
    b.feed(PROMPT)
    assert b.decode(TOKENS[:1], [-1]) == 0
    np.testing.assert_allclose(b.logits(0), expected, atol=ATOL)


def test_chains_of_hybrids_do_not_grow(bench: Open) -> None:
    """The stored states are those of one pass: a commit inside an earlier one would take another node's."""
    b = bench("qwen35", n_rs_seq=4)
    b.feed(PROMPT)
    assert b.decode(TOKENS[:2], [-1, 0]) == 0
    assert b.decode(TOKENS[2:3], [1]) == native.UNSUPPORTED
    assert b.commit(0) == 0


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_a_memory_emptied_under_an_open_tree(bench: Open, kind: str) -> None:
    b = bench(kind, n_rs_seq=4)
    b.feed(PROMPT)
    assert b.decode(TOKENS[:3], [-1, 0, 1]) == 0
    b.llama.llama_memory_clear(b.llama.llama_get_memory(b.ctx), False)
    assert b.commit(2) == native.INVALID
    assert b.api.n_nodes(b.ctx) == 0
    expected = b.chain_logits(PROMPT, [TOKENS[0]])[-1]
    b.feed(PROMPT)
    assert b.decode(TOKENS[:1], [-1]) == 0
    np.testing.assert_allclose(b.logits(0), expected, atol=ATOL)


def test_no_state_is_restored_into_an_open_tree(bench: Open) -> None:
    b = bench("glm4moe")
    b.feed(PROMPT)
    size = b.llama.llama_state_seq_get_size(b.ctx, 0)
    saved = (ctypes.c_uint8 * size)()
    assert b.llama.llama_state_seq_get_data(b.ctx, saved, size, 0) == size
    assert b.decode(TOKENS, PARENTS) == 0
    assert b.llama.llama_state_seq_set_data(b.ctx, saved, size, 0) == 0
    assert b.commit(3) == 0
    np.testing.assert_allclose(b.feed([200]), b.chain_logits(PROMPT, [TOKENS[0], TOKENS[3], 200])[-1], atol=ATOL)


@pytest.mark.parametrize("seq_id", [-1, 1, 300])
def test_sequences_that_do_not_exist(bench: Open, seq_id: int) -> None:
    b = bench("glm4moe", mtp=True)
    b.feed(PROMPT)
    token, parent = ints([5]), ints([-1])
    assert b.api.decode(b.ctx, seq_id, 1, token.ctypes.data, parent.ctypes.data, None) == native.INVALID
    assert b.api.commit(b.ctx, seq_id, 0) == native.INVALID
    assert not b.api.truncate(b.ctx, seq_id, 3)
    assert not b.api.truncate(b.ctx, 0, -5)
    mtp = b.context(ctx_type=1, ctx_other=b.ctx)
    assert b.api.mtp_push(mtp, b.ctx, seq_id, 1, token.ctypes.data, parent.ctypes.data) == native.INVALID
    assert b.api.mtp_flush(mtp, seq_id) == native.INVALID
    assert (
        b.api.mtp_draft(mtp, seq_id, 1, parent.ctypes.data, parent.ctypes.data, 0.0, token.ctypes.data, None, None, None)
        == native.INVALID
    )
    assert b.n_past() == len(PROMPT)


def test_an_mtp_context_takes_no_tokens_without_hidden_rows(bench: Open) -> None:
    b = bench("glm4moe", mtp=True)
    assert b.decode([5], [-1], ctx=b.context(ctx_type=1)) == native.UNSUPPORTED


def test_recurrent_models_decode_one_token_at_a_time(bench: Open) -> None:
    b = bench("mamba2")
    expected = b.chain_logits(PROMPT, TOKENS[:2])
    b.feed(PROMPT)
    assert b.decode(TOKENS[:2], [-1, 0]) == native.UNSUPPORTED
    for i in range(2):
        assert b.decode(TOKENS[i : i + 1], [-1]) == 0
        np.testing.assert_allclose(b.logits(0), expected[i], atol=ATOL)
        assert b.commit(0) == 0
