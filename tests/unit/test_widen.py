"""Where a small model goes in a big shape: layers, heads, ids, padding, types; without files and without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from entmtp_local.errors import UsageError
from scripts.reference.widen_places import NONE, first, head_rows, place_attention, place_delta_net, place_layers
from scripts.reference.widen_shapes import SHAPES, get_shape
from scripts.reference.widen_types import Mixture, pack, row_bytes
from scripts.reference.widen_vocabulary import (
    N_REAL_TEXT,
    N_REAL_VOCAB,
    NORMAL,
    REAL_CURVE,
    UNUSED,
    Curve,
    logsumexp,
    reserved_ids,
    reserved_rows,
    spread,
    token_arrays,
)

RECURRENT_3_IN_4 = [True, True, True, False]


def test_layers_go_in_order_to_layers_of_their_kind() -> None:
    assert place_layers(RECURRENT_3_IN_4, RECURRENT_3_IN_4 * 2) == [0, 1, 2, 3, NONE, NONE, NONE, NONE]
    # a small model with full attention in every second layer
    placed = place_layers([True, False, True, False], RECURRENT_3_IN_4 * 2)
    assert placed == [0, NONE, NONE, 1, 2, NONE, NONE, 3]


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="layer 4 of 8 finds no place"):
        place_layers(RECURRENT_3_IN_4 * 2, RECURRENT_3_IN_4)


@pytest.mark.parametrize(
    ("small", "big"),
    [((2, 1), (8, 2)), ((4, 2), (24, 4)), ((4, 1), (4, 4)), ((6, 2), (8, 4)), ((3, 1), (4, 2)), ((2, 1), (2, 1))],
)
def test_every_query_head_keeps_its_key_value_head(small: tuple[int, int], big: tuple[int, int]) -> None:
    query, key_value = place_attention(*small, *big)
    group, big_group = small[0] // small[1], big[0] // big[1]
    assert sorted(query[query >= 0].tolist()) == list(range(small[0]))
    for slot, head in enumerate(query):
        if head >= 0:
            assert key_value[slot // big_group] == head // group


@pytest.mark.parametrize(
    ("small", "big"), [((2, 2), (16, 16)), ((1, 2), (16, 16)), ((2, 4), (16, 48)), ((2, 2), (16, 32)), ((1, 3), (2, 4))]
)
def test_every_value_head_keeps_its_key_head(small: tuple[int, int], big: tuple[int, int]) -> None:
    key, value = place_delta_net(*small, *big)
    assert sorted(value[value >= 0].tolist()) == list(range(small[1]))
    for slot, head in enumerate(value):
        if head >= 0:  # llama.cpp: value head h reads key head h mod n_key
            assert key[slot % big[0]] == head % small[0]


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        place_attention(8, 4, 8, 2)
    with pytest.raises(UsageError, match="do not fit"):
        place_delta_net(1, 8, 2, 2)


def test_rows_of_heads() -> None:
    assert head_rows(np.array([1, NONE]), 3, offset=10).tolist() == [13, 14, 15, NONE, NONE, NONE]
    assert first(2, 4).tolist() == [0, 1, NONE, NONE]


# -- shapes and types


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3.5-0.8b", 0.8), ("qwen3.5-4b", 4.3), ("qwen3.5-9b", 9.2), ("qwen3.5-27b", 27.3)]
)
def test_named_shapes_have_the_parameters_of_their_name(name: str, billions: float) -> None:
    # text model with its MTP block; the public sizes count a vision tower and leave out the block
    assert SHAPES[name].n_parameters / 1e9 == pytest.approx(billions, rel=0.05)


def test_a_shape_can_come_from_json(tmp_path: Path) -> None:
    fields = {"n_layer": 4, "n_embd": 512, "n_ff": 512, "n_head": 2, "n_head_kv": 1, "n_key_heads": 2, "n_value_heads": 4}
    path = tmp_path / "narrow.json"
    path.write_text(json.dumps(fields | {"n_vocab": 9000, "tied": False}))
    shape = get_shape(str(path), n_layer=8, n_vocab=8192)
    assert (shape.name, shape.n_layer, shape.n_vocab) == ("narrow", 8, 8192)
    assert [shape.is_recurrent(i) for i in range(4)] == RECURRENT_3_IN_4

    path.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match="incomplete"):
        get_shape(str(path))
    path.write_text(json.dumps(fields | {"n_vocab": 9000, "tied": False, "width": 3}))
    with pytest.raises(UsageError, match="unknown field 'width'"):
        get_shape(str(path))
    path.write_text(json.dumps(fields | {"n_vocab": 9000, "tied": False, "n_head_kv": 3}))
    with pytest.raises(UsageError, match="no multiple"):
        get_shape(str(path))
    with pytest.raises(UsageError, match="there is no shape 'qwen9'"):
        get_shape("qwen9")


def test_types_follow_llama_quantize() -> None:
    q4 = Mixture("Q4_0", n_values=24, n_blocks=25, tied=True)
    assert q4.of("blk.0.ffn_up.weight", (3584, 1024)) == Type.Q4_0
    assert q4.of("token_embd.weight", (1000, 1024)) == Type.Q6_K  # serves as output
    assert q4.of("blk.0.attn_norm.weight", (1024,)) == Type.F32
    assert q4.of("blk.0.ssm_conv1d.weight", (6144, 4)) == Type.F32
    assert Mixture("Q4_0", 24, 25, tied=False).of("token_embd.weight", (1000, 1024)) == Type.Q4_0
    assert Mixture("Q4_0", 24, 25, tied=True, pure=True).of("token_embd.weight", (1000, 1024)) == Type.Q4_0
    mixed = Mixture("Q4_K_M", n_values=24, n_blocks=24, tied=False)
    kinds = [mixed.of(f"blk.{i}.ffn_down.weight", (1024, 3584), 0, i) for i in range(24)]
    assert kinds.count(Type.Q6_K) == 12 and kinds[0] == kinds[23] == Type.Q6_K  # llama-quantize's count for 24 layers
    assert mixed.of("blk.0.ffn_down.weight", (1024, 704), 0, 12) == Type.Q5_0  # 704 is no multiple of 256
    with pytest.raises(UsageError, match="there is no type 'Q7'"):
        Mixture("Q7", 1, 1, tied=False)


def test_packed_rows_have_the_size_that_is_announced() -> None:
    rows = np.arange(128, dtype=np.float32).reshape(2, 64)
    for kind in (Type.F32, Type.F16, Type.BF16):
        packed = pack(rows, kind)
        assert packed.shape == (2, row_bytes(kind, 64))
    assert pack(rows, Type.F16).view(np.float16).tolist() == rows.tolist()


# -- vocabulary


def test_curve_and_its_inverse() -> None:
    curve = Curve.of(np.array([1, 0, 0, 3]))
    assert [curve.share_below(n) for n in (0, 1, 2, 3, 4)] == [0, 0.25, 0.25, 0.25, 1]
    assert curve.id_at(np.array([0.25, 1.0])).tolist() == [1, 4]


def test_ids_are_spread_along_the_real_curve() -> None:
    random = np.random.default_rng(0)
    n = 8192
    counts = np.sort(random.zipf(1.3, n))[::-1].clip(max=50_000)  # frequent tokens have low ids, as merges give them
    types = [NORMAL] * (n - 8) + [3] * 8
    counts[-8:] = 0
    ids = spread(counts, types, REAL_CURVE, N_REAL_VOCAB)
    assert len(set(ids.tolist())) == n
    assert (np.diff(ids[:-8]) > 0).all(), "text tokens change their order"
    assert ids[-8:].tolist() == list(range(N_REAL_TEXT, N_REAL_TEXT + 8)), "special tokens belong at the end"
    for below in (4096, 16384, 65536):
        assert counts[ids < below].sum() / counts.sum() == pytest.approx(REAL_CURVE.share_below(below), abs=0.02)


def test_a_vocabulary_of_the_same_size_stays_as_it_is() -> None:
    assert spread(np.ones(64, dtype=np.int64), [NORMAL] * 64, REAL_CURVE, 64).tolist() == list(range(64))


def test_a_full_vocabulary_still_has_room_for_everything() -> None:
    ids = spread(np.ones(100, dtype=np.int64), [3] + [NORMAL] * 99, REAL_CURVE, 99 + 64)
    assert ids.tolist() == [99, *range(99)]
    with pytest.raises(UsageError, match="cannot hold"):
        spread(np.ones(100, dtype=np.int64), [NORMAL] * 100, REAL_CURVE, 99)


def test_padding_tokens_are_unused() -> None:
    texts, kinds = token_arrays(["a", "b"], [NORMAL, 3], np.array([1, 3]), 4)
    assert texts == ["[PAD0]", "a", "[PAD2]", "b"]
    assert kinds == [UNUSED, NORMAL, UNUSED, 3]


def test_reserved_rows_are_scaled_until_padding_has_no_probability() -> None:
    random = np.random.default_rng(1)
    hidden = random.standard_normal((200, 16)).astype(np.float32)
    hidden[:, 0] = 4.0  # what a z-loss leaves for tokens that never occur: a direction that is always there
    output = random.standard_normal((64, 16)).astype(np.float32)
    output[60:] = 0.0
    output[60:63, 0] = -2.0
    output[63, 1] = 1.0  # a reserved token whose logit is positive sometimes: not to be used
    logits = hidden @ output.T
    names = [f"t{i}" for i in range(60)] + [f"<|reserved_{i}|>" for i in range(4)]
    padding = reserved_rows(logits, output, reserved_ids(names), 240_000)
    assert padding is not None
    assert len(padding.rows) == 3 and padding.scale > 1
    pad_logits = (hidden @ padding.rows.T).mean(axis=1)
    measured = np.exp(np.log(240_000) + pad_logits - logsumexp(logits))
    assert measured.mean() == pytest.approx(padding.mass, rel=0.01)
    assert padding.mass < 1e-9

    assert reserved_rows(-logits, output, [60, 61], 240_000) is None, "positive logits cannot be scaled away"


def test_zero_rows_would_not_do() -> None:
    # the reason for all of this: 240,000 zero logits outweigh a text's own
    logits = np.full((1, 8), 3.0)
    assert 240_000 / np.exp(logsumexp(logits))[0] > 1_000
