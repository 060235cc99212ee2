"""What memory a model is said to need and to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fakes import FakeSession, install, model_info

from entmtp_local.cli import forecast, machine, options
from entmtp_local.cli.main import main
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.speculative.draft_vocab import PassCost
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
    deep, deeper = (machine.memory_needed(stored, None, 1024, parse_policy(f"chain:{n}")) for n in (8, 12))
    assert deeper == deep  # rejected tokens are taken back no further
    assert machine.memory_needed(about, about, 1024, off) - base == about.size_bytes
    # of an unknown cache, its cells alone
    assert machine.cache_bytes(model_info(memory_kind="other"), 1000) == 1000 * machine._CELL_BYTES


@pytest.mark.parametrize(("n_bytes", "text"), [(25 * 1024**2, "25 MiB"), (GIB, "1.0 GiB"), (97 * GIB + GIB // 2, "97.5 GiB")])
def test_sizes_are_readable(n_bytes: int, text: str) -> None:
    assert machine.readable_size(n_bytes) == text


def test_a_copy_of_the_head_counts_where_drafts_read_one() -> None:
    chain = parse_policy("chain:3")
    cost = PassCost(10**9, 10**7, 2 * 4096.0)  # 16 bits a weight
    about = model_info(n_vocab=200_000, n_embd=4096, pass_bytes=cost)

    def copied(*drafts: object, info: ModelInfo = about, sidecar: ModelInfo | None = None) -> int:
        plain = machine.memory_needed(info, sidecar, 1024, chain, None, "same")
        return machine.memory_needed(info, sidecar, 1024, chain, *drafts) - plain  # type: ignore[arg-type]

    row = 4096 * 34 // 32
    # as many tokens as the text may ask for, all of them, and no fewer than are copied at the start
    assert copied() == 131_072 * row
    assert copied(0, None) == 200_000 * row
    assert copied(64, "Q4_0") == 32_768 * 4096 * 18 // 32
    assert copied(10**6, "Q8_0") == 200_000 * row
    # a head in a file of its own that leaves the output matrix to the model's
    alone = model_info(n_embd=4096, pass_bytes=replace(cost, row=0.0))
    assert copied(sidecar=alone) == 131_072 * row
    # none unasked of a smaller type, none that would be no smaller, none for a head that reads the model's cache
    small = replace(about, pass_bytes=replace(cost, row=float(row)))
    assert copied(info=small) == copied(0, "Q8_0", info=small) == 0 < copied(0, "Q4_0", info=small)
    assert copied(0, "Q4_0", info=replace(about, head_kind="shared")) == 0
    off = parse_policy("off")
    assert machine.memory_needed(about, None, 1024, off) == machine.memory_needed(about, None, 1024, off, 0, "Q4_0")


def test_copies_of_the_state_are_counted_as_far_as_they_go() -> None:
    hybrid = model_info(state_bytes=150_000_000)
    assert machine.checkpoint_bytes(hybrid, 4096) == 150_000_000
    assert machine.most_checkpoint_bytes(hybrid, 4096) == GIB
    assert machine.most_checkpoint_bytes(hybrid, 32) == 4 * 150_000_000, "a short context has no room for more turns"
    assert machine.most_checkpoint_bytes(model_info(state_bytes=2 * GIB), 4096) == 2 * GIB
    windowed = model_info(
        memory_kind="iswa", state_bytes=0, window_layers=(True, True, False, True), kv_bytes_per_token=4000, n_window=512
    )
    assert machine.checkpoint_bytes(windowed, 4096) == 512 * 3000 and machine.checkpoint_bytes(windowed, 100) == 100 * 3000
    assert machine.cache_bytes(windowed, 4096) == 4096 * (1000 + machine._CELL_BYTES) + 1024 * 3000
    assert machine.most_checkpoint_bytes(model_info(memory_kind="attention", state_bytes=0), 4096) == 0


def test_what_a_gpu_leaves_to_main_memory() -> None:
    about = model_info(n_layer=38)  # 40 with the head and the output matrix
    assert [machine.memory_on_host(about, 400, n) for n in (None, 99, 40, 30, 0)] == [0, 0, 0, 100, 400]


@pytest.mark.parametrize(
    ("free", "kept", "words"),
    [
        (10 * GIB, GIB, None),
        (400_000_000, 400_000_000, "room for 2 of up to 7 copies of the model's state, 143 MiB each"),
        (1_000_000, 1_000_000, "room for no copy of the model's state"),
        (-5, None, "needs"),
    ],
)
def test_a_chat_keeps_as_many_copies_as_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, free: int, kept: int | None, words: str | None
) -> None:
    about = model_info(state_bytes=150_000_000)
    opened = install(monkeypatch, FakeSession(["a"]), about)
    needed = machine.memory_needed(about, None, 2048, parse_policy("off"))
    monkeypatch.setattr(options, "available_memory", lambda: needed + free)
    result = CliRunner().invoke(main, ["chat", "m.gguf", "--policy", "off"], input="Hi\n")
    assert [each.checkpoint_bytes for each in opened] == ([] if kept is None else [kept])
    assert (words or "a") in result.output and ("room for" in result.output) == (kept not in (None, GIB))
    # a run goes back to nothing
    opened = install(monkeypatch, FakeSession(["a"]), about)
    assert "room for" not in CliRunner().invoke(main, ["run", "m.gguf", "--policy", "off", "-p", "Hi"]).output


def test_copies_lie_in_main_memory_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    about = model_info(state_bytes=150_000_000, size_bytes=100 * GIB)
    opened = install(monkeypatch, FakeSession(["a"]), about)
    gpu = SimpleNamespace(load=lambda: SimpleNamespace(llama_supports_gpu_offload=lambda: True))
    monkeypatch.setattr(options, "library", gpu)
    monkeypatch.setattr(options, "available_memory", lambda: 400_000_000)
    result = CliRunner().invoke(main, ["chat", "m.gguf", "--policy", "off"], input="Hi\n")
    assert opened[0].checkpoint_bytes == 400_000_000 and "room for 2 of up to 7 copies" in result.output


def test_info_says_what_copies_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "available_memory", lambda: 4 * GIB)
    for state_bytes, told in ((150_000_000, True), (0, False)):
        install(monkeypatch, FakeSession([]), model_info(state_bytes=state_bytes))
        text = CliRunner().invoke(main, ["info", "m.gguf"]).output
        assert ("; a chat keeps up to 1.0 GiB of states to go back to\n" in text) == ("a chat keeps" in text) == told
