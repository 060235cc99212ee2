#!/usr/bin/env python3
"""What drafting costs: ms per step for 1 to 8 levels, against the passes that llama.cpp's draft-mtp makes.

Arms, in turn, each after a verification of D + 1 nodes by the target, of which ACCEPTED drafted ones are kept:

    stock          one MTP pass over all verified tokens, then D passes of one token with its full row of logits, from which a
                   top-10 sampler takes the next one: the calls of common/speculative.cpp, made from here
    stock backend  the same with the top-10 in the graph, so that ten logits and their tokens come out instead of the row:
                   --spec-draft-backend-sampling, which is llama.cpp's default
    ours           the accepted tokens and all D levels in one call
    ours N         the same with the first N tokens of the vocabulary to draft from (--vocab)
    ours N TYPE    the same with a copy of their rows in that type (--head-type)
    ... looking    the same with a look behind each level whether to go on (--looks), which always says yes: what looking takes

Stock's arms compute with llama.cpp's own kernels, without those that the engine adds to the CPU. Everything but the drafting is
left out of the times; they are medians, and so are the ratios, which are of passes of the same turn: the first to stock, the
second to stock backend. N is shown with the control tokens at the vocabulary's end. The last line is one JSON object.

    .venv/bin/python scripts/bench_drafting.py [MODEL] [--levels 1 2 3 4 6 8] [--vocab 8192 32768]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.native import api as native  # noqa: E402
from entmtp_local.native import library  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.log import LogCapture  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402

SEQ = 0
_NEVER = -1e30  # a log-probability that no path is below
CONTEXT_TYPE_MTP = 1


class Bench:
    """A target and the MTP contexts of the arms, all at the same tokens."""

    def __init__(self, path: Path, n_threads: int, n_ctx: int, max_levels: int) -> None:
        self.llama: Any = library.load()
        self.api = library.api()
        self._log = LogCapture(self.llama, verbose=False)
        self.llama.llama_backend_init()
        params = self.llama.llama_model_default_params()
        params.load_mtp = True
        self.model = self.llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}: {self._log.last_error()}")
        # where the CPU's kernels are a library of their own, it is loaded by now
        self.set_few_cols = ctypes.CDLL(str(next(library.engine_directory().glob("libggml-cpu.so")))).ggml_cpu_set_few_cols
        self.n_vocab = self.llama.llama_vocab_n_tokens(self.llama.llama_model_get_vocab(self.model))
        self.n_embd = self.llama.llama_model_n_embd_out(self.model)
        self._common = {"n_ctx": n_ctx, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": max_levels + 1}
        self._common |= {"n_threads": n_threads, "n_threads_batch": n_threads}
        self.target = self.context()
        if self.api.reserve(self.target, max_levels + 1) not in (native.OK, native.UNSUPPORTED):
            sys.exit("the model's memory has no room for trees")
        self.api.set_nextn(self.target, True, False)
        self._rng = np.random.default_rng(1)

    def context(self, **values: Any) -> Any:
        params = self.llama.llama_context_default_params()
        for name, value in (self._common | values).items():
            setattr(params, name, value)
        ctx = self.llama.llama_init_from_model(self.model, params)
        if not ctx:
            sys.exit(f"llama.cpp cannot create a context: {self._log.last_error()}")
        return ctx

    def mtp_context(self) -> Any:
        ctx = self.context(ctx_type=CONTEXT_TYPE_MTP, ctx_other=self.target)
        self.api.set_nextn(ctx, True, True)
        return ctx

    def tokens(self, n: int) -> Any:
        # ids that a reduced vocabulary has, too
        return self._rng.integers(0, min(self.n_vocab - 300, 4096), n).astype(np.int32)

    def verify(self, tokens: Any, n_kept: int) -> None:
        """A chain, of which the first n_kept nodes stay."""
        parents = np.arange(-1, len(tokens) - 1, dtype=np.int32)
        assert self.api.decode(self.target, SEQ, len(tokens), tokens.ctypes.data, parents.ctypes.data, None) == 0
        assert self.api.commit(self.target, SEQ, n_kept - 1) == 0


class Stock:
    """The passes of llama.cpp's own draft-mtp.

    Args:
        backend: take the best tokens in the graph.
    """

    def __init__(self, bench: Bench, *, backend: bool) -> None:
        self.name = "stock backend" if backend else "stock"
        self._bench, self._llama = bench, bench.llama
        self._ctx = bench.mtp_context()
        self._memory = self._llama.llama_get_memory(self._ctx)
        self._batch = self._llama.llama_batch_init(64, 0, 1)
        self._pending = np.zeros(bench.n_embd, np.float32)
        self._chain = self._top_10()
        self._llama.llama_sampler_chain_add(self._chain, self._llama.llama_sampler_init_dist(1))
        # a chain of its own: the one above is applied to what this one leaves, as in llama.cpp
        self._in_graph = self._top_10() if backend else None
        if backend and not self._llama.llama_set_sampler(self._ctx, SEQ, self._in_graph):
            sys.exit("llama.cpp cannot sample drafts on this device")
        self._embeddings = bench.api.get_nextn
        self.seconds: list[float] = []

    def _top_10(self) -> Any:
        chain = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
        self._llama.llama_sampler_chain_add(chain, self._llama.llama_sampler_init_top_k(10))
        return chain

    def _decode(self, tokens: Any, rows: Any, begin: int, *, output: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), begin + i, 1, SEQ
            batch.logits[i] = output
        batch.embd = rows.ctypes.data_as(type(batch.embd))
        code = self._llama.llama_decode(self._ctx, batch)
        batch.embd = None
        assert code == 0, code

    def run(self, verified: Any, n_kept: int, pending: int, levels: int, n_past: int) -> None:
        n_embd = self._bench.n_embd
        target = np.ctypeslib.as_array(self._embeddings(self._bench.target), shape=(len(verified), n_embd))
        self._bench.set_few_cols(False)
        begin = perf_counter()
        self._decode(verified, np.concatenate([self._pending[None], target[:-1]]), n_past, output=False)
        self._llama.llama_synchronize(self._ctx)
        self._pending = target[n_kept - 1].copy()
        self._llama.llama_memory_seq_rm(self._memory, SEQ, n_past + n_kept, -1)
        token, hidden = pending, self._pending
        for level in range(levels):
            self._decode([token], np.ascontiguousarray(hidden[None]), n_past + n_kept + level, output=True)
            token = self._llama.llama_sampler_sample(self._chain, self._ctx, 0)
            hidden = np.ctypeslib.as_array(self._embeddings(self._ctx), shape=(1, n_embd))[0].copy()
        self.seconds.append(perf_counter() - begin)
        self._bench.set_few_cols(True)
        # where the graph does not take the best tokens, nothing says so but this
        assert bool(self._llama.llama_get_sampled_logits_ith(self._ctx, 0)) == bool(self._in_graph)
        self._llama.llama_memory_seq_rm(self._memory, SEQ, n_past + n_kept, -1)

    def close(self) -> None:
        self._llama.llama_set_sampler(self._ctx, SEQ, None)
        self._llama.llama_sampler_free(self._in_graph)
        self._llama.llama_sampler_free(self._chain)
        self._llama.llama_batch_free(self._batch)
        self._llama.llama_free(self._ctx)


class Ours:
    def __init__(self, bench: Bench, n_draft_vocab: int = 0, head_type: str = "", looks: bool = False) -> None:
        self._least = _NEVER if looks else -math.inf
        self._bench, self._api = bench, bench.api
        self._ctx = bench.mtp_context()
        n = self._api.mtp_set_vocab(self._ctx, n_draft_vocab)
        self.name = " ".join(["ours", *[str(n)] * bool(n_draft_vocab), *[head_type] * bool(head_type), *["looking"] * looks])
        if n < 0:
            sys.exit(f"--vocab {n_draft_vocab}: the model cannot draft from a part of its vocabulary (code {n})")
        if head_type and self._api.mtp_set_head_type(self._ctx, GGMLQuantizationType[head_type]) != native.OK:
            sys.exit(f"--head-type {head_type}: the head's rows cannot be had in a smaller type of that name")
        self._has_drafted = False
        self.seconds: list[float] = []

    def run(self, verified: Any, n_kept: int, pending: int, levels: int, n_past: int) -> None:
        # the first of the verified tokens was fed by the draft before, if there was one
        tokens = np.array([*verified[int(self._has_drafted) : n_kept], pending], dtype=np.int32)
        rows = np.arange(n_kept - len(tokens), n_kept, dtype=np.int32)
        parents = np.arange(-1, levels, dtype=np.int32)
        ranks = np.zeros(levels + 1, np.int32)
        drafted, logp = np.zeros(levels + 1, np.int32), np.zeros(levels + 1, np.float32)
        begin = perf_counter()
        code = self._api.mtp_push(self._ctx, self._bench.target, SEQ, len(tokens), tokens.ctypes.data, rows.ctypes.data)
        shape = levels + 1, parents.ctypes.data, ranks.ctypes.data, self._least
        code = code or self._api.mtp_draft(self._ctx, SEQ, *shape, drafted.ctypes.data, logp.ctypes.data, None, None)
        self.seconds.append(perf_counter() - begin)
        assert code == 0, code
        self._has_drafted = True

    def close(self) -> None:
        self._bench.llama.llama_free(self._ctx)


def measure(bench: Bench, arms: list[Any], levels: int, n_kept: int, repeats: int) -> dict[str, Any]:
    memory = bench.llama.llama_get_memory(bench.target)
    pending = int(bench.tokens(1)[0])
    for arm in arms:
        arm.seconds.clear()
    for i in range(repeats + 2):
        n_past = int(bench.llama.llama_memory_seq_pos_max(memory, SEQ)) + 1
        verified = np.concatenate([[pending], bench.tokens(levels)]).astype(np.int32)
        bench.verify(verified, n_kept)
        pending = int(bench.tokens(1)[0])
        for arm in arms if i % 2 == 0 else arms[::-1]:
            arm.run(verified, n_kept, pending, levels, n_past)

    def ratio(arm: Any, stock: Any) -> float:
        return statistics.median(a / b for a, b in zip(arm.seconds[2:], stock.seconds[2:], strict=True))

    return {
        arm.name: {
            "ms": statistics.median(arm.seconds[2:]) * 1e3,
            "ratio": ratio(arm, arms[0]),
            "ratio_backend": ratio(arm, arms[1]),
        }
        for arm in arms
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--vocab", type=int, nargs="*", default=[], help="multiples of 64")
    parser.add_argument("--head-type", choices=[kind.name for kind in GGMLQuantizationType], nargs="*", default=[])
    parser.add_argument(
        "--looks", action="store_true", help="also with a look behind each level whether to go on, which always says yes"
    )
    parser.add_argument("--accepted", type=int, default=1, help="drafted tokens that are kept in each step (default: 1)")
    parser.add_argument("--repeats", type=positive, default=20)
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()
    if any(n <= 0 or n % native.VOCAB_STEP for n in options.vocab):
        parser.error(f"--vocab takes multiples of {native.VOCAB_STEP}")
    if min(options.levels) < max(1, options.accepted):
        parser.error("--levels begin at 1, and no more than a draft can be --accepted")

    n_ctx = 512 + len(options.levels) * (options.repeats + 3) * (options.accepted + 1) + 2 * max(options.levels)
    bench = Bench(options.model, options.threads, n_ctx, max(options.levels))
    arms: list[Any] = [Stock(bench, backend=False), Stock(bench, backend=True)]
    arms += [
        Ours(bench, n, head_type, looks)
        for n in (0, *options.vocab)
        for head_type in ("", *options.head_type)
        for looks in (False, *[True] * options.looks)
    ]
    print(f"{options.model.name}, {options.threads} threads: ms of drafting per step (ratio to stock, to stock backend)")
    report: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "accepted": options.accepted, "levels": {}}
    for levels in options.levels:
        row = measure(bench, arms, levels, options.accepted + 1, options.repeats)
        report["levels"][levels] = row
        print(
            f"{levels:3d}"
            + "".join(f"   {name} {c['ms']:8.3f} ({c['ratio']:.3f}, {c['ratio_backend']:.3f})" for name, c in row.items()),
            flush=True,
        )
    for arm in arms:
        arm.close()
    print(json.dumps(report))


if __name__ == "__main__":
    run(main)
