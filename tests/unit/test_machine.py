"""What memory a model is said to need and to find."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import model_info

from entmtp_local.cli import machine
from entmtp_local.speculative.policy import parse_policy

GIB = 1024**3


def cgroup(folder: Path, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile {cached}\nfile_mapped 3\n")
    return folder


def test_a_containers_limit_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    assert machine._cgroup_available(cgroup(tmp_path, str(8 * GIB), 5 * GIB, 4 * GIB)) == 7 * GIB
    assert machine._cgroup_available(cgroup(tmp_path, "max", 5 * GIB, 4 * GIB)) is None
    assert machine._cgroup_available(tmp_path / "absent") is None


def test_meminfo(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       100 kB\nMemAvailable:    50 kB\n")
    assert machine._meminfo_available(path) == 50 * 1024
    path.write_text("MemTotal:       100 kB\n")
    assert machine._meminfo_available(path) is None
    assert machine._meminfo_available(tmp_path / "absent") is None


def test_this_machine_has_memory() -> None:
    available = machine.available_memory()
    assert available is not None and available > 0


def test_need_grows_with_the_context_and_with_drafts() -> None:
    off, chain = parse_policy("off"), parse_policy("chain:3")
    about = model_info()
    base = machine.memory_needed(about, None, 1024, off)
    per_token = about.kv_bytes_per_token + machine._CELL_BYTES
    assert machine.memory_needed(about, None, 2048, off) - base == 1024 * per_token
    assert machine.memory_needed(about, None, 1024, chain) - base == 2 * 16 * about.node_bytes + 15 * 4 * about.n_vocab
    stored = model_info(node_bytes=0)
    assert machine.memory_needed(stored, None, 1024, chain) - base == 3 * about.state_bytes + 15 * 4 * about.n_vocab
    assert machine.memory_needed(about, about, 1024, off) - base == about.size_bytes
    # Of a sliding-window model, the layers that keep every token count; of an unknown cache, its cells alone.
    windowed = model_info(memory_kind="iswa", window_layers=(True, True, False, True))
    assert machine.cache_bytes(windowed, 1000) == 1000 * (about.kv_bytes_per_token // 4 + machine._CELL_BYTES)
    assert machine.cache_bytes(model_info(memory_kind="other"), 1000) == 1000 * machine._CELL_BYTES


@pytest.mark.parametrize(("n_bytes", "text"), [(25 * 1024**2, "25 MiB"), (GIB, "1.0 GiB"), (97 * GIB + GIB // 2, "97.5 GiB")])
def test_sizes_are_readable(n_bytes: int, text: str) -> None:
    assert machine.readable_size(n_bytes) == text
