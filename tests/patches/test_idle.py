"""With nothing of the series called, and its CPU kernels off, the patched library computes what stock does, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entmtp_local.native.build import library_file
from entmtp_local.native.source import Layout
from scripts.make_tiny_models import main as make_tiny_models

# qwen3next is left out: the series lets it roll back, which changes the graph that n_rs_seq asks for.
KINDS = ["glm4moe", "hy_v3", "mimo2", "qwen35", "qwen35moe", "deepseek2", "nemotron_h_moe"]


def probe(library_folder: Path, models: list[Path]) -> list[str]:
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("idle_probe.py")), *map(str, models)],
        capture_output=True,
        text=True,
        env=os.environ | {"LLAMA_CPP_LIB_PATH": str(library_folder)},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_idle_logits_are_those_of_stock(layout: Layout, shipped_model: Path, tmp_path: Path) -> None:
    patched, stock = layout.root / "engine" / "bin", layout.root / "stock" / "bin"
    assert library_file(stock).is_file(), "the unpatched library is not built: run scripts/setup --with-tests"
    make_tiny_models(tmp_path, KINDS)
    models = [shipped_model, *(tmp_path / f"{kind}.gguf" for kind in KINDS)]
    expected = probe(stock, models)
    assert len(set(expected)) == len(models), "every model has a digest of its own"
    assert probe(patched, models) == expected


@pytest.mark.parametrize("name", ["llama_entmtp_decode", "llama_entmtp_abi"])
def test_only_the_patched_library_has_the_api(layout: Layout, name: str) -> None:
    assert name.encode() in library_file(layout.root / "engine" / "bin").read_bytes()
    assert name.encode() not in library_file(layout.root / "stock" / "bin").read_bytes()
