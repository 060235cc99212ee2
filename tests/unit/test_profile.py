"""Profiles as files: what was written is read again exactly, and what was damaged is refused as a whole.

| test | failure it catches |
|---|---|
| round trip | a figure that changes by being kept |
| damage | a crash at the first step, or a damaged figure that steers silently, in place of one sentence |
| keys | figures of another model, device or engine that are used |
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from entmtp_local.calibration.costs import load_table, shipped_tables
from entmtp_local.errors import ProfileError, UsageError
from entmtp_local.speculative.acceptance import AcceptanceModel
from entmtp_local.speculative.cost import CostTable, mean_of
from entmtp_local.speculative.draft_vocab import DraftHead, PassCost
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import MAX_DEPTH, SETS, Key, NodePath, Profile, TaskFit, TreeSet, paths_of, shape_of
from entmtp_local.speculative.protocol import Evidence

KEY = Key("ab" * 32, None, "source patches cpu", "Some CPU", 4, None, 4096, "Q4_0")


def random_tree(rng: random.Random, n: int) -> tuple[NodePath, ...]:
    paths: list[NodePath] = [()]
    while len(paths) < n:
        path = (*rng.choice(paths), rng.randrange(4))
        if len(path) <= MAX_DEPTH and path not in paths:
            paths.append(path)
    return tuple(paths)


def random_edges(rng: random.Random, n: int) -> tuple[float, ...]:
    return tuple(sorted(rng.gauss(0, 3) for _ in range(n)))


def random_set(rng: random.Random) -> TreeSet:
    n_trees, n_edges = rng.randrange(1, 6), rng.randrange(0, 8)
    trees = tuple(random_tree(rng, n) for n in sorted(rng.sample(range(1, 33), n_trees)))
    return TreeSet(trees, random_edges(rng, n_edges), tuple(rng.randrange(n_trees) for _ in range(n_edges + 1)))


def random_fit(rng: random.Random) -> TaskFit:
    model = AcceptanceModel(rng.sample(["depth", "path", "entropy"], rng.randrange(3)))
    return TaskFit(
        n_positions=rng.randrange(10**6),
        n_texts=rng.randrange(50),
        acceptance={"features": list(model.features), "weights": [rng.gauss(0, 2) for _ in model.features]},
        by_rank=tuple(tuple(rng.random() for _ in range(4)) for _ in range(rng.randrange(9))),
        entropy_edges=random_edges(rng, rng.randrange(8)),
        gamma=rng.uniform(0, 2),
        chain_depth=rng.randrange(9),
        chain_bound=rng.random(),
        medusa=random_tree(rng, rng.randrange(1, 33)),
        hydra=random_tree(rng, rng.randrange(1, 33)),
        sets={signal: random_set(rng) for signal in SETS},
    )


def random_head(rng: random.Random) -> DraftHead:
    sizes = rng.choice([(0,), (4096, 8192, 16384)])
    speeds = {kind: {str(size): rng.uniform(1, 100) for size in sizes} for kind in ("same", "Q8_0", "Q4_0")}
    cost = PassCost(rng.uniform(1e-3, 1), rng.uniform(1e-5, 1e-2), rng.choice([0.0, 1e-8]))
    return DraftHead(rng.choice(list(speeds)), rng.choice(sizes), cost, speeds)


def random_profile(rng: random.Random) -> Profile:
    sizes = [1, *sorted(rng.sample(range(2, 40), rng.randrange(12)))]
    costs = CostTable(
        {size: rng.uniform(1e-4, 1) for size in sizes},
        rng.choice([0.0, rng.uniform(0, 1e-5)]),
        rng.uniform(0, 1e-2),
        rng.choice([None, {1: rng.uniform(1e-5, 1e-2), 3: rng.uniform(1e-5, 1e-2)}]),
        rng.uniform(0, 1e-3),
        rng.choice(["measured", "derived: é"]),
    )
    key = rng.choice([None, KEY, replace(KEY, mtp_model="cd" * 32, n_gpu_layers=0, draft_vocab=None)])
    names = rng.choice([[], ["all"], ["all", "code", "my notes"]])
    row = {"task": "code", "policy": "chain:3", "temp": 0.8, "tokens_per_second": 31.5, "ratio": 1.4, "tokens_per_step": 2.25}
    return Profile(
        costs,
        key,
        {name: random_fit(rng) for name in names},
        rng.random() < 0.5,
        "2026-01-02T03:04:05+00:00",
        tuple(row for _ in range(rng.randrange(3))),
        rng.choice([None, random_head(rng)]),
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_was_written_is_read_again_exactly(tmp_path: Path, seed: int) -> None:
    profile = random_profile(random.Random(seed))
    path, again = tmp_path / "new folder" / "a.json", tmp_path / "b.json"
    profile.save(path)
    found = Profile.load(path, profile.key)
    assert found == profile
    found.save(again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seed", range(30))
def test_trees_and_their_paths(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, rng.randrange(1, 33))
    shape = shape_of(tree)
    assert sorted(paths_of(shape)) == sorted(tree)
    shuffled = list(tree)
    rng.shuffle(shuffled)
    assert shape_of(shuffled).parents == shape.parents
    assert shape_of(shuffled).ranks == shape.ranks


# -- damage


def whole(tmp_path: Path, seed: int = 0) -> Any:
    """A profile with everything in it, as JSON."""
    rng = random.Random(seed)
    profile = random_profile(rng)
    while not (profile.measured and len(profile.tasks) > 1 and profile.key and profile.costs.level and profile.head):
        profile = random_profile(rng)
    profile.save(tmp_path / "whole.json")
    return json.loads((tmp_path / "whole.json").read_text())


# the names under these are free
FREE = {
    ("tasks",),
    ("costs", "verify"),
    ("costs", "level"),
    *(("head", "speeds", *kind) for kind in ((), ("same",), ("Q8_0",), ("Q4_0",))),
}


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value but the value itself; of long lists the ends."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        if not isinstance(content, list) or name in (0, len(content) - 1):
            yield (*at, name)
            yield from places(value, (*at, name))


def inside(content: Any, at: tuple[Any, ...]) -> Any:
    for name in at:
        content = content[name]
    return content


def refused(path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ProfileError, match="calibrate") as error:
        Profile.load(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_a_profile_without_one_of_its_fields_is_refused(tmp_path: Path) -> None:
    content, n = whole(tmp_path), 0
    for at in list(places(content)):
        if isinstance(at[-1], str) and at[:-1] not in FREE:
            damaged = copy.deepcopy(content)
            del inside(damaged, at[:-1])[at[-1]]
            refused(tmp_path / "a.json", damaged)
            n += 1
    del content["tasks"]["all"]
    refused(tmp_path / "a.json", content)
    assert n > 60


WRONG = {
    str: (None, 3, True, [], {}),
    bool: (None, 1, "true", []),
    int: (None, "3", True, [], {}, 1.5, -1, math.nan, math.inf),
    float: (None, "0.5", True, [], {}, math.nan, -math.inf, 10**400),
    list: (None, 3, "ab", {}, [{}], [None]),
    dict: (3, "ab", [], [[]], {}),
}
# not measured, no other file
OPTIONAL = {
    ("key", "mtp_model"),
    ("key", "n_gpu_layers"),
    ("key", "draft_vocab"),
    ("key", "draft_head_type"),
    ("costs", "level"),
    ("head",),
    ("key",),
}


def test_a_profile_with_a_value_of_another_kind_is_refused(tmp_path: Path) -> None:
    content, n = whole(tmp_path), 0
    for at in list(places(content)):
        value = inside(content, at)
        kinds = WRONG.get(type(value), ())
        if at in OPTIONAL:
            kinds = tuple(wrong for wrong in (*kinds, [], {}, -0.5) if wrong is not None and wrong != "ab")
        for wrong in kinds:
            if isinstance(value, str) and at in OPTIONAL and isinstance(wrong, str):
                continue
            damaged = copy.deepcopy(content)
            inside(damaged, at[:-1])[at[-1]] = wrong
            if damaged == content or at == ("tasks",) and wrong == {}:
                continue  # a profile of costs alone is one
            path = tmp_path / "a.json"
            path.write_text(json.dumps(damaged))
            try:
                Profile.load(path)
            except ProfileError:
                n += 1
            else:
                pytest.fail(f"{at} = {wrong!r} was accepted")
    assert n > 1000


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("costs", "verify"), {"2": 0.1}),
        (("costs", "verify"), {"0": 0.1, "1": 0.1}),
        (("costs", "verify"), {"1": 0.0}),
        (("costs", "verify"), {"1.5": 0.1, "1": 0.1}),
        (("costs", "verify"), {"1": 0.1, "1000000000000000000000": 0.1}),
        (("costs", "verify"), {"1": 0.1, " 1 ": 0.2}),
        (("costs", "verify"), {"1": 0.1, "1_0": 0.2}),
        (("measured", 0, "n_tokens"), "many"),
        (("costs", "per_token"), -1e-9),
        (("costs", "per_token"), 1e308),
        (("costs", "verify", "1"), 5e-324),
        (("costs", "step"), -1e-9),
        (("costs", "level"), {"3": 0.1}),
        (("costs", "level"), {"1": -0.1}),
        (("tasks", "all", "gamma"), -0.1),
        (("tasks", "all", "chain_depth"), MAX_DEPTH + 1),
        (("tasks", "all", "chain_bound"), 1.5),
        (("tasks", "all", "by_rank"), [[1.2]]),
        (("tasks", "all", "entropy_edges"), [1.0, 1.0]),
        (("tasks", "all", "entropy_edges"), [1.0, 0.5]),
        (("tasks", "all", "hydra"), []),
        (("tasks", "all", "hydra"), [[0]]),
        (("tasks", "all", "hydra"), [[], [0, 0]]),
        (("tasks", "all", "hydra"), [[], [0], [0]]),
        (("tasks", "all", "hydra"), [[], [64]]),
        (("tasks", "all", "hydra"), [[], *([0] * n for n in range(1, MAX_DEPTH + 2))]),
        (("tasks", "all", "medusa"), [[], *([rank] for rank in range(32))]),
        (("tasks", "all", "sets", "running"), {"trees": [[[]]], "edges": [0.5], "choice": [0]}),
        (("tasks", "all", "sets", "running"), {"trees": [[[]]], "edges": [0.5], "choice": [0, 1]}),
        (("tasks", "all", "sets", "running"), {"trees": [], "edges": [], "choice": [0]}),
        (("tasks", "all", "sets", "running"), {"trees": [[[]]], "edges": [], "choice": [-1]}),
        (("tasks", "all", "acceptance", "weights"), [1.0]),
        (("tasks", "all", "acceptance", "features"), ["one"] * 8),
        (("key", "n_threads"), 0),
        (("head", "kind"), "Q9_0"),
        (("head", "size"), 5),
        (("head", "size"), 10**12),
        (("head", "speeds"), {"same": {"0": 1.0, "1" * 5000: 1.0}}),
        (("head", "cost"), {"target": 0.1, "level": 0.1, "row": 0.0, "more": 1.0}),
        (("head", "cost", "target"), 0.0),
        (("head", "cost"), {"target": 0.1, "level": 0.1}),
        (("head", "cost", "row"), -0.1),
        (("head", "speeds"), {"Q9_0": {"0": 1.0}}),
        (("head", "speeds"), {"same": {"all": 1.0}, "Q8_0": {"all": 1.0}, "Q4_0": {"all": 1.0}}),
        (("key", "another"), 1),
        (("measured",), [{"task": "code"}]),
        (("version",), 1),
        (("version",), 0),
        (("version",), "1"),
        (("version",), True),
        (("format",), "entmtp-local wide log"),
    ],
)
def test_values_that_no_calibration_writes(tmp_path: Path, at: tuple[str, ...], value: Any) -> None:
    content = whole(tmp_path)
    inside(content, at[:-1])[at[-1]] = value
    refused(tmp_path / "a.json", content)


def test_a_refusal_names_the_part_that_is_damaged(tmp_path: Path) -> None:
    content = whole(tmp_path)
    content["tasks"]["all"]["gamma"] = -1.0
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ProfileError) as error:
        Profile.load(path)
    assert str(error.value) == f"the profile {path} is damaged (tasks: all: -1.0 where it goes from 0.0 to inf); calibrate again."
    del content["measured"]
    content["tasks"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(ProfileError, match=r"\(it has no 'measured'\)"):
        Profile.load(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    text = json.dumps(whole(tmp_path))
    path = tmp_path / "a.json"
    for length in (0, 1, 10, len(text) // 3, len(text) // 2, len(text) - 1):
        refused(path, text[:length])
    for other in ("[]", "3", "null", '"text"', "{}", "[" * 100_000, text + "}"):
        refused(path, other)
    path.write_bytes(b"\xff\xfe\x00\x01")
    for wrong in (path, tmp_path, tmp_path / "none.json"):
        with pytest.raises(ProfileError, match="calibrate"):
            Profile.load(wrong)
    with pytest.raises(ProfileError, match="of version 5, not 4"):
        path.write_text(text.replace('"version": 4', '"version": 5'))
        Profile.load(path)


def test_endless_files_are_not_read_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        # no memory holds that; on disk it takes none
        file.truncate(1 << 40)
    for endless in (path, Path("/dev/zero")):
        with pytest.raises(ProfileError, match="calibrate"):
            Profile.load(endless)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """What is accepted after a change of some characters works with every policy."""
    rng, path = random.Random(4), tmp_path / "a.json"
    text = json.dumps(whole(tmp_path))
    n_accepted = 0
    for _ in range(400):
        at = rng.randrange(len(text))
        path.write_text(text[:at] + rng.choice('019-.e"[]{},: x') + text[at + rng.randrange(3) :])
        try:
            profile = Profile.load(path)
        except ProfileError:
            continue
        n_accepted += 1
        for name in ("throughput", "throughput:everything", "entmtp", "entmtp:path", "entropy-chain", "hydra:31", "medusa:7"):
            policy = parse_policy(name)
            policy.calibrated(profile)
            shape = policy.plan(Evidence(5, 0, 1.0))
            assert shape.max_depth <= policy.max_depth
    assert 0 < n_accepted < 400


# -- keys


@pytest.mark.parametrize("name", [field.name for field in fields(Key)])
def test_a_profile_of_something_else_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    random_profile(random.Random(2)).save(path)
    profile = replace(Profile.load(path), key=KEY)
    profile.save(path)
    assert Profile.load(path, KEY) == profile
    value = getattr(KEY, name)
    other = replace(KEY, **{name: 7 if value is None or isinstance(value, int) else f"{value} 2"})
    with pytest.raises(ProfileError) as error:
        Profile.load(path, other)
    words = {
        "model": "with another model",
        "mtp_model": "with another --mtp-model",
        "engine": "by another build of the engine",
        "device": "on another device",
        "n_threads": "with other --threads",
        "n_gpu_layers": "with other --gpu-layers",
        "draft_vocab": "with another --draft-vocab",
        "draft_head_type": "with another --draft-head-type",
    }
    assert f"was measured {words[name]}; calibrate again" in str(error.value)
    replace(profile, key=None).save(path)
    with pytest.raises(ProfileError, match="is a table of costs"):
        Profile.load(path, KEY)
    assert set(asdict(KEY)) == {field.name for field in fields(Key)}


def test_shipped_tables_and_their_names(tmp_path: Path) -> None:
    assert shipped_tables()
    for name in shipped_tables():
        table = load_table(name)
        assert 1 in table.verify and table.source
    profile = random_profile(random.Random(3))
    profile.save(tmp_path / "mine.json")
    assert load_table(str(tmp_path / "mine.json")) == profile.costs
    with pytest.raises(UsageError, match=shipped_tables()[0]):
        load_table("rtx-1")


def test_costs_between_and_beyond_measured_sizes() -> None:
    table = CostTable({1: 1.0, 4: 4.0, 8: 6.0}, per_token=0.01, draft_fixed=0.5, level={1: 0.1, 3: 0.3})
    assert [table.verify_seconds(n) for n in (1, 2, 4, 6, 8, 10)] == pytest.approx([1, 2, 4, 5, 6, 7])
    assert table.verify_seconds(4, 100) == pytest.approx(5)
    # a staircase that ends with a step down
    assert CostTable({1: 1.0, 12: 3.0, 16: 2.0}).verify_seconds(64) == 2.0
    assert table.draft_seconds(shape_of([()])) == 0.0
    assert table.draft_seconds(shape_of([(), (0,), (1,), (0, 0)])) == pytest.approx(0.5 + 0.1 + 0.1)
    assert table.draft_seconds(shape_of([(), (0,), (1,), (2,), (0, 0), (1, 0), (2, 0)])) == pytest.approx(0.5 + 0.1 + 0.3)
    assert CostTable({1: 1.0}).draft_seconds(shape_of([(), (0,)])) == 0.0


def test_the_mean_of_two_measurements() -> None:
    one = CostTable({1: 1.0, 2: 2.0, 3: 3.0}, per_token=0.1, draft_fixed=0.5, level={1: 0.1, 3: 0.3}, step=0.2)
    other = CostTable({1: 2.0, 3: 5.0, 4: 6.0}, per_token=0.3, draft_fixed=1.5, level={1: 0.3}, step=0.4)
    mean = mean_of(one, other)
    assert mean == mean_of(other, one)
    assert mean.verify == {1: 1.5, 3: 4.0} and mean.level == {1: 0.2}, "of sizes that both have"
    assert (mean.per_token, mean.draft_fixed, mean.step) == pytest.approx((0.2, 1.0, 0.3))
    assert mean_of(one, CostTable({1: 1.0})).level is None, "where nothing was drafted"
