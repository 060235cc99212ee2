"""Function-preserving widening: a small model written into the tensor shapes of a bigger one.

The big file computes the small model's function at the big model's cost. With d and D the small and the big width and
s = sqrt(D / d):

- The residual stream is (s x, 0). Its mean square is that of x, so an RMS norm with the same epsilon gives s times the small
  model's normalised row, and zeros. Everything that writes into the stream has rows scaled by s: embedding, attention and
  delta-net outputs, ffn down, eh_proj. Every norm that reads it has weights divided by s, so that the matrices behind it are
  the small model's own; enorm and hnorm read an embedding and a hidden row in the same way.
- The final norm and the MTP head's norm give a h, and the output matrix has rows divided by a. With an output matrix of its
  own a = s, and hnorm sees the mean square of h. Where the embedding (rows times s) is the output too, a = 1 / s; hnorm then
  sees its mean square divided by s^4, which makes its epsilon count s^4 times as much: 1e-6 becomes 1.6e-5 for s = 2,
  against a mean square of the hidden row in the order of 1.
- Norms over a head (q, k, delta-net output, l2 norms of keys and queries) see the same 256 or 128 numbers in both files.
- Extra heads have zero output columns, extra feed-forward units zero ffn-down columns, extra layers zero output projections:
  they are computed and add nothing. Their other weights are small random numbers, and so is what multiplies the zero part of
  the stream, in whole blocks of 256: kernels get real work, and no block mixes it with the small model's numbers.
- Query head i uses key-value head i // (n_head / n_head_kv); delta-net value head h uses key head h mod n_key_heads
  (ggml_gated_delta_net, ops.cpp: iq1 = iv1 % neq1). Where the big groups are smaller than the small ones, key heads are
  repeated.
- Layers go, in order, to the first free layer of their kind.
- Padding ids get scaled copies of reserved tokens' rows. A small model without such tokens gets a constant instead: 16
  features of the stream that it does not use hold a small number (the embedding and eh_proj write it, nothing changes it), and
  the padding rows read it with a large negative weight. Its energy is a millionth of the embedding's, and so little more where
  a quantised type could not hold it.

This module plans what every tensor holds. It does not know the vocabulary's layout (widen_vocabulary.py), types
(widen_types.py) or how the file is written (widen_file.py), and checks nothing through an engine (widen_check.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import ModelFileError, UsageError
from scripts.reference.widen_places import NONE, first, head_rows, place_attention, place_delta_net, place_layers
from scripts.reference.widen_shapes import Shape
from scripts.reference.widen_small import SmallModel
from scripts.reference.widen_vocabulary import F32, I64

BLOCK = 256  # the longest block of a quantised type

# The constant for padding: so many features; their share of the stream's energy at its start; the least value that the
# F16 scales of 256-blocks can hold (6e-8 times 32 quants times 128 scales, with three bits to spare); the padding rows'
# weight, near the largest of F16; and how much more the final norm lets through of them than of the rest. With these,
# padding has logits below -60 while the stream grows less than a few hundred times from embedding to final norm.
N_CONSTANT = 16
_CONSTANT_ENERGY = 1e-6
_LEAST_IN_BLOCKS = 2e-3
_PADDING_WEIGHT = 30_000.0
_CONSTANT_GAIN = 10.0


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of the wide file: some entries are the small model's, times `scale`.

    Where there are none, rows repeat `rest`: "zero", "random", or rows of their own in the big width. With "random", the
    columns without a source are random too, outside the blocks of 256 that hold the small model's and of the last 256, which
    read the constant. `constant` fills the last columns of the small model's rows; `entries` are single ones elsewhere.
    """

    name: str
    small: str | None
    rows: I64  # (n_rows,) small row or NONE
    columns: I64  # (n_columns,) small column or NONE
    scale: float = 1.0
    rest: Literal["zero", "random"] | F32 = "random"
    constant: float = 0.0
    entries: tuple[tuple[int, int, float], ...] = ()  # row, column, value

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), len(self.columns)


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector of the wide file, as it is."""

    name: str
    values: F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """ids[i] is the wide id of small token i.

    padding: rows in the small model's width, repeated over the other ids; None = those read the constant.
    """

    ids: I64
    n_vocab: int
    padding: F32 | None = None

    @property
    def needs_constant(self) -> bool:
        return self.padding is None and self.n_vocab > len(self.ids)


class Plan:
    """All tensors of a wide file, in the order they are written."""

    def __init__(self, small: SmallModel, shape: Shape, vocabulary: Vocabulary, *, quantised: bool) -> None:
        self._small, self._shape, self._vocabulary, self._quantised = small, shape, vocabulary, quantised
        self._check()
        d, big = small.shape.n_embd, shape.n_embd
        self.scale = math.sqrt(big / d)
        self.tied = shape.tied and small.shape.tied
        self._head_scale = 1 / self.scale if self.tied else self.scale  # a, see above
        self._stream = first(d, big)
        self.layers = place_layers(small.recurrent, [shape.is_recurrent(i) for i in range(shape.n_layer)])
        self._query, self._key_value = place_attention(small.shape.n_head, small.shape.n_head_kv, shape.n_head, shape.n_head_kv)
        self._key, self._value = place_delta_net(
            small.shape.n_key_heads, small.shape.n_value_heads, shape.n_key_heads, shape.n_value_heads
        )
        self._used: set[str] = set()
        self._random = np.random.default_rng(0)
        self.tensors = list(self._tensors())
        left = small.names - self._used
        if left:
            raise ModelFileError(f"{small.path} has the tensor {min(left)}, which widening does not know.")

    def _check(self) -> None:
        small, big = self._small.shape, self._shape
        for field in ("head_dim", "state_dim", "conv_kernel"):
            if getattr(small, field) != getattr(big, field):
                raise UsageError(f"{field} is {getattr(small, field)} in {small.name} and {getattr(big, field)} in {big.name}.")
        for field in ("n_embd", "n_ff", "n_vocab"):
            if getattr(small, field) > getattr(big, field):
                raise UsageError(f"{big.name} has {field} = {getattr(big, field)}, wanted {getattr(small, field)} or more.")
        if self._vocabulary.needs_constant and (big.n_embd - N_CONSTANT) // BLOCK * BLOCK < small.n_embd:
            raise UsageError(
                f"{small.name} has no reserved tokens, and {big.name} has no free {BLOCK} features for padding; "
                f"keep the small vocabulary (--vocab small)."
            )

    def _tensors(self) -> Iterator[Matrix | Vector]:
        yield self._embedding("token_embd.weight")
        if not self.tied:
            yield self._output("output.weight", "token_embd.weight" if self._small.shape.tied else "output.weight")
        yield self._final_norm("output_norm.weight", "output_norm.weight")
        for layer, source in enumerate(self.layers):
            mixer = self._delta_net if self._shape.is_recurrent(layer) else self._attention
            yield from mixer(layer, source)
            yield from self._ffn(layer, source)
        yield from self._head()

    def _head(self) -> Iterator[Matrix | Vector]:
        layer, source = self._shape.n_layer, self._small.shape.n_layer
        yield from self._attention(layer, source)
        yield from self._ffn(layer, source)
        new, old = f"blk.{layer}.nextn.", f"blk.{source}.nextn."
        d = self._small.shape.n_embd
        both = np.concatenate([self._stream, np.where(self._stream >= 0, self._stream + d, NONE)])
        yield self._matrix(
            new + "eh_proj.weight", old + "eh_proj.weight", self._stream, both, self.scale, "zero", 0.0, self._head_constant(old)
        )
        for name in ("enorm.weight", "hnorm.weight"):
            yield self._norm(new + name, old + name, 1 / self.scale)
        if old + "shared_head_norm.weight" in self._small:
            yield self._final_norm(new + "shared_head_norm.weight", old + "shared_head_norm.weight")
        if old + "embed_tokens.weight" in self._small:
            yield self._embedding(new + "embed_tokens.weight", old + "embed_tokens.weight")
        if old + "shared_head_head.weight" in self._small:
            yield self._output(new + "shared_head_head.weight", old + "shared_head_head.weight")

    def _attention(self, layer: int, source: int) -> Iterator[Matrix | Vector]:
        head_dim = self._shape.head_dim
        query = head_rows(self._query, 2 * head_dim)  # query and gate of a head lie together
        key_value = head_rows(self._key_value, head_dim)
        yield self._layer_norm(layer, source, "attn_norm.weight")
        yield self._reading(layer, source, "attn_q.weight", query)
        yield self._reading(layer, source, "attn_k.weight", key_value)
        yield self._reading(layer, source, "attn_v.weight", key_value)
        for name in ("attn_q_norm.weight", "attn_k_norm.weight"):
            yield self._vector(layer, source, name, np.ones(head_dim), np.arange(head_dim))
        yield self._writing(layer, source, "attn_output.weight", head_rows(self._query, head_dim))

    def _delta_net(self, layer: int, source: int) -> Iterator[Matrix | Vector]:
        small, state = self._small.shape, self._shape.state_dim
        channels = np.concatenate(
            [
                head_rows(self._key, state),
                head_rows(self._key, state, small.key_dim),
                head_rows(self._value, state, 2 * small.key_dim),
            ]
        )
        values = head_rows(self._value, state)
        n = self._shape.n_value_heads
        yield self._layer_norm(layer, source, "attn_norm.weight")
        yield self._reading(layer, source, "attn_qkv.weight", channels)
        yield self._reading(layer, source, "attn_gate.weight", values)
        yield self._layer_matrix(layer, source, "ssm_conv1d.weight", channels, np.arange(self._shape.conv_kernel))
        yield self._vector(layer, source, "ssm_dt.bias", self._random.uniform(-1, 1, n), self._value)
        yield self._vector(layer, source, "ssm_a", -np.exp(self._random.uniform(-1, 1, n)), self._value)
        yield self._reading(layer, source, "ssm_beta.weight", self._value)
        yield self._reading(layer, source, "ssm_alpha.weight", self._value)
        yield self._vector(layer, source, "ssm_norm.weight", np.ones(state), np.arange(state))
        yield self._writing(layer, source, "ssm_out.weight", values)

    def _ffn(self, layer: int, source: int) -> Iterator[Matrix | Vector]:
        units = first(self._small.shape.n_ff, self._shape.n_ff)
        yield self._layer_norm(layer, source, "post_attention_norm.weight")
        yield self._reading(layer, source, "ffn_gate.weight", units)
        yield self._reading(layer, source, "ffn_up.weight", units)
        yield self._writing(layer, source, "ffn_down.weight", units)

    # -- single tensors

    def _reading(self, layer: int, source: int, name: str, rows: I64) -> Matrix:
        return self._layer_matrix(layer, source, name, rows, self._stream)

    def _writing(self, layer: int, source: int, name: str, columns: I64) -> Matrix:
        return self._layer_matrix(layer, source, name, self._stream, columns, self.scale, "zero")

    def _layer_matrix(self, layer: int, source: int, name: str, rows: I64, columns: I64, *how: Any) -> Matrix:
        if source == NONE:
            rows = np.full(len(rows), NONE, dtype=np.int64)
        return self._matrix(f"blk.{layer}.{name}", None if source == NONE else f"blk.{source}.{name}", rows, columns, *how)

    def _matrix(self, name: str, small: str | None, rows: I64, columns: I64, *how: Any) -> Matrix:
        if small is not None:
            self._used.add(small)
        return Matrix(name, small, rows, columns, *how)

    def _layer_norm(self, layer: int, source: int, name: str) -> Vector:
        if source == NONE:
            return Vector(f"blk.{layer}.{name}", np.full(self._shape.n_embd, 1 / self.scale, dtype=np.float32))
        return self._norm(f"blk.{layer}.{name}", f"blk.{source}.{name}", 1 / self.scale)

    def _final_norm(self, name: str, small: str) -> Vector:
        norm = self._norm(name, small, self._head_scale / self.scale)
        if self._vocabulary.needs_constant:
            norm.values[-N_CONSTANT:] = _CONSTANT_GAIN * _rms(norm.values[: self._small.shape.n_embd])
        return norm

    def _norm(self, name: str, small: str, factor: float) -> Vector:
        self._used.add(small)
        values = np.full(self._shape.n_embd, factor, dtype=np.float32)
        values[: self._small.shape.n_embd] = self._small.tensor(small) * factor
        return Vector(name, values)

    def _vector(
        self, layer: int, source: int, name: str, rest: npt.NDArray[np.floating], places: npt.NDArray[np.integer]
    ) -> Vector:
        values = rest.astype(np.float32)
        if source != NONE:
            self._used.add(f"blk.{source}.{name}")
            old = self._small.tensor(f"blk.{source}.{name}")
            values = np.where(places >= 0, old[np.maximum(places, 0)], values)
        return Vector(f"blk.{layer}.{name}", np.asarray(values, dtype=np.float32))

    def _token_rows(self) -> I64:
        rows = np.full(self._vocabulary.n_vocab, NONE, dtype=np.int64)
        rows[self._vocabulary.ids] = np.arange(len(self._vocabulary.ids))
        return rows

    def _embedding(self, name: str, small: str = "token_embd.weight") -> Matrix:
        # Padding is never read where it is not the output too, but it should not be odd either.
        rest = self._padding(self.scale) if self.tied else self._wide_rows(self._small.tensor(small)[:1], self.scale)
        constant = self._constant(_rms(self._small.tensor(small)))
        return self._matrix(name, small, self._token_rows(), self._stream, self.scale, rest, constant)

    def _output(self, name: str, small: str) -> Matrix:
        scale = 1 / self._head_scale
        return self._matrix(name, small, self._token_rows(), self._stream, scale, self._padding(scale))

    def _padding(self, scale: float) -> Literal["zero"] | F32:
        if self._vocabulary.padding is not None:
            return self._wide_rows(self._vocabulary.padding, scale)
        if not self._vocabulary.needs_constant:
            return "zero"
        rows = np.zeros((1, self._shape.n_embd), dtype=np.float32)
        rows[:, -N_CONSTANT:] = -_PADDING_WEIGHT
        return rows

    def _wide_rows(self, rows: F32, scale: float) -> F32:
        wide = np.zeros((len(rows), self._shape.n_embd), dtype=np.float32)
        wide[:, : rows.shape[1]] = rows * np.float32(scale)
        return wide

    def _constant(self, rms: float) -> float:
        """The constant in a stream that starts with that root mean square."""
        if not self._vocabulary.needs_constant:
            return 0.0
        value = rms * math.sqrt(_CONSTANT_ENERGY * self._shape.n_embd / N_CONSTANT)
        return max(value, _LEAST_IN_BLOCKS) if self._quantised else value

    def _head_constant(self, old: str) -> tuple[tuple[int, int, float], ...]:
        """Entries of eh_proj that pass the embedding's constant on to the head's stream."""
        if not self._vocabulary.needs_constant:
            return ()
        norms = np.concatenate([self._small.tensor(f"{old}{name}norm.weight") for name in "eh"])
        start = _rms(self._small.tensor(old + "eh_proj.weight") * norms) * math.sqrt(len(norms))
        embedding = _rms(self._small.tensor("token_embd.weight"))
        read = self._constant(embedding) / embedding / self.scale  # what enorm gives for it
        weight = self._constant(start) / read
        d = self._shape.n_embd
        return tuple((i, i, weight) for i in range(d - N_CONSTANT, d))


def _rms(values: F32) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
