"""The guard, on simulated texts whose acceptance is known and a clock that advances by a table.

| test | failure it catches |
|---|---|
| hopeless | a policy that is slower than plain decoding and stays so, or that is tried again so long that it costs |
| good | a guard that steps aside from what is best |
| chains | a chain that would be faster and is not noticed |
| costs | a profile of other costs, or a step in which the process was suspended, that makes everything slow for long |
| aside | a chain that turns out slower and is held on to, or a faster one that is left; passes that nothing is learnt from |
| rest | steps without drafts that take the scheduler's time one by one, or are not seen at all: new costs, interruptions, texts |
| what is counted | chains that are judged by tokens that do not continue them: another text, or copies |
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes import stopped

from entmtp_local.speculative.cost import SIZES, CostTable
from entmtp_local.speculative.guard import Comparison, Guard
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.rest import Rest
from entmtp_local.speculative.throughput import Throughput
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from entmtp_local.speculative.verify import accept

STEEP = CostTable({1: 24.0, 2: 31.0, 3: 38.0, 4: 42.0, 6: 58.0, 8: 66.0, 12: 90.0, 16: 110.0}, level={1: 1.0})
FLAT = CostTable({size: 20.0 + 0.1 * size for size in SIZES}, level={1: 0.3})
LARGE = TreeShape.from_parents([-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
WRONG, OTHER = 998, 999


class Stubborn(Throughput):
    """Has the same tree verified at every step and learns nothing but costs."""

    def __init__(self, shape: TreeShape) -> None:
        super().__init__()
        self._same = shape

    def plan(self, evidence: Evidence) -> TreeShape:
        return self._same

    def select(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, outcome: Outcome) -> None:
        pass


class Run:
    """A text of which each next token is the best-ranked draft with a given chance.

    Args:
        copied: of every so many steps one verifies copied text instead, none of it right; 0 for never.
        believed: costs that the policy is told.
        pauses: steps in whose passes the process was suspended for long, which counts for no time here.
    """

    def __init__(
        self,
        policy: Policy,
        costs: CostTable,
        chance: Callable[[int], float],
        *,
        seed: int = 1,
        copied: int = 0,
        believed: CostTable | None = None,
        pauses: Sequence[int] = (),
    ) -> None:
        policy.calibrated(Profile(believed or costs))
        self.pauses = pauses
        self.rest = Rest(policy)
        self.policy, self.costs, self.chance, self.copied = policy, costs, chance, copied
        self.rng = random.Random(1)
        self.n_past, self.n_steps, self.pending = 10, 0, 0
        self.aside: list[int | None] = []
        self.tokens, self.seconds = 0, 0.0

    def step(self) -> None:
        policy, chance = self.policy, self.chance(self.n_steps)
        shape = ROOT_ONLY if self.rest.left else policy.plan(Evidence(self.n_past, 0))
        if isinstance(policy, Guard):
            self.aside.append(policy.aside)
        logp = np.log([1.0, *(max(0.01, chance if rank == 0 else (1 - chance) * 0.2) for rank in shape.ranks[1:])])
        shape = stopped(shape, logp.tolist(), policy.least)
        # a drafted token is its rank
        tree = DraftTree(shape, (self.pending, *shape.ranks[1:]), logp[: shape.n_nodes].astype(np.float32))
        verified = policy.select(tree) if shape.n_nodes > 1 else tree
        if self.copied and self.n_steps % self.copied == 0:
            verified = tree = DraftTree(TreeShape.chain(2), (self.pending, OTHER, OTHER), copied=frozenset((1, 2)))
        accepted = accept(verified, lambda _: 0 if self.rng.random() < chance else WRONG, lambda _: False, 1000)
        path, self.pending = accepted.path, accepted.bonus
        draft = self.costs.draft_seconds(tree.shape) if not verified.copied else 0.0
        verify = self.costs.verify_seconds(verified.shape.n_nodes, self.n_past)
        asleep = 1e6 if self.n_steps in self.pauses else 0.0
        in_draft, in_verify = (asleep, 0.0) if self.n_steps % 2 else (0.0, asleep)
        seconds = draft + verify + asleep
        if self.rest.left and verified.shape.n_nodes == 1:
            self.rest.add(seconds, verify + in_verify, self.n_past + 1)
        else:
            self.rest.end()
            policy.learn(Outcome(tree, verified, path, draft + in_draft, verify + in_verify, seconds))
            self.rest.begin(self.n_past + len(path))
        self.n_past += len(path)
        self.n_steps += 1
        self.tokens += len(path)
        self.seconds += draft + verify

    def begin(self, n_past: int) -> None:
        """Go on with another text."""
        self.rest.end()
        self.n_past = n_past
        self.rest.begin(n_past)

    def rate(self, n: int, n_before: int = 0) -> float:
        for _ in range(n_before):
            self.step()
        self.tokens, self.seconds = 0, 0.0
        for _ in range(n):
            self.step()
        return self.tokens / self.seconds


def always(chance: float) -> Callable[[int], float]:
    return lambda _: chance


@pytest.mark.parametrize("shape", [LARGE, TreeShape.chain(5), TreeShape.chain(1)])
def test_hopeless_drafts_cost_little_in_the_end(shape: TreeShape) -> None:
    run = Run(Guard(Stubborn(shape)), STEEP, always(0.01))
    plain = 1 / STEEP.verify[1]
    assert run.rate(10_000, 10_000) > 0.97 * plain
    assert set(run.aside) == {None, 0}


def test_a_policy_that_is_five_times_as_slow_is_left_soon() -> None:
    run = Run(Guard(Stubborn(LARGE)), STEEP, always(0.0))
    run.rate(1000)
    first = next(i for i, aside in enumerate(run.aside) if aside is not None)
    assert first <= 64 and run.aside.count(None) < 200


@pytest.mark.parametrize("costs", [STEEP, FLAT])
@pytest.mark.parametrize("chance", [0.3, 0.6, 0.85, 0.97])
def test_good_choices_are_left_alone(costs: CostTable, chance: float) -> None:
    guarded = Run(Guard(Throughput()), costs, always(chance))
    bare = Run(Throughput(), costs, always(chance))
    assert guarded.rate(3000, 200) > 0.98 * bare.rate(3000, 200)


DEAR = CostTable({size: 24.0 * (1 if size == 1 else 10) for size in SIZES}, level={1: 12.0})


@pytest.mark.parametrize(
    ("costs", "believed"),
    [
        (DEAR, CostTable({size: 24.0 + 0.1 * size for size in SIZES}, level={1: 12.0})),
        (CostTable(FLAT.verify, level={1: 20.0}), CostTable(FLAT.verify, level={1: 1e-6})),
        (DEAR, CostTable({size: 4.0 * seconds for size, seconds in DEAR.verify.items()}, level={1: 48.0})),
        (DEAR, CostTable({size: 0.2 * seconds for size, seconds in DEAR.verify.items()}, level={1: 2.4})),
    ],
    ids=["flat", "free levels", "too dear", "too cheap"],
)
def test_wrong_costs_are_found_out(costs: CostTable, believed: CostTable) -> None:
    run = Run(parse_policy("throughput"), costs, always(0.4), believed=believed)
    assert run.rate(1500, 500) > 0.95 / costs.verify[1]


@pytest.mark.parametrize("pauses", [(5,), (6,), (300,), (301,), (240, 301, 500)])
@pytest.mark.parametrize("costs", [STEEP, FLAT])
def test_a_pause_is_no_cost(costs: CostTable, pauses: Sequence[int]) -> None:
    paused = Run(parse_policy("throughput"), costs, always(0.5), pauses=pauses)
    alone = Run(parse_policy("throughput"), costs, always(0.5))
    assert paused.rate(1500) > 0.97 * alone.rate(1500)


@pytest.mark.parametrize("depth", [3, 5])
def test_the_best_chain_itself_is_never_left(depth: int) -> None:
    # with this chance and these costs no other chain is as fast
    chance = 0.9
    costs = CostTable({n + 1: 10.0 * sum(chance**k for k in range(n + 1)) * (0.9 if n == depth else 1.1) for n in range(9)})
    run = Run(Guard(Stubborn(TreeShape.chain(depth))), costs, always(chance))
    run.rate(4000)
    assert set(run.aside) == {None}


def test_where_chains_are_better_a_chain_is_drafted() -> None:
    run = Run(Guard(Stubborn(LARGE)), STEEP, always(0.75))
    bad = Run(Stubborn(LARGE), STEEP, always(0.75)).rate(4000)
    # of its large tree the chains up to three are seen
    best = max(Run(Stubborn(TreeShape.chain(n)), STEEP, always(0.75)).rate(4000) for n in range(1, 4))
    assert best > 1.3 * bad
    assert run.rate(8000, 4000) > 0.95 * best
    assert {aside for aside in run.aside if aside is not None} <= {1, 2, 3}


def test_it_comes_back_when_the_text_changes() -> None:
    run = Run(Guard(Stubborn(TreeShape.chain(5))), STEEP, lambda step: 0.02 if step < 1500 else 0.97)
    run.rate(1500)
    assert run.aside[-1] == 0 or run.aside.count(0) > 1000
    run.rate(5000)
    assert run.aside[-2000:].count(None) > 1500


@pytest.mark.parametrize("copied", [2, 3])
def test_copied_text_is_no_evidence(copied: int) -> None:
    run = Run(Guard(Stubborn(TreeShape.chain(3))), FLAT, always(0.95), copied=copied)
    run.rate(2000)
    assert set(run.aside) == {None}


# -- rest


class Counting(Throughput):
    """Counts the steps that it is told one by one, and those that it is told together."""

    def __init__(self) -> None:
        super().__init__()
        self.single = self.together = 0
        self.told: list[int] = []  # how many had been told one by one at each telling of several

    def learn(self, outcome: Outcome) -> None:
        self.single += 1
        super().learn(outcome)

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        self.together += n
        self.told.append(self.single)
        super().rested(n, seconds, verify_seconds)


@pytest.mark.parametrize(("level", "share"), [(1.0, 0.75), (12.0, 0.97)])
def test_steps_without_drafts_are_told_together(level: float, share: float) -> None:
    """All but those of looks at drafts, which are rarer where a level is dearer, and the first ones behind each."""
    policy = Counting()
    run = Run(Guard(policy), replace(STEEP, level={1: level}), always(0.02))
    assert run.rate(4000, 1000) > 0.985 / STEEP.verify[1]
    assert policy.together > share * run.n_steps
    if level > 1.0:
        goes_on = [before == after for before, after in itertools.pairwise(policy.told)]
        assert sum(goes_on) > 0.8 * len(goes_on), "a rest goes on in the next one"
    assert policy.single + policy.together == run.n_steps - run.rest._n, "a rest that has not ended is all that is not known yet"


def test_a_rest_learns_what_steps_take() -> None:
    policy = Counting()
    run = Run(Guard(policy), STEEP, always(0.02))
    run.rate(2000)
    run.costs = replace(STEEP, verify={size: 1.5 * seconds for size, seconds in STEEP.verify.items()})
    run.rate(500)
    assert policy.plain_rate == pytest.approx(1 / run.costs.verify[1], rel=0.02)
    assert policy._tokens / policy._seconds == pytest.approx(1 / run.costs.verify[1], rel=0.02)


def test_a_context_that_grows_in_a_rest_is_counted_once() -> None:
    """A plain step behind 10,000 tokens takes three times as long as one at the beginning."""
    policy, costs = Counting(), replace(STEEP, level={1: 40.0}, per_token=48.0 / 10_000)
    run = Run(Guard(policy), costs, always(0.02))
    for _ in range(20):
        run.rate(500)
        assert policy.plain_rate == pytest.approx(1 / costs.verify_seconds(1, run.n_past), rel=0.02)


def test_a_long_text_within_a_rest_is_not_taken_for_interruptions() -> None:
    """Its plain steps take seven times as long as those of the texts before, as the context's part says."""
    policy, costs = Counting(), replace(STEEP, level={1: 40.0}, per_token=48.0 / 10_000)
    run = Run(Guard(policy), costs, always(0.02))
    run.rate(1000)
    run.begin(30_000)
    for _ in range(300):
        run.step()
        assert policy.plain_rate == pytest.approx(1 / costs.verify_seconds(1, run.n_past), rel=0.02)


def test_an_interruption_is_not_what_all_steps_of_a_rest_take() -> None:
    policy = Counting()
    run = Run(Guard(policy), STEEP, always(0.02), pauses=range(2003, 4000, 97))
    run.rate(4000)
    assert policy.plain_rate == pytest.approx(1 / STEEP.verify[1], rel=0.02)
    assert policy._tokens / policy._seconds == pytest.approx(1 / STEEP.verify[1], rel=0.35), (
        "a pause counts for no more than one step"
    )


def test_steps_of_uneven_length_do_not_rest_for_ever() -> None:
    policy, rng = Counting(), random.Random(3)
    run = Run(Guard(policy), STEEP, always(0.02))
    singles = []
    # a look takes what half a per cent of 170 to 340 steps does
    for _ in range(20):
        for _ in range(400):
            run.costs = replace(STEEP, verify={size: rng.uniform(0.9, 1.2) * seconds for size, seconds in STEEP.verify.items()})
            run.step()
        singles.append(policy.single)
    assert all(before < after for before, after in zip(singles, singles[1:], strict=False))


def steps_aside(ratio: float, seed: int) -> int:
    """How long a chain of three is used instead of a policy that is so many times as fast."""
    guard = Guard(Counting())
    run = Run(guard, STEEP, always(0.75))
    run.rng.seed(seed)
    per_step, seconds = sum(0.75**depth for depth in range(4)), STEEP.verify[4] + 3.0
    guard._tokens, guard._seconds = ratio * per_step, seconds
    guard._step_aside(3)
    n = 0
    while guard.aside is not None:
        run.step()
        n += 1
    return n


def test_a_chain_that_is_slower_is_left_soon() -> None:
    """What it would bring is known by the costs that are believed, and they may be wrong."""
    assert max(steps_aside(2.0, seed) for seed in range(20)) == 8
    assert {steps_aside(0.6, seed) for seed in range(20)} == {64}


def test_plain_steps_are_used_instead_for_as_long_as_they_take_to_settle() -> None:
    guard = Guard(Counting())
    run = Run(guard, STEEP, always(0.02))
    guard._tokens, guard._seconds = 1.05, STEEP.verify[1]
    guard._step_aside(0)
    for _ in range(63):
        run.step()
    assert guard.aside == 0
    run.step()
    assert guard.aside is None


def test_what_drafts_take_is_learnt_while_a_chain_is_used_instead() -> None:
    policy = Counting()
    guard = Guard(policy)
    run = Run(guard, replace(FLAT, level={1: 4.0}), always(0.9), believed=FLAT)
    guard.aside, guard._left = 3, 64
    run.copied = 4  # which tells nothing of drafts
    while guard.aside is not None:
        run.step()
    assert policy.cost is not None
    assert policy.cost.draft_seconds(3) == pytest.approx(12.0, rel=0.1)


def test_the_first_plain_steps_behind_drafts_are_not_what_plain_steps_take() -> None:
    """Of a small model; also where the guard has them taken."""
    costs = CostTable({1: 1.0, 2: 1.3, 3: 1.6, 4: 1.9}, level={1: 0.2})
    costs = replace(costs, verify={size: 1e-3 * seconds for size, seconds in costs.verify.items()}, level={1: 2e-4})
    policy = Counting()
    guard = Guard(policy)
    run = Run(guard, costs, always(0.9))
    run.rate(200)
    assert policy.cost is not None and policy._n_unsettled > 0
    before = policy.plain_rate
    guard._step_aside(0)
    run.costs = replace(costs, verify={**costs.verify, 1: 1.4e-3})
    for _ in range(policy._n_unsettled):
        run.step()
    assert policy.plain_rate == pytest.approx(before, rel=0.01)
    run.step()
    assert policy.plain_rate < 0.95 * before


def test_texts_begin_within_a_rest() -> None:
    """What a policy has to be asked at rest is when the next look at drafts is due, whatever the text."""
    policy = Counting()
    guard = Guard(policy)
    run = Run(guard, replace(STEEP, level={1: 40.0}), always(0.02))
    run.rate(2000)
    policy.single, n_undrafted = 0, 0
    for i in range(40):
        run.begin(10 + 7 * (i % 3))
        n_undrafted += policy._undrafted
        for _ in range(12):
            run.step()
            assert guard._next_past == policy._next_past == run.n_past - run.rest._n
    run.rest.end()
    assert guard._next_past == policy._next_past == run.n_past
    assert policy.single < 20, "most texts have no step that is planned"
    assert n_undrafted >= 38, "the next draft is known to feed a prompt"


def test_there_is_no_rest_while_a_chain_is_used_instead_nor_right_behind_it() -> None:
    policy = Counting()
    guard = Guard(policy)
    run = Run(guard, STEEP, always(0.02))
    run.rate(2000)
    run.rest.end()
    guard.aside, guard._left, guard._hold = 1, 5, 64
    for _ in range(5):
        assert guard.rest(run.n_past) == (0, 0.0)
        run.step()
        assert policy._next_past == run.n_past, "the policy knows how long the text is"
    assert guard.aside is None and guard.rest(run.n_past)[0] == 0, "the first plain steps behind drafts are seen one by one"
    told = policy.single
    run.rate(64)
    assert policy.single > told and guard.rest(run.n_past)[0] > 0


# -- what is counted


def tree(tokens: Sequence[int]) -> DraftTree:
    return DraftTree(TreeShape.chain(len(tokens) - 1), tuple(tokens), np.zeros(len(tokens), dtype=np.float32))


def test_chains_are_judged_by_the_tokens_that_follow() -> None:
    found = Comparison(3)
    prices: list[float | None] = [1.0, 1.5, 2.0, None]
    # drafted 5 6 7, nothing of which was verified; then 5 and 6 follow, one by one, and 8
    found.add(tree((4, 5, 6, 7)), [4], 0.0, prices)
    assert found.n == 0
    for token in (5, 6):
        found.add(DraftTree(ROOT_ONLY, (token,)), [token], 0.0, [None] * 4)
        assert found.n == 0 and found.waits
    found.add(DraftTree(ROOT_ONLY, (8,)), [8], 0.0, [None] * 4)
    # steps that drafted nothing show nothing of chains, and the one chain is over
    assert found.n == 1 and not found.waits
    assert found._mean == pytest.approx([1 - 1.0, 2 - 1.5, 3 - 2.0, 0.0])


def test_what_is_longer_than_what_was_drafted_counts_as_no_better() -> None:
    found = Comparison(3)
    found.add(tree((0, 1, 2)), [0, 1, 2, 9], 0.25, [1.0, 1.0, 1.0, 1.0])
    assert found._mean == pytest.approx([-0.25, 0.75, 1.75, 0.0])
    # wrong before it ended: so would a longer one have been
    found = Comparison(3)
    found.add(tree((0, 1, 2)), [0, 1, 9], 0.25, [1.0, 1.0, 1.0, 1.0])
    assert found._mean == pytest.approx([-0.25, 0.75, 0.75, 0.75])


def test_a_difference_has_to_be_sure() -> None:
    rng = random.Random(0)
    sure, unsure = Comparison(1), Comparison(1)
    for _ in range(200):
        sure.add(tree((1, 2)), [1, 9], 0.9, [0.0, None])
        unsure.add(tree((1, 2)), [1, 9], 0.9 + 3 * rng.choice((-1, 1)), [0.0, None])
    assert sure.better(0.05) == 0 and sure.better(0.2) is None
    assert unsure.better(0.02) is None


def observed(guard: Guard, tokens: Sequence[int], path: Sequence[int], n_past: int, **values: object) -> None:
    guard.plan(Evidence(n_past, 0))
    drafted = tree(tokens)
    guard.learn(replace(Outcome(drafted, drafted, tuple(path), 0.1, 20.0, 20.1), **values))
    guard._compare_all()


def test_steps_compared_together_come_to_the_same() -> None:
    """The end of a text comes between two of them."""
    one_by_one, together = (Guard(Stubborn(TreeShape.chain(2))) for _ in range(2))
    for guard in (one_by_one, together):
        guard.calibrated(Profile(FLAT))
        n_past = 10
        for i in range(11):
            drafted, path = tree((5, 6, 7)), (0, 1, 2)[: 1 + i % 3]
            guard.plan(Evidence(n_past, 0))
            guard.learn(Outcome(drafted, drafted, path, 0.1, 20.0, 20.1))
            n_past += len(path) if i != 4 else 100
            if guard is one_by_one:
                guard._compare_all()
        guard._compare_all()
    assert (together._others.n, together._others._open) == (one_by_one._others.n, one_by_one._others._open)
    assert together._others._mean == pytest.approx(one_by_one._others._mean, abs=0.1)


def test_of_many_short_steps_some_are_compared_and_all_of_them_count() -> None:
    guard = Guard(Stubborn(TreeShape.chain(2)))
    guard.calibrated(Profile(CostTable({size: 1e-3 * seconds for size, seconds in FLAT.verify.items()}, level={1: 3e-4})))
    guard._usual, guard._quiet = 1e-3, 10_000
    n_past = 10
    for i in range(64 + 5 * 32):
        # another text begins right behind a window
        n_past += 100 if i == 72 + 32 else 0
        drafted = tree((5, 6, 7))
        guard.plan(Evidence(n_past, 0))
        guard.learn(Outcome(drafted, drafted, (0, 1), 1e-4, 1e-3, 1.1e-3))
        n_past += 2
    guard._compare_all()
    # how far the 64th was right is not known before another one; one is left open by the end of its text
    assert guard._others.n == 64 + 8 + 4 * 8 - 1 and not guard._others.waits
    assert guard._n_steps == 64 + 5 * 32
    assert guard._quiet - guard._uncounted == 10_000 - (64 + 5 * 32)


def test_another_text_does_not_continue_a_chain() -> None:
    guard = Guard(Stubborn(TreeShape.chain(2)))
    guard.calibrated(Profile(FLAT))
    whole = (0, 1, 2)
    observed(guard, (5, 6, 7), whole, 10)
    assert len(guard._others._open) == 0, "right to its end"
    observed(guard, (5, 6, 7), (0,), 13, verified=DraftTree(ROOT_ONLY, (5,)))
    assert len(guard._others._open) == 1, "what follows will tell"
    n = guard._others.n
    observed(guard, (6, 7, 8), whole, 40)
    assert guard._others.n == n + 1, "the new text's own chain alone"


def test_copied_steps_end_what_is_open() -> None:
    guard = Guard(Stubborn(TreeShape.chain(2)))
    guard.calibrated(Profile(FLAT))
    observed(guard, (5, 6, 7), (0,), 10, verified=DraftTree(ROOT_ONLY, (5,)))
    assert len(guard._others._open) == 1
    copies = DraftTree(TreeShape.chain(2), (6, 7, 8), copied=frozenset((1, 2)))
    n = guard._others.n
    observed(guard, (6, 7, 8), (0, 1, 2), 11, drafted=copies, verified=copies)
    assert (len(guard._others._open), guard._others.n) == (0, n)


def test_limits_and_names() -> None:
    guard = parse_policy("throughput")
    assert isinstance(guard, Guard) and (guard.name, guard.max_depth, guard.max_nodes) == ("throughput", 12, 15)
    free = Limits(trees=True, max_depth=12, max_nodes=15, reason="")
    assert guard.within(free) is guard
    short = guard.within(replace(free, max_depth=2))
    assert isinstance(short, Guard) and short.max_depth == 2 and short.within(replace(free, max_depth=2)) is short
    assert guard.within(replace(free, max_depth=0)).name == "off"
