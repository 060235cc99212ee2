#!/usr/bin/env python3
"""Policies on machines that are not what calibration found: replays of logged texts in which passes take more or less than that.

A replay with a table of costs is a machine whose passes always take what the profile says. Real ones are slower in some
seconds than in others, differ from when they were calibrated, take longer for one pass than for the next, and longest for a draft
behind plain steps. A policy that looks well on a table may give up drafts for that which bring a fifth. Here the real generation
loop runs the texts of a wide log on such machines, some at a time, in several orders and with several seeds, and is compared with
the best of plain decoding and chains of up to five on the same machine. In a policy's name TASK stands for each task. The last
line is one JSON object.

    .venv/bin/python scripts/replay_unsteady.py LOG.npz --profile PROFILE.json [--policies throughput entmtp]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.calibration.replay import ReplayEngine, replay  # noqa: E402
from entmtp_local.calibration.wide_log import WideLog  # noqa: E402
from entmtp_local.errors import UsageError  # noqa: E402
from entmtp_local.speculative.policy import parse_policy  # noqa: E402
from entmtp_local.speculative.profile import Profile  # noqa: E402
from entmtp_local.speculative.tree import DraftTree, TreeShape  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402

CHAINS = ("off", *(f"chain:{n}" for n in range(1, 6)))
_STRETCH = 100  # plain passes in which a machine is as fast as it is
_N_STRETCHES = 4096  # after which it does the same again
_STAYS = 0.8  # of how far it is from its mean in the next stretch
# Of a plain pass: what a draft behind plain steps takes more than others, and for each of those steps.
_CATCH_UP, _CATCH_UP_STEP = 0.1, 0.004


@dataclass(frozen=True, slots=True)
class Machine:
    """What passes take, as times of the profile.

    Args:
        slower: all of them, on average.
        drift: how far the speed wanders, as the standard deviation of its logarithm in each stretch.
        noise: the same of single passes.
        drafts, trees: drafts, and verifying more than one node, beside plain steps.
        n_texts: of a session, in which a policy keeps what it learns.
    """

    slower: float = 1.0
    drift: float = 0.05
    noise: float = 0.05
    drafts: float = 1.0
    trees: float = 1.0
    n_texts: int = 8


MACHINES = {
    "steady": Machine(drift=0.0, noise=0.0),
    "as calibrated": Machine(),
    "slower": Machine(slower=1.15, drift=0.1),
    "faster, restless": Machine(slower=0.87, drift=0.2, noise=0.1),
    "dear drafts": Machine(drafts=1.5, trees=1.1),
    "dear drafts, slower": Machine(slower=1.15, drift=0.1, drafts=1.5, trees=1.1),
    "dear drafts, slower, restless": Machine(slower=1.15, drift=0.2, noise=0.1, drafts=1.5, trees=1.1),
    "dear drafts, two texts": Machine(slower=1.15, drift=0.1, drafts=1.5, trees=1.1, n_texts=2),
    "drafts that hardly pay": Machine(drift=0.1, drafts=2.0, trees=1.6),
}


class Unsteady(ReplayEngine):
    """An engine on such a machine; one seed is the same machine for all policies."""

    def __init__(self, log: WideLog, profile: Profile, machine: Machine, seed: int) -> None:
        super().__init__(log, profile.costs)
        self._machine = machine
        self._plain = profile.costs.verify_seconds(1)
        self._wandering, self._passes = random.Random(2 * seed), random.Random(2 * seed + 1)
        self._speeds = [0.0]  # logarithms, by stretch of the clock
        self._n_plain = 0  # passes since the last draft
        self._drafted = False

    def _times(self) -> float:
        machine, stretch = self._machine, int(self.seconds / (_STRETCH * self._plain)) % _N_STRETCHES
        innovation = machine.drift * math.sqrt(1 - _STAYS**2)
        while len(self._speeds) <= stretch:
            self._speeds.append(_STAYS * self._speeds[-1] + self._wandering.gauss(0, innovation))
        return machine.slower * math.exp(self._speeds[stretch] + self._passes.gauss(0, machine.noise))

    def draft(self, shape: TreeShape, least: float = -math.inf) -> DraftTree:
        begin = self.seconds
        drafted = super().draft(shape, least)
        behind = self._plain * (_CATCH_UP + _CATCH_UP_STEP * self._n_plain) if self._n_plain > 1 else 0.0
        self.seconds = begin + (self._machine.drafts * (self.seconds - begin) + behind) * self._times()
        self._n_plain, self._drafted = 0, True
        return drafted

    def verify(self, tree: DraftTree) -> None:
        begin = self.seconds
        super().verify(tree)
        times = self._machine.trees if tree.shape.n_nodes > 1 else 1.0
        self.seconds = begin + times * (self.seconds - begin) * self._times()
        self._n_plain += not self._drafted
        self._drafted = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="of `entmtp-local calibrate --log FILE`")
    parser.add_argument("--profile", type=Path, required=True, help="of `entmtp-local calibrate --out FILE`")
    parser.add_argument("--policies", nargs="+", default=["throughput"], metavar="NAME", help="default: throughput")
    names = ", ".join(f"'{name}'" for name in MACHINES)
    parser.add_argument(
        "--machines", nargs="+", choices=MACHINES, default=list(MACHINES), metavar="NAME", help=f"default: all: {names}"
    )
    parser.add_argument("--seeds", type=positive, default=12, metavar="N", help="sessions of each task; default: 12")
    options = parser.parse_args()

    log, profile = WideLog.load(options.log), Profile.load(options.profile)
    log = WideLog(log.shape, log.about, [text for text in log.texts if len(text.tokens) > 1], log.ends)
    if not log.texts:
        raise UsageError(f"{options.log} holds no text of more than one token; log more with entmtp-local calibrate.")
    for name in options.policies:
        for task in log.tasks:
            # what cannot be had is refused before anything is run
            policy = parse_policy(name.replace("TASK", task))
            if policy.needs_profile:
                policy.calibrated(profile)
    report: dict[str, Any] = {"about": log.about, "seeds": options.seeds, "machines": {}}
    print("geometric mean over tasks and seeds of tokens/s over the best of chains, and over plain decoding; the worst of each")
    for name in options.machines:
        rows = report["machines"][name] = {"machine": asdict(MACHINES[name])}
        ratios: dict[str, list[tuple[float, float]]] = {policy: [] for policy in options.policies}
        for task in log.tasks:
            for seed in range(options.seeds):
                texts = some_of(log.of_task(task), MACHINES[name].n_texts, seed)
                speeds = {
                    policy: speed(texts, policy.replace("TASK", task), profile, MACHINES[name], seed)
                    for policy in (*CHAINS, *options.policies)
                }
                best = max(speeds[chain] for chain in CHAINS)
                for policy in options.policies:
                    ratios[policy].append((speeds[policy] / best, speeds[policy] / speeds["off"]))
        for policy, found in ratios.items():
            over_best, over_plain = zip(*found, strict=True)
            row = rows[policy] = {
                "over_best_chain": mean(over_best),
                "worst": min(over_best),
                "over_plain": mean(over_plain),
                "worst_over_plain": min(over_plain),
            }
            print(
                f"{name:30s} {policy:20s} {row['over_best_chain']:.3f} (worst {row['worst']:.3f})  "
                f"{row['over_plain']:.3f} (worst {row['worst_over_plain']:.3f})",
                flush=True,
            )
    print(json.dumps(report))


def some_of(log: WideLog, n: int, seed: int) -> WideLog:
    texts = list(log.texts)
    random.Random(seed).shuffle(texts)
    return WideLog(log.shape, log.about, texts[:n], log.ends)


def speed(log: WideLog, policy: str, profile: Profile, machine: Machine, seed: int) -> float:
    """Tokens per second."""
    return replay(log, parse_policy(policy), profile, engine=Unsteady(log, profile, machine, seed)).tokens_per_second


def mean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


if __name__ == "__main__":
    run(main)
