"""The benchmark on the shipped model, with few tokens: that figures belong together, not what they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model.conftest import ROOT, cli

from entmtp_local.bench.arms import OurArm, OurChoice
from entmtp_local.bench.text import Request
from entmtp_local.bench.worker import END, Worker, in_child
from entmtp_local.errors import EngineError, EntMTPError, ModelFileError
from entmtp_local.native.session import SessionOptions
from entmtp_local.native.source import find_layout
from entmtp_local.speculative.sampling import SamplingOptions

PROMPT = tuple(range(30, 42))
GREEDY = SamplingOptions(temp=0.0, seed=0)
FEW = ("-n", "20", "--prompts", "1", "--warmup", "4", "--threads", "1", "--task", "code", "--task", "chat")


def arm(shipped: Path, policy: str) -> OurArm:
    return OurArm.of(OurChoice.parse(policy), SessionOptions(shipped, n_ctx=512, n_threads=1), None, "all")


def test_an_arm_of_ours_answers_in_a_process_of_its_own(shipped: Path) -> None:
    with arm(shipped, "off").open() as plain, arm(shipped, "chain:3").open() as chain:
        assert len({plain.pid, chain.pid, os.getpid()}) == 3
        texts = [worker.complete(Request(PROMPT, 40, GREEDY)) for worker in (plain, chain)]
        assert texts[0].tokens == texts[1].tokens and texts[0].n == len(texts[0].tokens or ())
        assert texts[1].n_steps is not None and texts[1].n_steps < (texts[0].n_steps or 0)
        assert texts[1].n_accepted == sum(texts[1].accepted_per_depth) > 0
        assert texts[1].decode_seconds >= sum(texts[1].parts.values()) * 0.9 > 0
        assert [n >= 32 for n, _ in texts[1].pace] == [True]

        # the same row in passes of one token and of many: the right token is ahead, by more than rounding
        tokens = texts[0].tokens or []
        right = plain.gap([*PROMPT, *tokens[:5]], tokens[5], (tokens[5] + 1) % 200)
        assert right.gap > 0 and 0 <= right.rounding < 0.03
        assert plain.gap([*PROMPT, *tokens[:5]], END, tokens[5]).gap < 0
        # a prompt of one token has no pass of one behind it
        assert plain.gap(PROMPT[:1], 5, 9).gap == -plain.gap(PROMPT[:1], 9, 5).gap != 0
        assert plain.complete(Request(PROMPT, 40, GREEDY)).tokens == texts[0].tokens
    with pytest.raises(ProcessLookupError):
        os.kill(plain.pid, 0)


def test_arms_that_fail_are_one_sentence(shipped: Path, tmp_path: Path) -> None:
    with arm(shipped, "off").open() as worker:
        with pytest.raises(EntMTPError, match="the prompt has 600 tokens"):
            worker.complete(Request((5,) * 600, 4, GREEDY))
        assert worker.complete(Request(PROMPT, 4, GREEDY)).n == 4, "it goes on"
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="off ended with code -9"):
            worker.complete(Request(PROMPT, 4, GREEDY))
    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError):
        Worker("off", arm(tmp_path / "none.gguf", "off").setup)


def test_what_a_child_returns_or_raises_crosses_over() -> None:
    assert in_child(divmod, 7, 2) == (3, 1)
    with pytest.raises(EngineError, match="ended with code 3"):
        in_child(os._exit, 3)


def test_our_arms_alone(shipped: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "bench.json", tmp_path / "bench.html"
    policies = "off,chain:2,throughput,throughput@full@no-copy"
    ran = cli("bench", str(shipped), *FEW, "--no-stock", "--rounds", "2", "--policies", policies, "--json", out, "--report", page)
    assert ran.code == 0, ran.err
    content = json.loads(out.read_text())
    blocks = content["results"]["blocks"]
    assert [(block["temp"], block["workload"]) for block in blocks] == [(t, w) for t in (0.0, 0.8) for w in ("code", "chat")]
    for block in blocks:
        assert block["base"] == "off" and set(block["arms"]) == set(policies.split(","))
        for row in block["arms"].values():
            assert row["invalid"] is None and row["tokens_per_second"]["all"] and row["truth"]["wrong"] == 0
            assert row["resident_bytes"] > shipped.stat().st_size
    assert blocks[0]["arms"]["chain:2"]["tokens_per_step"] > 1
    assert "not to be relied on" in ran.out and str(ROOT) not in out.read_text()


def test_ctrl_c_keeps_finished_rounds(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "entmtp_local", "bench", str(shipped), *FEW, "--no-stock", "--policies", "off,chain:2"]
    command += ["--rounds", "400", "--temps", "0", "--json", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    end = time.monotonic() + 120
    while not (out.exists() and len(json.loads(out.read_text())["visits"]) >= 3) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "--resume goes on" in errors and "code, temperature 0" in text
    content = json.loads(out.read_text())
    assert not content["complete"] and len(content["visits"]) >= 3


@pytest.mark.skipif(
    not (find_layout().root / "stock" / "bin" / "llama-server").is_file(), reason="no stock server: scripts/setup --with-stock"
)
def test_against_the_real_server(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    ran = cli("bench", str(shipped), *FEW, "--rounds", "1", "--sweep", "default", "--policies", "chain:3", "--json", out)
    assert ran.code == 0, ran.err
    for block in json.loads(out.read_text())["results"]["blocks"]:
        assert block["base"] in ("stock plain", "stock mtp:3")
        for row in block["arms"].values():
            assert row["invalid"] is None and row["tokens_per_second"]["median"] > 0
            assert row["truth"]["same"] + row["truth"]["near_ties"] == row["truth"]["compared"]
