#!/usr/bin/env python3
"""What verifying a tree costs: ms per pass for 1 to 16 nodes, against llama.cpp's ordinary batch of as many tokens.

Arms, in turn, one pass each, every row an output:

    batch    llama_decode, no rollback: n_rs_seq = 0
    slots    llama_decode with a state stored per token, n_rs_seq = N - 1 (recurrent models only)
    chain    a chain of N nodes, the last one committed
    tree     a branching tree of N nodes, its deepest one committed

A commit is timed by itself; what it leaves to the next pass is part of that pass. Contexts grow by what is committed. The last
line is one JSON object.

    .venv/bin/python scripts/bench_tree_engine.py [MODEL] [--context 256 8192] [--sizes 1 2 3 4 6 8 12 16]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.native import api as native  # noqa: E402
from entmtp_local.native import library  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.log import LogCapture  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402

MAX_SIZE = 16
SEQ = 0


def branching(n: int) -> list[int]:
    """Breadth first: the root, then two or three children for the first node of each level, one for the second."""
    parents, level = [-1], [0]
    while len(parents) < n:
        wanted = [level[0]] * 3 + level[1:2]
        begin = len(parents)
        parents += wanted[: n - begin]
        level = list(range(begin, len(parents)))
    return parents


def deepest(parents: Sequence[int]) -> int:
    return len(parents) - 1


class Arm:
    """One context and one way to compute N tokens on it."""

    def __init__(self, bench: Bench, name: str, n: int, state: Any, **params: Any) -> None:
        self.name, self.n, self._bench = name, n, bench
        self.ctx = bench.context(**params)
        bench.restore(self.ctx, state)
        parents = list(range(-1, n - 1)) if name == "chain" else branching(n)
        self._parents = np.array(parents, dtype=np.int32)
        self._node = deepest(parents)
        if name in ("chain", "tree"):
            assert bench.api.reserve(self.ctx, MAX_SIZE) == native.OK
        self.passes: list[float] = []
        self.commits: list[float] = []

    def run(self, tokens: Any) -> None:
        bench = self._bench
        begin = perf_counter()
        if self.name in ("batch", "slots"):
            bench.decode(self.ctx, tokens)
            bench.llama.llama_synchronize(self.ctx)
        else:
            code = bench.api.decode(self.ctx, SEQ, self.n, tokens.ctypes.data, self._parents.ctypes.data, None)
            assert code == 0, code
        middle = perf_counter()
        if self.name in ("chain", "tree"):
            assert bench.api.commit(self.ctx, SEQ, self._node) == 0
        end = perf_counter()
        self.passes.append(middle - begin)
        self.commits.append(end - middle)

    def close(self) -> None:
        self._bench.llama.llama_free(self.ctx)


class Bench:
    def __init__(self, path: Path, n_threads: int, n_ctx: int) -> None:
        self.llama: Any = library.load()
        self.api = library.api()
        self._log = LogCapture(self.llama, verbose=False)
        self.llama.llama_backend_init()
        params = self.llama.llama_model_default_params()
        params.load_mtp = False
        self.model = self.llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}: {self._log.last_error()}")
        self.recurrent = bool(self.api.recurrent_trees(self.model))
        self._n_threads, self._n_ctx = n_threads, n_ctx
        self._n_vocab = self.llama.llama_vocab_n_tokens(self.llama.llama_model_get_vocab(self.model))
        self._batch = self.llama.llama_batch_init(512, 0, 1)
        self._rng = np.random.default_rng(1)

    def context(self, **values: Any) -> Any:
        params = self.llama.llama_context_default_params()
        common = {"n_ctx": self._n_ctx, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": MAX_SIZE}
        for name, value in (common | {"n_threads": self._n_threads, "n_threads_batch": self._n_threads} | values).items():
            setattr(params, name, value)
        ctx = self.llama.llama_init_from_model(self.model, params)
        if not ctx:
            sys.exit(f"llama.cpp cannot create a context: {self._log.last_error()}")
        return ctx

    def tokens(self, n: int) -> Any:
        return self._rng.integers(0, self._n_vocab - 300, n).astype(np.int32)

    def decode(self, ctx: Any, tokens: Any, *, outputs: bool = True) -> None:
        batch = self._batch
        begin = int(self.llama.llama_memory_seq_pos_max(self.llama.llama_get_memory(ctx), SEQ)) + 1
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, begin + i, 1, SEQ
            batch.logits[i] = outputs
        assert self.llama.llama_decode(ctx, batch) == 0

    def filled(self, n: int) -> Any:
        """The saved state of a context that holds n tokens."""
        ctx = self.context()
        for begin in range(0, n, 512):
            self.decode(ctx, self.tokens(min(512, n - begin)), outputs=False)
        size = self.llama.llama_state_seq_get_size(ctx, SEQ)
        state = (ctypes.c_uint8 * size)()
        assert self.llama.llama_state_seq_get_data(ctx, state, size, SEQ) == size
        self.llama.llama_free(ctx)
        return state

    def restore(self, ctx: Any, state: Any) -> None:
        assert self.llama.llama_state_seq_set_data(ctx, state, len(state), SEQ) == len(state)

    def measure(self, n: int, state: Any, repeats: int) -> dict[str, Any]:
        arms = [Arm(self, name, n, state) for name in ("batch", "chain", "tree")]
        if self.recurrent:
            arms.append(Arm(self, "slots", n, state, n_rs_seq=n - 1))
        for i in range(repeats + 2):
            tokens = self.tokens(n)
            for arm in arms if i % 2 == 0 else arms[::-1]:
                arm.run(tokens)
        batch = arms[0].passes[2:]
        row: dict[str, Any] = {"n": n}
        for arm in arms:
            passes = arm.passes[2:]
            row[arm.name] = {
                "ms": statistics.median(passes) * 1e3,
                "ratio": statistics.median(a / b for a, b in zip(passes, batch, strict=True)),
                "commit_ms": statistics.median(arm.commits[2:]) * 1e3,
            }
            arm.close()
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--context", type=int, nargs="+", default=[256, 8192])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16])
    parser.add_argument("--repeats", type=positive, default=30)
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()
    if max(options.sizes) > MAX_SIZE or min(options.sizes) < 1:
        parser.error(f"--sizes go from 1 to {MAX_SIZE}")

    report: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "contexts": {}}
    for n_context in options.context:
        n_ctx = n_context + (options.repeats + 4) * MAX_SIZE + 64
        bench = Bench(options.model, options.threads, n_ctx)
        state = bench.filled(n_context)
        print(f"\n{options.model.name}, context {n_context}, {options.threads} threads: ms per pass (ratio to batch)")
        rows = []
        for n in options.sizes:
            row = bench.measure(n, state, options.repeats)
            rows.append(row)
            cells = "".join(
                f"   {name} {row[name]['ms']:8.3f} ({row[name]['ratio']:.3f})"
                for name in ("batch", "chain", "tree", "slots")
                if name in row
            )
            print(f"{n:3d}{cells}   commit {row['tree']['commit_ms']:.4f}", flush=True)
        report["contexts"][n_context] = rows
    print(json.dumps(report))


if __name__ == "__main__":
    run(main)
