"""The policy that asks of every node whether it pays for itself.

Over a long run tokens per second is the ratio of two sums, so a step is worth `tokens - R * seconds`, with R the rate that is
achieved, and is maximised node by node. Three decisions a step: whether to draft, which is weighed against plain steps; behind
each level, whether the path to the next one is likely enough to pay for it; then, once the head has spoken, which of the drafted
nodes to verify.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from operator import mul

import numpy as np

from entmtp_local.speculative.acceptance import OPTIONAL, AcceptanceModel, Context
from entmtp_local.speculative.cost import SIZES, CostModel, in_a_row, n_unsettled, without_pause
from entmtp_local.speculative.entropy import RunningEntropy
from entmtp_local.speculative.levels import Levels
from entmtp_local.speculative.looks import Looks
from entmtp_local.speculative.profile import ALL, ENOUGH_DECODED, Profile, TaskFit
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.static import OFF, chain
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

DEPTH, WIDTH = 12, 3
_LONG = 2.0  # times what plain steps take, which a step of a rest counts for at most: more is an interruption
_FIRST_STEPS = 16  # which are all learnt from
_GRAPH = 1.5  # times what a draft is expected to take: the rest is not its own
_SEEN = 16  # logged tokens of a task, so that something is known of it
# Times the rate of plain steps that drafts have to bring for every task, by what was decoded or else by forecast, so that a
# session begins with them: else they are looked at first.
_CLEAR = 1.1
_LITTLE = 1.3  # times the rate of plain steps: where drafts bring less, these are looked at
_WEIGHT = 1 / 64  # of the newest step in the averages
# A pass leaves nothing of Python in the processor's caches, so that one step is learnt from in half the time where it is one of
# several, behind one pass.
_TOGETHER, _MOST_TOGETHER = 8, 11  # fewer than lie between two looks, each of which has to be known before the next one
# Learning from a step takes a thirtieth of one of a small model. So the more have been learnt from, the fewer are: beyond twice
# _MANY one in two, and so on, down to one in so many seconds of them, or steps. Of the others only tokens and seconds count.
_MANY, _LEARNING, _MOST_INTERVAL = 16, 0.024, 4
_GOLDEN = 0.618034  # multiples of the golden ratio fall together with nothing that a text repeats
_BESIDE = 0.1  # and in what steps take beside draft and verification
_BESIDE_AMONG_DRAFTS = 0.01  # of plain steps there, where that is more than what is known
_MAX_SHAPES = 4096


@dataclass(frozen=True, slots=True)
class Variant:
    """What a variant of the policy looks at; the ablations show what each part brings.

    Args:
        extra: features of acceptance beyond what the head says.
        constant: entropies are held constant, whatever they are.
        learns: chances are calibrated; False takes the head's own word.
        budget: nodes of every tree, in place of weighing what they cost; 0 weighs.
        local: how far the rate that nodes must beat is that of the step's own best tree, from 0 to 1. Replays of the reference
            model's texts are 0.5 to 1 % faster with 0.5 to 1 than with 0.
    """

    extra: tuple[str, ...] = ()
    constant: bool = False
    learns: bool = True
    budget: int = 0
    local: float = 0.75


VARIANTS: Mapping[str, Variant] = {
    "": Variant(),
    "entropy": Variant(extra=("entropy", "running")),
    "constant": Variant(extra=("entropy", "running"), constant=True),
    "history": Variant(extra=("accepted",)),
    "everything": Variant(extra=OPTIONAL),
    "uncalibrated": Variant(learns=False),
    "costless": Variant(budget=8),
    "global": Variant(local=0.0),
}


@dataclass(slots=True)
class _Choice:
    """What was known of a draft when part of it was chosen to be verified."""

    context: Context  # that it was drafted in
    values: list[float]  # the chance of each node that it is accepted
    kept: tuple[int, ...]  # nodes to be verified
    expected: tuple[float, float]  # tokens and seconds of the step


@dataclass(slots=True)
class _Taken:
    """A step that was taken."""

    outcome: Outcome
    choice: _Choice | None  # None where nothing was drafted
    n_past: int  # tokens in the context
    first: bool  # it has the first draft of a text
    goes_on: bool  # the step before drafted, too
    explores: bool  # it looked at drafts
    rests: bool  # drafts seemed not to pay


class Throughput:
    """Draft a spine with siblings, verify those nodes whose chance exceeds what they cost.

    One object serves one model on one device: it learns from its steps, of many short ones from some.

    Args:
        variant: a key of VARIANTS.
        depth, width: levels that are drafted at most, and candidates of each.
    """

    needs_profile = True

    def __init__(self, variant: str = "", depth: int = DEPTH, width: int = WIDTH) -> None:
        self.name = "throughput" + (f":{variant}" if variant else "")
        self._variant_name, self._variant = variant, VARIANTS[variant]
        self.needs_entropy = not self._variant.constant and bool({"entropy", "running"} & set(self._variant.extra))
        self._depth, self._width = depth, width
        self._plans = [ROOT_ONLY, *(TreeShape.comb(d, width) for d in range(1, depth + 1))]
        self.acceptance = AcceptanceModel(self._variant.extra)
        self._running = RunningEntropy()
        self._accepted = 0.0  # drafted tokens accepted lately, a step
        self.cost: CostModel | None = None
        self._tokens, self._seconds = 1.0, 1.0  # of a step, averages
        self._levels, self._looks, self._n_unsettled = Levels(), Looks(), 0
        self.least = -inf
        self._choice: _Choice | None = None  # of the step under way
        self._n_past, self._next_past = 0, -1  # tokens in the context before it, and before the next one if the text goes on
        self._undrafted = True  # whether nothing of the text has been drafted yet
        self._untaken: list[_Taken] = []  # steps that were not learnt from yet
        self._uncalibrated: list[_Taken] = []  # those that only chances are still to be learnt from
        self._between = (0, 0, 0.0)  # steps beside those of which only the sums count, their tokens and seconds
        self._n_learnt = 0
        # steps with drafts that were learnt from since a look at drafts began at rest, steps of which one is learnt from now, and
        # whose turn it is, from 0 to 1
        self._n_drafts, self._interval, self._turn = 0, 1, 0.0
        self._drafted_last = False
        self._plain_seconds = 0.0  # of a plain step, by what was believed when the newest look at drafts began
        self._n_plain = 0  # steps in a row that drafted nothing
        self._beside = [0.0, 0.0]  # seconds of a step beside draft and verification: without and with drafts
        self._context = Context()
        self._shapes: OrderedDict[tuple[TreeShape, tuple[int, ...]], TreeShape] = OrderedDict()

    @property
    def exploring(self) -> bool:
        """Whether the last step was to find something out, rather than the best that is known."""
        return self._looks.exploring

    @property
    def plain_rate(self) -> float:
        """Tokens per second of plain steps; 0 where nothing is known of them."""
        return 1 / (self.cost.seconds[0] + self._beside[0]) if self.cost is not None else 0.0

    @property
    def plain_overhead(self) -> float:
        """Seconds of a plain step beside its verification."""
        return self._beside[0]

    @property
    def _rate(self) -> float:
        """Tokens per second that are being achieved, or would be by plain steps."""
        return max(self._tokens / self._seconds, self.plain_rate)

    def draft_seconds(self, n_levels: float) -> float:
        """What a step takes that drafts so many levels, beyond its verification and what a plain step takes too."""
        if self.cost is None or not n_levels:
            return 0.0
        return self.cost.draft_seconds(n_levels) + max(0.0, self._beside[1] - self._beside[0])

    @property
    def max_depth(self) -> int:
        return self._depth

    @property
    def max_nodes(self) -> int:
        """Of the trees that are verified; more are drafted."""
        return SIZES[-1] - 1

    def within(self, limits: Limits) -> Policy:
        depth = min(self._depth, limits.max_depth, limits.max_nodes)
        if depth <= 0:
            return OFF
        width = self._width if limits.trees and limits.max_nodes >= self.max_nodes else 1
        if (depth, width) == (self._depth, self._width):
            return self
        return Throughput(self._variant_name, depth, width)

    def calibrated(self, profile: Profile) -> None:
        """Take the costs of the device and what is known of acceptance; without them chains of three are drafted."""
        self.cost = CostModel(profile.costs)
        if ALL in profile.tasks and self._variant.learns:
            self.acceptance.load(profile.tasks[ALL].acceptance, of_few=profile.quick)
        self._tokens, self._seconds = 1.0, self.cost.seconds[0]
        self._n_unsettled = n_unsettled(self._seconds)
        self._looks = Looks(self._n_unsettled, known=not profile.quick)
        if ALL in profile.tasks:
            # what was hardly seen promises nothing, nor the contrary
            fits = {task: fit for task, fit in profile.tasks.items() if task == ALL or fit.n_positions >= _SEEN}
            promised = {task: self._best_chain(fit) for task, fit in fits.items()}
            n_levels, self._tokens, verified = promised[ALL]
            self._seconds = verified + self.draft_seconds(n_levels)
            self._levels.expect(self._tokens - 1.0, verified - self.cost.seconds[0], n_levels)
            self._choose()
            gains = [
                _decoded_gain(profile, task) or tokens / (seconds + self.draft_seconds(n)) / self.plain_rate
                for task, (n, tokens, seconds) in promised.items()
                if task != ALL or len(promised) == 1
            ]
            if min(gains) < _CLEAR:
                self._levels.pays = False
            if not self._levels.pays:
                self._looks.begin_at_rest()
                # only behind drafts do plain steps take longer, and nothing has been drafted yet
                self._n_plain = self._n_unsettled + 1
            if not any(n for n, _, _ in promised.values()) and max(gains) < _CLEAR:
                # Nothing of what was calibrated with says that a look at drafts would show anything else. It goes down to paths
                # of one in ten, two levels or so; a profile that was measured in a bad moment is to be found out nevertheless.
                self._looks.wait(min(self.draft_seconds(2), 1 / self.plain_rate))

    def _best_chain(self, fit: TaskFit) -> tuple[int, float, float]:
        """The chain that brings most for the time it takes: its levels, tokens of a step, and seconds of its verification."""
        assert self.cost is not None
        cost, accepted = self.cost, (ranks[0] for ranks in fit.by_rank[: self._depth])
        tokens = list(accumulate(accumulate(accepted, mul), initial=1.0))
        seconds = dict(zip(cost.sizes, cost.seconds, strict=True))
        chains = [(n, tokens[n], seconds[n + 1]) for n in range(len(tokens)) if n + 1 in seconds]
        return max(chains, key=lambda found: found[1] / (found[2] + self.draft_seconds(found[0])))

    def plan(self, evidence: Evidence) -> TreeShape:
        # of a step that failed before it could be learnt from
        self._choice = None
        if self.cost is None:
            return chain(min(3, self._depth)).shape
        self._at(evidence.n_past)
        if self._variant.extra:
            entropy = 1.0 if self._variant.constant or not self.needs_entropy else evidence.entropy
            self._context = Context(entropy, self._running.add(entropy), self._accepted)
        if self._variant.budget:
            return self._plans[-1]
        levels, looks = self._levels, self._looks
        if looks.at_plain_steps(levels.pays and self._tokens / self._seconds < _LITTLE * self.plain_rate):
            return ROOT_ONLY
        explores = looks.at_drafts(not levels.pays, not levels.pays or levels.deeper)
        if looks.begins:
            self._plain_seconds = 1 / self.plain_rate
            if not levels.pays:
                levels.fade()
                self._n_drafts, self._interval = 0, 1
        self.least = levels.least(explores)
        return self._plans[-1] if explores or levels.pays else ROOT_ONLY

    def _at(self, n_past: int) -> None:
        """Notice where another text begins, and what passes take behind so many tokens."""
        assert self.cost is not None
        if n_past != self._next_past:
            self._undrafted = True
            if not self._levels.pays:
                self._looks.another_text()
        self._n_past = self._next_past = n_past
        self.cost.at(n_past)

    def rest(self, n_past: int) -> tuple[int, float]:
        variant = self._variant
        if self.cost is None or self._levels.pays or variant.extra or variant.budget or self._n_plain <= self._n_unsettled:
            return 0, 0.0
        self._at(n_past)
        plain = 1 / self.plain_rate
        return self._looks.quiet(plain), _LONG * plain

    def passed_over(self, outcome: Outcome, n_past: int) -> None:
        """See a step that something else chose, which tells what passes take.

        Args:
            n_past: tokens in the context behind it.
        """
        cost = self.cost
        if cost is None:
            return
        self._at(n_past - len(outcome.path))
        n_nodes = outcome.verified.shape.n_nodes
        self._n_plain = 0 if n_nodes > 1 else self._n_plain + 1
        if n_nodes > 1 or self._n_plain > self._n_unsettled:
            cost.observe_verify(n_nodes, outcome.verify_seconds)
        n_levels = 0 if outcome.drafted.copied else outcome.drafted.shape.max_depth
        if n_levels and self._drafted_last and not self._undrafted:
            cost.observe_draft(n_levels, outcome.draft_seconds)
        self._undrafted = self._undrafted and not n_levels
        self._drafted_last = n_levels > 0
        self._n_past = self._next_past = n_past
        cost.at(n_past)

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        assert self.cost is not None
        taken, verified = without_pause(seconds / n, self._seconds), verify_seconds / n
        self._n_past = self._next_past = self._next_past + n
        # nothing else tells the costs of a longer context while nothing is planned
        self.cost.at(self._n_past)
        self.cost.observe_verify(1, verified, n)
        beside, known = max(0.0, min(taken, seconds / n - verified)), self._beside[0]
        self._beside[0] += in_a_row(_BESIDE, n) * (beside - known) if known else beside
        self._n_plain += n
        self._looks.passed(n, n * taken)
        self._accepted -= in_a_row(0.1, n) * self._accepted
        self._average(n, 1.0, taken)

    def _average(self, n: int, n_tokens: float, taken: float) -> None:
        """Take n steps into the averages that brought and took so much, each."""
        self._n_learnt += n
        # the rate of plain decoding, with which it begins, counts for two steps
        weight = max(in_a_row(_WEIGHT, n), n / (self._n_learnt + 2))
        self._tokens += weight * (n_tokens - self._tokens)
        self._seconds += weight * (taken - self._seconds)

    def select(self, tree: DraftTree) -> DraftTree:
        # Behind a pass nothing of Python is left in the processor's caches: what is called here costs more than what it does.
        cost = self.cost
        if cost is None or tree.logp is None:
            return tree
        values = self.acceptance.values(tree, self._context)
        if tree.ends:
            _end(values, tree)
        # no child is worth more than its parent: the best few nodes are a tree
        ranked = sorted(values, reverse=True)
        expected, seconds, budget = list(accumulate(ranked)), cost.seconds, self._variant.budget
        n_most = min(budget, len(values)) if budget else len(values)
        drafted = self.draft_seconds(tree.shape.max_depth)
        # a text has stretches that are easier or harder than the rest of it, and they are gone through at what is to be had
        # there: the rate that a node must beat lies between that of the run and this step's own best
        rate, here, n_allowed = self._rate, 0.0, 0
        for size in cost.sizes:
            if size > n_most:
                break
            own = expected[size - 1] / (seconds[n_allowed] + drafted)
            n_allowed += 1
            if own > here:
                here = own
        rate += self._variant.local * (here - rate)
        best, most = n_allowed - 1, -inf
        if not budget:
            for i in range(n_allowed):
                worth = expected[cost.sizes[i] - 1] - rate * seconds[i]
                if worth > most:
                    best, most = i, worth
        size = cost.sizes[best]
        least = ranked[size - 1]
        kept = tuple([node for node, value in enumerate(values) if value >= least])
        if len(kept) > size:
            kept = _without_last(kept, values, least, len(kept) - size)
        self._choice = _Choice(self._context, values, kept, (expected[size - 1], seconds[best] + drafted + self._beside[0]))
        if size == len(values):
            return tree
        key = (tree.shape, kept)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = tree.shape.part(kept)
            if len(self._shapes) > _MAX_SHAPES:
                self._shapes.popitem(last=False)
        tokens = tree.tokens
        return DraftTree(shape, tuple([tokens[node] for node in kept]))

    def learn(self, outcome: Outcome) -> None:
        choice, self._choice = self._choice, None
        # not all of them were planned: copied text ends a rest, and is learnt from
        self._n_past, self._next_past = self._next_past, self._next_past + len(outcome.path)
        if self.cost is None:
            return
        if outcome.verified.copied:
            self._n_plain = 0
            # the next look at drafts may begin before there are more
            self._take_all()
            return
        drafts = outcome.drafted.shape.max_depth > 0
        first, goes_on = self._undrafted and drafts, self._drafted_last
        self._undrafted, self._drafted_last = self._undrafted and not first, drafts
        explores, rests = self._looks.exploring, not self._levels.pays
        self._accepted += 0.1 * (len(outcome.path) - 1 - self._accepted)
        n, n_tokens, seconds = self._between
        self._turn = (self._turn + _GOLDEN) % 1.0
        if self._turn * self._interval < 1.0 or choice is None or explores or rests:
            self._untaken.append(_Taken(outcome, choice, self._n_past, first, goes_on, explores, rests))
        else:
            taken = without_pause(outcome.seconds, self._seconds)
            self._between = (n + 1, n_tokens + len(outcome.path), seconds + taken)
        n_most = _TOGETHER if self._interval == 1 else _MOST_TOGETHER
        if rests or self._n_learnt < _FIRST_STEPS or len(self._untaken) + self._between[0] >= n_most:
            self._take_all()

    def _take_all(self) -> None:
        """Learn from the steps that have not been learnt from."""
        if not self._untaken and not self._between[0]:
            return
        steps, self._untaken = self._untaken, []
        (n_between, n_tokens, seconds), self._between = self._between, (0, 0, 0.0)
        cost = self.cost
        assert cost is not None
        if n_between:
            self._looks.took(seconds, 0.0)
            self._average(n_between, n_tokens / n_between, seconds / n_between)
        seen = []
        for step in steps:
            # another text may have begun since
            cost.at(step.n_past)
            n_worth = 0
            if step.choice is not None:
                n_worth = self._look(step.choice, step.outcome.drafted)
                seen.append(step)
            self._take(step, n_worth)
        cost.at(self._n_past)
        if seen:
            self._n_drafts += len(seen)
            self._choose()
        if self._variant.learns:
            self._uncalibrated += seen
            # a look at rest is short, and what it shows of a model that a hard text has made wary counts at once
            n_most = 1 if seen and seen[-1].rests else _TOGETHER // 2 if self._n_learnt <= _FIRST_STEPS else _TOGETHER
            if len(self._uncalibrated) >= n_most:
                seen, self._uncalibrated = self._uncalibrated, []
                self._calibrate(seen)
        self._interval = max(1, min(_MOST_INTERVAL, round(_LEARNING / self._seconds), self._n_drafts // _MANY))

    def _look(self, choice: _Choice, drafted: DraftTree) -> int:
        """Note what the levels of a draft promised; how many of them were worth drafting."""
        assert self.cost is not None and drafted.logp is not None
        spine = list(accumulate(drafted.logp[1 :: self._width]))
        return self._levels.look(choice.values, spine, self._width, self._rate, self.cost)

    def _choose(self) -> None:
        assert self.cost is not None
        self._levels.choose(self._rate, self.plain_rate, self._tokens, self.cost, self.draft_seconds)

    def _take(self, step: _Taken, n_worth: int) -> None:
        """Take what a step brought and took into the averages."""
        outcome, cost = step.outcome, self.cost
        assert cost is not None
        shape, n_tokens = outcome.verified.shape, len(outcome.path)
        n_levels = outcome.drafted.shape.max_depth
        self._n_plain = 0 if n_levels else self._n_plain + 1
        if shape.n_nodes > 1 or self._n_plain > self._n_unsettled:
            # the first plain steps after drafts take longer than those that follow them
            cost.observe_verify(shape.n_nodes, outcome.verify_seconds)
        taken = without_pause(outcome.seconds, self._seconds)
        beside = max(0.0, min(taken, outcome.seconds - outcome.draft_seconds - outcome.verify_seconds))
        drafts = n_levels > 0
        known, weight = self._beside[drafts], _BESIDE
        if not drafts and not step.rests:
            # among drafts a plain step is scheduled as they are; at rest less is to be done
            weight = 1.0 if beside < known else _BESIDE_AMONG_DRAFTS
        self._beside[drafts] += weight * (beside - known) if known else beside
        price = promised = 0.0
        if step.explores and step.rests:
            # what a look itself shows of trees makes plain steps seem dearer, which is no reason for it to go on
            plain = min(self._plain_seconds, 1 / self.plain_rate)
            price = taken - n_tokens * plain
            if step.choice is not None:
                promised = step.choice.expected[0] * plain - step.choice.expected[1]
        elif step.explores:
            price = (n_levels - n_worth) * cost.level_seconds
        self._looks.took(taken, price, promised)
        # a text's first draft also feeds the head its prompt, and after steps that drafted nothing what was accepted meanwhile
        if n_levels and step.goes_on and not step.first:
            cost.observe_draft(n_levels, outcome.draft_seconds)
            # some of the first drafts build graphs
            beyond = max(0.0, outcome.draft_seconds - _GRAPH * cost.draft_seconds(n_levels))
            if step.choice is not None:
                self._levels.compare(n_tokens, taken - beyond, step.choice.expected)
        elif step.first and step.choice is not None and not step.rests:
            # the prompt is a part of what drafts take
            self._levels.compare(n_tokens, taken, step.choice.expected)
        self._average(1, n_tokens, taken)

    def _calibrate(self, steps: Sequence[_Taken]) -> None:
        """Learn which nodes were accepted, of those whose parents were."""
        nodes: list[tuple[DraftTree, Context, Sequence[int]]] = []
        accepted: list[float] = []
        for step in steps:
            assert step.choice is not None
            choice, outcome = step.choice, step.outcome
            path, children, kept = outcome.path, outcome.verified.shape.children, choice.kept
            # no path holds an end, right or not
            ends = outcome.drafted.ends
            judged = [child for node in path for child in children[node] if kept[child] not in ends]
            nodes.append((outcome.drafted, choice.context, [kept[child] for child in judged]))
            accepted += [float(child in path) for child in judged]
        if accepted:
            self.acceptance.observe(self.acceptance.rows_of(nodes), np.array(accepted), len(steps))


def _decoded_gain(profile: Profile, task: str) -> float:
    """Times plain decoding that the best drafts of a task were when calibration decoded with them; 0 where it hardly did.

    A forecast is of the mean position of a text. Steps begin where the one before was rejected, which is where text is hard,
    answers end within them, and first drafts read the prompt: it may be 1.1 for what brings 0.95.
    """
    rows = profile.reliable_of(task)
    drafted = (row for row in rows if row["policy"] != OFF.name and row.get("n_tokens", 0) >= ENOUGH_DECODED)
    return max((row["ratio"] for row in drafted), default=0.0)


def _without_last(kept: tuple[int, ...], values: list[float], least: float, n: int) -> tuple[int, ...]:
    """Nodes without the last n of those that are worth the least: of equals the parent comes first."""
    last = [node for node in kept if values[node] == least][-n:]
    return tuple([node for node in kept if node not in last])


def _end(values: list[float], tree: DraftTree) -> None:
    """Let nodes that end the text, and those below, be worth nothing: an end comes with its parent's row, verified or not."""
    ended, parents = set(tree.ends), tree.shape.parents
    for node in range(1, len(values)):
        if node in ended or parents[node] in ended:
            ended.add(node)
            values[node] = 0.0
