"""Files that commands write and read.

| test | failure it catches |
|---|---|
| links | a link that is replaced in place of the file that it leads to |
| no regular files | a pipe that is waited for, a device that is replaced or read without end |
| control characters | a name from a file that the terminal obeys |
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import FakeSession, install, model_info
from synthetic import synthetic_log

from entmtp_local.bench.record import Record
from entmtp_local.calibration.costs import load_table
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.cli.main import main
from entmtp_local.errors import EntMTPError, UsageError, visible
from entmtp_local.files import check_writable, replace_file, user_cache, user_data
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.tree import TreeShape


def write(path: Path, content: bytes) -> None:
    with replace_file(path) as file:
        file.write(content)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_replaced(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target, link, second = folder / "file", tmp_path / "link", tmp_path / "second"
    link.symlink_to(target)
    second.symlink_to("link")
    if there:
        target.write_bytes(b"before")
    check_writable(second)
    with pytest.raises(KeyError), replace_file(second) as file:
        file.write(b"half")
        raise KeyError
    assert target.exists() is there and os.listdir(folder) == ["file"] * there
    write(second, b"after")
    assert target.read_bytes() == b"after" and os.listdir(folder) == ["file"]
    assert os.readlink(link) == str(target) and os.readlink(second) == "link"


def no_files(folder: Path) -> list[Path]:
    """A pipe, a link to it, a device, a folder, and a link to itself."""
    pipe, link, circle = folder / "pipe", folder / "to-pipe", folder / "circle"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    circle.symlink_to(circle)
    return [pipe, link, Path("/dev/zero"), folder, circle]


@pytest.mark.parametrize(
    "read",
    [
        Profile.load,
        WideLog.load,
        Record.read,
        lambda path: load_table(str(path)),
        lambda path: parse_policy(f"tree:{path}"),
    ],
    ids=["profile", "log", "bench", "costs", "tree"],
)
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for path in no_files(tmp_path):
        with pytest.raises(EntMTPError) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    for path in no_files(tmp_path):
        before = path.lstat()
        with pytest.raises(UsageError, match=r"cannot be written: .*\.$"):
            check_writable(path)
        with pytest.raises(OSError):
            write(path, b"content")
        assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(os.listdir(tmp_path)) == ["circle", "pipe", "to-pipe"], "nothing is left over"


def test_a_folder_that_does_not_exist_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none" / "file")
    for path in (tmp_path / "none" / "file", tmp_path / "link"):
        with pytest.raises(UsageError, match="none does not exist"):
            check_writable(path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that holds no files of ours")
def test_a_folder_that_takes_no_files_is_told_before() -> None:
    with pytest.raises(UsageError, match="/proc does not exist or may not be written"):
        check_writable(Path("/proc/x.html"))


def test_names_from_files_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    assert visible("a\x1b[2J\r\n\x9b\u202e\ud800 é") == r"a\x1b[2J\r\n\x9b\u202e\ud800 é"
    log = synthetic_log(TreeShape.comb(2, 2), n_texts=1, n_tokens=12, tasks=("\x1b]0;x\x07\n",))
    log.save(tmp_path / "log.npz")
    Profile(CostTable({1: 0.02, 2: 0.021}, level={1: 1e-3}, source="\x1b[1m")).save(tmp_path / "costs.json")
    arguments = ("calibrate", "--replay", str(tmp_path / "log.npz"), "--costs", str(tmp_path / "costs.json"))
    result = CliRunner().invoke(main, [*arguments, "--policies", "off,entmtp:TASK"])
    assert result.exit_code == 0 and result.stderr == ""
    assert r"\x1b]0;x\x07\n" in result.stdout and r"\x1b[1m" in result.stdout
    assert all(c.isprintable() or c == "\n" for c in result.stdout)
    # and in sentences
    result = CliRunner().invoke(main, ["calibrate", "--replay", str(tmp_path / "\x1b[31m.npz"), "--costs", "rtx-3090-27b"])
    assert result.exit_code == 2 and r"\x1b[31m.npz" in result.stderr and "\x1b" not in result.stderr


def test_what_a_model_file_says_of_itself_cannot_act_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession([]), model_info(name="\x1b]0;x\x07\nengine  none", quantisation="\x9b2J"))
    result = CliRunner().invoke(main, ["info", "m.gguf"])
    assert result.exit_code == 0 and result.stdout.startswith(r"model          \x1b]0;x\x07\nengine  none (fake.gguf)" + "\n")
    assert all(c.isprintable() or c == "\n" for c in result.stdout)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    for name, folder in (("XDG_DATA_HOME", user_data), ("XDG_CACHE_HOME", user_cache)):
        monkeypatch.delenv(name, raising=False)
        with pytest.raises(UsageError, match="name one with HOME"):
            folder()
