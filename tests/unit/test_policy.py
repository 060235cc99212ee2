"""Policies by name, from files, and reduced to what an engine can verify."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from entmtp_local.errors import ProfileError, UsageError
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.policy import parse_policy, sizes_of
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.protocol import Evidence, Limits
from entmtp_local.speculative.static import NARROW, OFF, WIDE, chain

EVIDENCE = Evidence(n_past=10, n_accepted_last=0)


def limits(*, trees: bool = True, max_depth: int = 255, max_nodes: int = 255) -> Limits:
    return Limits(trees=trees, max_depth=max_depth, max_nodes=max_nodes, reason="")


@pytest.mark.parametrize(
    ("text", "n_nodes", "depth"),
    [("off", 0, 0), ("chain:1", 1, 1), ("chain:6", 6, 6), ("tree:narrow", 6, 4), ("tree:wide", 12, 5)],
)
def test_built_in_policies(text: str, n_nodes: int, depth: int) -> None:
    policy = parse_policy(text)
    assert (policy.name, policy.max_nodes, policy.max_depth) == (text, n_nodes, depth)
    shape = policy.plan(EVIDENCE)
    assert shape.n_nodes == n_nodes + 1
    assert policy.plan(EVIDENCE) is shape, "engines recognise a shape by identity"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "of",
        "chain:" + "9" * 5000,
        "chain",
        "chain:",
        "chain:0",
        "chain:-1",
        "chain:256",
        "chain:x",
        "chain:²",
        "tree",
        "tree:",
        "tree:none",
    ],
)
def test_unknown_policies_name_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="known are off, throughput, chain:N") as error:
        parse_policy(text)
    assert f"'{text}'" in str(error.value)


def test_a_tree_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_text(json.dumps([-1, 0, 0, 1]))
    policy = parse_policy(f"tree:{path}")
    assert list(policy.plan(EVIDENCE).parents) == [-1, 0, 0, 1]
    path.write_text(json.dumps({"parents": [-1, 0, 0], "ranks": [0, 2, 0]}))
    assert list(parse_policy(f"tree:{path}").plan(EVIDENCE).ranks) == [0, 2, 0]


def test_what_the_readme_shows_is_read(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "tree.json"
    (row,) = re.findall(r"^\| `tree:FILE.json` .*$", readme, re.MULTILINE)
    trees = [each for each in re.findall("`(.*?)`", row) if each[0] in "[{"]
    assert len(trees) == 2
    for tree in trees:
        path.write_text(tree)
        assert parse_policy(f"tree:{path}").max_nodes == 3
    (tasks,) = re.findall("With `:TASK` behind them.*?:(.*?), or the name", readme, re.DOTALL)
    names = re.findall("`(.*?)`", tasks)
    assert [name.rsplit(":", 1)[1] for name in names] == ["code", "prose", "math", "chat"]
    assert [parse_policy(name).name for name in names] == names
    # and one that the profile does not have is asked for by its name
    for name in names:
        with pytest.raises(ProfileError, match=name.rsplit(":", 1)[1]):
            parse_policy(name).calibrated(Profile(CostTable({1: 1.0})))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        '"text"',
        "[]",
        "[-1]",
        "[-1, 0.5]",
        "[-1, true]",
        "[-1, 5]",
        "[-1, 0, 1, 0]",
        '{"parents": [-1, 0], "ranks": [0]}',
        '{"parents": [-1, 0, 0], "ranks": []}',
        "[0, 0]",
    ]
    + [
        json.dumps(list(range(-1, 300))),
        "[" * 100_000,
        '{"parents": [-1, 0], "ranks": [0, 1000000000000000000000]}',
        '{"parents": [-1, 0], "ranks": [0, 64]}',
        json.dumps([-1] + 65 * [0]),
    ],
)
def test_files_that_hold_no_tree(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tree.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"tree\.json") as error:
        parse_policy(f"tree:{path}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read a tree"):
        parse_policy(f"tree:{path}")
    with pytest.raises(UsageError, match="cannot read a tree"):
        parse_policy(f"tree:{tmp_path}")


def test_within_limits() -> None:
    assert WIDE.within(limits()) is WIDE
    assert OFF.within(limits(max_depth=0, max_nodes=0)) is OFF
    assert WIDE.within(limits(trees=False)).name == "chain:5"
    assert NARROW.within(limits(trees=False, max_depth=3)).name == "chain:3"
    assert NARROW.within(limits(max_depth=2)).name == "chain:2"
    assert chain(6).within(limits(trees=False, max_depth=3)).name == "chain:3"
    assert chain(6).within(limits(trees=False, max_depth=6, max_nodes=6)).name == "chain:6"
    assert WIDE.within(limits(max_depth=0, max_nodes=0)) is OFF


@pytest.mark.parametrize(("name", "sizes"), [("off", (1,)), ("chain:3", (1, 4)), ("throughput", (*range(1, 11), 12, 16))])
def test_sizes_that_steps_are_likely_to_need(name: str, sizes: tuple[int, ...]) -> None:
    assert sizes_of(parse_policy(name)) == sizes
