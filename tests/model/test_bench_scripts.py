"""The benchmarks of the engine run to their end and say what they measured; what they measure is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from model.conftest import ROOT


def report(script: str, *arguments: str | Path) -> dict[str, Any]:
    """The last line of a benchmark."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_verification(shipped: Path) -> None:
    found = report("bench_tree_engine.py", shipped, "--context", "32", "--sizes", "1", "5", "--repeats", "2")
    rows = found["contexts"]["32"]
    assert [row["n"] for row in rows] == [1, 5]
    assert all(row[arm]["ms"] > 0 for row in rows for arm in ("batch", "chain", "tree", "slots"))


def test_drafting(shipped: Path) -> None:
    found = report("bench_drafting.py", shipped, "--levels", "1", "3", "--vocab", "1024", "--repeats", "2")
    assert set(found["levels"]) == {"1", "3"}
    for row in found["levels"].values():
        (reduced,) = set(row) - {"stock", "stock backend", "ours"}
        assert 1024 <= int(reduced.removeprefix("ours ")) < 8192
        assert all(arm[value] > 0 for arm in row.values() for value in ("ms", "ratio", "ratio_backend"))
        assert row["stock"]["ratio"] == row["stock backend"]["ratio_backend"] == 1


def test_arms_on_every_workload(shipped: Path) -> None:
    names = {"code", "math", "chat", "prose"}
    few = ("--prompts", "1", "-n", "12", "--threads", "1")
    vocab = report("bench_draft_vocab.py", shipped, "--sizes", "1024", *few)["workloads"]
    assert set(vocab) == names and all(set(rows) == {"full", "1024", "auto"} for rows in vocab.values())
    found = report("bench_policies.py", shipped, "--policies", "off", "chain:2", "throughput", "--rounds", "2", *few)
    policies = found["workloads"]
    assert all(rows["off"]["tokens_per_step"] == 1.0 for rows in policies.values())
    for arms in found["texts"].values():
        (((once, _),), *others) = arms.values()
        assert all([n for n, _ in texts] == [once] for texts in others) and once % 2 == 0, "of two rounds"
    assert all(rows["off"]["ratio"] == 1.0 and rows["off"]["plain_share"] == 1.0 for rows in policies.values())
    assert all(rows["chain:2"]["nodes_per_step"] > 1 for rows in policies.values())
    copying = report("bench_copying.py", shipped, "--prompts", "1", "-n", "80", "--threads", "1")["workloads"]
    assert set(copying) == names | {"quote"}
    assert copying["quote"]["tokens_per_step"][1] > 2 * copying["quote"]["tokens_per_step"][0]


def test_prompts(shipped: Path) -> None:
    found = report("bench_prefill.py", shipped, "--tokens", "64", "--repeats", "2", "--threads", "1")
    assert found["tokens"]["64"]["plain_tokens_per_second"] > 0
