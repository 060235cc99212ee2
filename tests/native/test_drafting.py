"""The MTP context: what waits to be fed, draft trees, and that nothing of a draft stays."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.conftest import SEQ, Bench, ints, other_back_end

from entmtp_local.native import api as native
from entmtp_local.native import library
from entmtp_local.speculative.tree import TreeShape
from scripts.make_tiny_models import STOP, STOP_LEAD, make_tokenizer

Open = Callable[..., Bench]
Row = npt.NDArray[np.float32]

PROMPT = [3, 50, 7, 99, 120, 5, 44, 201, 17, 33]
PENDING = 60
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6]
RANKS = [0, 0, 1, 2, 0, 1, 0, 0, 2, 1]
CHAIN = [-1, 0, 1, 2], [0, 0, 0, 0]

CONTEXT_TYPE_MTP = 1
Q8_0 = 8  # a ggml type
# Two passes of different widths, F16 keys and values.
ATOL = 0.03


def log_softmax(row: Row) -> Row:
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


@dataclass(frozen=True)
class Draft:
    code: int
    tokens: list[int]
    logp: list[float]
    entropy: list[float]
    n_levels: int


class DraftBench:
    """A target with its MTP context, both holding the prompt."""

    def __init__(self, b: Bench, **params: Any) -> None:
        self.b, self.api = b, b.api
        self.mtp = b.context(ctx_type=CONTEXT_TYPE_MTP, ctx_other=b.ctx, **params)
        self.api.set_nextn(b.ctx, True, False)
        self.api.set_nextn(self.mtp, True, True)
        b.feed(PROMPT)
        self.target_rows = self.hidden(b.ctx, len(PROMPT))
        assert self.push(PROMPT, range(-1, len(PROMPT) - 1)) == 0
        assert self.flush() == 0
        assert self.api.mtp_keep(self.mtp, b.ctx, len(PROMPT) - 1) == 0

    def push(self, tokens: Sequence[int], rows: Sequence[int]) -> int:
        token, row = ints(tokens), ints(rows)
        return int(self.api.mtp_push(self.mtp, self.b.ctx, SEQ, len(token), token.ctypes.data, row.ctypes.data))

    def flush(self) -> int:
        return int(self.api.mtp_flush(self.mtp, SEQ))

    def draft(self, parents: Sequence[int], ranks: Sequence[int], least: float = -math.inf) -> Draft:
        parent, rank = ints(parents), ints(ranks)
        token = np.zeros(len(parents), np.int32)
        logp, entropy = np.zeros(len(parents), np.float32), np.zeros(len(parents), np.float32)
        n_levels = np.zeros(1, np.int32)
        code = self.api.mtp_draft(
            self.mtp,
            SEQ,
            len(parents),
            parent.ctypes.data,
            rank.ctypes.data,
            least,
            token.ctypes.data,
            logp.ctypes.data,
            entropy.ctypes.data,
            n_levels.ctypes.data,
        )
        return Draft(int(code), token.tolist(), logp.tolist(), entropy.tolist(), int(n_levels[0]))

    def set_vocab(self, n: int) -> int:
        return int(self.api.mtp_set_vocab(self.mtp, n))

    def hidden(self, ctx: Any, n_rows: int) -> Row:
        return np.array(np.ctypeslib.as_array(self.api.get_nextn(ctx), shape=(n_rows, self.n_embd())))

    def reference(self, path: Sequence[int], tokens: Sequence[int]) -> list[Row]:
        """Stock's way along one path, one token a pass, each with the hidden row of the pass before: its rows of logits."""
        rows = []
        hidden = self.target_rows[-1]
        for node in path:
            self.decode_pair(tokens[node], hidden)
            rows.append(self.b.logits(0, self.mtp))
            hidden = self.hidden(self.mtp, 1)[0]
        return rows

    def n_embd(self) -> int:
        return int(self.b.llama.llama_model_n_embd_out(self.b.model))

    def n_past(self) -> int:
        return self.b.n_past(self.mtp)

    def decode_pair(self, token: int, hidden: Any) -> None:
        llama = self.b.llama
        batch = llama.llama_batch_init(1, 0, 1)
        batch.n_tokens = 1
        batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = (token, self.n_past(), 1, SEQ, 1)
        hidden = np.ascontiguousarray(hidden, dtype=np.float32)
        batch.embd = hidden.ctypes.data_as(type(batch.embd))
        assert llama.llama_decode(self.mtp, batch) == 0
        batch.embd = None
        llama.llama_batch_free(batch)


@pytest.fixture
def drafter(bench: Open) -> Callable[..., DraftBench]:
    return lambda kind, **params: DraftBench(bench(kind, mtp=True, **params))


# Those of the first row draft all levels in one graph, the others with a pass per level.
FUSED = ["qwen35", "qwen35moe", "qwen3next"]
SINGLE = [*FUSED, "glm4moe", "hy_v3", "mimo2"]


def check_path(d: DraftBench, draft: Draft, path: Sequence[int], parents: Sequence[int], ranks: Sequence[int]) -> None:
    """Every node of a path from the root is what stock's pass over its parent gives."""
    for node, row in zip(path[1:], d.reference(path[:-1], draft.tokens), strict=True):
        order = np.argsort(-row, kind="stable")
        logp = log_softmax(row)
        expected = int(order[ranks[node]])
        assert draft.tokens[node] == expected, f"node {node}"
        assert draft.logp[node] == pytest.approx(float(logp[expected]), abs=ATOL), f"node {node}"
        assert draft.entropy[parents[node]] == pytest.approx(float(-(np.exp(logp) * logp).sum()), abs=ATOL), f"node {node}"


@pytest.mark.parametrize("flash", [0, 1])
@pytest.mark.parametrize("kind", SINGLE)
def test_a_tree_is_what_one_token_at_a_time_gives(drafter: Callable[..., DraftBench], kind: str, flash: int) -> None:
    d = drafter(kind, flash_attn_type=flash)
    before = d.n_past()
    assert d.push([PENDING], [-1]) == 0
    draft = d.draft(PARENTS, RANKS)
    assert draft.code == 0
    assert draft.tokens[0] == PENDING
    assert draft.logp[0] == 0
    assert np.isnan([draft.entropy[leaf] for leaf in (3, 5, 7, 8, 9)]).all()
    assert d.n_past() == before + 1, "a draft stayed in the context"
    assert d.api.n_nodes(d.mtp) == 0
    for path in ([0, 1, 5], [0, 2, 6, 9], [0, 3], [0, 1, 4, 7], [0, 1, 4, 8]):
        assert d.api.truncate(d.mtp, SEQ, before)
        check_path(d, draft, path, PARENTS, RANKS)


@pytest.mark.parametrize("kind", [*SINGLE, "step35"])
def test_levels_below_unlikely_paths_are_not_drafted(drafter: Callable[..., DraftBench], kind: str) -> None:
    parents, ranks = CHAIN if kind == "step35" else (PARENTS, RANKS)
    d = drafter(kind)
    before = d.n_past()
    shape = TreeShape.from_parents(parents, ranks)

    def drafted(least: float) -> Draft:
        assert d.api.truncate(d.mtp, SEQ, before)
        assert d.push([PENDING], [-1]) == 0
        draft = d.draft(parents, ranks, least)
        assert draft.code == 0
        assert d.n_past() == before + 1, "a draft stayed in the context"
        return draft

    whole = drafted(-math.inf)
    assert whole.n_levels == shape.max_depth
    paths = [0.0]
    for node in range(1, shape.n_nodes):
        paths.append(paths[parents[node]] + whole.logp[node])
    continued = [
        max(paths[node] for node in range(shape.n_nodes) if shape.depths[node] == depth and shape.children[node])
        for depth in range(shape.max_depth)
    ]
    assert continued == sorted(continued, reverse=True)
    for n_levels, least in enumerate([(a + b) / 2 for a, b in itertools.pairwise(continued)], start=1):
        draft = drafted(least)
        n = shape.upto(n_levels).n_nodes
        assert draft.n_levels == n_levels
        assert draft.tokens == [*whole.tokens[:n], *[-1] * (shape.n_nodes - n)]
        assert draft.logp[:n] == pytest.approx(whole.logp[:n], abs=1e-5)
        assert np.isnan([e for e, node in zip(draft.entropy, range(n), strict=False) if shape.depths[node] == n_levels]).all()
    assert drafted(1.0).n_levels == 1, "the first level is always drafted"
    assert drafted(-math.inf).tokens == whole.tokens, "a draft that ended early leaves something behind"


@pytest.mark.parametrize("kind", [*SINGLE, "step35"])
def test_nothing_is_drafted_below_a_token_that_ends_the_text(drafter: Callable[..., DraftBench], kind: str) -> None:
    lead, stop, end = (make_tokenizer().id(token) for token in (STOP_LEAD, STOP, "<|im_end|>"))
    d = drafter(kind)
    before = d.n_past()

    def drafted(parents: Sequence[int], ranks: Sequence[int], least: float) -> Draft:
        assert d.api.truncate(d.mtp, SEQ, before)
        assert d.push([lead], [-1]) == 0
        draft = d.draft(parents, ranks, least)
        assert draft.code == 0
        return draft

    whole = drafted(*CHAIN, -math.inf)
    assert whole.tokens[:3] == [lead, stop, end]
    assert whole.n_levels == 3, "all levels were asked for"
    assert drafted(*CHAIN, -1e9).tokens == [lead, stop, end, -1]
    if kind in SINGLE:
        # beside the end another path goes on
        draft = drafted([-1, 0, 1, 1, 2, 3], [0, 0, 0, 1, 0, 0], -1e9)
        assert draft.tokens[:3] == [lead, stop, end]
        assert draft.n_levels == 3
    if kind in FUSED:
        for wanted in (native.OK, native.UNSUPPORTED):
            # the end stands at the end of the vocabulary, and elsewhere among those that are left
            assert d.set_vocab(128) > 128 > max(lead, stop)
            assert d.api.mtp_set_embd(d.mtp, int(wanted == native.OK)) == wanted
            draft = drafted(*CHAIN, -1e9)
            assert draft.tokens == [lead, stop, end, -1]
            assert draft.n_levels == 2


@pytest.mark.parametrize("kind", SINGLE)
def test_where_the_operator_is_not_known_the_host_reads_the_rows(drafter: Callable[..., DraftBench], kind: str) -> None:
    parents, ranks = [-1, 0, 0, 0, 1, 1, 1, 4, 4, 4], [0, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    with other_back_end():
        d = drafter(kind)
    assert d.api.support(d.mtp, None, 0) == native.SUPPORT_CHAIN
    before = d.n_past()
    assert d.push([PENDING], [-1]) == 0
    draft = d.draft(parents, ranks)
    assert draft.code == 0
    for path in ([0, 1, 4, 7], [0, 1, 4, 8], [0, 1, 4, 9], [0, 1, 5], [0, 1, 6], [0, 2], [0, 3]):
        assert d.api.truncate(d.mtp, SEQ, before)
        check_path(d, draft, path, parents, ranks)


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe"])
def test_long_chains(drafter: Callable[..., DraftBench], kind: str) -> None:
    """Also of more levels than a graph has."""
    for depth in (1, 9, 18):
        d = drafter(kind)
        parents, ranks = list(range(-1, depth)), [0] * (depth + 1)
        before = d.n_past()
        assert d.push([PENDING], [-1]) == 0
        draft = d.draft(parents, ranks)
        assert draft.code == 0
        assert d.api.truncate(d.mtp, SEQ, before)
        check_path(d, draft, list(range(depth + 1)), parents, ranks)


@pytest.mark.parametrize("kind", [*SINGLE, "step35"])
def test_catching_up_in_one_pass_or_in_several(drafter: Callable[..., DraftBench], kind: str) -> None:
    """The output row of a wide pass belongs to its last token, and so does the hidden row that drafting goes on with."""
    accepted = [61, 62, PENDING]
    drafts = []
    for split, flushed in (([3], False), ([1, 2], True), ([2, 1], True), ([1, 1, 1], False), ([1, 1, 1], True)):
        d = drafter(kind, n_rs_seq=3)
        # a verified chain whose rows feed the catch-up; the last accepted token is the pending one of the next step
        assert d.b.decode([70, 61, 62], [-1, 0, 1]) == 0
        assert d.push([70], [-1]) == 0
        begin = 0
        for n in split:
            assert not flushed or d.flush() == 0
            assert d.push(accepted[begin : begin + n], list(range(begin, begin + n))) == 0
            begin += n
        assert d.n_past() == len(PROMPT) + (1 + begin - split[-1] if flushed else 0)
        drafts.append(d.draft(*CHAIN))
        assert d.n_past() == len(PROMPT) + 4
    for draft in drafts[1:]:
        assert draft.code == drafts[0].code == 0
        assert draft.tokens == drafts[0].tokens
        assert draft.logp == pytest.approx(drafts[0].logp, abs=ATOL)


@pytest.mark.parametrize("kind", FUSED)
def test_only_keys_and_values_are_computed_of_tokens_that_are_only_fed(bench: Open, kind: str) -> None:
    base: Any = ctypes.CDLL(str(next(library.engine_directory().glob("libggml-base.so"))))
    base.ggml_get_name.restype, base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    base.ggml_nrows.restype, base.ggml_nrows.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    rows: dict[str, list[int]] = {}

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    def seen(tensor: int, ask: bool, _: Any) -> bool:
        if ask:
            name, _, _ = base.ggml_get_name(tensor).decode().partition("-")
            rows.setdefault(name, []).append(base.ggml_nrows(tensor))
        return not ask

    b = bench(kind, mtp=True, n_rs_seq=3)
    d = DraftBench(b, cb_eval=ctypes.cast(seen, type(b.llama.llama_context_default_params().cb_eval)))
    assert rows["mtp_eh_proj"] == [len(PROMPT)]
    assert not {"mtp_Qcur_full", "mtp_Qcur_normed", "mtp_attn_out", "mtp_ffn_out"} & set(rows)
    rows.clear()
    assert b.decode([70, 61, 62], [-1, 0, 1]) == 0
    assert d.push([70, 61, PENDING], [-1, 0, 1]) == 0
    assert d.draft(*CHAIN).code == 0
    assert rows["mtp_eh_proj"] == [2, 1, 1, 1]
    assert rows["mtp_attn_out"] == rows["mtp_ffn_out"] == [1, 1, 1]


@pytest.mark.parametrize(
    "params", [{"flash_attn_type": 0}, {"flash_attn_type": 1}, {"flash_attn_type": 1, "type_k": Q8_0, "type_v": Q8_0}]
)
@pytest.mark.parametrize("kind", FUSED)
def test_keys_and_values_of_fed_tokens_are_those_of_stock(bench: Open, kind: str, params: dict[str, int]) -> None:
    """Stock feeds one token a pass, all of the block."""
    b = bench(kind, mtp=True, n_rs_seq=3)
    d = DraftBench(b, **params)
    fed = [70, 61, PENDING]
    assert b.decode([70, 61, 62], [-1, 0, 1]) == 0
    assert d.push(fed, [-1, 0, 1]) == 0
    hidden = [np.zeros(d.n_embd(), np.float32), *d.target_rows, *d.hidden(b.ctx, 3)[:2]]
    draft = d.draft(*CHAIN)
    assert draft.code == 0
    d.mtp = b.context(ctx_type=CONTEXT_TYPE_MTP, ctx_other=b.ctx, **params)
    d.api.set_nextn(d.mtp, True, True)
    for token, row in zip([*PROMPT, *fed], hidden, strict=True):
        d.decode_pair(token, row)
    logp = log_softmax(b.logits(0, d.mtp))
    assert draft.tokens[1] == int(logp.argmax())
    assert draft.logp[1] == pytest.approx(float(logp.max()), abs=ATOL)


@pytest.mark.parametrize("kind", [*FUSED, "glm4moe", "step35"])
def test_steps_that_draft_nothing_are_caught_up_with(drafter: Callable[..., DraftBench], kind: str) -> None:
    """Tokens wait in the queue, with the hidden rows of passes long gone; a queue that is full is fed."""
    drafts = []
    for flushed in (False, True):
        d = drafter(kind, n_rs_seq=3)
        row = -1
        for i in range(290):
            token = 70 + i % 100
            assert d.push([token], [row]) == 0
            assert not flushed or d.flush() == 0
            assert d.b.decode([token], [-1]) == 0
            assert d.b.commit(0) == 0
            row = 0
        assert d.n_past() == len(PROMPT) + (290 if flushed else 256)
        assert d.push([PENDING], [0]) == 0
        drafts.append(d.draft(*CHAIN))
        assert d.n_past() == len(PROMPT) + 291
    assert drafts[0].tokens == drafts[1].tokens
    assert drafts[0].logp == pytest.approx(drafts[1].logp, abs=ATOL)


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe"])
def test_a_queue_no_longer_than_a_pass(bench: Open, kind: str) -> None:
    drafts = []
    for n_ubatch in (12, 256):
        d = DraftBench(bench(kind, mtp=True, n_rs_seq=3), n_ubatch=n_ubatch)
        d.b.feed(range(70, 100))
        assert d.push([70], [-1]) == 0
        for i in range(29):
            assert d.push([71 + i], [i]) == 0
        assert d.push([PENDING], [29]) == 0
        drafts.append(d.draft(PARENTS, RANKS))
        assert drafts[-1].code == 0
        assert d.n_past() == len(PROMPT) + 31
    assert drafts[0].tokens == drafts[1].tokens
    assert drafts[0].logp == pytest.approx(drafts[1].logp, abs=ATOL)


@pytest.mark.parametrize("kind", SINGLE)
def test_a_pending_token_can_be_replaced(drafter: Callable[..., DraftBench], kind: str) -> None:
    """The hidden row that went with it is kept for the token that comes instead."""
    d = drafter(kind, n_rs_seq=3)
    shape = [-1, *[0] * 8], [0, *range(8)]
    assert d.b.decode([70, 61, 62], [-1, 0, 1]) == 0
    assert d.push([70, 61, 62], [-1, 0, 1]) == 0
    assert d.flush() == 0
    before = d.n_past()
    assert d.push([99], [2]) == 0
    expected = d.draft(*shape)
    assert expected.code == 0
    assert d.api.truncate(d.mtp, SEQ, before)
    assert d.push([PENDING], [2]) == 0
    assert d.api.truncate(d.mtp, SEQ, before), "it waits in the queue"
    assert d.push([99], [-1]) == 0
    again = d.draft(*shape)
    assert (again.tokens, again.logp) == (expected.tokens, expected.logp)
    assert d.api.truncate(d.mtp, SEQ, before)
    assert d.push([99], [0]) == 0
    assert d.draft(*shape).logp != expected.logp, "the row matters"


def test_cutting_back_the_queue(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("qwen35", n_rs_seq=3)
    assert d.b.decode([70, 61, 62], [-1, 0, 1]) == 0
    assert d.push([70, 61, 62], [-1, 0, 1]) == 0
    assert d.api.truncate(d.mtp, SEQ, len(PROMPT) + 1)
    assert d.push([PENDING], [0]) == 0
    draft = d.draft(*CHAIN)
    assert d.n_past() == len(PROMPT) + 2
    other = drafter("qwen35", n_rs_seq=3)
    assert other.b.decode([70], [-1]) == 0
    assert other.push([70, PENDING], [-1, 0]) == 0
    expected = other.draft(*CHAIN)
    assert draft.tokens == expected.tokens
    assert draft.logp == pytest.approx(expected.logp, abs=ATOL)
    assert d.push([5], [-1]) == 0
    d.api.clear(d.mtp)
    assert d.draft(*CHAIN).code == native.INVALID


def test_chained_heads_draft_one_depth_each(drafter: Callable[..., DraftBench]) -> None:
    """Against stock's way: for each depth the next head rereads the draft from the pending token on."""
    d = drafter("step35")
    before = d.n_past()
    assert d.push([PENDING], [-1]) == 0
    draft = d.draft(*CHAIN)
    assert draft.code == 0
    assert d.n_past() == before + 1

    # exported for C++ only, hence the mangled name
    set_head = d.b.llama.llama_cpp._lib._Z28llama_set_nextn_layer_offsetP13llama_contexti
    set_head.argtypes = [ctypes.c_void_p, ctypes.c_int]
    fed, rows = [PENDING], [d.target_rows[-1]]
    for head in range(3):
        assert d.api.truncate(d.mtp, SEQ, before)
        set_head(d.mtp, head)
        for token, hidden in zip(fed, rows, strict=True):
            d.decode_pair(token, hidden)
        row = d.b.logits(0, d.mtp)
        assert draft.logp[head + 1] == pytest.approx(float(log_softmax(row).max()), abs=ATOL), f"head {head}"
        assert draft.tokens[head + 1] == int(row.argmax()), f"head {head}"
        fed.append(int(row.argmax()))
        rows.append(d.hidden(d.mtp, 1)[0])
    set_head(d.mtp, 0)


def test_chained_heads_draft_chains_only(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("step35")
    assert d.push([PENDING], [-1]) == 0
    assert d.draft([-1, 0, 0], [0, 0, 1]).code == native.UNSUPPORTED
    assert d.draft([-1, 0, 1, 2, 3], [0] * 5).code == native.UNSUPPORTED
    assert d.draft(*CHAIN).code == 0


def test_drafting_needs_a_token_to_feed(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("glm4moe")
    assert d.draft([-1, 0], [0, 0]).code == native.INVALID
    assert d.push([PENDING], [-1]) == 0
    assert d.draft([-1, 0], [0, 0]).code == 0
    assert d.draft([-1, 0], [0, 0]).code == native.INVALID


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe"])
@pytest.mark.parametrize(
    ("parents", "ranks"),
    [([0, 0], [0, 0]), ([-1, 1], [0, 0]), ([-1, 0, 1, 0], [0, 0, 0, 1]), ([-1, 0], [0, -1]), ([-1, 0], [0, native.MAX_TOP])],
)
def test_shapes_that_cannot_be_drafted(
    drafter: Callable[..., DraftBench], kind: str, parents: list[int], ranks: list[int]
) -> None:
    d = drafter(kind)
    assert d.push([PENDING], [-1]) == 0
    assert d.draft(parents, ranks).code == native.INVALID
    assert d.draft(*CHAIN).code == 0, "the token still waits"


def test_rows_that_do_not_exist(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("glm4moe")
    assert d.push([PENDING], [10**6]) == native.INVALID
    assert d.push([PENDING], [len(PROMPT)]) == native.INVALID
    assert d.api.mtp_keep(d.mtp, d.b.ctx, len(PROMPT)) == native.INVALID
    d.b.feed([9])
    assert d.api.mtp_keep(d.mtp, d.b.ctx, 1) == native.INVALID, "a row of the pass before"
    assert d.push([10**6], [-1]) == native.INVALID
    assert d.push([PENDING], [-1]) == 0


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe", "step35"])
def test_a_draft_that_was_cut_short_can_be_repeated(drafter: Callable[..., DraftBench], kind: str) -> None:
    d = drafter(kind)
    before = d.n_past()
    assert d.push([PENDING], [-1]) == 0
    expected = d.draft(*CHAIN)
    llama = d.b.llama
    for n_operators in (0, 5, 40, 90, 130):
        assert d.api.truncate(d.mtp, SEQ, before)
        assert d.push([PENDING], [-1]) == 0
        calls = iter(range(n_operators))
        callback = llama.ggml_abort_callback(lambda _, calls=calls: next(calls, None) is None)
        llama.llama_set_abort_callback(d.mtp, callback, ctypes.c_void_p(0))
        code = d.draft(*CHAIN).code
        llama.llama_set_abort_callback(d.mtp, ctypes.cast(None, type(callback)), ctypes.c_void_p(0))
        if code == 0:  # it has fewer operators
            continue
        assert code == 2
        assert d.n_past() == before
        assert d.api.n_nodes(d.mtp) == 0
        again = d.draft(*CHAIN)
        assert (again.code, again.tokens) == (0, expected.tokens)
        assert again.logp == pytest.approx(expected.logp, abs=1e-6)


# -- fewer tokens to choose among


@pytest.mark.parametrize("kind", FUSED)
def test_a_reduced_vocabulary_chooses_among_the_first_tokens_and_the_control_tokens(
    drafter: Callable[..., DraftBench], kind: str
) -> None:
    d = drafter(kind)
    n_vocab = d.b.n_vocab
    before = d.n_past()
    n_kept = d.set_vocab(64)
    tail = n_kept - 64
    assert 0 < tail < n_vocab - 64, "the tiny models' control tokens stand at the end"
    assert d.push([PENDING], [-1]) == 0
    draft = d.draft([-1, *[0] * 16], [0, *range(16)])
    assert draft.code == 0
    assert d.api.truncate(d.mtp, SEQ, before)
    row = d.reference([0], [PENDING])[0]
    kept = np.r_[0:64, n_vocab - tail : n_vocab]
    part = log_softmax(row[kept])
    order = np.argsort(-part, kind="stable")[:16]
    assert draft.tokens[1:] == kept[order].tolist()
    assert draft.logp[1:] == pytest.approx(part[order].tolist(), abs=ATOL)
    assert draft.entropy[0] == pytest.approx(float(-(np.exp(part) * part).sum()), abs=ATOL)
    # and all of them again
    assert d.set_vocab(0) == n_vocab
    assert d.api.truncate(d.mtp, SEQ, before)
    assert d.push([PENDING], [-1]) == 0
    assert d.draft([-1, 0], [0, 0]).tokens[1] == int(row.argmax())


Q4_0, Q8_0, F16 = 2, 8, 1


@pytest.mark.parametrize("kind", ["qwen35", "qwen35moe", "qwen3next"])
def test_a_copy_of_the_head_in_a_smaller_type(drafter: Callable[..., DraftBench], kind: str) -> None:
    d = drafter(kind)
    before = d.n_past()
    parents, ranks = [-1, *[0] * 16], [0, *range(16)]

    def draft(head_type: int, n: int) -> dict[int, float]:
        assert d.set_vocab(n) > 0
        assert d.api.mtp_set_head_type(d.mtp, head_type) == 0
        assert d.api.truncate(d.mtp, SEQ, before)
        assert d.push([PENDING], [-1]) == 0
        found = d.draft(parents, ranks)
        assert found.code == 0
        return dict(zip(found.tokens[1:], found.logp[1:], strict=True))

    def distance(a: dict[int, float], b: dict[int, float]) -> float:
        """Between the differences of the tokens' logits; constants do not count."""
        both = sorted(a.keys() & b.keys())
        assert len(both) >= 8
        between = [a[token] - b[token] for token in both]
        return max(between) - min(between)

    n_kept = d.set_vocab(64)
    for n in (64, 128, 64, 0, 64):  # larger and smaller ones, and views of the largest
        own, fine, coarse = draft(-1, n), draft(Q8_0, n), draft(Q4_0, n)
        assert distance(own, fine) < 0.1 < distance(own, coarse) < 2.0
        if n == 64:
            kept = {*range(64), *range(d.b.n_vocab - (n_kept - 64), d.b.n_vocab)}
            assert own.keys() | fine.keys() | coarse.keys() <= kept
    assert draft(-1, 64) == own


@pytest.mark.parametrize("kind", FUSED)
def test_embeddings_that_lie_beside_the_head(drafter: Callable[..., DraftBench], kind: str) -> None:
    """Drafts are the same to the bit, by copies of larger and smaller choices; tokens of the vocabulary's end are among them."""
    d = drafter(kind)
    before, n_vocab = d.n_past(), d.b.n_vocab
    assert d.api.mtp_set_embd(d.mtp, -1) == native.UNSUPPORTED, "a processor reads them where they are"
    # every level continues the best, and some others
    parents = [-1, *[0] * 8, *range(1, 9), *range(9, 17), *[17] * 8]
    ranks = [0, *range(8), *[0] * 16, *range(8)]

    def draft(wanted: int) -> Draft:
        assert d.api.mtp_set_embd(d.mtp, wanted) == (native.OK if wanted else native.UNSUPPORTED)
        assert d.api.truncate(d.mtp, SEQ, before)
        assert d.push([PENDING], [-1]) == 0
        found = d.draft(parents, ranks)
        assert found.code == 0
        return found

    n_from_the_end = 0
    for n in (64, 128, 64, 192, 64):
        tail = d.set_vocab(n) - n
        expected, found = draft(0), draft(1)
        assert found.tokens == expected.tokens
        assert found.logp == expected.logp
        kept = {*range(n), *range(n_vocab - tail, n_vocab)}
        assert kept.issuperset(found.tokens[1:])
        n_from_the_end += sum(token >= n for token in found.tokens[1:25])
        assert len(set(found.tokens[9:17])) > 1
    assert n_from_the_end > 0
    assert d.set_vocab(0) == n_vocab
    assert d.api.mtp_set_embd(d.mtp, 1) == native.UNSUPPORTED, "all of them are not copied"
    assert draft(0).code == 0


def test_types_that_a_head_cannot_be_copied_to(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("qwen35")
    for head_type in (-2, 10**6):
        assert d.api.mtp_set_head_type(d.mtp, head_type) == native.INVALID
    assert d.api.mtp_set_head_type(d.mtp, F16) == native.UNSUPPORTED, "it is not quantized"
    assert d.api.mtp_set_head_type(drafter("glm4moe").mtp, Q8_0) == native.UNSUPPORTED, "it drafts with a pass per level"


def test_vocabularies_that_cannot_be(drafter: Callable[..., DraftBench]) -> None:
    d = drafter("qwen35")
    assert d.set_vocab(-64) == native.INVALID
    assert d.set_vocab(100) == native.INVALID
    assert d.set_vocab(64 * 10**6) == d.b.n_vocab
    assert drafter("glm4moe").set_vocab(64) == native.UNSUPPORTED


# -- statistics of the target's rows


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe", "gemma4"])
def test_statistics_of_the_rows_of_a_tree(bench: Open, kind: str) -> None:
    b = bench(kind)
    assert b.api.set_top(b.ctx, 8) == 0
    b.feed(PROMPT)
    assert b.decode([70, 61, 62, 63], [-1, 0, 0, 1], outputs=[1, 0, 1, 1]) == 0
    ids, logp, entropy = np.zeros(8, np.int32), np.zeros(8, np.float32), np.zeros(1, np.float32)
    rows = {row: b.logits(row) for row in (0, 2, 3)}
    for row, logits in rows.items():
        assert b.api.row(b.ctx, row, 8, ids.ctypes.data, logp.ctypes.data, entropy.ctypes.data) == 8
        expected = log_softmax(logits)
        order = np.argsort(-logits, kind="stable")[:8]
        assert ids.tolist() == order.tolist()
        np.testing.assert_allclose(logp, expected[order], atol=1e-5)
        assert entropy[0] == pytest.approx(float(-(np.exp(expected) * expected).sum()), abs=1e-4)
        assert b.api.top_k(b.ctx, row, 3, ids.ctypes.data, logp.ctypes.data) == 3
        np.testing.assert_array_equal(logp[:3], logits[order[:3]])
    for row in (1, 4, -1):
        assert b.api.row(b.ctx, row, 8, ids.ctypes.data, logp.ctypes.data, None) == native.INVALID
    assert b.api.row(b.ctx, 0, 9, ids.ctypes.data, logp.ctypes.data, None) == native.INVALID
    assert b.commit(3) == 0
    np.testing.assert_array_equal(b.logits(3), rows[3], "the rows outlive the commit")
    b.feed([9])
    assert b.api.row(b.ctx, 0, 1, ids.ctypes.data, logp.ctypes.data, None) == native.INVALID, "a row of the pass before"


def test_statistics_that_cannot_be_had(bench: Open) -> None:
    b = bench("glm4moe")
    for k in (-1, native.MAX_TOP + 1):
        assert b.api.set_top(b.ctx, k) == native.INVALID
    with other_back_end():
        b = bench("glm4moe")
    assert b.api.set_top(b.ctx, 1) == native.UNSUPPORTED
    b.feed(PROMPT)
    assert b.decode([70, 61], [-1, 0]) == 0
    ids, logits = np.zeros(3, np.int32), np.zeros(3, np.float32)
    assert b.api.row(b.ctx, 1, 1, ids.ctypes.data, logits.ctypes.data, None) == native.INVALID
    assert b.api.top_k(b.ctx, 1, 3, ids.ctypes.data, logits.ctypes.data) == 3
    assert ids.tolist() == np.argsort(-b.logits(1), kind="stable")[:3].tolist()


def test_all_logits_at_once(bench: Open) -> None:
    """llama_get_logits gives rows that stayed on the device, too."""
    b = bench("qwen35")
    b.feed(PROMPT)
    assert b.decode([70, 61], [-1, 0]) == 0
    rows = [b.logits(0), b.logits(1)]
    pointer = b.llama.llama_get_logits(b.ctx)
    np.testing.assert_array_equal(np.ctypeslib.as_array(pointer, shape=(2, b.n_vocab)), rows)
    np.testing.assert_array_equal(b.logits(1), rows[1])
