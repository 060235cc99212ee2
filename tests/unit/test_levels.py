"""Whether to draft and when to stop, against heads whose chances are known.

| test | failure it catches |
|---|---|
| break-even | levels drafted below paths that do not pay for them, or not drafted below those that do |
| dearer levels | a bound that does not follow what levels cost |
| bounds | free levels that are stopped; levels that never pay and are drafted |
| looking | a bound that, once too high, hides what it would take to lower it |
| at rest | drafts that are never begun again, because one level alone does not pay |
| beginning, giving up | drafts that are not begun where they pay, or go on where they do not |
| a hard text | a few looks that undo what calibration saw of many texts |
| hopeless nodes | sizes that are cheap and verified, but counted as what cannot be had |
| first levels | nodes numbered otherwise than in the whole tree |
| replay, the end of a text | a replay that stops elsewhere than the engine does |
"""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
from fakes import stopped

from entmtp_local.calibration.replay import ReplayEngine
from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.speculative.cost import CostModel, CostTable
from entmtp_local.speculative.levels import Levels
from entmtp_local.speculative.tree import TreeShape

DEPTH, NODE, RATE = 8, 0.01, 1.0
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)


def costs(level: float) -> CostModel:
    return CostModel(CostTable({n: 1.0 + NODE * n for n in SIZES}, level={1: level}))


def settle(levels: Levels, cost: CostModel, chance: float, n: int = 400, explores: bool = False) -> None:
    """Chains of a head that says what is so: each token is accepted with about that chance if the one before it is."""
    rng = random.Random(0)
    for _ in range(n):
        least, spine, values = levels.least(explores), [], [1.0]
        while len(spine) < DEPTH and (not spine or spine[-1] >= least):
            values.append(values[-1] * min(0.99, max(0.01, rng.gauss(chance, 0.1))))
            spine.append(log(values[-1]))
        levels.look(values, spine, 1, RATE, cost)
        levels.choose(RATE, 1 / cost.seconds[0], 2.0, cost, lambda n_levels: n_levels * cost.level_seconds)


def break_even(level: float, chance: float) -> float:
    """The chance of a path below which one more level, and those that follow it, bring less than they take."""
    return RATE * (level + NODE) / chance


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("level", [0.03, 0.1, 0.3])
def test_levels_go_on_down_to_where_they_pay(level: float, chance: float) -> None:
    levels = Levels()
    settle(levels, costs(level), chance, explores=True)
    found = exp(levels.least(False))
    # ranges are a third of a nat, and the next level is looked at from one range further down
    assert break_even(level, chance) * exp(-0.7) < found < break_even(level, chance) * exp(0.7)


def test_dearer_levels_ask_for_likelier_paths() -> None:
    found = []
    for level in (0.01, 0.03, 0.1, 0.3, 0.6):
        levels = Levels()
        settle(levels, costs(level), 0.7, explores=True)
        found.append(levels.least(False))
    assert found == sorted(found) and found[0] < found[-1]


def test_free_levels_are_all_drafted_and_hopeless_ones_never() -> None:
    levels = Levels()
    assert -inf < levels.least(False) < -1e6, "nothing is known yet, but that nothing follows the end of a text"
    settle(levels, CostModel(CostTable(dict.fromkeys(SIZES, 1.0), level={1: 1e-9})), 0.9)
    assert -inf < levels.least(False) < -1e6
    settle(levels, costs(2.0), 0.9)
    assert levels.least(False) > log(0.99)


def test_what_is_not_drafted_is_looked_at_now_and_then() -> None:
    """A head that becomes better: the bound that was right for the worse one is given up."""
    levels, cost = Levels(), costs(0.1)
    settle(levels, cost, 0.3, explores=True)
    before = levels.least(False)
    assert levels.least(True) < before
    settle(levels, cost, 0.95, n=1000, explores=True)
    assert levels.least(False) < before


@pytest.mark.parametrize(("node", "fixed"), [(0.2, 0.6), (0.3, 0.4)])
def test_at_rest_deeper_levels_are_looked_at(node: float, fixed: float) -> None:
    """One level alone does not pay for what drafting takes, and four do; the text before was another."""
    levels, cost = Levels(), CostModel(CostTable({n: 1.0 + node * n for n in SIZES}, level={1: 0.1}))
    rng = random.Random(0)

    def decode(chance: float, n: int) -> None:
        """The head says 0.9, and the chances are what has been seen of that."""
        for _ in range(n):
            explores, spine, values = not levels.pays, [], [1.0]
            if explores:
                levels.fade()
            while len(spine) < DEPTH and (not spine or spine[-1] >= levels.least(explores)):
                values.append(values[-1] * min(0.99, rng.gauss(chance, 0.05)))
                spine.append(log(0.9) * len(values))
            levels.look(values, spine, 1, RATE, cost)
            levels.choose(RATE, RATE, 1.0, cost, lambda n_levels: fixed + n_levels * cost.level_seconds)

    decode(0.3, 400)
    assert not levels.pays
    decode(0.85, 200)
    assert levels.pays


@pytest.mark.parametrize(("chance", "pays"), [(0.02, False), (0.6, True)])
def test_drafts_are_given_up_and_begun(chance: float, pays: bool) -> None:
    for begins in ((3.0, 0.03, 4), (0.0, 0.0, 0)):
        levels, cost = Levels(), costs(0.1)
        levels.expect(*begins)
        settle(levels, cost, chance)
        assert levels.pays is pays


def test_a_hard_text_does_not_undo_what_calibration_saw() -> None:
    levels, cost = Levels(), costs(0.1)
    levels.expect(1.0, 2 * NODE, 2)
    settle(levels, cost, 0.02, n=60)
    assert levels.pays
    settle(levels, cost, 0.02, n=200)
    assert not levels.pays, "all texts are hard"


def test_sizes_that_only_hopeless_nodes_fill_count() -> None:
    """Of one and four nodes, a certain token and two hopeless siblings are had for the price of four."""
    levels, cost = Levels(), CostModel(CostTable({1: 0.010, 4: 0.0105}, level={1: 0.0005}))
    for _ in range(20):
        levels.look([1.0, 0.99, 0.0, 0.0], [log(0.99)], 3, 100.0, cost)
        levels.choose(100.0, 100.0, 1.0, cost, lambda n_levels: n_levels * cost.level_seconds)
    assert levels.pays


def test_what_calibration_saw_is_where_it_begins() -> None:
    for n_tokens, pays in ((1.0, True), (0.1, False)):
        levels, cost = Levels(), costs(0.1)
        levels.expect(n_tokens, 2 * NODE, 2)
        levels.choose(RATE, RATE, 1.0, cost, lambda n_levels: 0.1 * n_levels)
        assert levels.pays is pays


def test_drafts_are_weighed_against_plain_steps_and_not_against_an_easier_text() -> None:
    for plain_rate, pays in ((1.0, True), (5.0, False)):
        levels, cost = Levels(), costs(0.1)
        levels.expect(1.0, 2 * NODE, 2)
        levels.choose(10.0, plain_rate, 2.0, cost, lambda n_levels: 0.1 * n_levels)
        assert levels.pays is pays


@pytest.mark.parametrize("seed", range(10))
def test_the_first_levels_of_a_tree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = [-1, 0]
    while len(parents) < 20:
        parents.append(int(rng.integers(parents[-1], len(parents))))
    shape = TreeShape.from_parents(parents)
    for depth in range(shape.max_depth + 3):
        first = shape.upto(depth)
        assert first.n_nodes == sum(d <= depth for d in shape.depths)
        assert list(first.parents) == parents[: first.n_nodes]
        assert first.ranks == shape.ranks[: first.n_nodes]
        assert shape.upto(depth) is first, "shapes are known by identity"
    assert shape.upto(shape.max_depth) is shape


@pytest.mark.parametrize("seed", range(20))
def test_a_replay_stops_where_the_engine_does(seed: int) -> None:
    """Behind the first depth at which no node is continued whose path is likely enough."""
    rng = np.random.default_rng(seed)
    shape = TreeShape.from_parents([-1, 0, 0, 1, 1, 2, 3, 3, 5, 6])
    n = shape.n_nodes
    logp = rng.uniform(-1.5, 0, (1, n)).astype(np.float32)
    entropies = np.zeros((1, n), np.float32)
    text = LoggedText("", 1, np.zeros(2, np.int32), False, np.zeros(2, np.float32), np.zeros((1, n), np.int32), logp, entropies)
    engine = ReplayEngine(WideLog(shape, {}, [text]), CostTable({1: 1.0}, draft_fixed=0.5, level={1: 1.0, 2: 1.0, 3: 1.0}))
    for least in (-inf, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0):
        engine.begin(text)
        depth = stopped(shape, logp[0].tolist(), least).max_depth
        before = engine.seconds
        assert engine.draft(shape, least).shape.max_depth == depth
        assert engine.seconds - before == pytest.approx(0.5 + depth), "what is not drafted is not paid for"


def test_a_replay_drafts_nothing_below_the_end_of_a_text() -> None:
    end, shape = 7, TreeShape.from_parents([-1, 0, 1, 1, 2, 3])
    drafts = np.array([[1, 2, end, 3, 4, 5], [2, 3, end, end, 4, 5]], np.int32)
    zeros = np.zeros((2, 6), np.float32)
    text = LoggedText("", 1, np.array([1, 2, end], np.int32), True, np.zeros(3, np.float32), drafts, zeros, zeros)
    engine = ReplayEngine(WideLog(shape, {}, [text]), CostTable({1: 1.0}, draft_fixed=0.5, level={1: 1.0, 2: 1.0}))
    engine.begin(text)
    tree = engine.draft(shape, -1e9)
    assert tree.shape.max_depth == 3, "another path goes on"
    assert tree.ends == (2,)
    engine.commit(engine.draft(shape), (0,))
    assert engine.draft(shape, -1e9).shape.max_depth == 2
    assert engine.draft(shape).shape.max_depth == 3, "all levels were asked for"
    assert [engine.is_eog(token) for token in (1, end)] == [False, True]
    # texts of a task know the ends of all
    assert WideLog(shape, {}, [text, replace(text, task="other", ended=False)]).of_task("other").ends == {end}
