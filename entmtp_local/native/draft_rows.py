"""The rows of the output matrix that the MTP context drafts from: how many, and whether of a copy in a smaller type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGMLQuantizationType

from entmtp_local.native import api as native
from entmtp_local.native.draft_head import COPIED_AHEAD, copy_type, row_bytes
from entmtp_local.speculative.draft_vocab import DraftVocab, PassBytes


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

    def __init__(self, api: native.Api, ctx: Any, n_vocab: int, n_embd: int, cost: PassBytes, wanted: str | None) -> None:
        self._api, self._ctx, self._n_vocab, self._cost = api, ctx, n_vocab, cost
        self._type: GGMLQuantizationType | None = None  # of the copy
        self._chooser: DraftVocab | None = None
        self.following: DraftVocab | None = None  # the chooser while it is asked
        self.n = 0  # tokens that drafts choose from at present
        self.refused: str | None = None  # the type that was wanted and cannot be had
        kind = copy_type(wanted, cost.row, n_embd, n_vocab)
        if kind is None:
            return
        if api.mtp_set_vocab(ctx, COPIED_AHEAD) > 0 and api.mtp_set_head_type(ctx, kind) == native.OK:
            self._type, self._cost = kind, replace(cost, row=row_bytes(kind, n_embd))
        else:
            self.refused = wanted

    @property
    def type_name(self) -> str | None:
        """Of the copy; None where drafts read the matrix itself."""
        return self._type.name if self._type is not None else None

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
                self._chooser = DraftVocab(self._n_vocab, n - rounded, self._cost)
            self.following = self._chooser
            size = self._chooser.size
        return self.cut(-(-size // step) * step)

    def cut(self, size: int) -> int:
        """Draft from so many tokens, a multiple of the engine's step, and the control tokens at the end; how many they are."""
        # the whole vocabulary is not copied on the way to a part of it
        kind = -1 if self._type is None or (size == 0 and self.following is not None) else self._type
        if kind < 0:
            self._api.mtp_set_head_type(self._ctx, kind)
        n = int(self._api.mtp_set_vocab(self._ctx, size))
        if kind >= 0 and self._api.mtp_set_head_type(self._ctx, kind) != native.OK:
            self._type = None
        self.n = n if n > 0 else self._n_vocab
        return self.n
