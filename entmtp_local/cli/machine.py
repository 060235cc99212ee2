"""What a model needs of this machine's memory, and how much of it there is."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from entmtp_local.native.checkpoints import most_bytes
from entmtp_local.native.draft_head import copy_bytes
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.opening import MOST_STORED
from entmtp_local.speculative.copying import MAX_COPIED
from entmtp_local.speculative.protocol import Policy

# llama.cpp allocates the context in blocks of this many tokens.
N_CELLS = 256
# Far above what any model is trained for.
_MOST_TOKENS = 2**27

#: Of the CPU, that can be asked for.
MAX_THREADS = 512
# Buffers of a pass of 512 prompt tokens: this many floats per token and embedding feature, measured generously,
# plus what the library and Python take.
_N_FLOATS_PER_FEATURE = 20
_N_PASS = 512
_FIXED_BYTES = 96 * 1024**2

# What llama.cpp notes of each cell of a cache besides keys and values (position, sequences, order), and the MTP context's.
_CELL_BYTES = 2 * 128


def memory_needed(
    info: ModelInfo,
    sidecar: ModelInfo | None,
    n_ctx: int,
    policy: Policy,
    draft_vocab: int | None = None,
    draft_head_type: str | None = None,
) -> int:
    """Estimate the bytes that running a model takes.

    Args:
        info: the model.
        sidecar: the file with its MTP head, if that is another one.
        n_ctx: tokens of context.
        policy: drafting keeps a row of logits per node, copied ones included, and a recurrent state per drafted depth, up to
            MOST_STORED of them; layers that verify trees keep one state and the inputs of the nodes of two trees.
        draft_vocab, draft_head_type: of a SessionOptions; drafts may read a copy of the output matrix.
    """
    weights = info.size_bytes + (sidecar.size_bytes if sidecar else 0)
    n_nodes = max(policy.max_nodes, MAX_COPIED) if policy.max_nodes else 0
    if info.node_bytes:
        states = info.state_bytes + (2 * info.node_bytes * (n_nodes + 1) if n_nodes else 0)
    else:
        states = info.state_bytes * (min(policy.max_depth, MOST_STORED) + 1)
    logits = 4 * info.n_vocab * (n_nodes + 2)
    buffers = 4 * _N_FLOATS_PER_FEATURE * info.n_embd * _N_PASS + _FIXED_BYTES
    copied = _head_copy_bytes(info, sidecar, draft_vocab, draft_head_type) if policy.max_nodes else 0
    return weights + cache_bytes(info, n_ctx) + states + logits + buffers + copied


def checkpoint_bytes(info: ModelInfo, n_ctx: int) -> int:
    """Bytes of a copy of what a context cannot forget token by token: recurrent states, and the window of attention."""
    return info.state_bytes + _window_bytes(info, min(n_ctx, info.n_window))


def most_checkpoint_bytes(info: ModelInfo, n_ctx: int) -> int:
    """The most that a chat keeps of such copies, in main memory."""
    return most_bytes(checkpoint_bytes(info, n_ctx), n_ctx)


def memory_on_host(info: ModelInfo, needed: int, n_gpu_layers: int | None) -> int:
    """The part of what a model needs that stays in main memory beside a GPU, roughly."""
    n_layers = info.n_layer + info.n_layer_nextn + 1
    return 0 if n_gpu_layers is None else needed * max(0, n_layers - n_gpu_layers) // n_layers


def gpu_layers_that_fit(info: ModelInfo, sidecar: ModelInfo | None, n_ctx: int, policy: Policy, available: int) -> int:
    """How many of the model's layers a GPU holds where it does not hold all: an estimate for `--gpu-layers`.

    Args:
        available: bytes of the GPU's memory.
    """
    of_layers = info.size_bytes + cache_bytes(info, n_ctx) + info.state_bytes
    rest = memory_needed(info, sidecar, n_ctx, policy) - of_layers
    # the output matrix counts as a layer
    per_layer = of_layers / (info.n_layer + info.n_layer_nextn + 1)
    return max(0, min(info.n_layer, int((available - rest) / per_layer)))


def largest_context(needed: Callable[[int], int], available: int) -> int | None:
    """The largest context that fits into the available bytes, in whole blocks of cells; None where none does.

    Args:
        needed: bytes by tokens of context, which never shrink.
    """
    blocks = range(1, _MOST_TOKENS // N_CELLS + 1)
    n = bisect_right(blocks, available, key=lambda n: needed(n * N_CELLS))
    return n * N_CELLS or None


def cache_bytes(info: ModelInfo, n_ctx: int) -> int:
    """Bytes of the key-value cache that are certain: every token's, the tokens of a window, and the cells' own records."""
    per_token = 0 if info.memory_kind == "other" else info.kv_bytes_per_token - _window_bytes(info, 1)
    return (per_token + _CELL_BYTES) * n_ctx + _window_bytes(info, min(n_ctx, info.n_window + _N_PASS))


def _window_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Of the layers with a sliding window."""
    if info.memory_kind != "iswa":
        return 0
    return info.kv_bytes_per_token * info.window_layers.count(True) // max(1, len(info.window_layers)) * n_tokens


def _head_copy_bytes(info: ModelInfo, sidecar: ModelInfo | None, draft_vocab: int | None, wanted: str | None) -> int:
    head = sidecar or info
    if head.head_kind != "single":
        return 0
    cost = replace(head.pass_bytes, row=head.pass_bytes.row or info.pass_bytes.row)
    return copy_bytes(wanted, draft_vocab, cost, head.n_embd, info.n_vocab)


def available_memory() -> int | None:
    """Bytes of main memory that a new program can use, None where the system does not tell.

    Memory that only caches files counts as available; a container's own limit counts too.
    """
    available = _meminfo_available(Path("/proc/meminfo"))
    limit = _cgroup_available(Path("/sys/fs/cgroup"))
    known = [amount for amount in (available, limit) if amount is not None]
    return min(known) if known else _physical_memory()


def readable_size(n_bytes: int) -> str:
    """A size for people, such as "3.2 GiB"."""
    return f"{n_bytes / 1024**3:.1f} GiB" if n_bytes >= 1024**3 else f"{n_bytes / 1024**2:.0f} MiB"


def _meminfo_available(path: Path) -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def _cgroup_available(directory: Path) -> int | None:
    try:
        limit = (directory / "memory.max").read_text().strip()
        used = int((directory / "memory.current").read_text())
        # Cached files are counted as used, and given back when a program needs the memory.
        cached = re.search(r"^file (\d+)$", (directory / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - used + (int(cached.group(1)) if cached else 0))


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
