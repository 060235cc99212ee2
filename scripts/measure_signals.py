#!/usr/bin/env python3
"""What each signal says of a draft's acceptance: the target's entropy, past accepted lengths, the head's own word.

Reads a wide log (`entmtp-local calibrate --log FILE`). Every second text is fitted on, the others are judged. First the signals
alone: AUROC over best-ranked candidates whose parents are accepted, and the correlation with the length to which the best-ranked
chain is accepted. Then regressions on all candidates: nats per candidate, less is better, and AUROC. The last line is one JSON
object.

    .venv/bin/python scripts/measure_signals.py LOG.npz
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.calibration.fit import Positions, acceptance_rows, fit_acceptance  # noqa: E402
from entmtp_local.calibration.wide_log import WideLog  # noqa: E402
from entmtp_local.errors import UsageError  # noqa: E402
from entmtp_local.speculative.acceptance import OPTIONAL, AcceptanceModel  # noqa: E402
from scripts.reference.script import run  # noqa: E402

FloatArray = npt.NDArray[np.float64]
REGRESSIONS = {
    "calibrated head": (),
    "and past acceptance": ("accepted",),
    "and depth, path": ("depth", "path"),
    "and entropy": ("entropy", "running"),
    "and everything": OPTIONAL,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    log = WideLog.load(parser.parse_args().log)
    report: dict[str, Any] = {"about": log.about, "tasks": {}}
    for task in (*log.tasks, "all"):
        texts = [log] if task == "all" else [log.of_task(task)]
        found = judged(texts[0])
        report["tasks"][task] = found
        print(f"{task}: {found['n']} candidates judged, {found['n_best']} of them best-ranked")
        for name, figures in found["signals"].items():
            print(
                f"  {name:24s} AUROC {figures['auroc']:.3f}  correlation with the accepted length {figures['correlation']:+.3f}"
            )
        for name, figures in found["regressions"].items():
            print(f"  {name:24s} {figures['nats']:.4f} nats  AUROC {figures['auroc']:.4f}")
    print(json.dumps(report))


def judged(log: WideLog) -> dict[str, Any]:
    """Figures of one task's texts.

    Raises: UsageError where there are too few.
    """
    # by task, so that both halves hold texts of each
    halves = [
        Positions(WideLog(log.shape, log.about, [text for task in log.tasks for text in log.of_task(task).texts[half::2]]))
        for half in (0, 1)
    ]
    if not all(map(len, halves)):
        raise UsageError("the log has fewer than two texts of a task; log more with entmtp-local calibrate --prompts N.")
    fitted, test = halves
    everything = AcceptanceModel(OPTIONAL)
    rows, right = acceptance_rows(test, everything)
    column = {name: rows[:, i] for i, name in enumerate(everything.features)}
    best = (column["rank1"] + column["rank2"] + column["rank3"]) == 0
    first = best & (column["depth"] == 1 / 8)
    lengths = accepted_lengths(test)
    signals: dict[str, dict[str, float]] = {}
    for label, name, sign in (
        ("head's log-probability", "logp", 1),
        ("head's entropy", "head", -1),
        ("target's entropy", "entropy", -1),
        ("running entropy", "running", -1),
        ("past accepted lengths", "accepted", 1),
    ):
        signals[label] = {
            "auroc": auroc(right[best], sign * column[name][best]),
            "correlation": correlation(column[name][first], lengths),
        }
    regressions = {"head's own word": scores(right, AcceptanceModel(OPTIONAL).chances(rows))}
    for name, extra in REGRESSIONS.items():
        model = fit_acceptance(fitted, extra)
        regressions[name] = scores(right, model.chances(acceptance_rows(test, model)[0]))
    return {"n": len(right), "n_best": int(best.sum()), "signals": signals, "regressions": regressions}


def accepted_lengths(positions: Positions) -> FloatArray:
    """Of the best-ranked chain, at each position that has a candidate to judge."""
    found = []
    for followed in positions.followed:
        found += [next((n for n, path in enumerate(steps) if path[-1] != 0), len(steps)) for steps in followed[:-1]]
    return np.array(found, dtype=np.float64)


def scores(right: FloatArray, chances: FloatArray) -> dict[str, float]:
    p = np.clip(chances, 1e-6, 1 - 1e-6)
    nats = -(right * np.log(p) + (1 - right) * np.log(1 - p)).mean()
    return {"nats": float(nats), "auroc": auroc(right, chances)}


def auroc(right: FloatArray, score: FloatArray) -> float:
    """Chance that a right candidate scores higher than a wrong one, ties counting half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n_right = right.sum()
    n_wrong = len(right) - n_right
    if not n_right or not n_wrong:
        return 0.5
    return float((middle[right == 1].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong))


def correlation(a: FloatArray, b: FloatArray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


if __name__ == "__main__":
    run(main)
