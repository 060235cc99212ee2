"""Which layer, head or row of the small model goes where in a big shape. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import UsageError
from scripts.reference.widen_vocabulary import I64

NONE = -1  # in a source array: nothing of the small model goes here


def place_layers(small: Sequence[bool], big: Sequence[bool]) -> list[int]:
    """The small layer at each big layer, or NONE: in order, each at the first free layer of its kind.

    Args:
        small, big: whether each layer is recurrent.
    Raises: UsageError when they do not fit.
    """
    source = [NONE] * len(big)
    at = 0
    for layer, kind in enumerate(small):
        while at < len(big) and big[at] != kind:
            at += 1
        if at == len(big):
            raise UsageError(f"the shape has too few layers: the small model's layer {layer} of {len(small)} finds no place.")
        source[at] = layer
        at += 1
    return source


def place_attention(n_head: int, n_head_kv: int, big_head: int, big_head_kv: int) -> tuple[I64, I64]:
    """The small query head and key-value head at each big one, or NONE.

    Raises: UsageError when they do not fit.
    """
    group, big_group = n_head // n_head_kv, big_head // big_head_kv
    copies = -(-group // big_group)
    if n_head_kv * copies > big_head_kv:
        raise UsageError(f"{n_head} query heads on {n_head_kv} key-value heads do not fit into {big_head} on {big_head_kv}.")
    query, key_value = np.full(big_head, NONE), np.full(big_head_kv, NONE)
    for head in range(n_head):
        kv, rank = divmod(head, group)
        slot = kv * copies + rank // big_group
        key_value[slot] = kv
        query[slot * big_group + rank % big_group] = head
    return query, key_value


def place_delta_net(n_key: int, n_value: int, big_key: int, big_value: int) -> tuple[I64, I64]:
    """The small delta-net key head and value head at each big one, or NONE.

    Raises: UsageError when they do not fit.
    """
    group, big_group = n_value // n_key, big_value // big_key
    copies = -(-group // big_group)
    if n_key * copies > big_key:
        raise UsageError(f"{n_value} value heads on {n_key} key heads do not fit into {big_value} on {big_key}.")
    key, value = np.full(big_key, NONE), np.full(big_value, NONE)
    for head in range(n_value):
        rank, small_key = divmod(head, n_key)
        slot = small_key * copies + rank // big_group
        key[slot] = small_key
        value[slot + rank % big_group * big_key] = head
    return key, value


def head_rows(heads: npt.NDArray[np.integer], width: int, offset: int = 0) -> I64:
    """The small row at each big row, for heads of `width` rows each that start at small row `offset`."""
    rows = heads[:, None] * width + np.arange(width) + offset
    return np.asarray(np.where(heads[:, None] >= 0, rows, NONE).reshape(-1), dtype=np.int64)


def first(n: int, big: int) -> I64:
    """The first n of `big` places, in order."""
    return np.asarray(np.where(np.arange(big) < n, np.arange(big), NONE), dtype=np.int64)
