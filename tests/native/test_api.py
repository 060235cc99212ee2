"""What the library says of itself, and libraries that do not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from native.conftest import Bench

from entmtp_local.errors import EngineError
from entmtp_local.native import api as native
from entmtp_local.native import library

Open = Callable[..., Bench]


def test_the_abi_is_the_one_of_the_header() -> None:
    assert library.api().abi() == native.ABI


@pytest.mark.parametrize(
    ("kind", "params", "support", "depth"),
    [
        ("glm4moe", {}, native.SUPPORT_TREE, native.MAX_NODES - 1),
        ("mimo2", {}, native.SUPPORT_TREE, native.MAX_NODES - 1),
        ("glm4moe", {"n_seq_max": 2}, native.SUPPORT_CHAIN, native.MAX_NODES - 1),
        ("qwen35", {"n_rs_seq": 5}, native.SUPPORT_CHAIN, 5),
        ("qwen3next", {"n_rs_seq": 2}, native.SUPPORT_CHAIN, 2),
        ("qwen35", {}, native.SUPPORT_TREE, native.MAX_NODES - 1),
        ("qwen35", {"n_rs_seq": 0}, native.SUPPORT_NONE, 0),
        ("mamba2", {"n_rs_seq": 5}, native.SUPPORT_NONE, 0),
    ],
)
def test_what_a_memory_can_verify(bench: Open, kind: str, params: dict[str, int], support: int, depth: int) -> None:
    import ctypes

    b = bench(kind, **params)
    why = ctypes.create_string_buffer(200)
    assert b.api.support(b.ctx, why, len(why)) == support
    assert b.api.max_depth(b.ctx) == depth
    assert bool(why.value) == (support != native.SUPPORT_TREE)


@pytest.mark.parametrize(
    ("kind", "head"), [("glm4moe", native.HEAD_SINGLE), ("qwen35", native.HEAD_SINGLE), ("step35", native.HEAD_CHAINED)]
)
def test_kinds_of_heads(bench: Open, kind: str, head: int) -> None:
    b = bench(kind, mtp=True)
    assert b.api.head(b.context(ctx_type=1)) == head
    assert b.api.head(b.ctx) == native.HEAD_NONE


@pytest.mark.parametrize("k", [1, 2, 3, 10, 100, 384, 1000])
def test_top_k_is_a_stable_sort(bench: Open, k: int) -> None:
    b = bench("glm4moe")
    row = b.feed([5, 6, 7])
    ids, values = np.zeros(k, np.int32), np.zeros(k, np.float32)
    n = b.api.top_k(b.ctx, -1, k, ids.ctypes.data, values.ctypes.data)
    assert n == min(k, b.n_vocab)
    order = np.argsort(-row, kind="stable")[:n]
    assert ids[:n].tolist() == order.tolist()
    np.testing.assert_array_equal(values[:n], row[order])
    assert b.api.top_k(b.ctx, 99, k, ids.ctypes.data, None) == 0


def test_top_k_with_ties_infinities_and_nan(bench: Open) -> None:
    b = bench("glm4moe")
    b.feed([5, 6, 7])
    row = np.ctypeslib.as_array(b.llama.llama_get_logits_ith(b.ctx, -1), shape=(b.n_vocab,))
    row[:] = -np.inf
    row[[300, 20, 150]] = 1.0
    row[[4, 200]] = np.nan
    ids = np.zeros(5, np.int32)
    assert b.api.top_k(b.ctx, -1, 3, ids.ctypes.data, None) == 3
    assert ids[:3].tolist() == [20, 150, 300]
    row[:] = np.nan
    assert b.api.top_k(b.ctx, -1, 3, ids.ctypes.data, None) == 0


# -- libraries that do not fit


def compile_library(folder: Path, source: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the engine was built, so there is a compiler"
    folder.mkdir(exist_ok=True)
    (folder / "fake.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library.library_file(folder)), str(folder / "fake.c")], check=True)
    return folder


def test_another_abi_is_refused(tmp_path: Path) -> None:
    folder = compile_library(tmp_path / "abi", "int llama_entmtp_abi(void) { return 999; }")
    with pytest.raises(
        EngineError, match=rf"ABI 999, this version of entmtp-local needs {native.ABI}; rebuild it with scripts/setup"
    ):
        library.check_library(folder)


def test_an_unpatched_library_is_refused(tmp_path: Path) -> None:
    folder = compile_library(tmp_path / "stock", "int llama_decode(void) { return 0; }")
    with pytest.raises(EngineError, match="without the patches"):
        library.check_library(folder)


def test_a_missing_and_a_damaged_library(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no engine library at"):
        library.check_library(tmp_path)
    library.library_file(tmp_path).write_bytes(b"no library")
    with pytest.raises(EngineError, match="does not load"):
        library.check_library(tmp_path)


def test_the_loaded_library_is_named_by_the_environment() -> None:
    library.load()
    assert Path(os.environ["LLAMA_CPP_LIB_PATH"]) == library.engine_directory().resolve()


def test_the_memory_of_graphics_processors() -> None:
    found = library.gpus()
    assert bool(found) == bool(library.load().llama_supports_gpu_offload())
    assert all(gpu.name and 0 < gpu.free_bytes <= gpu.total_bytes for gpu in found)
