#!/usr/bin/env python3
"""Where the time of a decoding step goes: by part of the step, by engine call, and Python's own share.

Every call into the engine is timed at its boundary; what is left of a step is Python. The last line is one JSON object.

    .venv/bin/python scripts/profile_step.py [MODEL] --policy chain:3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.engine import generate  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions  # noqa: E402
from entmtp_local.speculative.policy import parse_policy  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402

PARTS = ("schedule", "draft", "verify", "accept", "commit")
CALLS = ("decode", "commit", "greedy", "mtp_push", "mtp_draft")


class CallTimer:
    """Durations of each engine function's calls, in seconds."""

    def __init__(self, session: Session) -> None:
        self.durations: dict[str, list[float]] = {}
        for name in CALLS:
            setattr(session._api, name, self._timed(name, getattr(session._api, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # As little as possible: what the timer itself takes counts as Python's.
        note = self.durations.setdefault(name, []).append

        def call(*arguments: Any) -> Any:
            begin = perf_counter()
            result = function(*arguments)
            note(perf_counter() - begin)
            return result

        return call

    def timed_sampler(self, sampler: Any) -> Any:
        if not sampler.greedy:
            sampler.sample = self._timed("sample", sampler.sample)
        return sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--policy", default="chain:3")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("-n", type=positive, default=256)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--prompt", default="def main():\n    parser = argparse.ArgumentParser(")
    options = parser.parse_args()

    policy = parse_policy(options.policy)
    session_options = SessionOptions(
        options.model, n_ctx=2048, n_threads=options.threads, max_depth=policy.max_depth, max_nodes=policy.max_nodes
    )
    with Session.open(session_options) as session, session.new_sampler(SamplingOptions(temp=options.temp, seed=1)) as sampler:
        prompt = session.tokenize(options.prompt, add_special=True, parse_special=True)
        for _ in generate(session, prompt, policy=policy, sampler=sampler, max_tokens=32):
            pass  # warm-up: graphs built, pages touched
        session.clear()
        timer = CallTimer(session)
        generation = generate(session, prompt, policy=policy, sampler=timer.timed_sampler(sampler), max_tokens=options.n)
        for _ in generation:
            pass
        stats = generation.stats

    n = max(1, stats.n_steps)
    decode = stats.seconds["decode"]
    calls = {name: (len(durations) / n, sum(durations)) for name, durations in timer.durations.items() if durations}
    native = sum(seconds for _, seconds in calls.values())
    print(
        f"{options.model.name}, {generation.policy.name}, {options.threads} threads: {stats.tokens_per_second:.1f} t/s, "
        f"{stats.tokens_per_step:.2f} tokens per step, {decode / n * 1e3:.3f} ms per step"
    )
    print("\npart        ms/step   share")
    for part in PARTS:
        print(f"{part:10s} {stats.seconds[part] / n * 1e3:8.3f} {stats.seconds[part] / decode:8.1%}")
    print("\nengine call  calls/step  ms/step   share")
    for name, (count, seconds) in sorted(calls.items(), key=lambda item: -item[1][1]):
        print(f"{name:12s} {count:10.2f} {seconds / n * 1e3:8.3f} {seconds / decode:8.1%}")
    print(f"{'Python':12s} {'':10s} {(decode - native) / n * 1e3:8.3f} {(decode - native) / decode:8.1%}")
    print(
        json.dumps(
            {
                "model": options.model.name,
                "policy": generation.policy.name,
                "ms_per_step": decode / n * 1e3,
                "python_ms_per_step": (decode - native) / n * 1e3,
                "python_share": (decode - native) / decode,
                "parts_ms": {part: stats.seconds[part] / n * 1e3 for part in PARTS},
                "calls_ms": {name: seconds / n * 1e3 for name, (_, seconds) in calls.items()},
            }
        )
    )


if __name__ == "__main__":
    run(main)
