"""What calibration fits to logs, against logs whose acceptance is known and against brute force.

| test | failure it catches |
|---|---|
| walks | counts that differ from those of the generation loop, at ends of texts above all |
| shares by rank | a share of the wrong candidates or positions |
| growth | a tree that is not the best of its size where ranks are independent |
| hull, choice | a tree that a mixture of others beats; thresholds that lose to one tree for all |
| acceptance | weights that are not those the log was made with; a fit that a session's first nodes overthrow |
| entropy chains | a length or bound that is not the best of the grid when it is run |
| short logs | NaN in a profile, which is refused then at every start |
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import ENTROPIES, EOG, synthetic_log

from entmtp_local.calibration.fit import (
    Positions,
    _signal_and_lengths,
    acceptance_rows,
    accepted_by_rank,
    choose_trees,
    fit_acceptance,
    fit_bound,
    fit_chain,
    fit_tasks,
    grow_hydra,
    grow_medusa,
    hull,
    speed,
)
from entmtp_local.calibration.oracle import small_trees
from entmtp_local.calibration.record import likely_tree, wide_shape
from entmtp_local.calibration.replay import ReplayEngine, replay
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.engine import generate
from entmtp_local.speculative.acceptance import AcceptanceModel, Context
from entmtp_local.speculative.cost import SIZES, CostTable
from entmtp_local.speculative.entropy_chain import EntropyChain
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import SETS, NodePath, Profile, shape_of
from entmtp_local.speculative.static import StaticPolicy, chain
from entmtp_local.speculative.tree import DraftTree, TreeShape

WIDE = wide_shape(8, 48)
STATES = ((0.85, 0.08, 0.02), (0.3, 0.15, 0.05))
PROCESSOR = CostTable({1: 24.0, 2: 31.0, 3: 38.0, 4: 42.0, 6: 58.0, 8: 66.0, 12: 90.0, 16: 110.0}, level={1: 1.0}, step=0.5)
STAIRS = CostTable({1: 20.0, 2: 36.0, 3: 44.0, 4: 39.0, 6: 56.0, 8: 57.0, 12: 68.0, 16: 70.0}, level={1: 0.5})
CARD = CostTable(
    {1: 20.0, 2: 20.4, 3: 20.8, 4: 21.2, 6: 22.0, 8: 23.0, 12: 30.0, 16: 31.0}, level={1: 0.5, 3: 0.6}, draft_fixed=0.3
)
TABLES = [PROCESSOR, STAIRS, CARD]


def random_tree(rng: np.random.Generator, paths: list[NodePath], n: int) -> tuple[NodePath, ...]:
    tree: list[NodePath] = [()]
    while len(tree) < n:
        open_paths = [path for path in paths if path not in tree and path[:-1] in tree]
        tree.append(open_paths[int(rng.integers(len(open_paths)))])
    return tuple(tree)


# -- positions


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_walk_is_what_the_generation_loop_does(seed: int, ended: bool) -> None:
    rng = np.random.default_rng(seed)
    log = synthetic_log(WIDE, STATES, n_texts=4, n_tokens=int(rng.integers(2, 60)), ended=ended, seed=seed)
    positions = Positions(log)
    for n in (1, 2, 5, 12):
        tree = random_tree(rng, positions.paths, n)
        engine = ReplayEngine(log, PROCESSOR)
        n_tokens = n_steps = 0
        for text in log.texts:
            engine.begin(text)
            generation = generate(
                engine, [0] * 5, policy=StaticPolicy("", shape_of(tree)), sampler=NoSampler(), max_tokens=len(text.tokens)
            )
            for _ in generation:
                pass
            assert generation.finish_reason == ("stop" if ended else "length")
            assert generation.tokens == [token for token in text.tokens.tolist() if token != EOG]
            n_tokens += len(text.tokens) - 1
            n_steps += generation.stats.n_steps
        assert positions.walk(set(tree) - {()})[:2] == (n_tokens, n_steps)
        replayed = replay(log, StaticPolicy("", shape_of(tree)), Profile(PROCESSOR))
        assert replayed.n_tokens == n_tokens and replayed.tokens_per_second == pytest.approx(speed(positions, tree, PROCESSOR))


class NoSampler:
    greedy, n_best = True, 1

    def reset(self) -> None: ...

    def prime(self, tokens: object) -> None: ...

    def take(self, token: int) -> None: ...


def test_what_a_walk_missed_is_what_each_node_would_have_added() -> None:
    positions = Positions(synthetic_log(WIDE, STATES, seed=3))
    tree: set[NodePath] = {(0,), (1,)}
    _, n_steps, missed = positions.walk(tree)
    assert all(path[:-1] in tree | {()} and path not in tree for path in missed)
    assert 0 < sum(missed.values()) <= n_steps


def test_shares_by_rank_are_those_of_the_log() -> None:
    chances = (0.5, 0.25, 0.1)
    found = accepted_by_rank(Positions(synthetic_log(WIDE, [chances], n_texts=8, n_tokens=1500)))
    assert len(found) == 8 and all(len(row) == 4 for row in found)
    for depth, row in enumerate(found[:3]):
        tolerance = 4 * math.sqrt(0.25 / (12000 * 0.5**depth))
        assert row == pytest.approx([*chances, 0.0], abs=tolerance)
    # short texts too: what lies beyond their ends is no candidate that failed
    for ended in (True, False):
        short = accepted_by_rank(Positions(synthetic_log(WIDE, [(1.0,)], n_texts=3, n_tokens=6, ended=ended)))
        assert [row[0] for row in short] == [1.0] * 4 + [0.0] * 4


# -- growth


def expected_tokens(tree: tuple[NodePath, ...], by_rank: list[list[float]]) -> float:
    return sum(math.prod(by_rank[depth][rank] for depth, rank in enumerate(path)) for path in tree)


@pytest.mark.parametrize("seed", range(6))
def test_medusas_tree_is_the_best_for_independent_ranks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    by_rank = [sorted(rng.dirichlet(np.ones(5))[:4].tolist(), reverse=True) for _ in range(4)]
    grown = grow_medusa(by_rank, 6)
    for n in range(1, 7):
        best = max(expected_tokens(tree, by_rank) for tree in small_trees(n, 4) if max(map(max, tree[1:])) < 4)
        assert expected_tokens(grown[: n + 1], by_rank) == pytest.approx(best)


def test_growth_keeps_parents_before_children_and_ends_where_chances_do() -> None:
    grown = grow_medusa([[0.5, 0.0], [0.4, 0.1]], 31)
    assert grown == ((), (0,), (0, 0), (0, 1))
    positions = Positions(synthetic_log(WIDE, STATES))
    for tree in (grow_hydra(positions, 31), grow_medusa(accepted_by_rank(positions), 31)):
        assert len(tree) == 32 and len(set(tree)) == 32
        assert all(path[:-1] in tree[:i] for i, path in enumerate(tree) if path)
    nothing = Positions(synthetic_log(WIDE, [(0.0,)]))
    assert grow_hydra(nothing, 31) == ((),)


@pytest.mark.parametrize("seed", range(4))
def test_hydras_tree_is_at_least_as_good_on_its_log(seed: int) -> None:
    positions = Positions(synthetic_log(WIDE, STATES, n_texts=4, n_tokens=1000, seed=seed))
    hydra, medusa = grow_hydra(positions, 31), grow_medusa(accepted_by_rank(positions), 31)

    def per_step(tree: tuple[NodePath, ...]) -> float:
        n_tokens, n_steps, _ = positions.walk(set(tree) - {()})
        return n_tokens / n_steps

    ratios = [per_step(hydra[:size]) / per_step(medusa[:size]) for size in range(1, 33)]
    # a tree that is grown is no search of all trees: a percent may be lost at one size
    assert min(ratios) >= 0.99 and sum(ratios) > 32.2


def test_small_trees_are_all_there_are() -> None:
    # ordered trees of n edges: the Catalan numbers
    for n, count in enumerate((1, 2, 5, 14, 42, 132), start=1):
        trees = [frozenset(tree) for tree in small_trees(n, 8)]
        assert len(trees) == len(set(trees)) == count
    assert all(max(map(len, tree)) <= 2 for tree in small_trees(5, 2))


def test_the_wide_tree_holds_the_likeliest_nodes_and_a_spine() -> None:
    assert likely_tree(4, 8, (0.6, 0.3)) == [(), (0,), (0, 0), (1,)]
    for depth, n in ((8, 96), (8, 48), (3, 48), (1, 48)):
        shape = wide_shape(depth, n)
        assert shape.max_depth == shape.spine().max_depth == depth and shape.n_nodes <= 128


# -- hull and thresholds


@pytest.mark.parametrize("costs", TABLES)
@pytest.mark.parametrize("seed", range(3))
def test_no_mixture_beats_a_tree_of_the_hull(costs: CostTable, seed: int) -> None:
    positions = Positions(synthetic_log(WIDE, STATES, seed=seed))
    grown = grow_hydra(positions, 31)

    def point(size: int) -> tuple[float, float]:
        n_tokens, n_steps, _ = positions.walk(set(grown[1:size]))
        return costs.verify_seconds(size) + costs.draft_seconds(shape_of(grown[:size])), n_tokens / n_steps

    sizes = hull(positions, grown, costs)
    assert sizes == sorted(set(sizes)) and sizes[-1] <= max(costs.verify)
    others = [point(size) for size in (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)]
    kept = sorted(map(point, sizes))
    for (x1, y1), (x2, y2) in zip(kept, kept[1:], strict=False):
        assert x1 < x2 and y1 < y2
    for x, y in others:
        assert np.interp(x, [p[0] for p in kept], [p[1] for p in kept]) >= y - 1e-9 or x < kept[0][0]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(kept, kept[1:], strict=False)]
    assert slopes == sorted(slopes, reverse=True)


def test_a_table_of_one_size_has_no_trees() -> None:
    positions = Positions(synthetic_log(WIDE, STATES))
    assert hull(positions, grow_hydra(positions, 31), CostTable({1: 1.0})) == [1]


@pytest.mark.parametrize("signal", SETS)
@pytest.mark.parametrize("costs", TABLES)
@pytest.mark.parametrize("seed", range(2))
def test_thresholds_choose_smaller_trees_for_higher_signals(signal: str, costs: CostTable, seed: int) -> None:
    log = synthetic_log(WIDE, STATES, n_tokens=200, seed=seed)
    positions = Positions(log)
    grown = grow_hydra(positions, 31)
    trees = [grown[:size] for size in hull(positions, grown, costs)]
    found = choose_trees(positions, trees, costs, signal)
    assert len(found.choice) == len(found.edges) + 1
    assert list(found.choice) == sorted(found.choice, reverse=True)
    single = max(speed(positions, tree, costs) for tree in trees)
    if signal == "constant":
        assert speed(positions, trees[found.choice[0]], costs) == single
        return
    assert gain(positions, trees, costs, found.edges, found.choice, signal, single) >= max(
        gain(positions, trees, costs, found.edges, (i,) * len(found.choice), signal, single) for i in range(len(trees))
    )
    brute = max(
        gain(positions, trees, costs, found.edges, choice, signal, single)
        for choice in itertools.combinations_with_replacement(range(len(trees) - 1, -1, -1), len(found.choice))
    )
    assert gain(positions, trees, costs, found.edges, found.choice, signal, single) == pytest.approx(brute)


def gain(
    positions: Positions,
    trees: list[tuple[NodePath, ...]],
    costs: CostTable,
    edges: tuple[float, ...],
    choice: tuple[int, ...],
    signal: str,
    rate: float,
) -> float:
    """Tokens beyond their price, summed over the steps of the best single tree."""
    key = (id(positions), id(trees), signal)
    if key not in _known:
        _known.clear()
        best = max(trees, key=lambda tree: speed(positions, tree, costs))
        _known[key] = _signal_and_lengths(positions, trees, signal, set(best))
    values, lengths = _known[key]
    bins = np.searchsorted(edges, values, side="right")
    total = 0.0
    for b, i in enumerate(choice):
        shape = shape_of(trees[i])
        price = rate * (costs.verify_seconds(shape.n_nodes) + costs.draft_seconds(shape) + costs.step)
        total += float((1 + lengths[i][bins == b] - price).sum())
    return total


_known: dict[tuple[int, int, str], tuple[np.ndarray, list[np.ndarray]]] = {}


def test_thresholds_find_states_that_last() -> None:
    """Easy and hard stretches of 200 tokens: running entropy tells them apart, and the constant control cannot."""
    log = synthetic_log(WIDE, ((0.95, 0.02), (0.05, 0.02)), n_texts=2, n_tokens=2000, stay=0.995, seed=1)
    profile = Profile(PROCESSOR, tasks=fit_tasks(log, PROCESSOR))
    adaptive, fixed = (replay(log, parse_policy(name), profile).tokens_per_second for name in ("entmtp", "entmtp:constant"))
    assert adaptive > 1.1 * fixed


# -- acceptance


def logistic_log(weights: np.ndarray, n_tokens: int, seed: int) -> tuple[WideLog, AcceptanceModel]:
    """A chain of one, right with the chance that the regression gives for what the head says."""
    rng = np.random.default_rng(seed)
    log = synthetic_log(TreeShape.chain(1), [(0.5,)], n_texts=1, n_tokens=n_tokens, seed=seed)
    text = log.texts[0]
    model = AcceptanceModel()
    model.weights = weights
    text.logp[:, 1] = np.log(rng.uniform(0.02, 0.98, n_tokens - 1))
    text.head_entropies[:, 0] = rng.exponential(1.0, n_tokens - 1)
    rows, _ = acceptance_rows(Positions(log), model)
    right = rng.random(len(rows)) < model.chances(rows)
    text.drafts[: len(rows), 1] = np.where(right, text.tokens[1 : len(rows) + 1], 5000)
    return log, model


def test_the_regression_finds_the_chances_that_the_log_was_made_with() -> None:
    # a chain has no other ranks: their weights stay what they are
    log, true = logistic_log(np.array([-0.5, 0.6, -0.4, 0.0, 0.0, 0.0, -0.8, 0.1]), 12000, 3)
    positions = Positions(log)
    fitted = fit_acceptance(positions)
    rows, right = acceptance_rows(positions, fitted)
    assert len(right) == len(log.texts[0].tokens) - 2
    assert np.abs(fitted.chances(rows) - true.chances(rows)).mean() < 0.015
    assert fitted.weights[[0, 1, 2, 6]] == pytest.approx(true.weights[[0, 1, 2, 6]], abs=0.2)
    assert fitted.weights[3:6].tolist() == [0.0, 0.0, 0.0]


def test_a_fit_to_many_tokens_outlives_a_few_surprises() -> None:
    """Sixteen nodes of 0.8 by the head, all of them wrong."""
    tree = DraftTree(TreeShape.chain(1), (1, 2), np.array([0.0, np.log(0.8)], dtype=np.float32))
    found = []
    for of_few in (False, True):
        model = AcceptanceModel()
        model.load(model.as_json(), of_few)
        (row,) = model.rows(tree, Context())[1:]
        for _ in range(16):
            model.observe(row[None], np.zeros(1))
        found.append(float(model.chances(row[None])[0]))
    of_many, of_few_tokens = found
    assert of_few_tokens < 0.4 < of_many < 0.8


def test_rows_are_the_candidates_whose_parents_are_right() -> None:
    log = synthetic_log(TreeShape.comb(2, 2), [(1.0,)], n_texts=1, n_tokens=5)
    rows, right = acceptance_rows(Positions(log), AcceptanceModel(("depth",)))
    # four positions; two levels of two candidates at each, but for those that reach the last token or lie beyond it
    assert right.tolist() == [1, 0] * 5
    assert (8 * rows[:, -1]).tolist() == [1, 1, 2, 2, 1, 1, 2, 2, 1, 1]
    empty = acceptance_rows(Positions(synthetic_log(TreeShape.chain(2), n_tokens=1)), AcceptanceModel())
    assert empty[0].shape == (0, 8) and len(empty[1]) == 0


@pytest.mark.parametrize("gamma", [0.02, 0.1, 0.5])
def test_the_bound_is_the_one_that_the_log_was_made_with(gamma: float) -> None:
    log = synthetic_log(TreeShape.chain(1), [(0.5,)], n_texts=1, n_tokens=15000)
    text, rng = log.texts[0], np.random.default_rng(0)
    text.head_entropies[:, 0] = rng.uniform(0, min(4.0, 1 / gamma), len(text.drafts))
    right = rng.random(len(text.drafts)) < 1 - np.sqrt(gamma * text.head_entropies[:, 0])
    text.drafts[:, 1] = np.where(right, text.tokens[1:], 5000)
    assert fit_bound(Positions(log)) == pytest.approx(gamma, rel=0.15)


@pytest.mark.parametrize("costs", [PROCESSOR, CARD])
@pytest.mark.parametrize("depth", [2, 5])
def test_the_entropy_chain_is_the_best_of_its_grid_when_it_is_run(costs: CostTable, depth: int) -> None:
    log = synthetic_log(TreeShape.chain(depth), STATES, n_texts=2, n_tokens=80, stay=0.9, seed=depth)
    # the chances of the bounds are to differ: 1 - sqrt(0.3 H)
    positions, gamma = Positions(log), 0.3
    fit = fit_tasks(log, costs)["all"]

    def run(n_levels: int, bound: float) -> float:
        changed = replace(fit, gamma=gamma, chain_depth=n_levels, chain_bound=bound)
        return replay(log, EntropyChain(), Profile(costs, tasks={"all": changed})).tokens_per_second

    found = fit_chain(positions, gamma, costs)
    grid = [(n, b / 10) for n in range(1, depth + 1) for b in range(10)]
    assert found in grid
    assert run(*found) == pytest.approx(max(run(*each) for each in grid))
    assert run(*found) >= max(replay(log, chain(n), Profile(costs)).tokens_per_second for n in range(1, depth + 1)) - 1e-9


# -- whole fits


@pytest.mark.parametrize("n_tokens", [2, 3, 7])
@pytest.mark.parametrize("shape", [TreeShape.chain(1), TreeShape.chain(3), WIDE])
@pytest.mark.parametrize("ended", [True, False])
def test_fits_of_very_short_texts_can_be_read_again(tmp_path: Path, n_tokens: int, shape: TreeShape, ended: bool) -> None:
    log = synthetic_log(shape, STATES, n_texts=2, n_tokens=n_tokens, ended=ended, tasks=("code", "math"))
    profile = Profile(PROCESSOR, tasks=fit_tasks(log, PROCESSOR))
    assert list(profile.tasks) == ["all", "code", "math"]
    profile.save(tmp_path / "a.json")
    assert Profile.load(tmp_path / "a.json") == profile


def test_fits_of_a_log_can_be_read_again_and_count_it(tmp_path: Path) -> None:
    log = synthetic_log(WIDE, STATES, n_texts=4, n_tokens=100, tasks=("code", "math"))
    profile = Profile(CARD, tasks=fit_tasks(log, CARD))
    profile.save(tmp_path / "a.json")
    assert Profile.load(tmp_path / "a.json") == profile
    counts = {task: (fit.n_texts, fit.n_positions) for task, fit in profile.tasks.items()}
    assert counts == {"all": (4, 4 * 99), "code": (2, 2 * 99), "math": (2, 2 * 99)}
    fit = profile.tasks["all"]
    assert all(set(tree.trees) <= {tuple(fit.hydra[: len(t)]) for t in tree.trees} for tree in fit.sets.values())
    assert fit.entropy_edges == pytest.approx([math.log(ENTROPIES[1])])


def test_a_log_without_positions_has_no_fits() -> None:
    assert fit_tasks(synthetic_log(WIDE, n_tokens=1), PROCESSOR) == {}
    assert fit_tasks(WideLog(WIDE, {}), PROCESSOR) == {}
    mixed = synthetic_log(WIDE, n_texts=1, tasks=("code",))
    mixed.texts += synthetic_log(WIDE, n_texts=1, n_tokens=1, tasks=("math",)).texts
    assert list(fit_tasks(mixed, PROCESSOR)) == ["all", "code"]
    assert set(PROCESSOR.verify) <= set(SIZES)
