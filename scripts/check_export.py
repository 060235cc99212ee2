#!/usr/bin/env python3
"""Prove that llama.cpp computes a reference model's function.

    .venv/bin/python scripts/check_export.py RUN TEXT [TEXT ...] [--tokens 512] [--lines 10000]

RUN is a folder that scripts/train_reference_model.py wrote; its checkpoint is exported as F32 to a temporary file. TEXT are
JSON-lines files of documents, best those of the corpus' held-out part. Compares, in F32 throughout:

- the trunk's logits at every position, in one pass and in many;
- the MTP block's logits at depths 1 to 3 from every position, driven as the engine does: the true rows in the cache, the
  draft's own rows behind them;
- the ids of the tokenizers, line by line.

Ends in one JSON line; the exit status is 1 where a figure is above its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import torch
    from tokenizers import Tokenizer
except ModuleNotFoundError as error:
    sys.exit(f"error: the proof needs PyTorch and the tokenizers package ({error}): run .venv/bin/pip install '.[train]'.")

from entmtp_local.errors import EntMTPError
from scripts.reference.engine_rows import F32, Engine
from scripts.reference.export import export
from scripts.reference.model import MTP_DEPTHS, ReferenceModel
from scripts.reference.tokenizer import load
from scripts.reference.training import load_model

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two sets of rows of logits are apart."""

    largest: float  # absolute
    same_best: float  # share of rows with the same arg-max
    n_rows: int

    @staticmethod
    def of(a: F32, b: F32) -> Difference:
        return Difference(float(np.abs(a - b).max()), float((a.argmax(-1) == b.argmax(-1)).mean()), len(a))


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def compare_logits(model: ReferenceModel, engine: Engine, tokens: Sequence[int]) -> dict[str, Difference]:
    """Trunk and MTP depths, PyTorch against the engine, over one text.

    Returns: by part: trunk (one pass), trunk_steps (a token a pass), mtp1, mtp2, ...
    """
    ids = torch.tensor([list(tokens)])
    starts = torch.arange(len(tokens) - MTP_DEPTHS + 1)
    with torch.no_grad():
        wanted = [model.logits(rows)[0].numpy() for rows in model(ids, starts)]
    logits, hidden = engine.trunk(tokens, width=len(tokens))
    result = {"trunk": Difference.of(wanted[0], logits)}
    result["trunk_steps"] = Difference.of(wanted[0], engine.trunk(tokens, width=1)[0])
    for depth, drafted in enumerate(engine.drafts(tokens, hidden, MTP_DEPTHS), start=1):
        result[f"mtp{depth}"] = Difference.of(wanted[depth], drafted)
    return result


def compare_tokenizers(tokenizer: Tokenizer, engine: Engine, lines: Sequence[str]) -> list[str]:
    """The lines that the two split differently."""
    return [line for line in lines if engine.tokenize(line) != list(tokenizer.encode(line, add_special_tokens=False).ids)]


def sample_lines(paths: Sequence[Path], n: int) -> list[str]:
    """n lines that are not empty, spread over the files, their line ends kept."""
    every = [line for text in _texts(paths) for line in text.splitlines(keepends=True) if line.strip()]
    if len(every) < n:
        raise ValueError(f"the files hold {len(every)} lines, fewer than {n}.")
    return [every[i * len(every) // n] for i in range(n)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prove that llama.cpp computes a reference model's function.")
    parser.add_argument("run", type=Path, help="folder with checkpoint.pt and tokenizer.json")
    parser.add_argument("texts", type=Path, nargs="+", help="JSON-lines files of documents")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    args = parser.parse_args(argv)
    try:
        tokenizer = load(args.run / "tokenizer.json")
        model = load_model(args.run / "checkpoint.pt").eval()
        tokens = [token for text in _texts(args.texts[:1]) for token in tokenizer.encode(text, add_special_tokens=False).ids]
        if len(tokens) < args.tokens:
            raise ValueError(f"{args.texts[0]} holds {len(tokens)} tokens, fewer than {args.tokens}.")
        tokens = tokens[: args.tokens]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model-f32.gguf"
            export(model, tokenizer, path, "F32")
            with Engine(path, n_ctx=max(64, args.tokens)) as engine:
                parts = compare_logits(model, engine, tokens)
                lines = sample_lines(args.texts, args.lines) if args.lines else []
                wrong = compare_tokenizers(tokenizer, engine, lines)
    except (ValueError, OSError, EntMTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, part in parts.items():
        print(f"{name:12} largest difference {part.largest:.2e}  same best {part.same_best:.1%} of {part.n_rows} rows")
    print(f"tokenizers   {len(wrong)} of {len(lines)} lines differ" + "".join(f"\n  {line!r}" for line in wrong[:5]))
    passed = not wrong and all(part.largest < args.tolerance for part in parts.values())
    result = {"passed": passed, "lines": len(lines), "lines_differing": len(wrong)}
    print(json.dumps(result | {name: asdict(part) for name, part in parts.items()}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
