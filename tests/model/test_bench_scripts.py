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
        (reduced,) = set(row) - {"stock", "ours"}
        assert 1024 <= int(reduced.removeprefix("ours ")) < 8192
        assert all(arm["ms"] > 0 for arm in row.values())
