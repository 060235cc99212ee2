"""What a chat says of the model's state that it keeps or does not keep, and of reasoning in other tags."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeSession
from unit.test_chat_commands import PLAIN, Chat

from entmtp_local.chat import keeping, store
from entmtp_local.cli import chat as chat_command


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chat:
    return Chat(monkeypatch, tmp_path)


def test_a_state_that_is_not_kept_is_told_once_and_why(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"\(the model's state is not kept, going on reads the text again: (.*)\)"
    long = "y" * 300

    def why(*entries: str, answers: Sequence[str] = (long,)) -> list[str]:
        return re.findall(told, chat(answers, "Hi", *entries).stderr)

    for n_bytes, words in ((1 << 60, "room for"), (0, "the engine does not give it")):
        with monkeypatch.context() as patch:
            patch.setattr(FakeSession, "n_state_bytes", n_bytes)
            patch.setattr(FakeSession, "state", lambda _: None)
            (reason,) = why("/save it", "/save it")
            assert words in reason and list(chat.folder.glob("*.state")) == []
            # another conversation is told of on its own, and a short one not at all
            assert len(why("/save one", "/clear", "Ho", answers=(long, long))) == 2
            assert why(answers=("short",)) == []
        for path in chat.folder.iterdir():
            path.unlink()
    # memory
    with monkeypatch.context() as patch:
        patch.setattr(chat_command, "available_memory", lambda: 300 << 20)
        patch.setattr(FakeSession, "n_state_bytes", 100 << 20)
        assert why() == ["it has 100 MiB, and 300 MiB of main memory are available"]
        patch.setattr(FakeSession, "n_state_bytes", 10 << 20)
        assert why() == [] and len(list(chat.folder.glob("*.state"))) == 1
        patch.setattr(chat_command, "available_memory", lambda: 200 << 20)
        result = chat(["two"], "Ho", options=["--continue"])
        assert "of main memory are available; the text is read again)" in result.stderr and chat.session.loaded == []
    # a disc that fails
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(keeping, "save_state", full)
        assert why() == ["No space left on device"]


def test_large_states_are_announced_and_do_not_fill_the_disc(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_LARGE_BYTES", 1000)
    assert "(keeping the model's state, 0 MiB: Ctrl-C goes without)" in chat(["y" * 300], "Hi", "/save a").stderr
    size = chat.store.state_path("a").stat().st_size
    monkeypatch.setattr(store, "_STATES_BYTES", 2 * size + 500)
    for name in ("b", "c"):
        chat(["y" * 300], "Hi", f"/save {name}")
    assert sorted(path.stem for path in chat.folder.glob("*.state")) == ["b", "c"]
    monkeypatch.setattr(store, "_STATES_BYTES", 1)
    chat(["y" * 300], "Hi", "/save d")
    assert sorted(path.stem for path in chat.folder.glob("*.state")) == ["d"], "the last one stays"


def test_other_tags_of_reasoning_are_known_by_the_template(chat: Chat) -> None:
    chat.template = PLAIN + "{# [THINK] and [/THINK] #}"
    result = chat(["[THINK]hm[/THINK]one", "two"], "/think hide", "Hi", "Ho")
    assert result.stdout == "one\ntwo\n"
    assert chat.asked[1] == "u:Hi|a:[THINK]hm[/THINK]one|u:Ho|A"
