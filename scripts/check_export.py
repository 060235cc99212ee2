#!/usr/bin/env python3
"""Prove that llama.cpp computes a reference model's function.

    python scripts/check_export.py RUN TEXT [TEXT ...] [--tokens 512] [--lines 10000]

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
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tokenizers import Tokenizer

from entmtp_local.errors import EntMTPError
from entmtp_local.native import library
from entmtp_local.native.log import LogCapture
from scripts.reference.export import export
from scripts.reference.model import MTP_DEPTHS, ReferenceModel
from scripts.reference.tokenizer import load
from scripts.reference.training import load_model

F32 = npt.NDArray[np.float32]

TOLERANCE = 1e-3
_SEQ = 0
_CONTEXT_TYPE_MTP = 1
_GGML_TYPE_F32 = 0
_FLASH_ATTN_DISABLED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two sets of rows of logits are apart."""

    largest: float  # absolute
    same_best: float  # share of rows with the same arg-max
    n_rows: int

    @staticmethod
    def of(a: F32, b: F32) -> Difference:
        return Difference(float(np.abs(a - b).max()), float((a.argmax(-1) == b.argmax(-1)).mean()), len(a))


class Engine:
    """A GGUF with bare contexts for trunk and head, keys and values in F32."""

    def __init__(self, path: Path, *, n_ctx: int, mtp: bool = True) -> None:
        self.llama: Any = library.load()
        self.api = library.api()
        self._log = LogCapture(self.llama, verbose=False)
        self.llama.llama_backend_init()
        params = self.llama.llama_model_default_params()
        params.load_mtp = mtp
        self.model = self.llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise EntMTPError(f"llama.cpp cannot load {path}: {self._log.last_error()}.")
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self.n_vocab = int(self.llama.llama_vocab_n_tokens(self.vocab))
        self.n_embd = int(self.llama.llama_model_n_embd(self.model))
        self._n_ctx = n_ctx
        self.ctx = self._context()
        self.mtp = self._context(ctx_type=_CONTEXT_TYPE_MTP, ctx_other=self.ctx) if mtp else None
        self.api.set_nextn(self.ctx, True, False)
        if mtp:
            self.api.set_nextn(self.mtp, True, False)

    def _context(self, **values: Any) -> Any:
        params = self.llama.llama_context_default_params()
        common = {
            "n_ctx": self._n_ctx,
            "n_batch": self._n_ctx,
            "n_ubatch": self._n_ctx,
            "n_outputs_max": self._n_ctx,
            "n_seq_max": 1,
            "type_k": _GGML_TYPE_F32,
            "type_v": _GGML_TYPE_F32,
            "flash_attn_type": _FLASH_ATTN_DISABLED,
        }
        for name, value in (common | values).items():
            setattr(params, name, value)
        context = self.llama.llama_init_from_model(self.model, params)
        if not context:
            raise EntMTPError(f"llama.cpp cannot create a context: {self._log.last_error()}.")
        return context

    def close(self) -> None:
        for context in (self.mtp, self.ctx):
            if context:
                self.llama.llama_free(context)
        self.llama.llama_model_free(self.model)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, ctx: Any, tokens: Sequence[int], begin: int, hidden: F32 | None) -> tuple[F32, F32]:
        """Logits and hidden rows of every token of one pass."""
        llama, n = self.llama, len(tokens)
        batch = llama.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, begin + i, 1, _SEQ, 1
        if hidden is not None:
            hidden = np.ascontiguousarray(hidden, dtype=np.float32)
            batch.embd = hidden.ctypes.data_as(type(batch.embd))
        status = llama.llama_decode(ctx, batch)
        batch.embd = None
        llama.llama_batch_free(batch)
        if status != 0:
            raise EntMTPError(f"llama_decode gave {status}.")
        logits = np.ctypeslib.as_array(llama.llama_get_logits(ctx), shape=(n, self.n_vocab)).copy()
        rows = np.ctypeslib.as_array(self.api.get_nextn(ctx), shape=(n, self.n_embd)).copy()
        return logits, rows

    def trunk(self, tokens: Sequence[int], *, width: int) -> tuple[F32, F32]:
        """Logits and hidden rows of a text on an empty context, width tokens a pass."""
        self.api.clear(self.ctx)
        passes = [self._decode(self.ctx, tokens[i : i + width], i, None) for i in range(0, len(tokens), width)]
        return np.concatenate([p[0] for p in passes]), np.concatenate([p[1] for p in passes])

    def drafts(self, tokens: Sequence[int], hidden: F32, n_depths: int) -> list[F32]:
        """Logits of each depth from each start, the drafts being the true tokens.

        Args:
            hidden: the trunk's rows, (n_tokens, n_embd)
        Returns: n_depths arrays, (n_tokens - n_depths + 1, n_vocab)
        """
        self.api.clear(self.mtp)
        before = np.concatenate([np.zeros((1, self.n_embd), np.float32), hidden[:-1]])
        found: list[list[F32]] = [[] for _ in range(n_depths)]
        for start in range(len(tokens) - n_depths + 1):
            row = before[start : start + 1]
            for depth in range(n_depths):
                logits, row = self._decode(self.mtp, [tokens[start + depth]], start + depth, row)
                found[depth].append(logits[0])
            if not self.api.truncate(self.mtp, _SEQ, start + 1):
                raise EntMTPError("the MTP context cannot drop a draft.")
        return [np.stack(rows) for rows in found]

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        n = self.llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        if n < 0:
            raise EntMTPError("llama_tokenize needs more ids than the text has bytes.")
        return list(ids[:n])


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
