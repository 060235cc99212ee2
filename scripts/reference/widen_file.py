"""Writing a wide file: tensor by tensor, in row blocks.

Only the small model's rows are packed one by one; the rest repeats a few packed rows, so a 27B file is written about as fast
as the disk takes it, with little memory. What the tensors hold is decided in widen.py.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from entmtp_local.errors import UsageError
from scripts.reference.widen import BLOCK, N_CONSTANT, Matrix, Plan, Vector, Vocabulary
from scripts.reference.widen_shapes import Shape
from scripts.reference.widen_small import ARCH, SmallModel
from scripts.reference.widen_types import U8, Mixture, pack, row_bytes
from scripts.reference.widen_vocabulary import F32, token_arrays

# Metadata of ours in a wide file: the shape's name, the small file's name, and the big id of every small one (as text, because
# arrays of this length are what readers of headers leave out).
SHAPE_KEY, SOURCE_KEY, IDS_KEY = "entmtp.widened.shape", "entmtp.widened.source", "entmtp.widened.ids"

_TILE_ROWS = 64
_CHUNK_BYTES = 16 << 20


@lru_cache(maxsize=8)
def _random_rows(n_columns: int) -> F32:
    # Outputs of about the size of what goes in.
    rows = np.random.default_rng(n_columns).standard_normal((_TILE_ROWS, n_columns), dtype=np.float32)
    return np.asarray(rows * np.float32(n_columns**-0.5))


@lru_cache(maxsize=32)
def _packed_rest(rest: Literal["zero", "random"], n_columns: int, type: gguf.GGMLQuantizationType) -> U8:
    return pack(np.zeros((1, n_columns), dtype=np.float32) if rest == "zero" else _random_rows(n_columns), type)


def _chunks(matrix: Matrix, small: SmallModel, type: gguf.GGMLQuantizationType) -> Iterator[U8]:
    """The packed rows of a matrix, some megabytes at a time."""
    n_rows, n_columns = matrix.shape
    source = None if matrix.small is None else small.tensor(matrix.small)
    rest = _packed_rest(matrix.rest, n_columns, type) if isinstance(matrix.rest, str) else pack(matrix.rest, type)
    live_columns = matrix.columns >= 0
    random_columns = np.zeros(n_columns, dtype=bool)
    if isinstance(matrix.rest, str) and matrix.rest == "random":
        blocks = np.arange(n_columns) // BLOCK
        random_columns = ~np.isin(blocks, blocks[live_columns]) & (blocks < blocks[-1])
    per_chunk = max(1, _CHUNK_BYTES // (4 * n_columns))
    for start in range(0, n_rows, per_chunk):
        rows = matrix.rows[start : start + per_chunk]
        at = np.arange(start, start + len(rows))
        packed = rest[at % len(rest)]
        live = np.flatnonzero(rows >= 0)
        if len(live) and source is not None:
            numbers = np.zeros((len(live), n_columns), dtype=np.float32)
            if random_columns.any():
                numbers[:, random_columns] = _random_rows(n_columns)[at[live] % _TILE_ROWS][:, random_columns]
            numbers[:, live_columns] = source[rows[live]][:, matrix.columns[live_columns]] * np.float32(matrix.scale)
            numbers[:, -N_CONSTANT:] += np.float32(matrix.constant)
            packed[live] = pack(numbers, type)
        for row, column, value in matrix.entries:
            if start <= row < start + len(rows):
                entry = np.zeros((1, n_columns), dtype=np.float32)
                entry[0, column] = value
                packed[row - start] = pack(entry, type)[0]
        yield packed


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    path: Path
    n_parameters: int
    size_bytes: int
    seconds: float


def widen(
    small: SmallModel,
    shape: Shape,
    vocabulary: Vocabulary,
    out: Path,
    type: str,
    *,
    pure: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Written:
    """Write the wide file; it appears under its name when it is complete.

    Args:
        type: one of widen_types.TYPES.
        pure: every matrix in that type, the output too.
        progress: is given a line now and then.
    Raises: UsageError when the small model does not fit the shape or the disk is too small.
    """
    started = time.monotonic()
    plan = Plan(small, shape, vocabulary, quantised=type not in ("F32", "F16", "BF16", "Q8_0"))
    typed = list(_typed(plan, shape, type, pure))
    sizes = [_size(tensor.shape, kind) for tensor, kind in typed]
    total = sum(sizes)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if total + (64 << 20) > free:
        raise UsageError(f"{out} needs {total / 1e9:.1f} GB and {out.parent} has {free / 1e9:.1f} GB free.")
    partial = out.with_name(out.name + ".part")
    try:
        _write_header(plan, small, shape, vocabulary, typed, sizes, partial, type)
        _write_tensors(typed, sizes, small, partial, progress)
        os.replace(partial, out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    n_parameters = sum(math.prod(tensor.shape) for tensor, _ in typed)
    return Written(out, n_parameters, out.stat().st_size, time.monotonic() - started)


def _typed(plan: Plan, shape: Shape, type: str, pure: bool) -> Iterator[tuple[Matrix | Vector, gguf.GGMLQuantizationType]]:
    def is_value(name: str) -> bool:
        return name.endswith(("attn_v.weight", "attn_qkv.weight"))

    n_values = sum(is_value(tensor.name) for tensor in plan.tensors)
    mixture = Mixture(type, n_values, shape.n_layer + 1, plan.tied, pure)
    i_value = 0
    for tensor in plan.tensors:
        block = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else 0
        yield tensor, mixture.of(tensor.name, tensor.shape, i_value, block)
        i_value += is_value(tensor.name)


def _size(shape: tuple[int, ...], type: gguf.GGMLQuantizationType) -> int:
    return math.prod(shape[:-1]) * row_bytes(type, shape[-1])


def _write_header(
    plan: Plan,
    small: SmallModel,
    shape: Shape,
    vocabulary: Vocabulary,
    typed: Sequence[tuple[Matrix | Vector, gguf.GGMLQuantizationType]],
    sizes: Sequence[int],
    path: Path,
    type: str,
) -> None:
    writer = gguf.GGUFWriter(path, ARCH)
    texts, kinds = token_arrays(small.tokens, small.types, vocabulary.ids, vocabulary.n_vocab)
    mixture = Mixture(type, 0, 0, plan.tied)
    changes: dict[str, Any] = {
        "general.name": f"{small.field('general.name') or small.path.stem}, widened to {shape.name}",
        "general.file_type": int(mixture.file_type),
        f"{ARCH}.context_length": shape.n_ctx_train,
        f"{ARCH}.embedding_length": shape.n_embd,
        f"{ARCH}.block_count": shape.n_layer + 1,
        f"{ARCH}.feed_forward_length": shape.n_ff,
        f"{ARCH}.attention.head_count": shape.n_head,
        f"{ARCH}.attention.head_count_kv": shape.n_head_kv,
        f"{ARCH}.ssm.group_count": shape.n_key_heads,
        f"{ARCH}.ssm.time_step_rank": shape.n_value_heads,
        f"{ARCH}.ssm.inner_size": shape.value_dim,
        f"{ARCH}.full_attention_interval": shape.attention_interval,
        f"{ARCH}.vocab_size": vocabulary.n_vocab,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
    }
    seen = set()
    for key, value, kind, item in small.fields():
        seen.add(key)
        if key == "general.architecture":
            continue
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            value = int(vocabulary.ids[value])
        writer.add_key_value(key, changes.get(key, value), kind, item)
    for key in (f"{ARCH}.full_attention_interval", "general.file_type"):
        if key not in seen:
            writer.add_uint32(key, changes[key])
    if "general.name" not in seen:
        writer.add_string("general.name", changes["general.name"])
    writer.add_string(SHAPE_KEY, shape.name)
    writer.add_string(SOURCE_KEY, small.path.name)
    writer.add_string(IDS_KEY, ",".join(map(str, vocabulary.ids.tolist())))
    for (tensor, kind), size in zip(typed, sizes, strict=True):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _write_tensors(
    typed: Sequence[tuple[Matrix | Vector, gguf.GGMLQuantizationType]],
    sizes: Sequence[int],
    small: SmallModel,
    path: Path,
    progress: Callable[[str], None] | None,
) -> None:
    total, done, told = sum(sizes), 0, time.monotonic()
    with path.open("ab") as file:
        _pad(file)
        for (tensor, kind), size in zip(typed, sizes, strict=True):
            start = file.tell()
            chunks = [pack(tensor.values[None, :], kind)] if isinstance(tensor, Vector) else _chunks(tensor, small, kind)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
                done += chunk.nbytes
                if progress is not None and time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    progress(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB ({tensor.name})")
            assert file.tell() - start == size, tensor.name
            _pad(file)


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


def show_progress(line: str) -> None:
    """A line on stderr that the next one replaces."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
