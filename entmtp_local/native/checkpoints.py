"""States of a context that cannot forget single tokens, kept at places that the conversation comes back to.

Recurrent layers hold one state, a sliding window its last tokens: neither can be cut back. A checkpoint is a copy of that part,
in main memory; what the other layers hold is cut back to it. It knows tokens only by their number.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

# llama.h: LLAMA_STATE_SEQ_FLAGS_NONE, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY (what seq_rm cannot undo)
WHOLE = 0
PARTIAL = 1

# Of Qwen3.6-27B, six: a checkpoint of it has 150 MB. Of smaller models far more than anybody goes back.
MAX_BYTES = 1 << 30
# A turn has two, at the ends of question and answer, and takes more tokens than this for each.
_MIN_DISTANCE = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after n_past tokens."""

    n_past: int
    data: Any  # array of bytes: bytes or a ctypes array


def most_bytes(one: int, n_ctx: int) -> int:
    """The most memory that the checkpoints of a context can be worth: as many as it has places for, or as are kept.

    Args:
        one: bytes of a checkpoint.
        n_ctx: tokens of the context.
    """
    return min(one * max(1, n_ctx // _MIN_DISTANCE), max(one, MAX_BYTES))


class Checkpoints:
    """The checkpoints of one sequence of one context, in the order of their positions.

    Args:
        llama: the llama_cpp module.
        ctx: the context.
        max_bytes: of main memory; the earliest make room for new ones, and one that is larger is not kept.
    """

    def __init__(self, llama: Any, ctx: Any, seq: int = 0, max_bytes: int = MAX_BYTES) -> None:
        self._llama, self._ctx, self._seq, self._max_bytes = llama, ctx, seq, max_bytes
        self._all: list[Checkpoint] = []

    def __iter__(self) -> Any:
        return iter(self._all)

    @property
    def positions(self) -> list[int]:
        return [each.n_past for each in self._all]

    def clear(self) -> None:
        self._all.clear()

    def take(self, n_past: int) -> bool:
        """Keep the state, which is that after n_past tokens. False: there is none, or no memory for it."""
        if n_past in self.positions:
            return True
        # before the state is copied, or there would be one more for a moment
        if not self._make_room(int(self._llama.llama_state_seq_get_size_ext(self._ctx, self._seq, PARTIAL))):
            return False
        data = read_state(self._llama, self._ctx, self._seq, PARTIAL)
        if data is not None:
            self._all.append(Checkpoint(n_past, data))
        return data is not None

    def add(self, one: Checkpoint) -> None:
        """Add one that comes after all others, where there is room for it."""
        if self._make_room(len(one.data)):
            self._all.append(one)

    def _make_room(self, n_bytes: int) -> bool:
        if n_bytes > self._max_bytes:
            return False
        while self._all and sum(len(each.data) for each in self._all) + n_bytes > self._max_bytes:
            del self._all[0]
        return True

    def forget_after(self, n_past: int) -> None:
        """The tokens from n_past on are no longer the same."""
        self._all = [each for each in self._all if each.n_past <= n_past]

    def restore(self, n_past: int) -> int:
        """Bring the last state at or before n_past back; what is not part of it has to be cut back by the caller.

        Returns: the tokens after which it was taken; 0 where there is none.
        """
        self.forget_after(n_past)
        if not self._all:
            return 0
        last = self._all[-1]
        return last.n_past if write_state(self._llama, self._ctx, last.data, self._seq, PARTIAL) else 0


def read_state(llama: Any, ctx: Any, seq: int, flags: int) -> Any | None:
    """The bytes of a sequence's state, None where the engine gives none or memory is short."""
    size = llama.llama_state_seq_get_size_ext(ctx, seq, flags)
    if not size:
        return None
    try:
        data = (ctypes.c_uint8 * size)()
    except MemoryError:
        return None
    return data if llama.llama_state_seq_get_data_ext(ctx, data, size, seq, flags) == size else None


def write_state(llama: Any, ctx: Any, data: Any, seq: int, flags: int) -> bool:
    """Give a sequence a state. The bytes must be those of `read_state` of such a context: the engine does not check them well."""
    array = data if isinstance(data, ctypes.Array) else (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    return bool(llama.llama_state_seq_set_data_ext(ctx, array, len(array), seq, flags))
