"""Conversations with the chat on a scripted session, run in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import FakeSession, install, model_info

from entmtp_local.chat.store import Store
from entmtp_local.chat.terminal import Terminal
from entmtp_local.cli.main import main

PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}A{% endif %}"
# The answer stands behind what introduced it, and what follows it is known.


class Chat:
    """Runs conversations one after another, as a person at a terminal that shows plain text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, template: str = PLAIN) -> None:
        self.monkeypatch, self.template = monkeypatch, template
        monkeypatch.setenv("XDG_DATA_HOME", str(folder))
        # hundreds of small files: on a busy disc each would be waited for
        monkeypatch.setattr(os, "fsync", lambda _: None)
        self.folder = folder / "entmtp-local" / "chats"
        self.store = Store(self.folder)
        self.session = FakeSession([])

    def __call__(
        self, answers: Sequence[str], *entries: str, options: Sequence[str] = (), person: bool = True, **session: object
    ) -> Result:
        self.session = FakeSession(answers, **session)  # type: ignore[arg-type]
        install(self.monkeypatch, self.session, model_info(chat_template=self.template))
        with pytest.MonkeyPatch.context() as patch:
            if person:
                patch.setattr(Terminal, "interactive", property(lambda _: True))
            result = CliRunner().invoke(main, ["chat", "m.gguf", "--policy", "off", *options], input="\n".join(entries) + "\n")
        assert "Traceback" not in result.output and "should not have happened" not in result.output, result.output
        return result

    @property
    def asked(self) -> list[str]:
        """The prompts that were answered."""
        return [bytes(token for token in prompt if token < 256).decode() for prompt in self.session.prompts]
