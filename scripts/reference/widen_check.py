"""Logits of small and wide files through the engine, token by token of a text: the proof that widening changed nothing.

Trunk logits are those of the text. The head is fed the text too, not its own drafts: depth 1 pairs each token with the trunk's
hidden row of the token before, depth k with the head's row of depth k - 1, so that an error grows as it would in recursive
drafting while both files always see the same tokens.

This module does not know how a file was widened, only which big id each small token has.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import EngineError, ModelFileError, UsageError
from entmtp_local.native import library
from entmtp_local.native.cores import physical_cores
from entmtp_local.native.log import LogCapture
from scripts.reference.widen_vocabulary import F32, F64, I64, logsumexp

_TYPE_F32 = 0  # enum ggml_type
_CONTEXT_TYPE_MTP = 1
DEPTHS = 3
WINDOW = 96  # tokens of one pass over a text; every window starts anew


class Vocab:
    """The tokenizer of a GGUF, without its weights."""

    def __init__(self, path: Path) -> None:
        self._llama: Any = library.load()
        self._log = LogCapture(self._llama, verbose=False)
        self._llama.llama_backend_init()
        params = self._llama.llama_model_default_params()
        params.vocab_only = True
        self._model = self._llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelFileError(f"llama.cpp cannot read the vocabulary of {path}: {self._log.last_error()}.")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self.n_tokens = int(self._llama.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        buffer = (ctypes.c_int32 * (len(data) + 16))()
        n = self._llama.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, True)
        return list(buffer[:n])

    def count(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """How often each id occurs in the texts."""
        counts = np.zeros(self.n_tokens, dtype=np.int64)
        for text in texts:
            counts += np.bincount(self.tokenize(text), minlength=self.n_tokens)
        return counts

    def close(self) -> None:
        if self._model:
            self._llama.llama_model_free(self._model)
        self._model = None

    def __enter__(self) -> Vocab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Rows:
    """One depth's rows for a window: logits of the asked-for ids, and the log-sum-exp over all ids and over the others."""

    logits: F32  # (n, n_asked)
    log_total: F64  # (n,)
    log_others: F64  # (n,) -inf where there are no others


class Probe:
    """A model with its head, both contexts in f32."""

    def __init__(self, path: Path, ids: I64 | None = None) -> None:
        self._llama: Any = library.load()
        self._api = library.api()
        self._log = LogCapture(self._llama, verbose=False)
        self._contexts: list[Any] = []
        self._model: Any = None
        self._llama.llama_backend_init()
        params = self._llama.llama_model_default_params()
        params.load_mtp = True
        self._model = self._llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelFileError(f"llama.cpp cannot load {path}: {self._log.last_error()}.")
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self._model)))
        self._n_embd = int(self._llama.llama_model_n_embd(self._model))
        self._ids = np.arange(self.n_vocab) if ids is None else ids
        others = np.ones(self.n_vocab, dtype=bool)
        others[self._ids] = False
        self._others = np.flatnonzero(others)
        try:
            self._trunk = self._context()
            self._head = self._context(ctx_type=_CONTEXT_TYPE_MTP, ctx_other=self._trunk)
        except BaseException:
            self.close()
            raise
        self._api.set_nextn(self._trunk, True, False)
        self._api.set_nextn(self._head, True, True)
        self._batch = self._llama.llama_batch_init(WINDOW, 0, 1)

    def _context(self, **values: Any) -> Any:
        params = self._llama.llama_context_default_params()
        fixed = {"n_ctx": 256, "n_batch": 256, "n_ubatch": 256, "n_seq_max": 1, "n_outputs_max": 256, "no_perf": True}
        fixed |= {"type_k": _TYPE_F32, "type_v": _TYPE_F32, "n_threads": physical_cores(), "n_threads_batch": physical_cores()}
        for name, value in (fixed | values).items():
            setattr(params, name, value)
        context = self._llama.llama_init_from_model(self._model, params)
        if not context:
            raise EngineError(f"llama.cpp cannot create a context: {self._log.last_error()}.")
        self._contexts.append(context)
        return context

    def rows(self, tokens: Sequence[int]) -> list[Rows]:
        """Trunk and depths 1 to DEPTHS over one window.

        Args:
            tokens: at most WINDOW small ids; row i of depth k belongs to the prediction made after token i + k.
        """
        wide = [int(self._ids[token]) for token in tokens]
        found = [self._decode(self._trunk, wide, None)]
        hidden = self._hidden(self._trunk, len(wide))
        for depth in range(1, DEPTHS + 1):
            pairs = wide[depth:]
            found.append(self._decode(self._head, pairs, hidden[: len(pairs)]))
            hidden = self._hidden(self._head, len(pairs))
        return found

    def _decode(self, context: Any, tokens: Sequence[int], hidden: F32 | None) -> Rows:
        self._api.clear(context)
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        if hidden is not None:
            hidden = np.ascontiguousarray(hidden)
            batch.embd = hidden.ctypes.data_as(type(batch.embd))
        code = self._llama.llama_decode(context, batch)
        batch.embd = None
        if code:
            raise EngineError(f"llama.cpp failed on a text ({code}): {self._log.last_error()}.")
        pointer = self._llama.llama_get_logits(context)
        logits = np.ctypeslib.as_array(pointer, shape=(len(tokens), self.n_vocab))
        others = logsumexp(logits[:, self._others]) if len(self._others) else np.full(len(tokens), -np.inf)
        asked = np.array(logits[:, self._ids])
        return Rows(asked, np.logaddexp(logsumexp(asked), others), others)

    def _hidden(self, context: Any, n: int) -> F32:
        return np.array(np.ctypeslib.as_array(self._api.get_nextn(context), shape=(n, self._n_embd)))

    def close(self) -> None:
        for context in reversed(self._contexts):
            self._llama.llama_free(context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._contexts, self._model = [], None

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the wide file's rows of one depth are from the small one's. KL in nats, small to wide, padding included."""

    depth: int  # 0 is the trunk
    n_rows: int
    max_logit: float
    mean_logit: float
    largest_logit: float  # of the small model, to set max_logit against
    mean_kl: float
    max_kl: float
    same_best: float  # share of rows with the same most probable token
    mean_padding: float  # probability of all padding ids together
    max_padding: float


def compare(small: Path, wide: Path, ids: I64, windows: Sequence[Sequence[int]]) -> list[Difference]:
    """Both files on the same text.

    Args:
        ids: the wide id of each small token.
        windows: small ids, at most WINDOW each.
    Returns: one Difference for the trunk and one for each depth.
    """
    with Probe(small) as probe:
        before = [probe.rows(window) for window in windows]
    with Probe(wide, ids) as probe:
        after = [probe.rows(window) for window in windows]
    return [_difference(depth, [w[depth] for w in before], [w[depth] for w in after]) for depth in range(DEPTHS + 1)]


def _difference(depth: int, before: Sequence[Rows], after: Sequence[Rows]) -> Difference:
    a, b = np.concatenate([rows.logits for rows in before]), np.concatenate([rows.logits for rows in after])
    total_a, total_b = (np.concatenate([rows.log_total for rows in side]) for side in (before, after))
    padding = np.exp(np.concatenate([rows.log_others for rows in after]) - total_b)
    if not np.isfinite(b).all():
        raise EngineError(f"the wide file gives logits that are not finite at depth {depth}.")
    gap = np.abs(a - b)
    log_p = a - total_a[:, None]
    kl = (np.exp(log_p) * (log_p - (b - total_b[:, None]))).sum(axis=1)
    return Difference(
        depth=depth,
        n_rows=len(a),
        max_logit=float(gap.max()),
        mean_logit=float(gap.mean()),
        largest_logit=float(np.abs(a).max()),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        same_best=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        mean_padding=float(padding.mean()),
        max_padding=float(padding.max()),
    )


def table(differences: Sequence[Difference]) -> str:
    """The differences as text."""
    lines = [
        "rows of     n  max |dlogit|  mean |dlogit|  max |logit|   mean KL    max KL  same best  padding mean/max",
    ]
    for d in differences:
        name = "trunk" if d.depth == 0 else f"depth {d.depth}"
        lines.append(
            f"{name:<8}{d.n_rows:>5}  {d.max_logit:>12.2e}  {d.mean_logit:>13.2e}  {d.largest_logit:>11.2f}"
            f"  {d.mean_kl:>8.1e}  {d.max_kl:>8.1e}  {d.same_best:>9.2%}  {d.mean_padding:.0e} / {d.max_padding:.0e}"
        )
    return "\n".join(lines)


# -- text

_SUFFIXES = (".jsonl", ".txt", ".md", ".rst", ".py")


def read_texts(paths: Sequence[Path], limit: int = 4_000_000) -> list[str]:
    """Documents of files and folders: .jsonl by line (the field "text" or "prompt"), others whole.

    Args:
        limit: characters in all; a folder's files are taken in turn, in the order of their names.
    Raises: UsageError when there is no text.
    """
    texts: list[str] = []
    n = 0
    for text in (text for path in paths for file in _files(path) for text in _documents(file)):
        if n >= limit:
            break
        texts.append(text[: limit - n])
        n += len(texts[-1])
    if not texts:
        raise UsageError(f"there is no text in {', '.join(map(str, paths))} (files ending in {', '.join(_SUFFIXES)}).")
    return texts


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    elif path.is_file():
        yield path
    else:
        raise UsageError(f"there is no {path}.")


def _documents(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix != ".jsonl":
        yield text
        return
    for line in text.splitlines():
        if line.strip():
            document = json.loads(line)
            yield str(document.get("text") or document.get("prompt") or "")


def windows(vocab: Vocab, texts: Sequence[str], n: int, *, skip: int = 0) -> list[list[int]]:
    """n windows of WINDOW tokens, spread evenly over the texts.

    Args:
        skip: start that many characters later in each place, for windows that differ from those of another call.
    """
    whole = "\n".join(texts)
    found = []
    for i in range(n):
        at = len(whole) * i // n + skip
        tokens = vocab.tokenize(whole[at : at + WINDOW * 12])[:WINDOW]
        if len(tokens) > DEPTHS + 1:
            found.append(tokens)
    if not found:
        raise UsageError("the text is too short to measure anything on.")
    return found
