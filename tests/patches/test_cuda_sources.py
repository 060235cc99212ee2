"""The CUDA files of the series compile, also where there is no GPU to run them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from entmtp_local.native.series import PatchFile, read_patch
from entmtp_local.native.source import Layout, series

_STUBS = Path(__file__).parent / "cuda_stubs"
_SUFFIXES = (".cu", ".cuh")
# What ggml-cuda's CMakeLists.txt gives every file, for the architectures of consumers' cards.
_FLAGS = (
    "-std=c++17",
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("86", "89", "120a")),
    "--threads=0",
    "-DGGML_CUDA_PEER_MAX_BATCH_SIZE=128",
    "-DGGML_CUDA_USE_GRAPHS",
    "-DGGML_SCHED_MAX_COPIES=4",
    "-use_fast_math",
    "-extended-lambda",
)


@pytest.fixture(scope="module")
def patches(layout: Layout) -> list[PatchFile]:
    return [read_patch(path) for path in series(layout.patches)]


def touched_sources(patches: list[PatchFile], tree: Path) -> set[str]:
    """The .cu files to compile: those that patches touch, and for a header its namesake or the dispatcher."""
    sources = set()
    for path in {path for patch in patches for path in patch.changed | patch.upstream_files if path.endswith(_SUFFIXES)}:
        namesake = Path(path).with_suffix(".cu")
        sources.add(str(namesake) if (tree / namesake).is_file() else "ggml/src/ggml-cuda/ggml-cuda.cu")
    return sources


def compile_cuda(nvcc: str, tree: Path, source: Path, target: Path) -> str:
    """Compile one file; returns what the compiler says against it, and nothing when it compiles."""
    includes = [f"-I{tree / folder}" for folder in ("ggml/include", "ggml/src", "ggml/src/ggml-cuda")]
    # -isystem is searched after the toolkit's own folder, so its header is found first where it is installed.
    command = [nvcc, *_FLAGS, *includes, "-isystem", str(_STUBS), "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr[-4000:] if done.returncode != 0 else ""


def test_every_changed_cuda_file_of_upstream_is_listed(patches: list[PatchFile], layout: Layout) -> None:
    listed = {path for patch in patches for path in patch.upstream_files if path.endswith(_SUFFIXES)}
    added = {path for patch in patches for path in patch.added}
    changed = {path for patch in patches for path in patch.changed if path.endswith(_SUFFIXES)}
    assert changed - added == listed - added
    assert bool(changed) == bool(touched_sources(patches, layout.patched_tree))


def test_changed_cuda_files_compile(patches: list[PatchFile], layout: Layout, tmp_path: Path) -> None:
    tree = layout.patched_tree
    sources = touched_sources(patches, tree)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not sources:
        assert not any(path.endswith(_SUFFIXES) for patch in patches for path in patch.upstream_files)
        return
    if nvcc is None:
        pytest.skip("nvcc is not installed, and the series' CUDA files can be compiled by nothing else")
    for source in sorted(sources):
        assert compile_cuda(nvcc, tree, tree / source, tmp_path / "object.o") == "", f"{source} does not compile"


def test_compile_check_finds_an_error(layout: Layout, tmp_path: Path) -> None:
    """A check that passes everything would look the same as a series without mistakes."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    text = '#include "common.cuh"\nstatic __global__ void f(float * x) { x[0] = warp_reduce_sum(x[0]); }\n'
    good, bad = tmp_path / "good.cu", tmp_path / "bad.cu"
    good.write_text(text)
    bad.write_text(text.replace("warp_reduce_sum", "warp_reduce_nothing"))
    assert compile_cuda(nvcc, layout.patched_tree, good, tmp_path / "object.o") == ""
    assert "warp_reduce_nothing" in compile_cuda(nvcc, layout.patched_tree, bad, tmp_path / "object.o")
