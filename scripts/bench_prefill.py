#!/usr/bin/env python3
"""What a prompt costs where tokens will be drafted: seconds to read it and to the first drafted step, beside plain decoding.

Two sessions on the same model, one that decodes plainly and one with a policy, read the same text in turn, the order alternating.
What the MTP block would take if it were computed in full is its share of the weights that a prompt is multiplied with. The last
line is one JSON object.

    .venv/bin/python scripts/bench_prefill.py [MODEL] [--policy chain:3] [--tokens 512 2048] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.engine import generate  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.model_file import read_model  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions  # noqa: E402
from entmtp_local.speculative.policy import parse_policy  # noqa: E402
from entmtp_local.speculative.protocol import Policy  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from entmtp_local.speculative.static import OFF  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402


def read(session: Session, ids: list[int], policy: Policy) -> tuple[float, float]:
    """Seconds of the prompt's passes, and until the first step behind the prompt's own token is done."""
    session.clear()
    with session.new_sampler(SamplingOptions(temp=0)) as sampler:
        begin = perf_counter()
        generation = generate(session, ids, policy=policy, sampler=sampler, max_tokens=64)
        steps = iter(generation)
        next(steps)
        next(steps, None)
        return generation.stats.seconds["prefill"], perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--policy", default="chain:3")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1536])
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()

    policy = parse_policy(options.policy)
    weights = read_model(options.model).pass_bytes
    head = weights.row * read_model(options.model).n_vocab
    # the output matrix is multiplied with the prompt's last token alone
    own = weights.level / (weights.target - head)
    shared = {"n_ctx": max(options.tokens) + 128, "n_threads": options.threads}
    report: dict[str, Any] = {"model": options.model.name, "policy": policy.name, "mtp_share": own, "tokens": {}}
    with (
        Session.open(SessionOptions(options.model, **shared)) as plain,
        Session.open(SessionOptions(options.model, max_depth=policy.max_depth, max_nodes=policy.max_nodes, **shared)) as drafting,
    ):
        text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "LOG.md").read_text()
        ids = plain.tokenize(text, add_special=True, parse_special=False)
        print(f"{options.model.name}: the MTP block in full would make a prompt {100 * own:.1f} % dearer")
        for n in options.tokens:
            prefill: dict[str, list[float]] = {"plain": [], "drafting": []}
            first: dict[str, list[float]] = {"plain": [], "drafting": []}
            for i in range(options.repeats + 1):
                arms = [("plain", plain, OFF), ("drafting", drafting, policy)]
                for name, session, its_policy in arms if i % 2 else arms[::-1]:
                    seconds, until_first = read(session, ids[:n], its_policy)
                    if i > 0:
                        prefill[name].append(seconds)
                        first[name].append(until_first)
            ratios = [b / a for a, b in zip(prefill["plain"], prefill["drafting"], strict=True)]
            first_ratios = [b / a for a, b in zip(first["plain"], first["drafting"], strict=True)]
            row = {
                "plain_tokens_per_second": n / statistics.median(prefill["plain"]),
                "prefill_ratio": statistics.median(ratios),
                "first_step_ms": {name: 1e3 * statistics.median(values) for name, values in first.items()},
                "first_step_ratio": statistics.median(first_ratios),
            }
            report["tokens"][n] = row
            print(
                f"{n:6d} tokens, {row['plain_tokens_per_second']:.0f} a second plain; drafting {row['prefill_ratio']:.3f} of "
                f"plain; first step after {row['first_step_ms']['drafting']:.1f} ms ({row['first_step_ratio']:.3f} of plain)",
                flush=True,
            )
    print(json.dumps(report))


if __name__ == "__main__":
    run(main)
