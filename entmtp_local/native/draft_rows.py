"""The rows of the output matrix that the MTP context drafts from: how many, and whether of a copy in a smaller type."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

from gguf import GGMLQuantizationType

from entmtp_local.native import api as native
from entmtp_local.native.draft_head import COPIED_AHEAD, copy_type, row_bytes
from entmtp_local.speculative.draft_vocab import SAME, Beyond, DraftHead, DraftVocab, PassCost


class DraftRows:
    """Of one MTP context.

    Args:
        api: of the engine.
        ctx: the MTP context.
        n_vocab: tokens of the vocabulary.
        n_embd: features of a row.
        cost: what passes read.
        wanted: the type of the copy, as SessionOptions has it.
    """

    def __init__(self, api: native.Api, ctx: Any, n_vocab: int, n_embd: int, cost: PassCost, wanted: str | None) -> None:
        self._api, self._ctx, self._n_vocab, self._n_embd, self._own = api, ctx, n_vocab, n_embd, cost
        self._wanted = wanted
        self._type: GGMLQuantizationType | None = None  # of the copy
        self._chooser: DraftVocab | None = None
        self._size = 0  # as `cut` was last asked for
        self._n_copied = 0  # rows that there is a copy of
        self._copy_seconds: dict[GGMLQuantizationType, float] = {}  # that it took to copy a row
        self.following: DraftVocab | None = None  # the chooser while it is asked
        self.n = 0  # tokens that drafts choose from at present
        self.refused: str | None = None  # the type that was wanted and cannot be had
        kind = copy_type(wanted, cost.row, n_embd, n_vocab)
        if kind is None:
            return
        if not self.read(kind.name):
            self.refused = wanted

    @property
    def type_name(self) -> str | None:
        """Of the copy; None where drafts read the matrix itself."""
        return self._type.name if self._type is not None else None

    @property
    def cost(self) -> PassCost:
        return self._own if self._type is None else replace(self._own, row=row_bytes(self._type, self._n_embd))

    def read(self, kind: str) -> bool:
        """Draft from a copy of the rows in this type, SAME for the rows themselves; False: it cannot be had, nothing changes."""
        before, size = self._type, self._size
        self._type = wanted = None if kind == SAME else GGMLQuantizationType[kind]
        if wanted is not before:
            # else the rows that are asked for next are copied in the type of before, too
            self._drop()
        begin = perf_counter()
        if size < COPIED_AHEAD:
            self.cut(COPIED_AHEAD)
        self.cut(size)
        if self._type is not wanted:
            self._type = before
            self.cut(size)
            return False
        if wanted is not None and wanted is not before and self._n_copied:
            self._copy_seconds[wanted] = (perf_counter() - begin) / self._n_copied
        if self._chooser is not None:
            self._chooser.price(self.cost)
        return True

    def _drop(self) -> None:
        """Have no copy."""
        self._api.mtp_set_head_type(self._ctx, -1)
        self._n_copied = 0

    def adopt(self, head: DraftHead) -> None:
        """Draft from the rows that calibration chose; how many, where the text decides that."""
        chooser = self._chooser
        if chooser is not None and chooser.cost == head.cost:
            return  # it has been, and may have gone on from there
        if self._wanted is not None and head.kind != (self.type_name or SAME):
            return  # the type was given, and this is found for another
        if self.read(head.kind) and chooser is not None:
            chooser.begin(head.size, head.cost, self._beyond(head.cost))
            if self.following is not None:
                self.cut(chooser.size)

    def _beyond(self, cost: PassCost) -> Beyond:
        """Rows that calibration did not read: from memory, as fast as a step reads the target's weights.

        Args:
            cost: seconds.
        """
        own = self.cost
        copy = self._copy_seconds.get(self._type, 0.0) if self._type is not None else 0.0
        return Beyond(COPIED_AHEAD, cost.target * own.row / own.target, copy, self._n_copied)

    def choose(self, size: int | None) -> int:
        """See Session.set_draft_vocab."""
        self.following = None
        if size is not None and not 0 <= size < self._n_vocab:
            size = 0
        step = native.VOCAB_STEP
        if size is None:
            if self._chooser is None:
                self._api.mtp_set_head_type(self._ctx, -1)  # not a copy of half the vocabulary
                rounded = self._n_vocab // 2 // step * step
                n = int(self._api.mtp_set_vocab(self._ctx, rounded))
                if not 0 < n < self._n_vocab:
                    return self.cut(0)
                self._chooser = DraftVocab(self._n_vocab, n - rounded, self.cost)
            self.following = self._chooser
            size = self._chooser.size
        return self.cut(-(-size // step) * step)

    def cut(self, size: int) -> int:
        """Draft from so many tokens, a multiple of the engine's step, and the control tokens at the end; how many they are."""
        self._size = size
        # the whole vocabulary is not copied on the way to a part of it
        shrinks = self.following is not None and self.following.sizes
        kind = -1 if self._type is None or (size == 0 and shrinks) else self._type
        if kind < 0:
            self._drop()
        n = int(self._api.mtp_set_vocab(self._ctx, size))
        if kind >= 0 and self._api.mtp_set_head_type(self._ctx, kind) != native.OK:
            self._type = None
        self.n = n if n > 0 else self._n_vocab
        self._n_copied = 0 if kind < 0 or self._type is None else max(self._n_copied, size or self._n_vocab)
        if self._chooser is not None:
            self._chooser.copied(self._n_copied)
        return self.n
