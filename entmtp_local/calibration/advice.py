"""What a calibration makes of each task: the policy to take for it, and how much faster than plain decoding that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from entmtp_local.calibration.calibrate import finalists
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Profile

#: Forecasts from the texts that were fitted to, and short measurements, err by as much: less is not taken for a gain.
LEAST_GAIN = 1.05


@dataclass(frozen=True, slots=True)
class Advice:
    """What to draft for a task.

    Args:
        policy: to take; "off" where nothing gains, the default where others hardly gain more.
        ratio: its tokens per second over those of plain decoding.
        default_ratio: the same of the default; None where it was not looked at.
        measured: whether they were decoded; replayed otherwise.
        n_tokens: that the policy decoded; None where that is not known, or forecast.
    """

    task: str
    policy: str
    ratio: float
    default_ratio: float | None
    measured: bool
    n_tokens: int | None = None


def advise(profile: Profile, log: WideLog, task: str, default: str, *, trees: bool) -> Advice:
    """Choose among the finalists of a task.

    Args:
        log: of the texts that the profile was fitted to.
        default: the policy where none is named.
        trees: whether they can be verified.
    """
    rows = profile.reliable_of(task)
    ratios = {str(row["policy"]): float(row["ratio"]) for row in rows}
    # nothing was decoded where the model ended every text at once
    measured = any(ratios.values())
    if not measured:
        names = dict.fromkeys((*finalists(profile, log, task, trees), default))
        ratios = _replayed(profile, log.of_task(task), names, trees)
    best = max(ratios, key=ratios.__getitem__)
    policy = best
    if ratios[best] < LEAST_GAIN:
        policy = "off"
    elif default in ratios and ratios[best] < LEAST_GAIN * ratios[default]:
        policy = default
    n_tokens = {row["policy"]: row.get("n_tokens") for row in rows} if measured else {}
    return Advice(task, policy, ratios[policy], ratios.get(default), measured, n_tokens.get(policy))


def _replayed(profile: Profile, texts: WideLog, names: Iterable[str], trees: bool) -> dict[str, float]:
    speeds = {name: replay(texts, parse_policy(name), profile, trees=trees).tokens_per_second for name in names}
    return {name: speed / speeds["off"] if speeds["off"] else 0.0 for name, speed in speeds.items()}
