"""Replays of logs, the bounds on them, and logs as files.

| test | failure it catches |
|---|---|
| chains | tokens, steps or seconds that are not those of the text and the table |
| ends | a text that goes on behind its end, or loses its last token |
| limits | a policy that runs uncalibrated, because it was calibrated before it was reduced |
| oracles | a bound below what a policy reaches; a best tree that is not the best |
| unsteady machines | a clock that is not that of the machine asked for; a policy that sees another machine than chains do |
| files | a damaged log that ends in a traceback, or is read as another |
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import EOG, synthetic_log

from entmtp_local.calibration.fit import Positions, fit_tasks, grow_hydra, grow_medusa
from entmtp_local.calibration.fit import accepted_by_rank as by_rank
from entmtp_local.calibration.oracle import all_seeing, best_static, same_information
from entmtp_local.calibration.record import wide_shape
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.errors import EntMTPError, UsageError
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Profile, paths_of, shape_of
from entmtp_local.speculative.static import OFF, StaticPolicy, chain
from entmtp_local.speculative.tree import TreeShape
from scripts import replay_unsteady
from scripts.replay_unsteady import Machine, Unsteady

WIDE = wide_shape(8, 48)
STATES = ((0.85, 0.08, 0.02), (0.3, 0.15, 0.05))
PROCESSOR = CostTable({1: 24.0, 2: 31.0, 3: 38.0, 4: 42.0, 6: 58.0, 8: 66.0, 12: 90.0, 16: 110.0}, level={1: 1.0}, step=0.5)
# two and three nodes are dearer than four
STAIRS = CostTable({1: 20.0, 2: 36.0, 3: 44.0, 4: 39.0, 6: 56.0, 8: 57.0, 12: 68.0, 16: 70.0}, per_token=0.02, level={1: 0.5})
CARD = CostTable(
    {1: 20.0, 2: 20.4, 3: 20.8, 4: 21.2, 6: 22.0, 8: 23.0, 12: 30.0, 16: 31.0}, draft_fixed=0.4, level={1: 0.5, 3: 0.7}
)
GAPS = CostTable({1: 20.0, 7: 80.0}, level={1: 0.5})
TABLES = [PROCESSOR, STAIRS, CARD, GAPS]
STATIC = ("off", "chain:1", "chain:3", "hydra:5", "medusa:5", "entmtp:constant")
POLICIES = (*STATIC, "entmtp", "entmtp:path", "entropy-chain", "throughput")


def counted(log: WideLog, depth: int, costs: CostTable) -> tuple[int, int, list[int], float]:
    """Tokens, steps, accepted nodes by depth and seconds of a chain, by looking at the arrays alone."""
    spine = [paths_of(log.shape).index((0,) * n) for n in range(1, depth + 1)]
    n_tokens = n_steps = 0
    accepted, seconds = [0] * depth, 0.0
    for text in log.texts:
        at, n = 0, len(text.tokens)
        while at < n - 1:
            right = 0
            while right < depth and at + right + 1 < n - 1 and text.drafts[at, spine[right]] == text.tokens[at + right + 1]:
                accepted[right] += 1
                right += 1
            seconds += costs.verify[depth + 1] + costs.per_token * (text.n_prompt + at) + costs.step
            seconds += costs.draft_fixed + depth * costs.level[1] if depth and costs.level else 0.0
            at += right + 1
            n_tokens += right + 1
            n_steps += 1
    return n_tokens, n_steps, accepted, seconds


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("costs", TABLES[:3])
@pytest.mark.parametrize("depth", [0, 1, 3, 7])
def test_a_chain_is_replayed_as_it_is_counted(depth: int, costs: CostTable, ended: bool) -> None:
    log = synthetic_log(WIDE, STATES, n_texts=3, n_tokens=90, ended=ended, seed=depth)
    found = replay(log, chain(depth) if depth else OFF, Profile(costs))
    n_tokens, n_steps, accepted, seconds = counted(log, depth, costs)
    assert (found.n_tokens, sum(stats.n_steps for stats in found.stats)) == (n_tokens, n_steps) and n_tokens == 3 * 89
    by_depth = itertools.zip_longest(*(stats.accepted_per_depth for stats in found.stats), fillvalue=0)
    assert [sum(counts) for counts in by_depth] == [n for n in accepted if n]
    assert found.seconds == pytest.approx(seconds) and found.tokens_per_second == pytest.approx(n_tokens / seconds)
    assert found.tokens_per_step == pytest.approx(n_tokens / n_steps) and found.n_uncovered == 0


def test_the_clock_adds_up() -> None:
    log = synthetic_log(WIDE, STATES, n_texts=2)
    found = replay(log, parse_policy("throughput"), Profile(CARD, tasks=fit_tasks(log, CARD)))
    for stats in found.stats:
        parts = sum(stats.seconds[name] for name in ("draft", "verify", "accept", "commit", "schedule"))
        assert stats.seconds["decode"] == pytest.approx(parts) and stats.seconds["prefill"] == 0


@pytest.mark.parametrize("ended", [True, False])
def test_certain_drafts_stop_at_the_end(ended: bool) -> None:
    for n_tokens in (1, 2, 3, 9, 10):
        log = synthetic_log(WIDE, [(1.0,)], n_texts=1, n_tokens=n_tokens, ended=ended)
        found = replay(log, chain(8), Profile(CARD))
        # of each step of up to nine tokens the last one is the bonus
        assert found.n_tokens == n_tokens - 1 and sum(stats.n_steps for stats in found.stats) == -(-(n_tokens - 1) // 9)
        for stats in found.stats:
            assert stats.n_generated == n_tokens - ended
    assert replay(WideLog(WIDE, {}), OFF, Profile(CARD)).tokens_per_second == 0.0


def test_an_end_that_is_drafted_is_never_accepted() -> None:
    log = synthetic_log(WIDE, [(1.0,)], n_texts=1, n_tokens=4, ended=True)
    log.texts[0].drafts[:, :] = np.where(log.texts[0].drafts >= 1000, EOG, log.texts[0].drafts)
    found = replay(log, chain(8), Profile(CARD))
    assert found.stats[0].accepted_per_depth == [1, 1] and found.stats[0].n_generated == 3


def test_nodes_that_the_log_does_not_have_are_never_accepted() -> None:
    log = synthetic_log(TreeShape.comb(4, 2), STATES)
    wide = replay(log, StaticPolicy("", TreeShape.comb(4, 3)), Profile(CARD))
    narrow = replay(log, StaticPolicy("", TreeShape.comb(4, 2)), Profile(CARD))
    assert wide.tokens_per_step == narrow.tokens_per_step
    assert wide.n_uncovered == 4 * sum(stats.n_steps for stats in wide.stats) and narrow.n_uncovered == 0


@pytest.mark.parametrize("name", [*POLICIES, "throughput:costless", "throughput:everything"])
@pytest.mark.parametrize("shape", [TreeShape.chain(1), TreeShape.chain(3), wide_shape(3, 24), WIDE])
def test_every_policy_runs_on_logs_of_every_depth(name: str, shape: TreeShape) -> None:
    log = synthetic_log(shape, STATES)
    profile = Profile(CARD, tasks=fit_tasks(log, CARD))
    found = replay(log, parse_policy(name), profile)
    assert found.n_tokens == 3 * 149 and (found.n_uncovered == 0 or not shape.is_chain)
    if name != "off":
        # certainly better than nothing where passes cost next to nothing
        assert found.tokens_per_second > 1.05 * replay(log, OFF, profile).tokens_per_second


# -- oracles


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("costs", TABLES)
@pytest.mark.parametrize("shape", [WIDE, TreeShape.chain(3)])
def test_bounds_are_above_what_they_bound(shape: TreeShape, costs: CostTable, ended: bool) -> None:
    log = synthetic_log(shape, STATES, n_texts=3, n_tokens=200, ended=ended)
    profile = Profile(costs, tasks=fit_tasks(log, costs))
    found = {name: replay(log, parse_policy(name), profile).tokens_per_second for name in POLICIES}
    above, informed, static = all_seeing(log, costs), same_information(log, costs), best_static(log, costs)[0]
    assert above >= max(informed, static, *found.values()) - 1e-9
    assert informed >= 0.95 * found["throughput"] and informed >= found["off"] - 1e-9
    # what the context adds is known on average
    tolerance = 5e-3 if costs.per_token else 1e-9
    assert static >= max(found[name] for name in STATIC) * (1 - tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_static_tree_is_the_planted_one(seed: int) -> None:
    """Texts that follow one tree and nothing else, on a table where each further node costs more than it could bring."""
    rng = np.random.default_rng(seed)
    planted = [((), (0,), (1,), (0, 0)), ((), (0,), (0, 0), (0, 0, 0), (0, 0, 1)), ((), (0,), (1,), (2,))][seed]
    log = synthetic_log(WIDE, [(0.0,)], n_texts=1, n_tokens=600)
    text, shape = log.texts[0], log.shape
    paths = paths_of(shape)
    leaves = [path for path in planted if path and not any(other[:-1] == path for other in planted if other)]
    for i in range(len(text.drafts)):
        leaf = leaves[int(rng.integers(len(leaves)))]
        for depth in range(1, len(leaf) + 1):
            if i + depth < len(text.tokens):
                text.drafts[i, paths.index(leaf[:depth])] = text.tokens[i + depth]
    costs = CostTable({n: 1.0 + 0.01 * n for n in range(1, 13)}, level={1: 0.001})
    speed, found = best_static(log, costs)
    assert sorted(paths_of(found)) == sorted(planted)
    assert speed == pytest.approx(replay(log, StaticPolicy("", shape_of(planted)), Profile(costs)).tokens_per_second)


def test_the_all_seeing_oracle_verifies_what_is_right_and_no_more() -> None:
    costs = CostTable({1: 10.0, 2: 11.0, 3: 12.0, 4: 13.0}, per_token=0.1, level={1: 1.0}, step=0.25)
    log = synthetic_log(TreeShape.chain(3), [(1.0,)], n_texts=1, n_tokens=9, n_prompt=20)
    # eight tokens: two steps of four, with 20 and 24 tokens before them
    assert all_seeing(log, costs) == pytest.approx(8 / (2 * (13 + 3 + 0.25) + 0.1 * (20 + 24)))
    hopeless = synthetic_log(TreeShape.chain(3), [(0.0,)], n_texts=1, n_tokens=9, n_prompt=20)
    assert all_seeing(hopeless, costs) == pytest.approx(replay(hopeless, OFF, Profile(costs)).tokens_per_second)
    assert all_seeing(WideLog(WIDE, {}), costs) == 0.0


def test_growth_on_the_log_itself_is_among_the_best_trees() -> None:
    log = synthetic_log(WIDE, STATES, seed=5)
    positions = Positions(log)
    best = best_static(log, CARD)[0]
    for grown in (grow_hydra(positions, 15), grow_medusa(by_rank(positions), 15)):
        for size in range(2, 17):
            assert best >= replay(log, StaticPolicy("", shape_of(grown[:size])), Profile(CARD)).tokens_per_second - 1e-12


# -- files


ARRAYS = ("tokens", "entropies", "drafts", "logp", "head_entropies")


def test_an_unsteady_machine_takes_what_it_is_said_to_take() -> None:
    log, profile = synthetic_log(WIDE, STATES, n_texts=4), Profile(CARD)

    def seconds(policy: str, machine: Machine, seed: int = 1) -> float:
        return replay(log, parse_policy(policy), profile, engine=Unsteady(log, profile, machine, seed)).seconds

    steady = Machine(drift=0.0, noise=0.0)
    for policy in ("off", "chain:3"):
        usual = replay(log, parse_policy(policy), profile).seconds
        assert seconds(policy, steady) == pytest.approx(usual)
        assert seconds(policy, replace(steady, slower=1.15)) == pytest.approx(1.15 * usual)
    # plain steps have no drafts and no trees
    dear = replace(steady, drafts=1.5, trees=1.2)
    assert seconds("off", dear) == pytest.approx(seconds("off", steady))
    # a table in which all but drafts takes next to nothing
    drafts_only = Profile(replace(CARD, verify=dict.fromkeys(CARD.verify, 1e-9), step=0.0))
    drafted = replay(log, parse_policy("chain:3"), drafts_only).seconds
    verified = seconds("chain:3", steady) - drafted
    assert seconds("chain:3", dear) == pytest.approx(1.5 * drafted + 1.2 * verified, rel=1e-6)
    # a seed is a machine, and its mean is that of the others
    restless = Machine(drift=0.2, noise=0.1)
    found = [seconds("off", restless, seed) for seed in range(20)]
    assert found[3] == seconds("off", restless, 3) and len(set(found)) == 20
    assert sum(found) / 20 == pytest.approx(seconds("off", steady), rel=0.15)


def test_policies_are_held_against_chains_on_unsteady_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = synthetic_log(WIDE, STATES, n_texts=6, tasks=("code", "prose"))
    log.save(tmp_path / "log.npz")
    Profile(CARD).save(tmp_path / "profile.json")
    arguments = ["log.npz", "--profile", "profile.json", "--policies", "off", "chain:2", "throughput", "--seeds", "3"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["replay_unsteady.py", *arguments])
    replay_unsteady.main()
    machines = json.loads(capsys.readouterr().out.splitlines()[-1])["machines"]
    assert set(machines) == set(replay_unsteady.MACHINES)
    for rows in machines.values():
        assert rows["off"]["over_plain"] == 1.0 and rows["chain:2"]["over_best_chain"] <= 1.0
        assert rows["throughput"]["worst"] > 0.8 and rows["throughput"]["over_best_chain"] > 0.95


def test_what_cannot_be_replayed_on_unsteady_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Profile(CARD).save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    for n_tokens, policy, words in ((1, "throughput", "no text of more than one token"), (20, "entmtp:TASK", "no texts of code")):
        synthetic_log(WIDE, STATES, n_texts=2, n_tokens=n_tokens).save(tmp_path / "log.npz")
        arguments = ["log.npz", "--profile", "profile.json", "--policies", policy]
        monkeypatch.setattr("sys.argv", ["replay_unsteady.py", *arguments])
        with pytest.raises(EntMTPError, match=words):
            replay_unsteady.main()


def same(a: WideLog, b: WideLog) -> bool:
    return (
        a.about == b.about
        and np.array_equal(a.shape.parents, b.shape.parents)
        and np.array_equal(a.shape.ranks, b.shape.ranks)
        and len(a.texts) == len(b.texts)
        and all(
            (s.task, s.n_prompt, s.ended) == (t.task, t.n_prompt, t.ended)
            and all(
                getattr(s, name).dtype == getattr(t, name).dtype
                and np.array_equal(getattr(s, name), getattr(t, name), equal_nan=True)
                for name in ("tokens", "entropies", "drafts", "logp", "head_entropies")
            )
            for s, t in zip(a.texts, b.texts, strict=True)
        )
    )


@pytest.mark.parametrize("shape", [WIDE, TreeShape.chain(3), TreeShape.from_parents([-1, 0, 0], [0, 2, 0])])
@pytest.mark.parametrize("n_tokens", [1, 2, 40])
def test_a_log_is_read_as_it_was_written(tmp_path: Path, shape: TreeShape, n_tokens: int) -> None:
    log = synthetic_log(shape, n_tokens=n_tokens, tasks=("code", "mine: é"), ended=True)
    log.save(tmp_path / "a.npz")
    found = WideLog.load(tmp_path / "a.npz")
    assert same(found, log) and found.n_positions == 3 * (n_tokens - 1) and found.tasks == ["code", "mine: é"]
    assert [text.task for text in found.of_task("code").texts] == ["code", "code"]
    WideLog(shape, {}).save(tmp_path / "b.npz")
    assert WideLog.load(tmp_path / "b.npz").texts == []


def refused(path: Path) -> None:
    with pytest.raises(UsageError, match="calibrate --log") as error:
        WideLog.load(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    refused(path)
    refused(tmp_path)
    for content in (b"", b"PK\x03\x04", b"text", b"\x93NUMPY", bytes(1000)):
        path.write_bytes(content)
        refused(path)
    np.savez(path, x=np.zeros(3))
    refused(path)
    for header in ("{}", "[]", "3", "not json", '{"format": "entmtp-local wide log", "version": 2}'):
        np.savez(path, header=np.array(header))
        refused(path)
    np.savez(path, header=np.array(["a", None], dtype=object))
    refused(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path)


def test_damaged_logs(tmp_path: Path) -> None:
    log, path, rng = synthetic_log(wide_shape(4, 12), n_texts=2, n_tokens=12), tmp_path / "a.npz", random.Random(1)
    log.save(path)
    whole = path.read_bytes()
    for _ in range(30):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        refused(path)
    n_refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert same(WideLog.load(path), log), "what is accepted is unchanged"
        except UsageError:
            n_refused += 1
    assert n_refused > 200


@pytest.mark.parametrize(
    "values",
    [
        {"tokens": np.zeros((12, 1), dtype=np.int32)},
        {"tokens": np.zeros(11, dtype=np.int32)},
        {"tokens": np.zeros(0, dtype=np.int32)},
        {"tokens": np.zeros(12, dtype=np.float32)},
        {"entropies": np.full(12, np.nan, dtype=np.float32)},
        {"entropies": np.zeros(12, dtype="<U3")},
        {"drafts": np.zeros((11, 4), dtype=np.int32)},
        {"drafts": np.zeros((12, 5), dtype=np.int32)},
        {"logp": np.full((11, 5), np.nan, dtype=np.float32)},
        {"head_entropies": np.zeros((11, 5), dtype=np.int32)},
        {"head_entropies": np.full((11, 5), np.nan, dtype=np.float32)},
        {"head_entropies": np.full((11, 5), -1.0, dtype=np.float32)},
        {"entropies": np.full(12, -1.0, dtype=np.float32)},
        {"logp": np.full((11, 5), 2.0, dtype=np.float32)},
        {"tokens": np.full(12, -1, dtype=np.int32)},
        {"n_prompt": -1},
        {"n_prompt": 2**31 - 1},
        {"task": ""},
        {"task": None},
        {"task": "path"},
    ],
)
def test_arrays_that_do_not_fit_their_text(tmp_path: Path, values: dict[str, object]) -> None:
    log = synthetic_log(TreeShape.comb(2, 2), n_texts=1, n_tokens=12)
    log.texts[0] = replace(log.texts[0], **values)  # type: ignore[arg-type]
    log.save(tmp_path / "a.npz")
    refused(tmp_path / "a.npz")


def test_what_is_said_of_the_root_is_not_heard(tmp_path: Path) -> None:
    log = synthetic_log(TreeShape.comb(2, 2), n_texts=1, n_tokens=12)
    odd = log.texts[0].logp.copy()
    odd[:, 0] = 1e30
    WideLog(log.shape, log.about, [replace(log.texts[0], logp=odd)]).save(tmp_path / "a.npz")
    assert same(WideLog.load(tmp_path / "a.npz"), log)


@pytest.mark.parametrize("parents", [[], [0], [-1, 5], [-1, 0, 1, 0], "ab", None, [-1, 0.5, 0, 0, 0]])
def test_shapes_that_are_none(tmp_path: Path, parents: object) -> None:
    path = tmp_path / "a.npz"
    log = synthetic_log(TreeShape.comb(2, 2), n_texts=1, n_tokens=12)
    log.save(path)
    with np.load(path) as content:
        arrays = dict(content)
    header = json.loads(str(arrays.pop("header"))) | {"parents": parents}
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    refused(path)
    header |= {"parents": list(log.shape.parents), "ranks": [0, 10**30, 1, 0, 1]}
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    refused(path)


def test_a_text_of_its_first_token_alone(tmp_path: Path) -> None:
    log = synthetic_log(WIDE, n_texts=1, n_tokens=1, ended=True)
    assert isinstance(log.texts[0], LoggedText) and log.n_positions == 0
    assert replay(log, chain(3), Profile(CARD)).n_tokens == 0 and same_information(log, CARD) == 0.0
