"""`chat` without arguments, as the first thing that anybody does; `info` afterwards knows how fast it was."""

from __future__ import annotations

import os
from pathlib import Path

from model.conftest import cli


def test_chat_without_arguments(tmp_path: Path) -> None:
    """On a fresh machine, whose only setting here is one thread."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    before = cli("info", "--threads", "1", "--json", env=environment).json["speed"]
    assert before["reason"].startswith("not measured yet: entmtp-local calibrate does it")
    ran = cli("chat", "--threads", "1", "-n", "8", input="Hi\n", env=environment)
    assert ran.code == 0 and ran.out.strip(), ran.err
    assert "first use of this model here" in ran.err
    speed = cli("info", "--threads", "1", "--json", env=environment).json["speed"]
    assert speed["plain"] > 0 and {row["task"] for row in speed["tasks"]} <= {"code", "math", "chat", "prose"}
    assert all(row["tokens_per_second"] > 0 and row["ratio"] >= 1 and not row["measured"] for row in speed["tasks"])
    again = cli("chat", "--threads", "1", "-n", "8", input="Hi\n", env=environment)
    assert again.code == 0 and "first use" not in again.err
