"""`run --json` on the shipped model, as a user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model.conftest import ROOT, cli, near_ties

from entmtp_local.native.session import Session, SessionOptions

KEYS = {
    "text", "tokens", "n_prompt", "n_generated", "finish_reason", "seconds", "tokens_per_second", "n_steps", "tokens_per_step",
    "accepted_per_depth", "sibling_hits", "nodes_per_step", "policy", "model", "engine", "device",
}  # fmt: skip
SECONDS = {"load", "prefill", "decode", "draft", "verify", "accept", "commit", "schedule"}


def prompt_ids(shipped: Path) -> list[int]:
    with Session.open(SessionOptions(shipped)) as session:
        return session.tokenize("def main", add_special=True, parse_special=True)


@pytest.fixture(scope="module")
def plain(shipped: Path) -> dict:  # type: ignore[type-arg]
    return cli("run", str(shipped), "-p", "def main", "--temp", "0", "--policy", "off", "--json", "-n", "80").json


def test_the_json_has_its_keys(plain: dict) -> None:  # type: ignore[type-arg]
    assert set(plain) >= KEYS
    assert set(plain["seconds"]) >= SECONDS
    engine = plain["engine"]
    assert set(engine) >= {"source_sha256", "patches_sha256", "backend"}
    # an engine that ENTMTP_LOCAL_ENGINE names may have no record beside it
    assert len(engine.get("libraries_sha256", engine["patches_sha256"])) == 64
    assert plain["n_generated"] == len(plain["tokens"]) == 80
    assert plain["finish_reason"] == "length"
    assert plain["text"]


@pytest.mark.parametrize("policy", [f"chain:{n}" for n in range(1, 7)] + ["tree:narrow", "tree:wide"])
def test_every_policy_gives_the_text_of_plain_decoding(shipped: Path, plain: dict, policy: str) -> None:  # type: ignore[type-arg]
    ran = cli("run", str(shipped), "-p", "def main", "--temp", "0", "--policy", policy, "--json", "-n", "80")
    assert ran.code == 0
    report = ran.json
    difference = near_ties(shipped, prompt_ids(shipped), plain["tokens"], report["tokens"])
    if difference:
        print(difference)
        return
    assert report["text"] == plain["text"]
    assert report["tokens_per_step"] > 1.5
    assert report["policy"] == policy


def test_sampled_text_is_fixed_by_the_seed(shipped: Path) -> None:
    arguments = ("run", str(shipped), "-p", "def main", "--temp", "0.8", "--seed", "5", "--json", "-n", "60")
    one, two = cli(*arguments, "--policy", "off").json, cli(*arguments, "--policy", "chain:4").json
    assert one["tokens"] == two["tokens"]


def test_a_grammar_holds(shipped: Path) -> None:
    ran = cli("run", str(shipped), "-p", "Answer:", "--grammar", 'root ::= "yes" | "no"', "--temp", "0.8", "--seed", "1")
    assert ran.code == 0
    assert ran.out.strip() in ("yes", "no")


def test_a_json_schema_holds(shipped: Path) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    )
    ran = cli("run", str(shipped), "-p", "JSON:", "--json-schema", schema, "--seed", "1", "-n", "60", "--temp", "0")
    assert ran.code == 0
    assert isinstance(json.loads(ran.out)["a"], int)


def test_ctrl_c_still_prints_the_json(shipped: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "entmtp_local",
        "run",
        str(shipped),
        "-p",
        "def main",
        "--temp",
        "0",
        "--json",
        "-c",
        "100000",
        "--grammar",
        "root ::= [a-z ] root",  # has no end
    ]
    # How long the imports and the model take is the machine's affair; until then Ctrl-C ends the process without a word.
    for seconds in (4, 10, 25, 60):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        if out:
            break
    assert process.returncode == 130
    report = json.loads(out)
    assert report["finish_reason"] == "interrupted"
    assert report["n_generated"] == len(report["tokens"]) > 0
