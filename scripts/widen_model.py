#!/usr/bin/env python3
"""Write a small model into the tensor shapes of a bigger one, so that it costs what the bigger one costs and says the same.

    .venv/bin/python scripts/widen_model.py models/reference-11m.gguf --shape qwen3.5-0.8b --out wide.gguf --type Q4_0
    .venv/bin/python scripts/widen_model.py --check models/reference-11m.gguf wide.gguf
    .venv/bin/python scripts/widen_model.py --curve models/reference-11m.gguf wide.gguf

Speed with such a file is that of the big shape, acceptance of drafts that of the small model. A .json file gives another shape:

    {"name": "mine", "n_layer": 12, "n_embd": 512, "n_ff": 1536, "n_head": 4, "n_head_kv": 2,
     "n_key_heads": 4, "n_value_heads": 4, "n_vocab": 16384, "tied": true, "n_ctx_train": 2048}
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.errors import EntMTPError, UsageError  # noqa: E402
from entmtp_local.native.gguf_header import read_header  # noqa: E402
from scripts.reference import widen_check, widen_vocabulary  # noqa: E402
from scripts.reference.widen import Vocabulary  # noqa: E402
from scripts.reference.widen_file import IDS_KEY, show_progress, widen  # noqa: E402
from scripts.reference.widen_shapes import SHAPES, Shape, get_shape  # noqa: E402
from scripts.reference.widen_small import SmallModel  # noqa: E402
from scripts.reference.widen_types import TYPES  # noqa: E402
from scripts.reference.widen_vocabulary import (  # noqa: E402
    CARRIED_TO_REAL,
    F32,
    I64,
    REAL_CURVE,
    Curve,
    reserved_ids,
    reserved_rows,
)

# Text that no model here was trained on and that is always there.
DEFAULT_TEXT = (ROOT / "docs", ROOT / "README.md", ROOT / "entmtp_local")
CALIBRATION_WINDOWS = 24
# Elsewhere in the text than where the padding was chosen.
_SKIP = 1_500
CURVE_AT = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="SMALL, or SMALL WIDE with --check and --curve")
    parser.add_argument("--shape", help=f"{', '.join(SHAPES)}, a .json file, or 'same' (only the type changes)")
    parser.add_argument("--out", type=Path, help="the wide file")
    parser.add_argument("--type", default="Q4_0", help=f"{', '.join(TYPES)} (default Q4_0)")
    parser.add_argument("--pure", action="store_true", help="the output matrix in that type too (llama-quantize gives it Q6_K)")
    parser.add_argument("--layers", type=int, help="trunk layers instead of the shape's: cheaper, each layer costs the same")
    parser.add_argument("--vocab", help="ids instead of the shape's; 'small' pads nothing")
    parser.add_argument("--text", type=Path, nargs="+", default=list(DEFAULT_TEXT), help="held-out text: files or folders")
    parser.add_argument("--real-vocab", type=Path, help="a GGUF with the real tokenizer, to measure its curve on the text")
    parser.add_argument("--check", action="store_true", help="compare the logits of SMALL and WIDE")
    parser.add_argument("--curve", action="store_true", help="print the share of text tokens with ids below N")
    parser.add_argument("--windows", type=int, default=4, help=f"windows of {widen_check.WINDOW} tokens to check (default 4)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.check or arguments.curve:
            if len(arguments.files) != 2:
                raise UsageError("--check and --curve need two files: SMALL WIDE.")
            return _check(arguments) if arguments.check else _curve(arguments)
        if len(arguments.files) != 1 or arguments.shape is None or arguments.out is None:
            raise UsageError("widening needs SMALL --shape SHAPE --out FILE; see --help.")
        return _widen(arguments)
    except EntMTPError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _widen(arguments: argparse.Namespace) -> int:
    small = SmallModel(arguments.files[0])
    n_vocab = None
    if arguments.vocab is not None:
        if arguments.vocab != "small" and not arguments.vocab.isdigit():
            raise UsageError(f"--vocab is '{arguments.vocab}'; give a number of ids or 'small'.")
        n_vocab = small.shape.n_vocab if arguments.vocab == "small" else int(arguments.vocab)
    own = small.shape if arguments.shape == "same" else None
    shape = own or get_shape(arguments.shape, n_layer=arguments.layers, n_vocab=n_vocab)
    if shape.tied and not small.shape.tied:
        print(f"note: {small.path.name} has an output matrix of its own, so the wide file has one too.", file=sys.stderr)
    vocabulary = make_vocabulary(small, shape, arguments.text, arguments.real_vocab)
    written = widen(small, shape, vocabulary, arguments.out, arguments.type, pure=arguments.pure, progress=show_progress)
    show_progress("")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)
    print(
        f"{written.path}: {written.n_parameters / 1e6:,.0f}M parameters, {written.size_bytes / 1e9:.2f} GB, "
        f"{written.seconds:.1f} s to write, at most {memory:.2f} GB of memory."
    )
    return 0


def make_vocabulary(small: SmallModel, shape: Shape, text: Sequence[Path], real_vocab: Path | None = None) -> Vocabulary:
    """Where the small model's ids go in the shape's vocabulary, and the padding, measured on a text."""
    n_small = len(small.tokens)
    if shape.n_vocab == n_small:
        return Vocabulary(np.arange(n_small), n_small)
    texts = widen_check.read_texts(text)
    curve = REAL_CURVE
    if real_vocab is not None:
        with widen_check.Vocab(real_vocab) as vocab:
            curve = Curve.of(vocab.count(texts), CARRIED_TO_REAL)
    with widen_check.Vocab(small.path) as vocab:
        ids = widen_vocabulary.spread(vocab.count(texts), small.types, curve, shape.n_vocab)
        windows = widen_check.windows(vocab, texts, CALIBRATION_WINDOWS)
    return Vocabulary(ids, shape.n_vocab, _padding_rows(small, shape, windows))


def _padding_rows(small: SmallModel, shape: Shape, windows: Sequence[Sequence[int]]) -> F32 | None:
    reserved = reserved_ids(small.tokens)
    if not reserved:
        print("padding: reads a constant feature, because the small model has no reserved tokens.", file=sys.stderr)
        return None
    with widen_check.Probe(small.path) as probe:
        logits = np.concatenate([rows.logits for window in windows for rows in probe.rows(window)])
    padding = reserved_rows(logits, small.output, reserved, shape.n_vocab - len(small.tokens))
    if padding is None:
        print("padding: reads a constant feature, because the reserved tokens' logits are not negative.", file=sys.stderr)
        return None
    print(
        f"padding: copies of {len(padding.rows)} reserved tokens' rows, times {padding.scale:.1f}; {padding.mass:.0e} of the "
        f"probability on {len(logits)} rows, {padding.worst:.0e} at most.",
        file=sys.stderr,
    )
    return padding.rows


def wide_ids(path: Path) -> I64:
    """The wide file's id of every small token, as the file records it."""
    recorded = read_header(path).metadata.get(IDS_KEY)
    if not isinstance(recorded, str):
        raise UsageError(f"{path} was not written by this script: it has no {IDS_KEY}.")
    return np.array(recorded.split(","), dtype=np.int64)


def _check(arguments: argparse.Namespace) -> int:
    small, wide = arguments.files
    texts = widen_check.read_texts(arguments.text)
    with widen_check.Vocab(small) as vocab:
        windows = widen_check.windows(vocab, texts, arguments.windows, skip=_SKIP)
    differences = widen_check.compare(small, wide, wide_ids(wide), windows)
    print(widen_check.table(differences))
    worst = max(asdict(difference)["mean_padding"] for difference in differences)
    if worst >= 1e-6:
        print(f"error: padding has {worst:.1e} of the probability, wanted less than 1e-6.", file=sys.stderr)
        return 1
    return 0


def _curve(arguments: argparse.Namespace) -> int:
    small, wide = arguments.files
    texts = widen_check.read_texts(arguments.text)
    with widen_check.Vocab(small) as vocab:
        counts = vocab.count(texts)
    ids = wide_ids(wide)
    real, name = REAL_CURVE, "real (stored)"
    if arguments.real_vocab is not None:
        with widen_check.Vocab(arguments.real_vocab) as vocab:
            real, name = Curve.of(vocab.count(texts), CARRIED_TO_REAL), "real"
    packed = Curve.of(counts)
    print(f"ids below  {name:>13}   wide  small (packed)")
    for n in CURVE_AT:
        share = counts[ids < n].sum() / max(1, counts.sum())
        print(f"{n:>9}  {real.share_below(n):>13.3f}  {share:>5.3f}  {packed.share_below(n):>14.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
