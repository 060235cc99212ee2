"""Runs policies over logged texts with a table of costs in place of a model: the real generation loop on an engine that looks up.

What a policy drafts is looked up in the wide log, what the target says is the logged text, and time passes as the table says. So
policies are compared on the same text, for devices that are not at hand. Forecasts err: a gain is a gain when it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.engine import Stats, generate
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.profile import Profile, paths_of
from entmtp_local.speculative.protocol import Limits, Policy
from entmtp_local.speculative.tree import DraftTree, TreeShape

# A token that no text has: a node that the log does not cover is never accepted.
_UNKNOWN = -1


class _NoSampler:
    """The loop's sampler where the text is known."""

    greedy = True
    n_best = 1

    def sample(self, ctx: object, row: int) -> int:
        raise NotImplementedError

    def take(self, token: int) -> None:
        raise NotImplementedError

    def biased(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        raise NotImplementedError

    def reset(self) -> None: ...

    def prime(self, tokens: Sequence[int]) -> None: ...


class ReplayEngine:
    """One logged text as a SpeculativeEngine."""

    n_ctx = 1 << 30
    turn = 0

    def __init__(self, log: WideLog, costs: CostTable, *, trees: bool = True) -> None:
        self._places = {path: i for i, path in enumerate(paths_of(log.shape))}
        self._costs = costs
        self._ends = log.ends
        self._indices: dict[int, tuple[TreeShape, list[int], float]] = {}  # the shape is kept so that its id stays its own
        reason = "the log has chains only" if log.shape.is_chain else "chains were asked for"
        trees = trees and not log.shape.is_chain
        self.limits = Limits(trees, max_depth=log.shape.max_depth, max_nodes=255, reason="" if trees else reason)
        self.seconds = 0.0
        self.n_uncovered = 0  # nodes asked for that the log does not have
        self.n_past = 0

    def begin(self, text: LoggedText) -> None:
        self._text, self._at, self.n_past = text, 0, 0
        self._tokens = text.tokens.tolist()
        self._shape: TreeShape | None = None

    def now(self) -> float:
        return self.seconds

    def prefill(self, prompt: Sequence[int], stop: Callable[[], bool]) -> int:
        self.n_past = len(prompt)
        return len(prompt)

    def chooser(self, sampler: object) -> Callable[[int], int]:
        return self._choose

    def _choose(self, row: int) -> int:
        return int(self._tokens[0] if row < 0 else self._tokens[self._at + self._depths[row] + 1])

    def rows(self, sampler: object) -> Callable[[int], npt.NDArray[np.float32]]:
        return self._no_row

    def _no_row(self, row: int) -> npt.NDArray[np.float32]:
        raise NotImplementedError("the log has no rows: only strict acceptance can be replayed")

    def start(self, pending: int) -> None: ...

    def draft(self, shape: TreeShape, least: float = -inf) -> DraftTree:
        if least > -inf:
            shape = shape.upto(self._drafted_levels(shape, least))
        known = self._indices.get(id(shape))
        if known is None:
            indices = [self._places.get(path, _UNKNOWN) for path in paths_of(shape)]
            known = self._indices[id(shape)] = (shape, indices, self._costs.draft_seconds(shape))
        _, indices, seconds = known
        self.seconds += seconds
        self.n_uncovered += indices.count(_UNKNOWN)
        covered = np.array(indices) >= 0
        tokens = tuple(np.where(covered, self._text.drafts[self._at, indices], _UNKNOWN).tolist())
        logp = np.where(covered, self._text.logp[self._at, indices], np.float32(-30))
        entropy = np.where(covered, self._text.head_entropies[self._at, indices], np.float32(np.nan))
        ends = tuple(i for i, token in enumerate(tokens) if token in self._ends)
        return DraftTree(shape, tokens, logp.tolist(), entropy=entropy.tolist(), ends=ends)

    def _drafted_levels(self, shape: TreeShape, least: float) -> int:
        """Levels of the shape that are drafted where others are stopped before."""
        logp, drafts = self._text.logp[self._at], self._text.drafts[self._at]
        paths = [0.0]
        places = [self._places.get(path, _UNKNOWN) for path in paths_of(shape)]
        best: dict[int, float] = {}
        for node in range(1, shape.n_nodes):
            place = places[node]
            own = -30.0 if place < 0 else -inf if int(drafts[place]) in self._ends else float(logp[place])
            paths.append(paths[shape.parents[node]] + own)
            if shape.children[node]:
                depth = shape.depths[node]
                best[depth] = max(best.get(depth, -inf), paths[node])
        return next((depth for depth in range(1, shape.max_depth) if best[depth] < least), shape.max_depth)

    def verify(self, tree: DraftTree) -> None:
        self._depths = tree.shape.depths
        self.seconds += self._costs.verify_seconds(tree.shape.n_nodes, self.n_past) + self._costs.step

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        self._at += len(path)
        self.n_past += len(path)

    def discard(self) -> None: ...

    def follow(self, tree: DraftTree, path: Sequence[int], pending: int | None) -> None: ...

    def entropy(self, row: int) -> float:
        return float(self._text.entropies[0 if row < 0 else self._at + self._depths[row] + 1])

    def is_eog(self, token: int) -> bool:
        return token in self._ends


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a policy would have done on logged texts."""

    stats: tuple[Stats, ...]  # of each text
    n_tokens: int  # after the first one of each text; one that ends a text counts, since it takes a step as any other does
    n_uncovered: int  # drafted nodes that the log does not have and that were taken for wrong

    @property
    def seconds(self) -> float:
        return sum(stats.seconds["decode"] for stats in self.stats)

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.n_tokens / max(1, sum(stats.n_steps for stats in self.stats))


def replay(log: WideLog, policy: Policy, profile: Profile, *, trees: bool = True, engine: ReplayEngine | None = None) -> Replayed:
    """Decode every text of a log by a policy, which keeps what it learns from one text to the next.

    Args:
        trees: False for an engine that verifies chains only, although its head drafted trees into the log.
        engine: one of the log, whose passes may take other times; default: those of the profile.
    """
    if engine is None:
        engine = ReplayEngine(log, profile.costs, trees=trees)
    # before it is calibrated: a policy within narrower limits is another one
    policy = policy.within(engine.limits)
    if policy.needs_profile:
        policy.calibrated(profile)
    found = []
    texts = [text for text in log.texts if len(text.tokens) > 1]
    for text in texts:
        engine.begin(text)
        generation = generate(
            engine,
            [0] * text.n_prompt,
            policy=policy,
            sampler=_NoSampler(),
            max_tokens=len(text.tokens),
            clock=engine.now,
        )
        for _ in generation:
            pass
        found.append(generation.stats)
    return Replayed(tuple(found), sum(len(text.tokens) - 1 for text in texts), engine.n_uncovered)
