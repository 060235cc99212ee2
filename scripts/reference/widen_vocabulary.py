"""Where a small vocabulary's ids go in a large one, and what fills the rest.

Two things have to hold for a padded vocabulary to cost what a real one does without changing the model: the padding rows
must get no probability, and the real ids must not all be low, or a reduced draft vocabulary (the first N rows of the output
matrix) would look free. So the ids are spread: in their own order, which is that of the merges, each to the place where the
real tokenizer's curve (the share of text tokens with an id below N) has the height that the small one has there.

This module does not know where the texts and logits come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import UsageError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

NORMAL, UNUSED = 1, 5  # llama.cpp's token types
RESERVED = re.compile(r"<\|reserved_\d+\|>")

# The public vocabulary: 248,044 tokens of text, then <|endoftext|> and the other control tokens, then unused rows
# (tokenizer files of the Qwen3.5 models: <|endoftext|> is 248044, <|im_end|> 248046).
N_REAL_VOCAB = 248_320
N_REAL_TEXT = 248_044

# The vocabulary file that llama.cpp carries for this family holds the merges of its predecessor, with 151,643 tokens of
# text. The newer one interleaves the same Latin-script tokens at about .967 of their old ids (14 words of up to id 54,730
# that appear with both ids in public tokenizer tests lie between .966 and .970) and adds other scripts above.
CARRIED_TO_REAL = 0.967
N_BYTES = 256  # the ids of single bytes are the same in both

# Padding is scaled until its probability on the measured text is below this: a thousandth of what is allowed.
TARGET_MASS = 1e-9
TARGET_WORST = 1e-7
_MAX_SCALE = 64.0


@dataclass(frozen=True, slots=True)
class Curve:
    """The share of text tokens with an id below N, for growing N, linear in between."""

    ids: F64
    shares: F64

    @staticmethod
    def of(counts: npt.NDArray[np.integer], scale: float = 1.0) -> Curve:
        """The curve of a tokenizer from how often each id occurs; ids from N_BYTES on are multiplied by `scale`."""
        ids = np.arange(len(counts) + 1, dtype=np.float64)
        ids = np.where(ids <= N_BYTES, ids, np.maximum(N_BYTES, ids * scale))
        total = max(1, int(counts.sum()))
        return Curve(ids, np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)]) / total)

    def share_below(self, n: float) -> float:
        return float(np.interp(n, self.ids, self.shares))

    def id_at(self, share: F64) -> F64:
        """The lowest id below which that share of tokens lies."""
        rising = np.concatenate([[True], np.diff(self.shares) > 0])
        return np.interp(share, self.shares[rising], self.ids[rising])


# The real tokenizer's curve on text of this project, Python's standard library and llama.cpp's documentation, a third each
# (686,000 tokens of the carried vocabulary file, ids times CARRIED_TO_REAL). For the curve on other text measure it.
# fmt: off
_REAL_IDS = (
    0, 8, 16, 24, 32, 64, 96, 192, 200, 224, 248, 256, 304, 362, 431, 512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435,
    2896, 3444, 4096, 4871, 5793, 6889, 8192, 9742, 11585, 13777, 16384, 19484, 23170, 27554, 32768, 38968, 46341, 55109,
    65536, 77936, 92682, 110218, 146642,
)
_REAL_SHARES = (
    0.0000, 0.0070, 0.0619, 0.0996, 0.1156, 0.1297, 0.1483, 0.1483, 0.1649, 0.1787, 0.1807, 0.2054, 0.2901, 0.3345, 0.3659,
    0.4081, 0.4305, 0.4690, 0.4925, 0.5174, 0.5433, 0.5723, 0.5939, 0.6142, 0.6347, 0.6536, 0.6748, 0.6995, 0.7213, 0.7440,
    0.7629, 0.7845, 0.8044, 0.8235, 0.8445, 0.8636, 0.8814, 0.8964, 0.9125, 0.9280, 0.9417, 0.9550, 0.9685, 0.9791, 0.9899,
    0.9984, 0.9997, 1.0,
)
# fmt: on
REAL_CURVE = Curve(np.array(_REAL_IDS, dtype=np.float64), np.array(_REAL_SHARES))


def spread(counts: npt.NDArray[np.integer], types: Sequence[int], curve: Curve, n_vocab: int) -> I64:
    """The large vocabulary's id of every small one.

    Text tokens keep their order. Special tokens go to the end, where the real vocabulary has them.

    Args:
        counts: (n_small,) occurrences of each id in the text that `curve` was measured on.
        types: llama.cpp's token types.
        curve: of the real tokenizer; squeezed when n_vocab is smaller than the real one.
        n_vocab: size of the large vocabulary.
    Returns: (n_small,) different ids below n_vocab.
    Raises: UsageError when the large vocabulary is too small.
    """
    n_small = len(types)
    if n_vocab == n_small:
        return np.arange(n_small, dtype=np.int64)
    text = np.array([i for i, kind in enumerate(types) if kind == NORMAL], dtype=np.int64)
    special = np.array([i for i, kind in enumerate(types) if kind != NORMAL], dtype=np.int64)
    n_end = max(N_REAL_VOCAB - N_REAL_TEXT if n_vocab >= N_REAL_VOCAB else 0, -len(special) // 64 * -64)
    n_text = n_vocab - n_end
    if n_text < len(text):
        raise UsageError(f"a vocabulary of {n_vocab} cannot hold the small model's {n_small} tokens and padding; ask for more.")
    # Tokens that the text lacks count a little, half a percent together, so that they spread too instead of crowding behind
    # their neighbours.
    weights = counts[text].astype(np.float64)
    weights += max(1.0, 0.005 * weights.sum()) / len(text)
    shares = np.cumsum(weights) / weights.sum()
    squeeze = min(1.0, n_text / N_REAL_TEXT)
    wanted = np.ceil(curve.id_at(shares) * squeeze).astype(np.int64) - 1
    order = np.arange(len(text), dtype=np.int64)
    rising = np.maximum.accumulate(wanted - order) + order  # strictly rising, never before the wanted place
    rising = np.minimum(rising, n_text - len(text) + order)  # and room for all that follow
    ids = np.empty(n_small, dtype=np.int64)
    ids[text] = np.maximum(rising, order)
    ids[special] = n_text + np.arange(len(special))
    return ids


def token_arrays(tokens: Sequence[str], types: Sequence[int], ids: I64, n_vocab: int) -> tuple[list[str], list[int]]:
    """Token texts and types of the large vocabulary. Merges stay as they are: they name tokens by text.

    Returns: as many texts and types as n_vocab; padding is named as llama.cpp's converter names it, and unused.
    """
    texts = [f"[PAD{i}]" for i in range(n_vocab)]
    kinds = [UNUSED] * n_vocab
    for small, wide in enumerate(ids.tolist()):
        texts[wide], kinds[wide] = tokens[small], types[small]
    if len(set(texts)) != n_vocab:
        raise UsageError("a token of the small model has the name of a padding token, [PAD...].")
    return texts, kinds


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows of the output matrix for the padding ids, in the small model's width, to be repeated.

    mass and worst are the mean and the largest probability of all padding together at a position of the measured text.
    """

    rows: F32  # (n_rows, n_embd)
    scale: float
    mass: float
    worst: float


def reserved_ids(tokens: Sequence[str]) -> list[int]:
    """Tokens that never occur, and were trained not to."""
    return [i for i, token in enumerate(tokens) if RESERVED.fullmatch(token)]


def reserved_rows(logits: F32, output: F32, reserved: Sequence[int], n_pad: int) -> Padding | None:
    """Scaled copies of the rows of reserved tokens.

    They never occur, so a model trained with a z-loss gives them negative logits everywhere, and a larger row gets a more
    negative one. Rows that were positive anywhere are left out.

    Args:
        logits: (n_positions, n_small) of trunk and head on text.
        output: (n_small, n_embd) the output matrix they were computed with.
        reserved: ids of the reserved tokens.
        n_pad: how many ids are padding.
    Returns: the rows with the smallest scale that gives them little enough probability; None when no scale does.
    """
    log_total = logsumexp(logits)
    values = logits[:, reserved].astype(np.float64)
    chosen = values.max(axis=0) < 0
    if not chosen.any():
        return None
    rows, values = output[np.array(reserved)[chosen]], values[:, chosen]
    scale = 1.0
    while scale <= _MAX_SCALE:
        per_position = n_pad * np.exp(scale * values - log_total[:, None]).mean(axis=1)
        if per_position.mean() <= TARGET_MASS and per_position.max() <= TARGET_WORST:
            return Padding(np.float32(scale) * rows, scale, float(per_position.mean()), float(per_position.max()))
        scale *= 1.1
    return None


def logsumexp(logits: F32) -> F64:
    """Per row; the exponentials in f32, which is exact enough relative to the largest, their sum in f64."""
    top = logits.max(axis=1)
    sums = [np.exp(row - best).sum(dtype=np.float64) for row, best in zip(logits, top, strict=True)]
    return np.asarray(top.astype(np.float64) + np.log(sums))
