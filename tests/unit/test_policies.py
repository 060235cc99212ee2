"""Policies that take their choices from a profile, against profiles made by hand.

| test | failure it catches |
|---|---|
| EntMTP | a tree of another bin; one odd token that changes the tree; a signal that is not there and freezes or crashes |
| limits | trees where only chains are verified; shapes that are built anew for every answer |
| EntropyChain | a chain that is cut one node too early or too late |
| names | a bad name that is taken for another policy, or a message that does not help |
| Throughput's variants | an ablation that still does what it is to leave out |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from entmtp_local.errors import ProfileError, UsageError
from entmtp_local.speculative.acceptance import AcceptanceModel
from entmtp_local.speculative.cost import SIZES, CostTable
from entmtp_local.speculative.entmtp import DWELL, MARGIN, Choice, EntMTP, RunningSignal
from entmtp_local.speculative.entropy import acceptance_bound
from entmtp_local.speculative.entropy_chain import EntropyChain
from entmtp_local.speculative.grown import GrownTree
from entmtp_local.speculative.guard import Guard
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import NodePath, Profile, TaskFit, TreeSet, paths_of
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.throughput import VARIANTS, Throughput
from entmtp_local.speculative.tree import DraftTree, TreeShape

SMALL: tuple[NodePath, ...] = ((), (0,))
MIDDLE: tuple[NodePath, ...] = ((), (0,), (0, 0), (1,))
LARGE: tuple[NodePath, ...] = ((), (0,), (0, 0), (1,), (0, 0, 0), (0, 1), (2,))
TREES = (SMALL, MIDDLE, LARGE)
# two edges of log-entropy: large below -2, small above 1
SET = TreeSet(TREES, (-2.0, 1.0), (2, 1, 0))
COSTS = CostTable({size: 1.0 + 0.1 * size for size in SIZES}, level={1: 0.05})
FREE = Limits(trees=True, max_depth=255, max_nodes=255, reason="")
CHAINS = replace(FREE, trees=False, max_depth=2)


def fit(**values: object) -> TaskFit:
    whole = TaskFit(
        n_positions=100,
        n_texts=2,
        acceptance=AcceptanceModel().as_json(),
        by_rank=((0.6, 0.2), (0.5, 0.2)),
        entropy_edges=(-1.0,),
        gamma=0.2,
        chain_depth=4,
        chain_bound=0.5,
        medusa=MIDDLE,
        hydra=LARGE,
        sets={
            "running": SET,
            "path": TreeSet(TREES, (0.5, 2.0), (2, 1, 0)),
            "constant": TreeSet(TREES, (), (1,)),
        },
    )
    return replace(whole, **values)  # type: ignore[arg-type]


PROFILE = Profile(
    COSTS, tasks={"all": fit(), "code": fit(chain_depth=2, sets={**fit().sets, "constant": TreeSet(TREES, (), (2,))})}
)


def evidence(entropy: float = math.nan) -> Evidence:
    return Evidence(n_past=10, n_accepted_last=0, entropy=entropy)


def ready(name: str, profile: Profile = PROFILE) -> Policy:
    policy = parse_policy(name)
    if policy.needs_profile:
        policy.calibrated(profile)
    return policy


def drafted(shape: TreeShape, logp: float | Sequence[float] = -0.5, entropy: Sequence[float] | None = None) -> DraftTree:
    given = np.full(shape.n_nodes, logp, dtype=np.float32)
    found = None if entropy is None else np.array(entropy, dtype=np.float32)
    return DraftTree(shape, tuple(range(shape.n_nodes)), given, entropy=found)


def outcome(tree: DraftTree) -> Outcome:
    return Outcome(tree, tree, (0,), 0.01, 0.1, 0.11)


# -- EntMTP


@pytest.mark.parametrize(
    ("logs", "expected"), [(-6.0, LARGE), (-2.3, LARGE), (-1.8, MIDDLE), (0.5, MIDDLE), (1.2, SMALL), (2.0, SMALL)]
)
def test_entmtp_drafts_the_tree_of_the_running_entropy(logs: float, expected: tuple[NodePath, ...]) -> None:
    policy = ready("entmtp")
    for _ in range(20):
        shape = policy.plan(evidence(math.exp(logs)))
        assert sorted(paths_of(shape)) == sorted(expected)
        assert policy.plan(evidence(math.exp(logs))) is shape, "engines recognise a shape by identity"


def test_lower_entropy_never_asks_for_a_smaller_tree() -> None:
    sizes = []
    for log in np.linspace(-8, 3, 40):
        policy = ready("entmtp")
        for _ in range(30):
            shape = policy.plan(evidence(math.exp(log)))
        sizes.append(shape.n_nodes)
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {len(SMALL), len(MIDDLE), len(LARGE)}


def test_the_running_entropy_is_averaged_over_steps() -> None:
    signal = RunningSignal("running", window=4)
    assert signal.before(2.0) == pytest.approx(math.log(2.0))
    assert signal.before(0.0) == pytest.approx(math.log(2.0 * 0.75 / 1.75))


def test_a_value_near_an_edge_keeps_the_tree() -> None:
    choice = Choice(SET)
    assert choice.step(-3.0) == 2
    for value in (-2.0 + 0.9 * MARGIN, -2.0, -2.0 + 0.5 * MARGIN):
        assert {choice.step(value) for _ in range(50)} == {2}
    assert {choice.step(-2.0 + 1.1 * MARGIN) for _ in range(DWELL)} == {1}
    assert {choice.step(-2.0 - 0.9 * MARGIN) for _ in range(50)} == {1}
    choice.step(-2.0 - 1.1 * MARGIN)
    assert choice.current == 2


def test_a_tree_stays_for_some_steps() -> None:
    choice = Choice(SET)
    choice.step(-3.0)
    found = [choice.step(5.0) for _ in range(DWELL + 1)]
    assert found == [2] * (DWELL - 1) + [0] * 2
    assert [choice.step(-5.0) for _ in range(DWELL)] == [0] * (DWELL - 2) + [2] * 2, "counted from the change"


def test_one_odd_token_changes_nothing() -> None:
    policy = ready("entmtp")
    sizes = {policy.plan(evidence(1.0 if i == 100 else 0.01)).n_nodes for i in range(200)}
    assert sizes == {len(LARGE)}, "by itself it would ask for the small tree"


def test_a_signal_that_is_not_there_keeps_the_tree() -> None:
    choice = Choice(SET)
    assert choice.step(math.nan) == 1, "of the middle, as long as nothing is known"
    assert [choice.step(math.nan) for _ in range(30)] == [1] * 30
    assert choice.step(-5.0) == 2
    assert [choice.step(math.nan) for _ in range(30)] == [2] * 30


def test_the_path_control_follows_what_the_head_says() -> None:
    policy = ready("entmtp:path")
    assert not policy.needs_entropy
    assert policy.plan(evidence()).n_nodes == len(MIDDLE), "nothing is known yet"
    for logp, expected in ((-0.01, LARGE), (-1.0, MIDDLE), (-4.0, SMALL), (-0.01, LARGE)):
        for _ in range(150):
            shape = policy.plan(evidence(9.9))
            policy.learn(outcome(drafted(shape, logp)))
        assert shape.n_nodes == len(expected)
    # nothing drafted by the head: nothing is learnt
    for _ in range(100):
        policy.learn(outcome(DraftTree(TreeShape.chain(3), (1, 2, 3, 4))))
        policy.learn(outcome(drafted(TreeShape.chain(0), -9.0)))
    assert policy.plan(evidence()).n_nodes == len(LARGE)


def test_the_path_signal_is_per_level() -> None:
    for depth in (1, 4):
        signal = RunningSignal("path")
        signal.after(drafted(TreeShape.comb(depth, 3), [0.0] + [-0.7, -5.0, -6.0] * depth))
        assert signal.before(1.0) == pytest.approx(0.7)


def test_the_constant_control_never_changes() -> None:
    for name, expected in (("entmtp:constant", MIDDLE), ("entmtp:constant:code", LARGE)):
        policy = ready(name)
        rng = np.random.default_rng(0)
        assert not policy.needs_entropy
        assert {policy.plan(evidence(float(rng.exponential()))).n_nodes for _ in range(50)} == {len(expected)}


@pytest.mark.parametrize("name", ["entmtp", "entmtp:path", "entropy-chain", "hydra:7", "medusa:3"])
def test_without_a_profile_it_says_what_to_do(name: str) -> None:
    with pytest.raises(ProfileError, match="entmtp-local calibrate MODEL"):
        parse_policy(name).plan(evidence())
    with pytest.raises(ProfileError, match="knows no texts yet, .*; run entmtp-local calibrate MODEL first"):
        ready(name, Profile(COSTS))
    with pytest.raises(ProfileError, match=r"no task prose \(it has: code\).*--task prose"):
        ready(f"{name}:prose")


# -- limits


@pytest.mark.parametrize(
    "name", ["entmtp", "entmtp:path", "entmtp:constant:code", "entropy-chain", "hydra:7", "medusa:2", "throughput"]
)
@pytest.mark.parametrize("limits", [CHAINS, replace(CHAINS, max_depth=1), replace(FREE, max_nodes=2), replace(FREE, max_depth=2)])
def test_what_is_planned_stays_within_limits(name: str, limits: Limits) -> None:
    policy = parse_policy(name).within(limits)
    if policy.needs_profile:
        policy.calibrated(PROFILE)
    assert policy.within(limits) is policy
    assert policy.max_depth <= limits.max_depth and (not policy.needs_entropy or name == "entmtp")
    for log in np.linspace(-6, 3, 30):
        shape = policy.plan(evidence(math.exp(log)))
        whole = drafted(shape, entropy=[0.1] * shape.n_nodes)
        tree = policy.select(whole) if shape.n_nodes > 1 else whole
        assert shape.max_depth <= limits.max_depth and tree.shape.n_nodes <= limits.max_nodes + 1
        assert limits.trees or tree.shape.is_chain
        policy.learn(replace(outcome(whole), verified=tree))


@pytest.mark.parametrize("name", ["entmtp", "entropy-chain", "hydra:3", "throughput", "throughput:costless"])
@pytest.mark.parametrize("values", [{"max_depth": 0}, {"max_nodes": 0}])
def test_nothing_is_drafted_where_nothing_can_be(name: str, values: dict[str, int]) -> None:
    assert parse_policy(name).within(replace(FREE, **values)).name == "off"
    assert parse_policy(name).within(replace(CHAINS, **values)).name == "off"


def test_entmtp_as_chains() -> None:
    policy = parse_policy("entmtp")
    assert policy.within(FREE) is policy
    chains = policy.within(CHAINS)
    chains.calibrated(PROFILE)
    shapes = [[chains.plan(evidence(entropy)) for _ in range(40)][-1] for entropy in (0.01, 9.0)]
    assert [(shape.is_chain, shape.max_depth) for shape in shapes] == [(True, 2), (True, 1)]
    assert (chains.name, chains.needs_entropy) == ("entmtp", True)


def test_grown_trees_begin_with_what_was_grown_first() -> None:
    for name, expected in (("hydra:1", LARGE[:2]), ("hydra:4", LARGE[:5]), ("hydra:31", LARGE), ("medusa:2:code", MIDDLE[:3])):
        assert sorted(paths_of(ready(name).plan(evidence()))) == sorted(expected)
    assert parse_policy("hydra:1").within(replace(CHAINS, max_depth=8)).max_depth == 1
    tree = GrownTree("hydra", 5)
    assert (tree.max_nodes, tree.max_depth, tree.within(FREE)) == (5, 5, tree)
    # where there is room for fewer nodes or levels: the largest of the kind that is sure to fit
    for limits, wanted in ((replace(FREE, max_nodes=3), "hydra:3"), (replace(FREE, max_depth=2), "hydra:2")):
        assert tree.within(limits).name == wanted and GrownTree("hydra", 5, "code").within(limits).name == f"{wanted}:code"


# -- EntropyChain


@pytest.mark.parametrize("seed", range(10))
def test_a_chain_is_cut_where_the_bound_falls_below(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gamma, bound = float(rng.uniform(0.05, 1)), float(rng.uniform(0.1, 0.9))
    policy = ready("entropy-chain", Profile(COSTS, tasks={"all": fit(gamma=gamma, chain_bound=bound, chain_depth=6)}))
    for _ in range(30):
        shape = policy.plan(evidence())
        assert shape.is_chain and shape.max_depth == 6
        entropies = [*rng.exponential(0.5, 6).astype(np.float32).tolist(), math.nan]
        tree = policy.select(drafted(shape, entropy=entropies))
        below = [acceptance_bound(entropy, gamma) < bound for entropy in entropies[:6]]
        length = below.index(True) if True in below else 6
        assert tree.shape.max_depth == length and tree.tokens == tuple(range(length + 1))
        assert tree.logp is not None and len(tree.logp) == length + 1


def test_a_chain_of_no_entropies_is_left_whole() -> None:
    policy = ready("entropy-chain:code")
    tree = drafted(policy.plan(evidence()))
    assert tree.shape.max_depth == 2 and policy.select(tree) is tree


def test_entropy_chains_within_limits() -> None:
    policy = EntropyChain()
    short = policy.within(replace(CHAINS, max_depth=3))
    short.calibrated(PROFILE)
    assert policy.within(FREE) is policy and short.plan(evidence()).max_depth == 3
    assert policy.within(replace(FREE, max_nodes=2)).max_depth == 2


# -- names


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("throughput", Guard),
        *((f"throughput:{name}", Throughput) for name in VARIANTS if name),
        *((f"entmtp{rest}", EntMTP) for rest in ("", ":path", ":constant", ":code", ":path:code", ":constant:my notes")),
        ("entropy-chain", EntropyChain),
        ("entropy-chain:math", EntropyChain),
        *((f"{way}:{n}{task}", GrownTree) for way in ("medusa", "hydra") for n in (1, 31) for task in ("", ":code")),
    ],
)
def test_a_policy_is_called_what_names_it(text: str, kind: type) -> None:
    policy = parse_policy(text)
    assert type(policy) is kind and policy.name == text and policy.needs_profile


@pytest.mark.parametrize(
    "text", ["entmtp:", "entropy-chain:", "hydra", "hydra:", "hydra:0", "hydra:99", "hydra:32", "medusa:x", "medusa:-1"]
)
def test_bad_names_are_told_the_good_ones(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_policy(text)
    for word in (f"'{text}'", "entmtp", "entropy-chain", "medusa:N and hydra:N (N from 1 to 31)"):
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["throughput:nonsense", "throughput:"])
def test_an_unknown_variant_is_told_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="entropy, constant, history, everything, uncalibrated, costless") as error:
        parse_policy(text)
    assert f"'{text}'" in str(error.value)


# -- Throughput's variants


def steps(
    policy: Throughput, n: int = 120, seed: int = 0, entropies: Sequence[float] = (0.01, 1.0, 4.0)
) -> list[tuple[int, ...]]:
    """Verified parents of each step; what is said and what is right is fixed by the seed, what the entropies are is not."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        said = rng.uniform(-2.0, -0.05, 25).astype(np.float32)
        shape = policy.plan(Evidence(10 + i, 0, entropies[i % len(entropies)]))
        entropy = np.full(shape.n_nodes, 0.3, dtype=np.float32)
        tree = DraftTree(shape, tuple(range(shape.n_nodes)), said[: shape.n_nodes], entropy=entropy)
        verified = policy.select(tree) if shape.n_nodes > 1 else tree
        path = [0]
        while verified.shape.children[path[-1]] and rng.random() < 0.6:
            path.append(verified.shape.children[path[-1]][0])
        policy.learn(Outcome(tree, verified, tuple(path), 0.1, 1.2, 1.3))
        found.append(verified.shape.parents)
    return found


def variant(name: str, depth: int = 8, width: int = 3) -> Throughput:
    policy = Throughput(name, depth, width)
    policy.calibrated(PROFILE)
    return policy


def test_which_variants_ask_for_the_entropy() -> None:
    assert {name for name in VARIANTS if Throughput(name).needs_entropy} == {"entropy", "everything"}
    assert not parse_policy("throughput").needs_entropy


def test_uncalibrated_takes_the_heads_own_word() -> None:
    content = AcceptanceModel().as_json()
    content["weights"] = [1.0] * len(content["weights"])
    profile = Profile(COSTS, tasks={"all": fit(acceptance=content)})
    policy, usual = Throughput("uncalibrated", 8), Throughput("", 8)
    before = policy.acceptance.weights.tolist()
    for each in (policy, usual):
        each.calibrated(profile)
    assert usual.acceptance.weights.tolist() != before
    steps(policy)
    steps(usual)
    assert policy.acceptance.weights.tolist() == before and usual.acceptance.weights.tolist() != [1.0] * len(before)


@pytest.mark.parametrize(("depth", "width", "n_nodes"), [(8, 3, 8), (3, 3, 8), (2, 3, 7), (3, 1, 4), (8, 1, 8), (1, 1, 2)])
def test_costless_verifies_its_budget_at_every_step(depth: int, width: int, n_nodes: int) -> None:
    assert {len(parents) for parents in steps(variant("costless", depth, width))} == {n_nodes}


def test_the_constant_variant_does_not_look_at_entropies() -> None:
    other = (3.0, math.nan, 0.0, 7.0)
    for name in ("constant", "", "history", "uncalibrated"):
        assert steps(variant(name)) == steps(variant(name), entropies=other)
    assert steps(variant("entropy")) != steps(variant("entropy"), entropies=(4.0, 0.01, 0.5))
