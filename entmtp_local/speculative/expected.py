"""What speed a profile lets expect: measured by calibration, or what its costs and chances come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from entmtp_local.speculative.profile import ALL, NodePath, Profile, TaskFit, shape_of


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one task.

    Args:
        ratio: over plain decoding.
        by: the policy that calibration measured, or the shape that costs and chances favour.
        measured: by real decoding, rather than computed.
    """

    task: str
    tokens_per_second: float
    ratio: float
    by: str
    measured: bool


def plain_speed(profile: Profile) -> float:
    """Tokens per second of plain decoding, on an empty context."""
    return 1 / (profile.costs.verify_seconds(1) + profile.costs.step)


def expected_speeds(profile: Profile, *, trees: bool) -> list[Expected]:
    """The best that each task lets expect, at the temperature that was calibrated at.

    A computed figure is that of the best chain or tree of fixed shape, whose nodes are taken to be independent, so it is a
    forecast: policies that follow the text come out above it, and text unlike the calibrated one below.

    Args:
        trees: whether trees can be verified; else only chains count.
    """
    found = []
    for task, fit in profile.tasks.items():
        if task == ALL and len(profile.tasks) > 1:
            continue
        rows = [row for row in profile.measured if row["task"] == task]
        if rows:
            best = max(rows, key=lambda row: row["tokens_per_second"])
            found.append(Expected(task, best["tokens_per_second"], best["ratio"], best["policy"], True))
        else:
            found.append(_computed(task, fit, profile, trees))
    return found


def _computed(task: str, fit: TaskFit, profile: Profile, trees: bool) -> Expected:
    costs, plain = profile.costs, plain_speed(profile)
    best = Expected(task, plain, 1.0, "plain decoding", False)
    for paths in _candidates(fit, trees):
        if len(paths) > max(costs.verify):
            continue
        shape = shape_of(paths)
        n_tokens = 1 + sum(_chance(fit, path) for path in paths if path)
        speed = n_tokens / (costs.verify_seconds(shape.n_nodes) + costs.draft_seconds(shape) + costs.step)
        if speed > best.tokens_per_second:
            name = f"chain of {shape.max_depth}" if shape.is_chain else f"tree of {shape.n_nodes - 1} nodes"
            best = Expected(task, speed, speed / plain, name, False)
    return best


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
