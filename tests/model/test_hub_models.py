"""Models of the hub, from the command line to tokens: split files and heads of their own, through the links of the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gguf
import pytest
from fake_hub import FakeHub, Repo, serving
from model.conftest import cli

from scripts import make_tiny_models as tiny_models


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving() as hub:
        yield hub


def run(hub: FakeHub, folder: Path, *arguments: str, **environment: str) -> dict[str, object]:
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub"), **environment}
    command = ("run", *arguments, "-p", "Hi", "-n", "4", "--temp", "0", "--threads", "1", "--json")
    ran = cli(*command, env={**os.environ, "NO_PROXY": "*", **settings})
    assert ran.code == 0, ran.err
    return ran.json


def test_a_split_model_is_fetched_and_run(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.make_model("qwen35")
    whole = tmp_path / "whole.gguf"
    tiny_models.write_model(model, whole)
    parts = tmp_path / "parts"
    parts.mkdir()
    monkeypatch.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=30))
    tiny_models.write_model(model, parts / "tiny-Q8_0.gguf")
    files = {path.name: path.read_bytes() for path in sorted(parts.iterdir())}
    assert len(files) > 1 and next(iter(files)).startswith("tiny-Q8_0-00001-of-")
    hub.repos["o/r"] = Repo(files)
    told = run(hub, tmp_path, "o/r:Q8_0", "--policy", "chain:2")
    assert told["policy"] == "chain:2" and told["n_generated"] == 4
    assert told["tokens"] == run(hub, tmp_path, str(whole), "--policy", "chain:2")["tokens"]
    n_requests = len(hub.requests)
    assert run(hub, tmp_path, "o/r", "--policy", "chain:2", HF_HUB_OFFLINE="1")["tokens"] == told["tokens"]
    assert len(hub.requests) == n_requests


def test_a_head_of_its_own_drafts(hub: FakeHub, tmp_path: Path, tiny: Path) -> None:
    hub.repos["o/r"] = Repo(
        {
            "tiny-Q8_0.gguf": (tiny / "qwen35-sidecar.gguf").read_bytes(),
            "mtp-tiny-Q8_0.gguf": (tiny / "qwen35-sidecar-mtp.gguf").read_bytes(),
        }
    )
    told = run(hub, tmp_path, "o/r", "--policy", "chain:2")
    assert told["policy"] == "chain:2" and Path(str(told["mtp_model"])).name == "mtp-tiny-Q8_0.gguf"
    assert run(hub, tmp_path, "o/r", "--policy", "off")["tokens"] == told["tokens"]
