#!/usr/bin/env python3
"""Policies against each other and against plain decoding, on each workload: real decoding, the arms taking turns at every prompt.

One session serves all arms, so that they differ in nothing else; policies that learn keep what they learnt from one prompt to the
next. `off` here verifies the pending token alone, in the same session. The last line is one JSON object. All arms of a run accept
by one rule: figures of typical acceptance, which changes the text's distribution, do not belong beside those of strict.

    .venv/bin/python scripts/bench_policies.py [MODEL] [--policies off chain:3 throughput] [--temp 0.8] [--acceptance typical]
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
from entmtp_local.native.session import Session, SessionOptions, physical_cores  # noqa: E402
from entmtp_local.speculative.cost import SIZES, CostTable  # noqa: E402
from entmtp_local.speculative.policy import parse_policy  # noqa: E402
from entmtp_local.speculative.profile import Profile  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from entmtp_local.speculative.verify import ACCEPTANCES, STRICT, parse_acceptance  # noqa: E402
from scripts.reference.arms import N_CTX, answer, n_tokens, per_step, prompts_of, speed, turned  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--policies", nargs="+", default=["off", "chain:1", "chain:2", "chain:3", "chain:4", "throughput"])
    parser.add_argument("--prompts", type=positive, default=8, help="of each workload")
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--acceptance", choices=ACCEPTANCES, default=STRICT.name)
    parser.add_argument("-n", type=positive, default=128, help="tokens of each answer, at most")
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()

    rule = parse_acceptance(options.acceptance, SamplingOptions(temp=options.temp))
    policies = {name: parse_policy(name) for name in options.policies}
    settings = SessionOptions(
        options.model,
        n_ctx=N_CTX,
        n_threads=options.threads,
        max_depth=max(policy.max_depth for policy in policies.values()),
        max_nodes=max(policy.max_nodes for policy in policies.values()),
    )
    report: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "temp": options.temp}
    report |= {"acceptance": rule.name, "lossless": rule.lossless, "workloads": {}}
    if not rule.lossless:
        print(f"{rule.name} acceptance: the output distribution is changed; not to be compared with strict acceptance")
    with Session.open(settings) as session:
        costs = session.verification_seconds(SIZES)
        report["verify_ms"] = {size: round(1e3 * seconds, 3) for size, seconds in costs.items()}
        print(f"{options.model.name}: ms of verifying: " + ", ".join(f"{n} {ms:.1f}" for n, ms in report["verify_ms"].items()))
        print("tokens/s, ratio to the first policy, tokens per step, nodes per step, share of steps that draft nothing")
        for workload, prompts in prompts_of(session, options.model, options.prompts).items():
            # a user's session is about one thing: what is learnt begins anew with each workload
            policies = {name: parse_policy(name).within(session.limits) for name in options.policies}
            for policy in policies.values():
                if policy.needs_profile:
                    policy.calibrated(Profile(CostTable(costs)))
            stats: dict[str, list[Stats]] = {name: [] for name in policies}
            for i, ids in enumerate(prompts):
                for name in turned(list(policies), i):
                    sampling = SamplingOptions(temp=options.temp, seed=i)
                    stats[name].append(answer(session, ids, policies[name], sampling, options.n, rule=rule))
            rows: dict[str, dict[str, float]] = {}
            for name, some in stats.items():
                rows[name] = {
                    "tokens_per_second": speed(some),
                    "tokens_per_step": per_step(some, n_tokens(some)),
                    "nodes_per_step": per_step(some, sum(s.n_nodes for s in some)),
                    "plain_share": per_step(some, sum(s.n_plain_steps for s in some)),
                    "schedule_ms": 1e3 * per_step(some, sum(s.seconds["schedule"] for s in some)),
                }
                rows[name]["ratio"] = rows[name]["tokens_per_second"] / rows[options.policies[0]]["tokens_per_second"]
                row = rows[name]
                print(
                    f"{workload:6s} {name:12s} {row['tokens_per_second']:8.2f}  {row['ratio']:.3f}  "
                    f"{row['tokens_per_step']:.3f}  {row['nodes_per_step']:5.2f}  {row['plain_share']:.2f}",
                    flush=True,
                )
            report["workloads"][workload] = rows
    print(json.dumps(report))


if __name__ == "__main__":
    run(main)
