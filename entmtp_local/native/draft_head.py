"""Which copy of the output matrix drafts read, and how large it becomes. Knows nothing of the engine."""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from entmtp_local.speculative.draft_vocab import SAME, DraftVocab, PassCost

# What drafts read of a head of 16 bits a weight: as many drafts are accepted. From Q4_0 fewer are (by 2 to 4 %), which is
# what it saves; a copy of fewer bits or fewer tokens saves too little.
_COPY_FROM_BITS, _COPY_TYPE = 16.0, "Q8_0"
#: Rows that are copied while the model is loaded: text seldom needs more, and fewer are a part of them.
COPIED_AHEAD = 32_768


def copy_type(wanted: str | None, row: float, n_embd: int, n_vocab: int) -> GGMLQuantizationType | None:
    """The type of the copy; None where drafts are to read the matrix itself.

    Args:
        wanted: SAME, the name of a type, or None to have it chosen.
        row: bytes of a row of the matrix.
    """
    if wanted == SAME or (wanted is None and (8 * row / n_embd < _COPY_FROM_BITS or n_vocab <= COPIED_AHEAD)):
        return None
    return GGMLQuantizationType[wanted or _COPY_TYPE]


def row_bytes(kind: GGMLQuantizationType, n_embd: int) -> float:
    """Bytes of a row of the copy."""
    n_values, n_bytes = GGML_QUANT_SIZES[kind]
    return float(n_embd * n_bytes / n_values)


def copy_bytes(wanted: str | None, draft_vocab: int | None, cost: PassCost, n_embd: int, n_vocab: int) -> int:
    """The most that the copy takes, without the control tokens at the vocabulary's end.

    Args:
        wanted, n_embd, n_vocab: as for `copy_type`.
        draft_vocab: tokens that drafts choose from; 0 = all, None = by the text so far.
        cost: of the head.
    """
    kind = copy_type(wanted, cost.row, n_embd, n_vocab)
    if kind is None or row_bytes(kind, n_embd) >= cost.row:
        return 0  # the engine makes none that is no smaller
    if draft_vocab is None:
        # the whole vocabulary is read as it is where the text decides
        draft_vocab = max(DraftVocab(n_vocab, 0, cost).sizes, default=COPIED_AHEAD)
    n_rows = min(n_vocab, max(draft_vocab, COPIED_AHEAD)) if draft_vocab else n_vocab
    return int(n_rows * row_bytes(kind, n_embd))
