"""A GGUF with bare contexts that give the logits of every token of a text: what the session, made for decoding, does not keep.

Knows neither PyTorch nor where its texts come from.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import EntMTPError
from entmtp_local.native import library
from entmtp_local.native.log import LogCapture

F32 = npt.NDArray[np.float32]

_SEQ = 0
_CONTEXT_TYPE_MTP = 1
_GGML_TYPE_F32 = 0
_FLASH_ATTN_DISABLED = 0


class Engine:
    """A GGUF with bare contexts for trunk and head, keys and values in F32.

    Args:
        n_ctx: tokens of context.
        n_batch: most tokens of one pass, all of n_ctx by default. The logits of a pass are kept at once.
        mtp: load the head too.
        n_threads: None leaves llama.cpp's default.
    """

    def __init__(
        self, path: Path, *, n_ctx: int, mtp: bool = True, n_batch: int | None = None, n_threads: int | None = None
    ) -> None:
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
        self._n_batch = n_batch or n_ctx
        self._n_threads = n_threads
        self.ctx = self._context()
        self.mtp = self._context(ctx_type=_CONTEXT_TYPE_MTP, ctx_other=self.ctx) if mtp else None
        if mtp:
            self.api.set_nextn(self.ctx, True, False)
            self.api.set_nextn(self.mtp, True, False)

    def _context(self, **values: Any) -> Any:
        params = self.llama.llama_context_default_params()
        common = {
            "n_ctx": self._n_ctx,
            "n_batch": self._n_batch,
            "n_ubatch": self._n_batch,
            "n_outputs_max": self._n_batch,
            "n_seq_max": 1,
            "type_k": _GGML_TYPE_F32,
            "type_v": _GGML_TYPE_F32,
            "flash_attn_type": _FLASH_ATTN_DISABLED,
        }
        if self._n_threads is not None:
            common |= {"n_threads": self._n_threads, "n_threads_batch": self._n_threads}
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

    def _pass(self, ctx: Any, tokens: Sequence[int], begin: int, hidden: F32 | None) -> F32:
        """Logits of every token of one pass, (n_tokens, n_vocab); a view that the next pass overwrites."""
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
        return np.ctypeslib.as_array(llama.llama_get_logits(ctx), shape=(n, self.n_vocab))

    def _decode(self, ctx: Any, tokens: Sequence[int], begin: int, hidden: F32 | None) -> tuple[F32, F32]:
        """Logits and hidden rows of every token of one pass."""
        logits = self._pass(ctx, tokens, begin, hidden).copy()
        rows = np.ctypeslib.as_array(self.api.get_nextn(ctx), shape=(len(tokens), self.n_embd)).copy()
        return logits, rows

    def trunk(self, tokens: Sequence[int], *, width: int) -> tuple[F32, F32]:
        """Logits and hidden rows of a text on an empty context, width tokens a pass. Needs mtp=True."""
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

    def losses(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """Nats of each token after the first, the text on an empty context.

        Args:
            tokens: at most n_ctx.
        Returns: (n_tokens - 1,) f64
        """
        self.api.clear(self.ctx)
        found: list[npt.NDArray[np.float64]] = []
        for begin in range(0, len(tokens) - 1, self._n_batch):
            given = tokens[begin : begin + self._n_batch]
            wanted = np.array(tokens[begin + 1 : begin + 1 + len(given)])
            rows = self._pass(self.ctx, given, begin, None)[: len(wanted)].astype(np.float64)
            top = rows.max(axis=1)
            found.append(np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top - rows[np.arange(len(wanted)), wanted])
        return np.concatenate(found) if found else np.zeros(0)

    def begins_with(self) -> list[int]:
        """What the model wants before the first token of a text: its BOS token or nothing."""
        adds = self.llama.llama_vocab_get_add_bos(self.vocab)
        return [int(self.llama.llama_vocab_bos(self.vocab))] if adds else []

    def n_bytes(self, tokens: Sequence[int]) -> int:
        """Bytes of text that the tokens stand for, control tokens as they are written."""
        buffer = ctypes.create_string_buffer(1024)
        return sum(abs(int(self.llama.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True))) for token in tokens)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        n = self.llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        if n < 0:
            raise EntMTPError("llama_tokenize needs more ids than the text has bytes.")
        return list(ids[:n])
