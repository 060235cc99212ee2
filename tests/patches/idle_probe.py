"""Prints digests of what a libllama computes with upstream's functions only. Run with LLAMA_CPP_LIB_PATH set.

The CPU kernels that the series has for few columns are switched off: they round as the kernel for one column does, where
upstream's for several columns add up in another order. tests/native/test_few_cols.py compares them.

python idle_probe.py MODEL...
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

CONTEXT_TYPE_MTP = 1


def without_few_cols() -> None:
    cpu = next(Path(os.environ["LLAMA_CPP_LIB_PATH"]).glob("libggml-cpu.*"), None)
    switch = getattr(ctypes.CDLL(str(cpu)), "ggml_cpu_set_few_cols", None) if cpu is not None else None
    if switch is not None:
        switch(ctypes.c_bool(False))


def mangled(name: str, types: str) -> Any:
    """A function that llama-ext.h exports for C++."""
    return getattr(llama_cpp.llama_cpp._lib, f"_Z{len(name)}{name}{types}")


def context(model: Any, *, mtp: bool, n_rs_seq: int, flash_attn: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = 512, 128, 128, 128
    params.n_seq_max, params.n_threads, params.n_threads_batch = 1, 2, 2
    params.n_rs_seq, params.flash_attn_type, params.swa_full = n_rs_seq, flash_attn, False
    params.ctx_type = CONTEXT_TYPE_MTP if mtp else 0
    return llama_cpp.llama_init_from_model(model, params)


def decode(ctx: Any, tokens: list[int], pos: int, embd: Any = None) -> None:
    n = len(tokens)
    batch = llama_cpp.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, pos + i, 1, 0, 1
    if embd is not None:
        batch.embd = embd.ctypes.data_as(type(batch.embd))
    assert llama_cpp.llama_decode(ctx, batch) == 0
    batch.embd = None
    llama_cpp.llama_batch_free(batch)


def rows(ctx: Any, n: int, width: int) -> Any:
    return np.array(np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), shape=(n, width)))


def digest(model_path: str) -> str:
    params = llama_cpp.llama_model_default_params()
    params.load_mtp = True
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    n_embd = llama_cpp.llama_model_n_embd_out(model)
    set_nextn = mangled("llama_set_embeddings_nextn", "P13llama_contextbb")
    set_nextn.argtypes = [ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool]
    get_nextn = mangled("llama_get_embeddings_nextn", "P13llama_context")
    get_nextn.argtypes, get_nextn.restype = [ctypes.c_void_p], ctypes.POINTER(ctypes.c_float)
    seen = hashlib.sha256()
    prompt = [(7 * i) % 200 + 5 for i in range(60)]
    for flash_attn in (0, 1):
        ctx = context(model, mtp=False, n_rs_seq=3, flash_attn=flash_attn)
        mtp = context(model, mtp=True, n_rs_seq=0, flash_attn=flash_attn)
        set_nextn(ctx, True, False)
        decode(ctx, prompt, 0)
        seen.update(rows(ctx, len(prompt), n_vocab).tobytes())
        hidden = np.array(np.ctypeslib.as_array(get_nextn(ctx), shape=(len(prompt), n_embd)))
        seen.update(hidden.tobytes())
        if mtp:
            set_nextn(mtp, True, True)
            decode(mtp, prompt[1:], 0, hidden[:-1].copy())
            seen.update(rows(mtp, len(prompt) - 1, n_vocab).tobytes())
            seen.update(np.array(np.ctypeslib.as_array(get_nextn(mtp), shape=(len(prompt) - 1, n_embd))).tobytes())
        memory = llama_cpp.llama_get_memory(ctx)
        for step in range(5):  # stock's own speculation: a chain, and a rollback where the memory has one
            decode(ctx, [9, 8, 7, 6], 60 + step)
            seen.update(rows(ctx, 4, n_vocab).tobytes())
            if not llama_cpp.llama_memory_seq_rm(memory, 0, 61 + step, -1):
                break
        seen.update(bytes([step]))
        if mtp:
            llama_cpp.llama_free(mtp)
        llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
    return seen.hexdigest()


@llama_cpp.llama_log_callback
def quiet(*_: Any) -> None: ...


llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
without_few_cols()
for path in sys.argv[1:]:
    print(digest(path))
