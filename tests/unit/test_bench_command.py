"""The command with scripted arms: what it asks for, what it says, what it keeps."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_llama_server
import pytest
from bench_fakes import FakeArm
from click.testing import CliRunner, Result
from fakes import model_info
from unit.test_cli import assert_one_line_error
from unit.test_forecast import profile as fitted_profile

from entmtp_local.bench.arms import OurArm, ServerArm
from entmtp_local.bench.server import Server
from entmtp_local.bench.text import Request, Text
from entmtp_local.chat.interrupt import never_lost
from entmtp_local.cli import bench, bench_models
from entmtp_local.cli.main import main
from entmtp_local.errors import ServerError
from entmtp_local.files import held
from entmtp_local.speculative.cost import SIZES, CostTable


class FakeOurs(FakeArm):
    """Plain decoding where the judge opens it."""

    def gap(self, *_: Any) -> Any:
        raise AssertionError("texts are the same")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a stock server and models that need no engine. Returns: the path of the server."""
    server = tmp_path / "llama-server"
    server.write_text(f"#!{sys.executable}\n" + Path(fake_llama_server.__file__).read_text().split("\n", 1)[1])
    server.chmod(0o755)

    def prepared(function: Any, path: Path, options: Any, chosen: Any, vocabs: Any) -> bench_models.Prepared:
        assert function is bench_models.prepare
        prompts = {name: [[ord(name[0]), i, 5] for i in range(len(some))] for name, some in chosen.items()}
        profile = replace(fitted_profile(), costs=CostTable(dict.fromkeys(SIZES, 1.0)))
        return bench_models.Prepared("a device", {"backend": "cpu"}, prompts, frozenset({1}), dict.fromkeys(vocabs, profile))

    monkeypatch.setattr(bench_models, "in_child", prepared)
    monkeypatch.setattr(bench_models, "read_model", lambda path, role="main": model_info(path=path))
    for module in (bench, bench_models):
        monkeypatch.setattr(module, "fingerprint", lambda path: f"fingerprint of {path.name}")
    monkeypatch.setattr(OurArm, "open", lambda self: FakeOurs(self.name, speed=2000.0).open())
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_text("a model")
    monkeypatch.chdir(tmp_path)
    return server


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


FEW = ("--task", "code", "--task", "prose", "-n", "24", "--rounds", "2", "--warmup", "2", "--prompts", "1", "--temps", "0")


def test_a_whole_run(machine: Path, tmp_path: Path) -> None:
    found = call("a.gguf", *FEW, "--stock", machine, "--json", "out.json", "--report", "out.html", "--policies", "chain:2")
    assert found.exit_code == 0, found.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["complete"] and len(content["models"][0]["sweep"]) == 8 * 2
    code, prose = content["results"]["blocks"]
    assert code["base"].startswith("stock ") and set(code["arms"]) >= {"off", "chain:2", "stock plain"}
    assert all(row["truth"]["same"] == row["truth"]["compared"] == 2 for row in code["arms"].values())
    assert "code, temperature 0" in found.stdout and "stock plain" in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    assert str(tmp_path) not in json.dumps(content), "what is published names no folders"
    assert content["settings"]["stock"] == "version: 1 (fake)"
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")


def test_the_server_is_told_what_the_protocol_says(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    real = ServerArm.open
    monkeypatch.setattr(ServerArm, "open", lambda self: (commands.append(self.command), real(self))[1])
    call("a.gguf", *FEW, "--stock", machine, "--sweep", "default", "--threads", "3", "-c", "512", "--stock-args", "-fa on")
    plain, mtp = (next(c for c in commands if ("--spec-type" in c) == drafts) for drafts in (False, True))
    assert plain == (
        str(machine), "-m", "a.gguf", "-c", "512", "-t", "3", "-ngl", "999", "-tb", "3", "-ub", "512", "-np", "1",
        "--cache-ram", "0", "--ctx-checkpoints", "0", "-fit", "off", "-fa", "on",
    )  # fmt: skip
    assert mtp[: len(plain) - 2] == plain[:-2] and mtp[-4:] == ("-td", "3", "-fa", "on")


def test_a_server_that_is_named_without_a_folder_is_the_one_that_was_looked_at(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Programs without a folder are looked for in PATH."""
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "llama-server"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{os.environ['PATH']}")
    peer = ("--peer", "other=llama-server")
    for arguments in (("--stock", "llama-server", "--sweep", "default"), ("--no-stock", *peer)):
        found = call("a.gguf", *FEW, "--policies", "off", *arguments)
        assert found.exit_code == 0 and "invalid" not in found.stdout, found.output


def test_policies_of_the_default_that_the_profile_knows_nothing_for_are_left_out(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a first use was too slow for texts."""
    prepared = bench_models.in_child

    def without_texts(*arguments: Any) -> bench_models.Prepared:
        found = prepared(*arguments)
        return replace(found, profiles={vocab: replace(profile, tasks={}) for vocab, profile in found.profiles.items()})

    monkeypatch.setattr(bench_models, "in_child", without_texts)
    found = call("a.gguf", *FEW, "--no-stock")
    assert found.exit_code == 0 and "left out" in found.stderr and "hydra:7, entmtp;" in found.stderr
    assert "throughput" in found.stdout and "hydra" not in found.stdout
    refused = call("a.gguf", *FEW, "--no-stock", "--policies", "hydra:7")
    assert_one_line_error(refused, 2, "the profile knows no texts yet", "entmtp-local calibrate MODEL")
    assert_one_line_error(call("a.gguf", *FEW, "--no-stock", "--policies", ""), 2, "there is no policy ''")


def test_without_a_stock_server_it_says_so(machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTMTP_LOCAL_BUILD_DIR", str(tmp_path / "nothing"))
    found = call("a.gguf", *FEW)
    assert found.exit_code == 0
    assert "there is no stock llama-server" in found.stderr and "scripts/setup --with-stock" in found.stderr
    assert "no stock" not in call("a.gguf", *FEW, "--no-stock").stderr


def test_several_models_and_a_peer(machine: Path) -> None:
    peer = f"other={machine} --shift 0"
    found = call("a.gguf", "b.gguf", *FEW, "--no-stock", "--peer", peer, "--policies", "off,throughput,throughput@full")
    assert found.exit_code == 0, found.stderr
    assert "a: code, temperature 0" in found.stdout and "b: code, temperature 0" in found.stdout
    assert "other" in found.stdout and "throughput@full" in found.stdout and "accepted at depth" in found.stdout


def test_a_peer_that_writes_something_else_has_no_figures(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeOurs, "gap", lambda *_: fake_gap())
    found = call("a.gguf", *FEW, "--no-stock", "--peer", f"other={machine} --shift 1", "--policies", "off")
    assert "invalid, see below" in found.stdout and "other is not counted: wrong text" in found.stdout


def fake_gap() -> Any:
    from entmtp_local.bench.worker import Gap

    return Gap(2.0, 0.01)


def test_a_server_that_does_not_run_ends_it_at_once(machine: Path) -> None:
    for behave, words in (("die", "stock plain ended with code 3"), ("crash at load", "tensor 'blk.0' is missing")):
        found = call("a.gguf", *FEW, "--stock", machine, "--stock-args", f"--behave '{behave}'", "--policies", "off")
        assert_fails_when_tried(found, "stock plain", words)
    found = call("a.gguf", *FEW, "--no-stock", "--peer", f"other={machine} --behave page")
    assert_fails_when_tried(found, "other", "other does not answer as a llama-server does")


def assert_fails_when_tried(found: Result, arm: str, words: str) -> None:
    assert found.exit_code == 1 and found.stdout == ""
    tried, error = found.stderr.splitlines()
    assert tried == f"0 of 1: trying {arm} with a" and error.startswith("error: ") and words in error


def test_mtp_that_does_not_run_is_a_result(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ServerArm.open

    def fails(self: ServerArm) -> Any:
        if "--spec-type" in self.command:
            raise ServerError(f"{self.name} ended with code 1.")
        return real(self)

    monkeypatch.setattr(ServerArm, "open", fails)
    found = call("a.gguf", *FEW, "--stock", machine, "--policies", "off")
    assert found.exit_code == 0
    assert "stock llama.cpp's MTP does not run with a.gguf: stock mtp:1 ended with code 1." in found.stderr
    assert "stock plain" in found.stdout and "base" in found.stdout


def test_ctrl_c_shows_what_there_is_and_resume_goes_on(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]

    def open_one(self: OurArm) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return FakeOurs(self.name).open()

    monkeypatch.setattr(OurArm, "open", open_one)
    arguments = ("a.gguf", *FEW, "--no-stock", "--policies", "off,chain:1", "--json", "out.json")
    found = call(*arguments)
    assert found.exit_code == 130
    assert "--resume goes on" in found.stderr and "code, temperature 0" in found.stdout
    assert_one_line_error(call(*arguments), 2, "holds the rounds of an interrupted run")
    assert_one_line_error(call(*arguments, "--resume", "--threads", "1", "--draft-vocab", "full"), 2, "draft_vocab")
    found = call(*arguments, "--resume")
    assert found.exit_code == 0 and "interrupted" not in found.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["complete"] and len(content["visits"]) == 8
    assert call(*arguments, "--resume", "--rounds", "3").exit_code == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["visits"]) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stock", "missing"), ("there is no program missing for --stock", "scripts/setup --with-stock")),
        (("--stock", "a.gguf"), ("is not a program that can be run",)),
        (("--stock", "a.gguf", "--no-stock"), ("exclude each other",)),
        (("--stock-args", "-fa on", "--no-stock"), ("--stock-args and --no-stock exclude each other",)),
        (("--no-stock", "--peer", "x=llama-server", "--peer", "x=llama-server"), ("two peers are called 'x'",)),
        (("--no-stock", "--policies", "entmtp:nosuch"), ("the profile has no task nosuch",)),
        (("--no-stock", "--peer", "x"), ("is not NAME=PATH",)),
        (("--no-stock", "--peer", "x=missing"), ("there is no program missing for --peer x",)),
        (("--no-stock", "--peer", "x='"), ("cannot be read",)),
        (("--no-stock", "--policies", "what"), ("there is no policy 'what'",)),
        (("--no-stock", "--policies", "off@half"), ("unknown mark @half",)),
        (("--no-stock", "--json", "missing/out.json"), ("cannot be written",)),
        (("--no-stock", "--json", "missing.json", "--resume"), ("there is no missing.json to go on with",)),
        (("--no-stock", "--resume"), ("--resume goes on with the file of --json",)),
        (("--no-stock", "-c", "256", "-n", "256"), ("leaves no room",)),
        (("--no-stock", "--task", "nothing"), ("There is no workload nothing",)),
    ],
)
def test_mistakes_are_one_line(machine: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    found = call("a.gguf", *arguments)
    assert_one_line_error(found, 2, *words)


def test_two_runs_do_not_write_one_file(machine: Path, tmp_path: Path) -> None:
    arguments = ("a.gguf", *FEW, "--no-stock", "--policies", "off", "--json", "out.json")
    with held(tmp_path / "out.json"):
        assert_one_line_error(call(*arguments), 2, "another program writes out.json")
    assert call(*arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_it_says_what_stands_for_a_workload_that_was_not_calibrated(machine: Path) -> None:
    found = call("a.gguf", *FEW, "--no-stock", "--policies", "off,medusa:2:TASK", "--rounds", "1")
    assert found.exit_code == 0, found.output
    assert "no figures of code, prose alone: TASK stands for all tasks together" in found.stderr


def test_a_list_of_temperatures_is_checked(machine: Path) -> None:
    for value in ("0,x", "-1", ""):
        assert "is not a list of temperatures" in call("a.gguf", "--temps", value).stderr


def test_a_signal_ends_the_servers_too(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    real = Server.complete

    def complete(self: Server, request: Request) -> Text:
        pids.append(self.pid)
        if len(pids) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, request)

    monkeypatch.setattr(Server, "complete", complete)
    found = call("a.gguf", *FEW, "--stock", machine, "--sweep", "default", "--policies", "off")
    assert found.exit_code == 143
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ctrl_c_in_a_destructor_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an exception in one of them does is to be printed, and no more."""

    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: ignored.append(unraisable.exc_type))
    before = signal.getsignal(signal.SIGINT)
    with never_lost() as check:
        check()
        Destroyed()
        assert ignored == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
