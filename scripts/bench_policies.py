#!/usr/bin/env python3
"""Policies against each other and against plain decoding, on each workload: real decoding, the arms taking turns at every prompt.

One session serves all arms, so that they differ in nothing else; policies that learn keep what they learnt from one prompt to the
next. `off` here verifies the pending token alone, in the same session. All arms decode the very text that plain decoding sampled:
two texts of one prompt differ in how well they are drafted by more than policies do, and a tie of two logits is enough to make
them differ. Typical acceptance, which changes the text's distribution, lets each arm write its own, and its figures do not belong
beside those of strict. The last line is one JSON object.

The best static arm in hindsight is the best of several that noise makes faster or slower by some per cent, which flatters it. So
the summary has, beside the ratio to it, the interval of that ratio for texts drawn anew, and the ratio to what would have been
chosen for each text by all the others.

Texts of plain decoding that fall into a loop, which any draft head predicts, are passed over, as `entmtp-local bench` leaves them
out: the prompts behind take their places while there are some that calibration does not take.

A text takes longer in one second than in the next. --rounds has every workload decoded several times, in each of which policies
begin anew; what a text takes is the sum.

In a policy's name TASK stands for each workload. Calibration takes the last prompts of a workload, this script the first ones.

    .venv/bin/python scripts/bench_policies.py [MODEL] [--policies off chain:3 entmtp:TASK throughput] [--temp 0.8]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.bench import workloads  # noqa: E402
from entmtp_local.bench.repetition import find_loop  # noqa: E402
from entmtp_local.bench.statistics import N_DRAWS, SEED, FloatArray  # noqa: E402
from entmtp_local.calibration.calibrate import FULL, QUICK, calibrate, key_of  # noqa: E402
from entmtp_local.calibration.prompts import calibration_prompts, prompt_tokens  # noqa: E402
from entmtp_local.chat.model_template import template_of  # noqa: E402
from entmtp_local.engine import Stats  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.model_file import read_model  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions  # noqa: E402
from entmtp_local.native.timing import warm_up  # noqa: E402
from entmtp_local.speculative.policy import drafted_by, parse_policy, sizes_of  # noqa: E402
from entmtp_local.speculative.profile import ALL, Profile  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from entmtp_local.speculative.verify import ACCEPTANCES, STRICT, parse_acceptance  # noqa: E402
from scripts.reference.arms import N_CTX, answer, n_tokens, per_step, plain_text, prompts_of, speed, turned  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402

Texts = dict[str, dict[str, FloatArray]]  # by workload and arm (n_texts, 2): tokens and seconds of each text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--policies", nargs="+", default=["off", "chain:1", "chain:2", "chain:3", "chain:4", "throughput"])
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="of `entmtp-local calibrate --out FILE`; default: a quick one"
    )
    parser.add_argument("--prompts", type=positive, default=8, help="of each workload")
    parser.add_argument("--rounds", type=positive, default=1, help="in each of which policies begin anew")
    parser.add_argument("--tasks", nargs="+", choices=workloads.NAMES, default=workloads.NAMES, help="default: all workloads")
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--acceptance", choices=ACCEPTANCES, default=STRICT.name)
    parser.add_argument("-n", type=positive, default=128, help="tokens of each answer, at most")
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()

    rule = parse_acceptance(options.acceptance, SamplingOptions(temp=options.temp))
    policies = {name: parse_policy(name.replace("TASK", ALL)) for name in options.policies}
    settings = SessionOptions(
        options.model,
        n_ctx=N_CTX,
        n_threads=options.threads,
        max_depth=max(policy.max_depth for policy in policies.values()),
        max_nodes=max(policy.max_nodes for policy in policies.values()),
    )
    report: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "temp": options.temp}
    report |= {
        "n": options.n,
        "prompts": options.prompts,
        "rounds": options.rounds,
        "text": "of plain decoding" if rule.lossless else "each its own",
    }
    report |= {"acceptance": rule.name, "lossless": rule.lossless, "n_texts": {}, "n_loops": {}, "workloads": {}}
    if not rule.lossless:
        print(f"{rule.name} acceptance: the output distribution is changed; not to be compared with strict acceptance")
    texts: Texts = {}
    with Session.open(settings) as session:
        profile = profile_of(session, settings, options.profile, options.temp)
        if profile.head is not None:
            session.adopt_draft_head(profile.head)
        if session.draft_vocab_sizes:
            # all arms draft from one copy of rows: it would grow while one of them is timed, by a part of a second
            session.set_draft_vocab(session.draft_vocab_sizes[-1])
            session.set_draft_vocab(None)
        report |= {"device": session.device, "engine": session.engine_info, "quick_profile": profile.quick}
        report["verify_ms"] = {size: round(1e3 * seconds, 3) for size, seconds in profile.costs.verify.items()}
        print(f"{options.model.name}: ms of verifying: " + ", ".join(f"{n} {ms:.1f}" for n, ms in report["verify_ms"].items()))
        print("tokens/s, ratio to the first policy, tokens per step, nodes per step, share of steps that draft nothing")
        for workload, prompts in prompts_of(session, options.model, -FULL.n_prompts).items():
            if workload not in options.tasks:
                continue
            chosen: list[tuple[list[int], SamplingOptions, list[int] | None]] = []  # prompts, and their texts
            n_loops = 0
            for i, ids in enumerate(prompts):
                if len(chosen) == options.prompts:
                    break
                sampling = SamplingOptions(temp=options.temp, seed=i)
                text = plain_text(session, ids, sampling, options.n) if rule.lossless else None
                if text is not None and find_loop(text):
                    n_loops += 1
                else:
                    chosen.append((ids, sampling, text))
            n_texts = len(chosen)
            if not n_texts:
                print(f"{workload}: all {n_loops} texts loop")
                continue
            report["n_texts"][workload], report["n_loops"][workload] = n_texts, n_loops
            stats: dict[str, list[Stats]] = {name: [] for name in options.policies}
            for round_ in range(options.rounds):
                # a user's session is about one thing: what is learnt begins anew with each workload
                policies = {name: parse_policy(name.replace("TASK", workload)).within(session.limits) for name in stats}
                for policy in policies.values():
                    if policy.needs_profile:
                        policy.calibrated(profile)
                    session.clear()
                    warm_up(session, sizes_of(policy), drafted_by(policy))
                for i, (ids, sampling, text) in enumerate(chosen):
                    for name in turned(list(policies), i + round_):
                        stats[name].append(answer(session, ids, policies[name], sampling, options.n, rule=rule, text=text))
            rows = {name: figures(some) for name, some in stats.items()}
            texts[workload] = {
                name: np.array([(n_tokens(same), sum(s.seconds["decode"] for s in same)) for same in by_text(some, n_texts)])
                for name, some in stats.items()
            }
            for name, row in rows.items():
                row["ratio"] = row["tokens_per_second"] / rows[options.policies[0]]["tokens_per_second"]
                print(
                    f"{workload:6s} {name:24s} {row['tokens_per_second']:8.2f}  {row['ratio']:.3f}  "
                    f"{row['tokens_per_step']:.3f}  {row['nodes_per_step']:5.2f}  {row['plain_share']:.2f}",
                    flush=True,
                )
            report["workloads"][workload] = rows
    report["texts"] = {task: {name: some.round(6).tolist() for name, some in arms.items()} for task, arms in texts.items()}
    print("texts that loop, passed over: " + ", ".join(f"{n} of {task}" for task, n in report["n_loops"].items()))
    report["summary"] = summary(report["workloads"], texts) if texts else {}
    for line, value in report["summary"].items():
        print(f"{line}: {value}")
    print(json.dumps(report))


def profile_of(session: Session, settings: SessionOptions, path: Path | None, temp: float) -> Profile:
    """The profile that was given, or a quick calibration."""
    key = key_of(session, settings)
    if path is not None:
        return Profile.load(path, key)
    template = template_of(read_model(settings.model_path), session)
    prompts = {
        task: [prompt_tokens(session, template, prompt) for prompt in some]
        for task, some in calibration_prompts(workloads.NAMES, QUICK.n_prompts).items()
    }
    return calibrate(session, key, prompts, SamplingOptions(temp=temp), QUICK, lambda *_: None, lambda: False)[0]


def by_text(stats: Sequence[Stats], n_texts: int) -> list[Sequence[Stats]]:
    """Answers of several rounds, those of one text together."""
    return [stats[i::n_texts] for i in range(n_texts)]


def figures(stats: list[Stats]) -> dict[str, float]:
    return {
        "tokens_per_second": speed(stats),
        "tokens_per_step": per_step(stats, n_tokens(stats)),
        "nodes_per_step": per_step(stats, sum(s.n_nodes for s in stats)),
        "plain_share": per_step(stats, sum(s.n_plain_steps for s in stats)),
        "schedule_ms": 1e3 * per_step(stats, sum(s.seconds["schedule"] for s in stats)),
    }


@dataclass(frozen=True, slots=True)
class Hindsight:
    """The static arm that was fastest, and how much faster than it another one was.

    Args:
        best: its name.
        ratio: of the speeds of all texts.
        low, high: between what the ratio to this arm lies for 95 % of draws of as many texts; NaN where there is one text.
        unseen: the ratio of speeds to arms that are chosen for each text, as the fastest of all the others.
    """

    best: str
    ratio: float
    low: float
    high: float
    unseen: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}; {self.best}; {self.unseen:.3f} where other texts choose)"


def in_hindsight(texts: Mapping[str, FloatArray], ours: str, static: Sequence[str]) -> Hindsight:
    """Compare an arm with the fastest static one.

    Args:
        texts: by arm (n_texts, 2): tokens and seconds of each text.
        ours: the arm.
        static: those that might have been chosen.
    """
    # a text that ends with its first token takes no time
    there = np.all([texts[name][:, 1] > 0 for name in (ours, *static)], axis=0)
    texts = {name: texts[name][there] for name in (ours, *static)}
    n = int(there.sum())

    def speed_of(some: FloatArray) -> float:
        return float(some[:, 0].sum() / some[:, 1].sum()) if len(some) else math.nan

    def fastest(but: int) -> str:
        return max(static, key=lambda name: speed_of(np.delete(texts[name], but, axis=0)))

    best = max(static, key=lambda name: speed_of(texts[name]))
    low = high = unseen = math.nan
    if n > 1:
        draws = np.random.default_rng(SEED).integers(0, n, (N_DRAWS, n))
        (our_tokens, our_seconds), (tokens, seconds) = (texts[name][draws].sum(axis=1).T for name in (ours, best))
        low, high = np.percentile(our_tokens / our_seconds * seconds / tokens, (2.5, 97.5)).tolist()
        unseen = speed_of(texts[ours]) / speed_of(np.array([texts[fastest(i)][i] for i in range(n)]))
    return Hindsight(best, speed_of(texts[ours]) / speed_of(texts[best]), low, high, unseen)


def summary(rows: dict[str, dict[str, dict[str, float]]], texts: Texts) -> dict[str, Any]:
    """The throughput policy beside what hindsight would have chosen."""
    names = list(next(iter(rows.values())))
    kinds = {
        "chain": [name for name in names if name.startswith(("off", "chain:"))],
        "tree": [name for name in names if name.startswith(("tree:", "medusa:", "hydra:"))],
    }
    static = [*kinds["chain"], *kinds["tree"]]
    if "throughput" not in names or not static:
        return {}
    found: dict[str, Any] = {}
    for kind, some in kinds.items():
        for workload, arms in texts.items():
            if some:
                found[f"throughput over the best static {kind} for {workload}"] = str(in_hindsight(arms, "throughput", some))

    def mean(name: str) -> float:
        return math.exp(statistics.fmean(math.log(row[name]["ratio"]) for row in rows.values()))

    best = max(static, key=mean)
    found["throughput over plain decoding, geometric mean"] = f"{mean('throughput') / mean(names[0]):.3f}"
    found["throughput over the best single static setting, geometric mean"] = f"{mean('throughput') / mean(best):.3f} ({best})"
    return found


if __name__ == "__main__":
    run(main)
