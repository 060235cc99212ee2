"""The pinned source's own tests, built from the patched tree: the series breaks nothing that upstream checks.

Each test looks at what was run, not at the exit status alone, because several of these programs end with 0 when they
ran nothing.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scripts.make_tiny_models import main as make_tiny_models

# Operations that a tree of tokens goes through; the expressions keep the large ones to the cases models of this kind use.
OPERATIONS = {
    "GATED_DELTA_NET": None,
    "GATED_DELTA_NET_TREE": None,
    "SSM_CONV": None,
    "SSM_CONV_TREE": None,
    "SOFT_MAX": None,
    "SET_ROWS": None,
    "TOP_K": None,
    "ROW_STATS": None,
    "GET_ROWS": "type=(f32|f16|q8_0|q4_K),",
    "FLASH_ATTN_EXT": "hsk=256,.*kv=512,.*type_K=f16",
    "MUL_MAT": "type_a=(f16|q8_0|q4_K),type_b=f32,m=16,",
}

BACKEND_SAMPLERS = [
    *("greedy", "logit_bias", "penalties", "temp", "temp_ext", "top_k", "multi_sequence", "dist", "dist_and_cpu", "set_sampler"),
    *("multi_output_limit", "multi_sequence_multi_output_dist", "multi_output_dist_transaction", "multi_output_sampling_chain"),
    *("multi_output_cpu", "mixed", "min_p", "cpu_mixed", "top_p"),
]


def run(program: Path, *arguments: str, timeout_s: int = 600) -> str:
    """Run a test program to its end; returns what it printed."""
    done = subprocess.run(
        [str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{program.name} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dummy_models(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small model of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    run(programs / "test-llama-archs", "--seed", "1", "--out", f"{folder}/")
    assert len(list(folder.glob("*.gguf"))) > 50
    return folder


@pytest.mark.slow
def test_architectures(programs: Path) -> None:
    """Every architecture computes the same through every path, and comes back the same from a file."""
    output = run(programs / "test-llama-archs", "--seed", "1")
    # The program logs from a thread that may be stopped before the summary; it has failed where its exit status says so.
    assert output.count("OK\x1b[0m (") > 100, output[-2000:]
    assert "FAIL" not in output


@pytest.mark.slow
def test_recurrent_state_rollback(programs: Path, dummy_models: Path) -> None:
    """Dropping tokens restores recurrent and hybrid memories; the series reworks that path."""
    output = run(programs / "test-recurrent-state-rollback", "--models", str(dummy_models))
    table = [line for line in output.splitlines() if ".gguf" in line]
    assert len(table) == len(list(dummy_models.glob("*.gguf")))
    assert not [line for line in table if "FAIL" in line]
    for architecture in ("qwen35", "qwen35moe", "qwen3next"):
        assert any(line.startswith(architecture) and "PASS" in line for line in table), output[-4000:]


def test_rollback_of_the_shipped_model(programs: Path, shipped_model: Path) -> None:
    """A trained model with an MTP block, which the random ones are not.

    The exit status is left out: the program goes on to two sequences at once, which this project does not use and which
    the unpatched source fails on this model.
    """
    command = [str(programs / "test-recurrent-state-rollback"), "-m", str(shipped_model)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    output = done.stdout + done.stderr
    assert "recurrent rollback checkpoint restored successfully" in output, output[-4000:]


def test_batch_alloc(programs: Path) -> None:
    output = run(programs / "test-batch-alloc")
    counts = {name: int(n) for name, n in re.findall(r"^(tests|failures|exceptions|skipped) *: (\d+)$", output, re.MULTILINE)}
    assert counts["tests"] >= 50
    assert counts["failures"] == counts["exceptions"] == counts["skipped"] == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(programs: Path, operation: str) -> None:
    """Without `-b CPU` the program skips the CPU and ends with 0."""
    cases = OPERATIONS[operation]
    chosen = [] if cases is None else ["-p", cases]
    output = run(programs / "test-backend-ops", "-b", "CPU", "-o", operation, *chosen)
    n_passed = re.search(r"(\d+)/(\d+) tests passed", output)
    assert n_passed is not None, output[-2000:]
    assert n_passed[1] == n_passed[2] != "0"


def test_backend_sampler(programs: Path, shipped_model: Path, tmp_path: Path) -> None:
    """Two of them expect rows of a certain shape, such as that a bias of 10 decides what comes: a random model has them."""
    make_tiny_models(tmp_path)
    n_passed = 0
    for name in BACKEND_SAMPLERS:
        model = tmp_path / "qwen35.gguf" if name in ("logit_bias", "penalties") else shipped_model
        output = run(programs / "test-backend-sampler", "--model", str(model), "--device", "cpu", "--test", name)
        n_passed += "PASSED" in output
    assert n_passed >= 18  # one of them says nothing


def test_sampling(programs: Path) -> None:
    assert run(programs / "test-sampling").count(" OK") >= 20
