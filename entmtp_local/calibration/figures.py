"""The figures of a report as numbers: what logged texts say of a profile. Draws nothing and measures nothing.

Where a log is long, figures are computed on some of its texts, always the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from entmtp_local.calibration.fit import FloatArray, Positions, acceptance_rows, fit_acceptance
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.speculative.acceptance import AcceptanceModel
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.entmtp import EntMTP
from entmtp_local.speculative.entropy import entropy_bin
from entmtp_local.speculative.entropy_chain import EntropyChain
from entmtp_local.speculative.grown import GrownTree
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import ALL, NodePath, Profile, TaskFit, TreeSet, shape_of
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import DraftTree, TreeShape

_MOST = 20_000  # positions of a task that figures are computed on; a second of time, about
MOST_REPLAYED = 3_000  # of which replayed, once for each policy
N_BINS = 10

# Policies that are replayed; those that take trees or thresholds from the profile take the task's own.
_STATIC = ("off", "chain:1", "chain:2", "chain:3", "chain:5", "tree:narrow", "tree:wide")
_FITTED: Mapping[str, Callable[[str], Policy]] = {
    "medusa:7": lambda task: GrownTree("medusa", 7, task),
    "hydra:3": lambda task: GrownTree("hydra", 3, task),
    "hydra:7": lambda task: GrownTree("hydra", 7, task),
    "entropy-chain": lambda task: EntropyChain(task),
    "entmtp": lambda task: EntMTP("entropy", task),
    "entmtp:path": lambda task: EntMTP("path", task),
    "entmtp:constant": lambda task: EntMTP("constant", task),
}
_ADAPTIVE = ("throughput", "throughput:entropy", "throughput:uncalibrated", "throughput:costless")


@dataclass(frozen=True, slots=True)
class Logged:
    """A task of a profile and logged texts of it."""

    name: str
    fit: TaskFit
    log: WideLog
    positions: Positions


def logged_tasks(profile: Profile, log: WideLog | None) -> list[Logged]:
    """The tasks of a profile that a log has texts of."""
    found = []
    if log is not None:
        for name, fit in profile.tasks.items():
            # one task and all tasks together are the same thing twice
            if name == ALL and len(profile.tasks) == 2:
                continue
            part = _at_most(log if name == ALL else log.of_task(name), _MOST)
            positions = Positions(part)
            if len(positions):
                found.append(Logged(name, fit, part, positions))
    return found


def _at_most(log: WideLog, n_positions: int) -> WideLog:
    """Every second, third ... text of a log that is longer; of texts with drafts only."""
    texts = [each for each in log.texts if len(each.drafts)]
    step = math.ceil(sum(len(each.drafts) for each in texts) / n_positions)
    return WideLog(log.shape, log.about, texts[:: max(1, step)], log.ends)


def mean_entropy(each: Logged) -> float:
    """Nats, of the target's distributions."""
    return float(np.concatenate([logged.entropies for logged in each.positions.texts]).mean(dtype=np.float64))


def accepted_by_entropy(each: Logged) -> list[tuple[int, int]]:
    """Accepted best-ranked candidates right below the root, and all of them, in the fit's bins of entropy."""
    edges = each.fit.entropy_edges
    found = [[0, 0] for _ in range(len(edges) + 1)]
    for text, followed in zip(each.positions.texts, each.positions.followed, strict=True):
        # the last token is emitted as the bonus: no candidate can be accepted for it
        for i, steps in enumerate(followed[:-1]):
            place = found[entropy_bin(float(text.entropies[i]), edges)]
            place[0] += bool(steps) and steps[0] == (0,)
            place[1] += 1
    return [(hits, n) for hits, n in found]


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Where a share lies with a chance of 95 %. Source: Wilson, "Probable inference" (1927)."""
    z = 1.96
    middle, half = (hits + z * z / 2) / (n + z * z), z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Bin:
    """Nodes whose stated chances are alike."""

    n: int
    stated: float  # mean
    observed: float  # share


@dataclass(frozen=True, slots=True)
class Reliability:
    """Stated chances beside what came of them, on texts that were not fitted to.

    Args:
        bins: N_BINS of equal width, by who stated the chances.
        errors: expected calibration error of all nodes and of the best-ranked ones.
    """

    n_fitted: int  # texts
    n_judged: int  # texts
    n_nodes: int
    bins: Mapping[str, Sequence[Bin]]
    errors: Mapping[str, tuple[float, float]]


def reliability(each: Logged) -> Reliability | None:
    """Fit to half of the texts and judge by the others; None where they are too few."""
    texts = each.positions.texts
    if len(texts) < 4:
        return None
    # of each four texts the first and the last are fitted to, because prompts of two kinds often take turns
    fitted, others = (
        Positions(WideLog(each.log.shape, each.log.about, [t for i, t in enumerate(texts) if (i % 4 in (0, 3)) is wanted]))
        for wanted in (True, False)
    )
    model = fit_acceptance(fitted)
    rows, right = acceptance_rows(others, model)
    if not len(right):
        return None
    best = rows[:, [model.features.index(f"rank{rank}") for rank in (1, 2, 3)]].sum(axis=1) == 0
    stated = {"calibrated": model.chances(rows), "the head's own word": AcceptanceModel().chances(rows)}
    return Reliability(
        n_fitted=len(fitted.texts),
        n_judged=len(others.texts),
        n_nodes=len(right),
        bins={name: bins_of(chances, right) for name, chances in stated.items()},
        errors={
            name: (calibration_error(bins_of(chances, right)), calibration_error(bins_of(chances[best], right[best])))
            for name, chances in stated.items()
        },
    )


def bins_of(stated: FloatArray, right: FloatArray) -> list[Bin]:
    """Chances in bins of equal width, and the shares that came true."""
    place = np.minimum((stated * N_BINS).astype(np.int64), N_BINS - 1)
    n = np.bincount(place, minlength=N_BINS)
    means = (np.bincount(place, weights=values, minlength=N_BINS) / np.maximum(n, 1) for values in (stated, right))
    return [Bin(int(count), float(a), float(b)) for count, a, b in zip(n, *means, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """How far shares are from what was stated, on average over nodes."""
    return sum(each.n * abs(each.observed - each.stated) for each in bins) / max(1, sum(each.n for each in bins))


@dataclass(frozen=True, slots=True)
class Point:
    """A static tree's run over a log, in a short context."""

    size: int  # nodes, the root included
    seconds: float  # of a step
    per_step: float  # tokens

    @property
    def per_second(self) -> float:
        return self.per_step / self.seconds


def prefixes(each: Logged, grown: Sequence[NodePath], costs: CostTable, sizes: Sequence[int] | None = None) -> list[Point]:
    """A growing tree at some sizes; at all that were measured where none are given, because beyond them a cost is a guess."""
    if sizes is None:
        sizes = range(2, min(len(grown), max(costs.verify)) + 1)
    found = []
    for size in sizes:
        n_tokens, n_steps, _ = each.positions.walk(set(grown[1:size]))
        shape = shape_of(grown[:size])
        seconds = costs.verify_seconds(size) + costs.draft_seconds(shape) + costs.step
        found.append(Point(size, seconds, n_tokens / n_steps))
    return found


def chains(each: Logged, costs: CostTable) -> list[Point]:
    """Chains of every length that the log covers."""
    return prefixes(each, [(0,) * depth for depth in range(each.log.shape.max_depth + 1)], costs)


class _Watched:
    """A policy that goes on as it would, and whose steps are noted."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._n_past = 0
        self.steps: list[tuple[int, int]] = []  # tokens before the step, nodes verified

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def max_depth(self) -> int:
        return self._policy.max_depth

    @property
    def max_nodes(self) -> int:
        return self._policy.max_nodes

    @property
    def least(self) -> float:
        return self._policy.least

    @property
    def needs_profile(self) -> bool:
        return self._policy.needs_profile

    @property
    def needs_entropy(self) -> bool:
        return self._policy.needs_entropy

    def calibrated(self, profile: Profile) -> None:
        self._policy.calibrated(profile)

    def plan(self, evidence: Evidence) -> TreeShape:
        self._n_past = evidence.n_past
        return self._policy.plan(evidence)

    def select(self, tree: DraftTree) -> DraftTree:
        return self._policy.select(tree)

    def learn(self, outcome: Outcome) -> None:
        self.steps.append((self._n_past, outcome.verified.shape.n_nodes))
        self._n_past += len(outcome.path)
        self._policy.learn(outcome)

    def rest(self, n_past: int) -> tuple[int, float]:
        self._n_past = n_past
        return self._policy.rest(n_past)

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        self.steps += [(self._n_past + i, 1) for i in range(n)]
        self._n_past += n
        self._policy.rested(n, seconds, verify_seconds)

    def within(self, limits: Limits) -> Policy:
        self._policy = self._policy.within(limits)
        return self


def traced(each: Logged, profile: Profile) -> tuple[LoggedText, list[tuple[int, int]]]:
    """A long text of a task, and position and verified nodes of each step that `throughput` would have taken in it.

    The policy has seen other texts of the task before.
    """
    texts = each.positions.texts
    # a text that was cut off may be one that the model could not end
    shown = max([t for t in texts if t.ended and len(t.tokens) > 2] or texts, key=lambda t: len(t.tokens))
    before = [t for t in _at_most(each.log, MOST_REPLAYED).texts if t is not shown]
    policy = _Watched(parse_policy("throughput"))
    n_steps = replay(WideLog(each.log.shape, each.log.about, [*before, shown], each.log.ends), policy, profile).stats[-1].n_steps
    return shown, [(n_past - shown.n_prompt, size) for n_past, size in policy.steps[len(policy.steps) - n_steps :]]


def thresholds(trees: TreeSet | None) -> list[tuple[float, int, int]]:
    """Running entropies, nats, at which another tree is chosen, and the nodes of the trees below and above, roots included."""
    if trees is None:
        return []
    sizes = [len(trees.trees[index]) for index in trees.choice]
    between = zip(trees.edges, sizes, sizes[1:], strict=False)
    return [(math.exp(edge), low, high) for edge, low, high in between if low != high]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Policies replayed over the texts of each task.

    Args:
        rows: by policy, of each task: tokens per second relative to plain decoding, and tokens per step.
        left_out: policies of which the log's levels, or its chains, leave only another one.
        n_uncovered: drafted nodes that the log does not have and that counted as wrong.
    """

    rows: Mapping[str, Sequence[tuple[float, float]]]
    left_out: Sequence[str]
    n_uncovered: int


def forecast(logged: Sequence[Logged], profile: Profile) -> Forecast:
    """Replay the policies that there are."""
    rows: dict[str, list[tuple[float, float]]] = {}
    left_out: list[str] = []
    logs = [_at_most(each.log, MOST_REPLAYED) for each in logged]
    plain = [replay(log, OFF, profile).tokens_per_second for log in logs]
    n_uncovered = 0
    for name in (*_STATIC, *_FITTED, *_ADAPTIVE):
        row = []
        for each, log, off in zip(logged, logs, plain, strict=True):
            policy = _FITTED[name](each.name) if name in _FITTED else parse_policy(name)
            # the log is of what the engine can verify: as deep, and of chains where it is no trees
            within = policy.within(Limits(trees=not log.shape.is_chain, max_depth=log.shape.max_depth, max_nodes=255, reason=""))
            if within.name == policy.name:
                replayed = replay(log, within, profile)
                n_uncovered += replayed.n_uncovered
                row.append((replayed.tokens_per_second / off if off else math.nan, replayed.tokens_per_step))
        if len(row) == len(logged):
            rows[name] = row
        else:
            left_out.append(name)
    return Forecast(rows, left_out, n_uncovered)
