"""The first minute: whatever goes wrong then, the one line that says so names what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_hub import FakeHub, Repo, content, serving, use
from fakes import FakeSession, install, model_info
from huggingface_hub import constants

from entmtp_local.cli import models, options
from entmtp_local.cli.main import main
from entmtp_local.native import library
from scripts import make_tiny_models as tiny


def said(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), input="Hi\n")
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving() as hub:
        use(hub, tmp_path, monkeypatch)
        hub.repos["o/r"] = Repo({"m-Q4_K_M.gguf": content()})
        yield hub


def test_a_model_that_is_not_there(hub: FakeHub) -> None:
    assert "check the path, or fetch a model: entmtp-local pull OWNER/NAME." in said("chat", "m.gguf")


def test_no_shipped_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "_PACKAGE", tmp_path / "package")
    assert "entmtp-local chat OWNER/NAME:QUANT." in said("chat")


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "check the network and run entmtp-local pull o/r" in said("chat", "o/r")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE and run entmtp-local pull o/r" in said("chat", "o/r")


def test_a_wrong_quantisation(hub: FakeHub) -> None:
    assert "entmtp-local pull o/r:Q4_K_M" in said("chat", "o/r:Q4")


def test_what_was_fetched_and_is_damaged(hub: FakeHub, tmp_path: Path) -> None:
    tiny_model = tiny.make_model("qwen35")
    tiny.write_model(tiny_model, tmp_path / "tiny.gguf")
    hub.repos["o/r"].files["m-Q4_K_M.gguf"] = (tmp_path / "tiny.gguf").read_bytes()
    path = Path(CliRunner().invoke(main, ["pull", "o/r"]).stdout.strip())
    path.resolve().write_bytes(path.read_bytes()[:-1000])
    assert "entmtp-local pull o/r checks it and fetches it again." in said("chat", "o/r")
    assert CliRunner().invoke(main, ["pull", "o/r"]).exit_code == 0
    assert path.read_bytes() == hub.repos["o/r"].files["m-Q4_K_M.gguf"]


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["x"]), model_info(kv_bytes_per_token=1024**2))
    monkeypatch.setattr(options, "available_memory", lambda: 4 * 1024**3)
    assert "the largest that fits is -c " in said("chat", "m.gguf", "-c", "100000")


def test_an_engine_that_is_not_where_it_was_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library.load.cache_clear()
    monkeypatch.setenv("ENTMTP_LOCAL_ENGINE", str(tmp_path))
    assert "unset it, or name the folder of" in said("chat", "--gpu-layers", "0")
    library.load.cache_clear()


def test_a_command_that_is_none() -> None:
    assert "Try 'entmtp-local" in said("talk")
