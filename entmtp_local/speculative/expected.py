"""What speed a profile lets expect: measured by calibration, or what its costs and chances come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from entmtp_local.speculative.grown import GrownTree
from entmtp_local.speculative.profile import ALL, NodePath, Profile, TaskFit, paths_of, shape_of
from entmtp_local.speculative.protocol import Evidence, Policy
from entmtp_local.speculative.static import StaticPolicy
from entmtp_local.speculative.tree import TreeShape

_NOTHING = "plain decoding"


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one task.

    Args:
        ratio: over plain decoding.
        by: the policy that calibration measured, or the shape that costs and chances favour.
        measured: by real decoding, rather than computed.
        best, best_ratio: what is fastest of all that is known, which may be the same.
        n_tokens: that were decoded; None where that is not known, or computed.
    """

    task: str
    tokens_per_second: float
    ratio: float
    by: str
    measured: bool
    best: str
    best_ratio: float
    n_tokens: int | None = None


def plain_speed(profile: Profile) -> float:
    """Tokens per second of plain decoding, in a short context."""
    return 1 / (profile.costs.verify_seconds(1) + profile.costs.step)


def expected_speeds(profile: Profile, policy: Policy, *, trees: bool) -> list[Expected]:
    """What each task lets expect of a policy, at the temperature that was calibrated at.

    A computed figure is that of the policy's own shape, or where it has none of the best chain or tree of fixed shape, whose
    nodes are taken to be independent. So it is a forecast: policies that follow the text come out above it, and text unlike the
    calibrated one below.

    Args:
        policy: what was measured of it counts, then its own shape, then the best that is known.
        trees: whether trees can be verified; else only chains count.
    """
    found = []
    for task, fit in profile.tasks.items():
        if task == ALL and len(profile.tasks) > 1:
            continue
        # where every answer ended at once, nothing was measured
        rows = [row for row in profile.reliable_of(task) if row["tokens_per_second"] > 0]
        row = next((row for row in rows if row["policy"] in (policy.name, f"{policy.name}:{task}")), None)
        best = max(rows, key=lambda row: row["tokens_per_second"], default=None)
        computed = _computed(task, fit, profile, policy, trees)
        if best is not None:
            computed = replace(computed, best=best["policy"], best_ratio=best["ratio"])
            row = row or (None if _shape(policy) else best)
        if row is not None:
            told = {name: row[name] for name in ("tokens_per_second", "ratio")}
            computed = replace(computed, **told, by=row["policy"], measured=True, n_tokens=row.get("n_tokens"))
        found.append(computed)
    return found


def _shape(policy: Policy) -> TreeShape | None:
    """What a policy drafts at every step, where that is known."""
    return policy.plan(Evidence(0, 0)) if isinstance(policy, (StaticPolicy, GrownTree)) else None


def _computed(task: str, fit: TaskFit, profile: Profile, policy: Policy, trees: bool) -> Expected:
    plain, most = plain_speed(profile), max(profile.costs.verify)
    known = [_speed(fit, profile, paths) for paths in _candidates(fit, trees) if len(paths) <= most]
    speed, by = max([(plain, _NOTHING), *known])
    best, best_ratio = by, speed / plain
    shape = _shape(policy)
    if shape is not None and shape.n_nodes <= most:
        speed, by = _speed(fit, profile, paths_of(shape)) if shape.n_nodes > 1 else (plain, _NOTHING)
    return Expected(task, speed, speed / plain, by, False, best, best_ratio)


def _speed(fit: TaskFit, profile: Profile, paths: Sequence[NodePath]) -> tuple[float, str]:
    """Tokens per second of a shape, and what it is called."""
    shape, costs = shape_of(paths), profile.costs
    n_tokens = 1 + sum(_chance(fit, path) for path in paths if path)
    name = f"chain of {shape.max_depth}" if shape.is_chain else f"tree of {shape.n_nodes - 1} nodes"
    return n_tokens / (costs.verify_seconds(shape.n_nodes) + costs.draft_seconds(shape) + costs.step), name


def _candidates(fit: TaskFit, trees: bool) -> Iterator[Sequence[NodePath]]:
    for depth in range(1, len(fit.by_rank) + 1):
        yield [(0,) * n for n in range(depth + 1)]
    if trees:
        for grown in (fit.medusa, fit.hydra):
            for size in range(2, len(grown) + 1):
                yield grown[:size]


def _chance(fit: TaskFit, path: NodePath) -> float:
    """That a node is accepted: the product of the shares of its ranks."""
    if len(path) > len(fit.by_rank) or any(rank >= len(row) for rank, row in zip(path, fit.by_rank, strict=False)):
        return 0.0
    return prod(row[rank] for rank, row in zip(path, fit.by_rank, strict=False))
