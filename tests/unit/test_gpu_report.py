"""The report of a GPU machine, with a Python that only notes what it is asked: its steps, and what a failing one does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$0.log"
case "$*" in
    *widen_model*) for last; do :; done; : >"$last" ;;
    *bench_drafting*) echo broken; exit 7 ;;
    *" bench "*)
        for word; do [ "$before" != --json ] || echo '{}' >"$word"; before=$word; done
        printf '1 of 2: a visit\\n\\ncode, temperature 0\\nthroughput 1.50\\n' ;;
    *) printf 'text\\n{"a": 1}\\n' ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for name in ("python", "built/stock/bin/llama-server"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(PYTHON)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def report(machine: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "gpu_report.sh"), "--cpu", "--prebuilt", str(machine / "built"), "--shape", "same"]
    command += ["--out", str(machine / "out"), "--models", str(machine / "models"), *arguments]
    environment = {**os.environ, "PYTHON": str(machine / "python")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_the_core_measures_one_shape_and_notes_what_fails(machine: Path) -> None:
    found = report(machine)
    assert found.returncode == 0, found.stderr
    summary = (machine / "out" / "summary.txt").read_text()
    assert "FAILED (7), see drafting.log" in summary and "engine-tests" in summary
    assert "code, temperature 0\nthroughput 1.50" in summary and "a visit" not in summary
    assert (machine / "out" / "staircase.json").read_text() == '{"a": 1}\n'
    asked = (machine / "python.log").read_text()
    assert "entmtp_local info" in asked
    assert "--resume" not in asked and "same-Q4_0.gguf" in asked and "27b" not in asked


def test_the_rest_goes_on_with_what_is_there(machine: Path) -> None:
    report(machine)
    report(machine, "--part", "rest")
    report(machine, "--part", "rest")
    asked = (machine / "python.log").read_text().splitlines()
    benches = [line for line in asked if " bench " in line and "0.8b" in line]
    assert ["--resume" in line for line in benches] == [False, True]
    assert sum("--shape qwen3.5-0.8b" in line for line in asked) == 1, "a wide model is written once"
    assert (machine / "out" / "summary.txt").read_text().count("engine-tests") == 1


@pytest.mark.parametrize(
    ("arguments", "words"), [(("--what",), "no option --what"), (("--part",), "needs a value"), (("--part", "x"), "not x")]
)
def test_mistakes_are_one_line(machine: Path, arguments: tuple[str, ...], words: str) -> None:
    found = report(machine, *arguments)
    assert found.returncode == 1 and words in found.stderr and found.stderr.count("\n") == 1
