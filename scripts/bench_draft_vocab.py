#!/usr/bin/env python3
"""What a smaller draft vocabulary costs in accepted tokens, and what it gains in speed, on each workload.

Every prompt is continued once with each size, in turn, sampling the same tokens; the sizes begin at another place each time. Only
models with a real tokenizer's order of ids say something: scripts/widen_model.py spreads a small model's tokens accordingly. The
last line is one JSON object.

    .venv/bin/python scripts/bench_draft_vocab.py MODEL [--sizes 4096 8192 16384 32768 65536] [--depth 3] [--prompts 8] [-n 96]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.engine import Stats  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions  # noqa: E402
from entmtp_local.speculative.draft_vocab import DRAFT_HEAD_TYPES, SAME  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from entmtp_local.speculative.static import chain  # noqa: E402
from scripts.reference.arms import N_CTX, answer, n_tokens, per_step, prompts_of, speed, turned  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402


def name_of(size: int | None) -> str:
    return {0: "full", None: "auto"}.get(size, f"{size}")


def measure(session: Session, prompts: list[list[int]], sizes: list[int | None], options: Any) -> dict[str, Any]:
    """Sums over the prompts of one workload, and the ratio of their speed to that of the whole vocabulary, by size."""
    policy = chain(options.depth)
    stats: dict[int | None, list[Stats]] = {size: [] for size in sizes}
    for i, ids in enumerate(prompts):
        for size in turned(sizes, i):
            session.set_draft_vocab(size)
            sampling = SamplingOptions(temp=options.temp, seed=i)
            stats[size].append(answer(session, ids, policy, sampling, options.n))
    result = {}
    for size in sizes:
        mine, whole = stats[size], stats[0]
        result[name_of(size)] = {
            "tokens_per_step": per_step(mine, n_tokens(mine)),
            "acceptance": sum(sum(s.accepted_per_depth) for s in mine) / max(1, sum(s.n_nodes for s in mine)),
            "draft_ms": 1e3 * per_step(mine, sum(s.seconds["draft"] for s in mine)),
            "verify_ms": 1e3 * per_step(mine, sum(s.seconds["verify"] for s in mine)),
            "speed_ratio": speed(mine) / speed(whole),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--head-type", choices=(SAME, *DRAFT_HEAD_TYPES), help="of the rows that drafts read (default: auto)")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--prompts", type=positive, default=8, help="of each workload")
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("-n", type=positive, default=96, help="tokens of each answer, at most")
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()

    settings = SessionOptions(
        options.model,
        n_ctx=N_CTX,
        n_threads=options.threads,
        max_depth=options.depth,
        max_nodes=options.depth,
        draft_vocab=0,
        draft_head_type=options.head_type,
    )
    report: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "depth": options.depth, "workloads": {}}
    with Session.open(settings) as session:
        sizes: list[int | None] = [0, *(size for size in options.sizes if size < session.n_vocab), None]
        report["head_type"] = session.draft_head_type
        print(f"{options.model.name}: tokens per step, acceptance, ms of drafting a step, speed over the whole vocabulary")
        for workload, prompts in prompts_of(session, options.model, options.prompts).items():
            rows = measure(session, prompts, sizes, options)
            report["workloads"][workload] = rows
            for name, row in rows.items():
                print(
                    f"{workload:6s} {name:>7s}  {row['tokens_per_step']:.3f}  {row['acceptance']:.3f}  {row['draft_ms']:7.2f}  "
                    f"{row['speed_ratio']:.3f}",
                    flush=True,
                )
    print(json.dumps(report))


if __name__ == "__main__":
    run(main)
