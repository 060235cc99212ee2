"""`pull`, and models of the hub as MODEL, from the command line to a hub and back: what is printed, and what a signal leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hub import FakeHub, Repo, content, serving, use
from fakes import FakeSession, install, model_info
from huggingface_hub import constants

from entmtp_local.cli import pull as command
from entmtp_local.cli.main import main
from entmtp_local.hub.cache import repo_folder
from scripts import make_tiny_models as tiny

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny-MTP-Q8_0.gguf"


@cache
def bytes_of(kind: str, *, sidecar: bool = False) -> bytes:
    model = tiny.make_sidecar(kind) if sidecar else tiny.make_model(kind)
    assert model is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        tiny.write_model(model, path)
        return path.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving() as hub:
        use(hub, tmp_path, monkeypatch)
        hub.repos["o/r"] = Repo({NAME: bytes_of("qwen35")})
        yield hub


def call(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def assert_one_line_error(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    for word in words:
        assert word in result.stderr


def test_pull_prints_the_path_and_says_what_to_do_next(hub: FakeHub) -> None:
    result = call("pull", "o/r:Q8_0")
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path.name == NAME and path.read_bytes() == hub.repos["o/r"].files[NAME]
    assert result.stderr.splitlines() == [
        f"{NAME} (2.9 MB)",
        "tiny qwen35: F32, 2.9 MB, with an MTP head.",
        "talk with it: entmtp-local chat o/r:Q8_0",
    ]


def test_a_models_name_cannot_act_on_the_terminal(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_model", lambda *_, **__: model_info(name="\x1b[2Jname"))
    result = call("pull", "o/r")
    assert result.exit_code == 0 and r"\x1b[2Jname: " in result.stderr and "\x1b" not in result.stderr


def test_pull_list(hub: FakeHub) -> None:
    hub.repos["o/r"].files["mtp-tiny-Q4_K_M.gguf"] = content(2_000)
    result = call("pull", "--list", "o/r")
    assert result.exit_code == 0
    lines = [line.split(None, 3) for line in result.stdout.splitlines()]
    assert [(line[0], line[-1].split()[-1]) for line in lines] == [("Q4_K_M", "mtp-tiny-Q4_K_M.gguf"), ("Q8_0", NAME)]
    assert hub.ranges() == []


def test_pull_usage(hub: FakeHub) -> None:
    assert_one_line_error(call("pull", "model.gguf"), 2, "OWNER/NAME:QUANT")
    assert_one_line_error(call("pull", "o/r:Q3_K"), 1, "nothing named Q3_K, but Q8_0", "entmtp-local pull o/r:Q8_0")
    hub.repos["o/r"].files = {}
    assert_one_line_error(call("pull", "o/r"), 1, "no GGUF files")
    assert_one_line_error(call("pull", "--list", "o/r"), 1, "no GGUF files")


def test_pull_of_what_is_pasted(hub: FakeHub, tmp_path: Path) -> None:
    """The address of a page or of a file names what it shows; a file that is here need not be fetched."""
    page = f"{constants.ENDPOINT}/o/r"
    for address in (
        page,
        f"{page}/",
        f"{page}/tree/main",
        f"{page}/blob/main/{NAME}?download=true",
        f"{page}/resolve/main/{NAME}",
    ):
        result = call("pull", address)
        assert result.exit_code == 0 and result.stdout.strip().endswith(NAME), result.output
    assert_one_line_error(call("pull", "https://example.org/o/r"), 2, "OWNER/NAME:QUANT")
    file = tmp_path / "here.gguf"
    file.touch()
    assert_one_line_error(call("pull", str(file)), 2, f"is here already; entmtp-local chat {file} talks with it.")


def test_a_list_without_a_network_is_to_be_asked_for_again(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_one_line_error(call("pull", "--list", "o/r"), 1, "run entmtp-local pull --list o/r")


def test_what_was_fetched_but_cannot_be_run_is_said(hub: FakeHub) -> None:
    hub.repos["o/r"].files[NAME] = content(3_000)
    assert_one_line_error(call("pull", "o/r"), 1, NAME, "The repository has it so: entmtp-local pull --list o/r")


def test_chat_fetches_once_and_then_needs_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["hello", "again"])
    opened = install(monkeypatch, session)
    result = call("chat", "o/r:Q8_0", stdin="Hi\n")
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert opened[0].model_path == repo_folder("o/r") / "snapshots" / hub.repos["o/r"].commit / NAME
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert call("chat", "o/r", stdin="Hi\n").stdout == "again\n"
    assert opened[1].model_path == opened[0].model_path and hub.requests == []
    assert_one_line_error(call("chat", "o/r:Q4_K_M"), 1, "HF_HUB_OFFLINE", "entmtp-local pull o/r:Q4_K_M")


@pytest.mark.parametrize("given", [False, True])
def test_the_head_of_its_own_is_opened_with_its_model(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: bool
) -> None:
    hub.repos["o/r"].files = {
        "tiny-Q8_0.gguf": bytes_of("qwen35-sidecar"),
        "mtp-tiny-Q8_0.gguf": bytes_of("qwen35-sidecar", sidecar=True),
    }
    pulled = call("pull", "o/r")
    assert pulled.exit_code == 0 and "with an MTP head" in pulled.stderr
    assert re.search(r"^its MTP head: /.*/mtp-tiny-Q8_0\.gguf$", pulled.stderr, re.MULTILINE)
    opened = install(monkeypatch, FakeSession(["x"]))
    mine = tmp_path / "mine.gguf"
    call("run", "o/r", "-p", "Hi", *(["--mtp-model", str(mine)] if given else []))
    mtp_path = opened[0].mtp_path
    assert mtp_path is not None and mtp_path.name == ("mine.gguf" if given else "mtp-tiny-Q8_0.gguf")


def test_info_of_a_model_of_the_hub_fetches_nothing(hub: FakeHub) -> None:
    assert_one_line_error(call("info", "o/r:Q8_0"), 1, "run entmtp-local pull o/r:Q8_0 first")
    assert hub.requests == []
    call("pull", "o/r")
    told = json.loads(call("info", "o/r:Q8_0", "--json").stdout)
    assert told["mtp"]["kind"] == "single"


def test_a_path_that_is_not_there_is_no_repository(hub: FakeHub) -> None:
    for path in ("no.gguf", "folder/no.gguf", "./no/file", "/no/file", "../no-file"):
        assert_one_line_error(call("info", path), 1, path.removeprefix("./"), "does not exist")
    assert hub.requests == []


def test_shells_complete_what_is_here(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    call("pull", "o/r")
    monkeypatch.setenv("_ENTMTP_LOCAL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "entmtp-local chat o")
    monkeypatch.setenv("COMP_CWORD", "2")
    result = CliRunner().invoke(main, [])
    assert result.stdout.splitlines() == ["plain,o/r:Q8_0", "file,o"]


# -- processes

CHILD = """
import sys
sys.path[:0] = [{root!r}]
from entmtp_local.hub import download
download.CHUNK_BYTES = 10_000
from entmtp_local.cli.main import main
main(["pull", "o/r"])
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_process_that_is_ended_goes_on_where_it_was(hub: FakeHub, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """The environment alone says which hub is asked and where files are kept."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", CHILD.format(root=str(ROOT))]
    hub.stall_after = 1_000_000
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size >= 900_000 for path in repo_folder("o/r").glob("blobs/*.incomplete")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.02)
        child.send_signal(sent)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == code
    if sent == signal.SIGINT:
        assert "interrupted: entmtp-local pull o/r goes on from here." in stderr and "Traceback" not in stderr
    (partial,) = repo_folder("o/r").glob("blobs/*.incomplete")
    kept = partial.stat().st_size
    hub.stall_after = None
    hub.released.set()
    hub.requests.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == hub.repos["o/r"].files[NAME]
    assert hub.ranges() == [kept] and kept >= 900_000
