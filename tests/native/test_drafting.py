"""The MTP context: catch-up, draft trees, and that nothing of a draft stays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from native.conftest import SEQ, Bench, ints

from entmtp_local.native import api as native

Open = Callable[..., Bench]

PROMPT = [3, 50, 7, 99, 120, 5, 44, 201, 17, 33]
PENDING = 60
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6]
RANKS = [0, 0, 1, 2, 0, 1, 0, 0, 2, 1]

CONTEXT_TYPE_MTP = 1
# Two passes of different widths, F16 keys and values.
ATOL = 0.03


class DraftBench:
    """A target with its MTP context, both holding the prompt."""

    def __init__(self, b: Bench) -> None:
        self.b, self.api = b, b.api
        self.mtp = b.context(ctx_type=CONTEXT_TYPE_MTP, ctx_other=b.ctx)
        self.api.set_nextn(b.ctx, True, False)
        self.api.set_nextn(self.mtp, True, True)
        b.feed(PROMPT)
        assert self.extend(PROMPT, range(-1, len(PROMPT) - 1), draft=False) == 0
        assert self.api.mtp_keep(self.mtp, b.ctx, len(PROMPT) - 1) == 0

    def extend(self, tokens: Sequence[int], rows: Sequence[int], *, draft: bool) -> int:
        token, row = ints(tokens), ints(rows)
        return int(self.api.mtp_extend(self.mtp, self.b.ctx, SEQ, len(token), token.ctypes.data, row.ctypes.data, draft))

    def draft(self, parents: Sequence[int], ranks: Sequence[int]) -> tuple[int, list[int], list[float]]:
        parent, rank = ints(parents), ints(ranks)
        token, logit = np.zeros(len(parents), np.int32), np.zeros(len(parents), np.float32)
        passes = self.api.mtp_draft(
            self.mtp, SEQ, len(parents), parent.ctypes.data, rank.ctypes.data, token.ctypes.data, logit.ctypes.data
        )
        return int(passes), token.tolist(), logit.tolist()

    def top(self, row: int, k: int) -> list[int]:
        ids = np.zeros(k, np.int32)
        assert self.api.top_k(self.mtp, row, k, ids.ctypes.data, None) == k
        return ids.tolist()

    def reference(self, path: Sequence[int], tokens: Sequence[int], ranks: Sequence[int]) -> list[tuple[int, float]]:
        """Stock's way along one path: one token a pass, each with the hidden row of the pass before."""
        found = []
        row = 0
        for node in path:
            logits = self.b.logits(row, self.mtp)
            order = np.argsort(-logits, kind="stable")
            found.append((int(order[ranks[node]]), float(logits[order[ranks[node]]])))
            hidden = np.array(np.ctypeslib.as_array(self.api.get_nextn(self.mtp), shape=(self.n_embd(),)))
            if node != path[-1]:
                self.decode_pair(tokens[node], hidden)
        return found

    def n_embd(self) -> int:
        return int(self.b.llama.llama_model_n_embd_out(self.b.model))

    def decode_pair(self, token: int, hidden: Any) -> None:
        llama = self.b.llama
        batch = llama.llama_batch_init(1, 0, 1)
        batch.n_tokens = 1
        batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = (
            token,
            self.b.n_past(self.mtp),
            1,
            SEQ,
            1,
        )
        hidden = np.ascontiguousarray(hidden, dtype=np.float32)
        batch.embd = hidden.ctypes.data_as(type(batch.embd))
        assert llama.llama_decode(self.mtp, batch) == 0
        batch.embd = None
        llama.llama_batch_free(batch)


@pytest.fixture
def drafter(bench: Open) -> Callable[..., DraftBench]:
    return lambda kind, **params: DraftBench(bench(kind, mtp=True, **params))


SINGLE = ["glm4moe", "hy_v3", "mimo2", "qwen35", "qwen35moe", "qwen3next"]


@pytest.mark.parametrize("kind", SINGLE)
def test_a_tree_is_what_one_token_at_a_time_gives(drafter: Callable[..., DraftBench], kind: str) -> None:
    d = drafter(kind)
    leaves = [[1, 5], [2, 6, 9], [3], [1, 4, 7], [1, 4, 8]]
    drafted: dict[int, tuple[int, float]] = {}
    for round_, path in enumerate(leaves):
        before = d.b.n_past(d.mtp)
        assert d.extend([PENDING], [-1], draft=True) == 0
        if round_ == 0:
            passes, tokens, logits = d.draft(PARENTS, RANKS)
            assert passes == 2  # the depths 1 and 2 have inner nodes
            assert tokens[0] == PENDING
            assert d.b.n_past(d.mtp) == before + 1, "a draft stayed in the context"
            assert d.api.n_nodes(d.mtp) == 0
            drafted = dict(enumerate(zip(tokens, logits, strict=True)))
            assert d.api.truncate(d.mtp, SEQ, before)
            assert d.extend([PENDING], [-1], draft=True) == 0
        for node, (token, logit) in zip(path, d.reference(path, [t for t, _ in drafted.values()], RANKS), strict=True):
            assert drafted[node][1] == pytest.approx(logit, abs=ATOL), f"node {node}"
            assert drafted[node][0] == token, f"node {node}"
        assert d.api.truncate(d.mtp, SEQ, before)


def test_siblings_cost_no_pass(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("glm4moe")
    assert d.extend([PENDING], [-1], draft=True) == 0
    expected = d.top(0, 4)
    passes, tokens, _ = d.draft([-1, 0, 0, 0], [0, 0, 1, 3])
    assert passes == 0
    assert tokens[1:] == [expected[0], expected[1], expected[3]]


@pytest.mark.parametrize("kind", [*SINGLE, "step35"])
def test_catching_up_in_one_pass_or_in_several(drafter: Callable[..., DraftBench], kind: str) -> None:
    """The output row of a wide pass belongs to its last token, and so does the hidden row that drafting goes on with."""
    accepted = [61, 62, PENDING]
    drafts = []
    for split in ([3], [1, 2], [2, 1], [1, 1, 1]):
        d = drafter(kind, n_rs_seq=3)
        # a verified chain whose rows feed the catch-up; the last accepted token is the pending one of the next step
        assert d.b.decode([70, 61, 62], [-1, 0, 1]) == 0
        assert d.extend([70], [-1], draft=False) == 0
        begin = 0
        for n in split:
            last = begin + n == len(accepted)
            assert d.extend(accepted[begin : begin + n], list(range(begin, begin + n)), draft=last) == 0
            begin += n
        drafts.append(d.draft([-1, 0, 1, 2], [0, 0, 0, 0]))
    for passes, tokens, logits in drafts[1:]:
        assert passes == drafts[0][0] == 2
        assert tokens == drafts[0][1]
        assert logits == pytest.approx(drafts[0][2], abs=ATOL)


@pytest.mark.parametrize("kind", SINGLE)
def test_a_pending_token_can_be_replaced(drafter: Callable[..., DraftBench], kind: str) -> None:
    """The hidden row that went with it is kept for the token that comes instead."""
    d = drafter(kind, n_rs_seq=3)
    assert d.b.decode([70, 61, 62], [-1, 0, 1]) == 0
    assert d.extend([70, 61, 62], [-1, 0, 1], draft=False) == 0
    before = d.b.n_past(d.mtp)
    assert d.extend([PENDING], [2], draft=True) == 0
    assert d.api.truncate(d.mtp, SEQ, before)
    assert d.extend([99], [2], draft=True) == 0
    expected = d.b.logits(0, d.mtp)
    assert d.api.truncate(d.mtp, SEQ, before)
    assert d.extend([99], [-1], draft=True) == 0
    np.testing.assert_array_equal(d.b.logits(0, d.mtp), expected)
    assert d.api.truncate(d.mtp, SEQ, before)
    assert d.extend([99], [0], draft=True) == 0
    assert np.abs(d.b.logits(0, d.mtp) - expected).max() > ATOL, "the row matters"


def test_chained_heads_draft_one_depth_each(drafter: Callable[..., DraftBench]) -> None:
    """Against stock's way: for each depth the next head rereads the draft from the pending token on."""
    d = drafter("step35")
    before = d.b.n_past(d.mtp)
    target_rows = np.array(np.ctypeslib.as_array(d.api.get_nextn(d.b.ctx), shape=(len(PROMPT), d.n_embd())))
    assert d.extend([PENDING], [-1], draft=True) == 0
    passes, tokens, logits = d.draft([-1, 0, 1, 2], [0, 0, 0, 0])
    assert passes == 2
    assert d.b.n_past(d.mtp) == before + 1

    # exported for C++ only, hence the mangled name
    set_head = d.b.llama.llama_cpp._lib._Z28llama_set_nextn_layer_offsetP13llama_contexti
    set_head.argtypes = [ctypes.c_void_p, ctypes.c_int]
    fed, rows = [PENDING], [target_rows[-1]]
    for head in range(3):
        assert d.api.truncate(d.mtp, SEQ, before)
        set_head(d.mtp, head)
        for token, row in zip(fed, rows, strict=True):
            d.decode_pair(token, row)
        row = d.b.logits(0, d.mtp)
        assert logits[head + 1] == pytest.approx(float(row.max()), abs=ATOL), f"head {head}"
        assert tokens[head + 1] == int(row.argmax()), f"head {head}"
        fed.append(int(row.argmax()))
        rows.append(np.array(np.ctypeslib.as_array(d.api.get_nextn(d.mtp), shape=(d.n_embd(),))))
    set_head(d.mtp, 0)


def test_chained_heads_draft_chains_only(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("step35")
    assert d.extend([PENDING], [-1], draft=True) == 0
    assert d.draft([-1, 0, 0], [0, 0, 1])[0] == native.UNSUPPORTED
    assert d.draft([-1, 0, 1, 2, 3], [0] * 5)[0] == native.UNSUPPORTED
    assert d.draft([-1, 0, 1, 2], [0] * 4)[0] == 2


def test_drafting_needs_a_fed_token(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("glm4moe")
    assert d.draft([-1, 0], [0, 0])[0] == native.INVALID
    assert d.extend([PENDING], [-1], draft=True) == 0
    assert d.draft([-1, 0], [0, 0])[0] == 0
    assert d.draft([-1, 0], [0, 0])[0] == native.INVALID  # its rows may be gone


@pytest.mark.parametrize(
    ("parents", "ranks"),
    [([0, 0], [0, 0]), ([-1, 1], [0, 0]), ([-1, 0, 1, 0], [0, 0, 0, 1]), ([-1, 0], [0, -1]), ([-1, 0], [0, 10**6])],
)
def test_shapes_that_cannot_be_drafted(drafter: Callable[..., DraftBench], parents: list[int], ranks: list[int]) -> None:
    d = drafter("glm4moe")
    assert d.extend([PENDING], [-1], draft=True) == 0
    assert d.draft(parents, ranks)[0] == native.INVALID


def test_rows_that_do_not_exist(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("glm4moe")
    assert d.extend([PENDING], [10**6], draft=True) == native.INVALID
    assert d.extend([PENDING], [len(PROMPT)], draft=True) == native.INVALID
    assert d.api.mtp_keep(d.mtp, d.b.ctx, len(PROMPT)) == native.INVALID
    d.b.feed([9])
    assert d.api.mtp_keep(d.mtp, d.b.ctx, 1) == native.INVALID, "a row of the pass before"
    assert d.extend([10**6], [-1], draft=True) == native.INVALID
    assert d.extend([PENDING], [-1], draft=True) == 0
