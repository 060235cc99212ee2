#!/usr/bin/env python3
"""What drafting by copying gains and costs: the same prompts with and without it, in turn.

Beside the four workloads, whose texts hardly repeat, there is `quote`: text of the prompt that is written again, as a model does
that edits code or quotes a document. It is not sampled but given, so that models too small to quote can be measured, too. Both
answers to a prompt are sampled with the same seed. The last line is one JSON object.

    .venv/bin/python scripts/bench_copying.py [MODEL] [--policy chain:3] [--prompts 8] [-n 96] [--draft-vocab 8192]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.bench import workloads  # noqa: E402
from entmtp_local.engine import Stats  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions  # noqa: E402
from entmtp_local.speculative.copying import MAX_COPIED, CopyDrafter  # noqa: E402
from entmtp_local.speculative.policy import parse_policy  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from scripts.reference.arms import N_CTX, answer, n_tokens, per_step, prompts_of, speed  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402


def quotes(n: int) -> list[tuple[str, str]]:
    """Prompts with a text that is to be written again, and that text: some lines of the prompts of `code`."""
    found = []
    for prompt in workloads.load("code"):
        text = (prompt.text or "")[:500]
        found.append((f"A file:\n\n{text}\n\nThe same file again:\n\n", text))
    return found[:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--policy", default="chain:3")
    parser.add_argument("--prompts", type=positive, default=8, help="of each workload")
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("-n", type=positive, default=96, help="tokens of each answer, at most")
    parser.add_argument("--draft-vocab", type=int, help="default: as the text needs; 0 = the whole vocabulary")
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()

    policy = parse_policy(options.policy)
    settings = SessionOptions(
        options.model,
        n_ctx=N_CTX,
        n_threads=options.threads,
        max_depth=policy.max_depth,
        max_nodes=policy.max_nodes,
        max_copied=MAX_COPIED,
        draft_vocab=options.draft_vocab,
    )
    report: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "policy": policy.name, "workloads": {}}
    with Session.open(settings) as session:
        jobs: dict[str, list[tuple[list[int], list[int] | None]]] = {
            workload: [(ids, None) for ids in prompts]
            for workload, prompts in prompts_of(session, options.model, options.prompts).items()
        }
        jobs["quote"] = [
            (
                session.tokenize(prompt, add_special=True, parse_special=False),
                session.tokenize(text, add_special=False, parse_special=False),
            )
            for prompt, text in quotes(options.prompts)
        ]
        print(f"{options.model.name}, {policy.name}: tokens per step without and with copies, copied nodes kept, ratio of speeds")
        for workload, prompts in jobs.items():
            stats: dict[bool, list[Stats]] = {False: [], True: []}
            for i, (ids, given) in enumerate(prompts):
                text = None if given is None else given[: options.n]
                for copying in (False, True) if i % 2 else (True, False):
                    sampling = SamplingOptions(temp=options.temp, seed=i)
                    copies = CopyDrafter() if copying else None
                    stats[copying].append(answer(session, ids, policy, sampling, options.n, copies=copies, text=text))
            row = summary(stats)
            report["workloads"][workload] = row
            print(
                f"{workload:6s} {row['tokens_per_step'][0]:.3f} {row['tokens_per_step'][1]:.3f}  {row['copied_kept']:.3f} of "
                f"{row['copied']:5d}  {row['speed_ratio']:.3f}",
                flush=True,
            )
    print(json.dumps(report))


def summary(stats: dict[bool, list[Stats]]) -> dict[str, Any]:
    without, with_copies = stats[False], stats[True]
    copied = sum(s.n_copied for s in with_copies)
    return {
        "tokens_per_step": [per_step(some, n_tokens(some)) for some in (without, with_copies)],
        "copied": copied,
        "copied_kept": sum(s.copied_hits for s in with_copies) / max(1, copied),
        "speed_ratio": speed(with_copies) / speed(without),
    }


if __name__ == "__main__":
    run(main)
