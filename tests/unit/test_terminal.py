"""Chat on a terminal: what a person sees, key by key, in a child process that owns a pseudo-terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are a Unix feature")
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

TESTS = Path(__file__).resolve().parents[1]

CHILD = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import pytest
from fakes import FakeSession, install, model_info
from entmtp_local.cli.main import main

# The first answer is slow, so that there is time to interrupt it.
session = FakeSession(["a" * 400, "hello\\x1b[31m there", "fine"], on_token=lambda n: time.sleep(0.01))
template = "{{% for m in messages %}}{{{{ m.content }}}}|{{% endfor %}}"
with pytest.MonkeyPatch.context() as patch:
    install(patch, session, model_info(chat_template=template))
    main(["chat", "m.gguf", "--policy", "off", *sys.argv[1:]])
"""

Dialogue = Callable[..., "Terminal"]


class Terminal:
    """A child process on a pseudo-terminal, and what it has shown so far."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()

        def own_the_terminal() -> None:
            # a test run in the background of a shell inherits that Ctrl-C is ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", **environment},
            preexec_fn=own_the_terminal,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        if text == "\x03":
            time.sleep(0.5)  # CPython's readline misses a signal that comes between the prompt and its select()
        os.write(self._master, text.encode())

    def until(self, wanted: str, timeout: float = 30.0) -> str:
        """Read until a text appears; give everything read."""
        seen = ""
        end = time.monotonic() + timeout
        while wanted not in seen:
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{wanted!r} did not appear; seen: {seen!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:  # Linux: the child has closed its side
                data = b""
            assert data, f"the program ended before {wanted!r} appeared; seen: {seen!r}"
            seen += data.decode().replace("\r\n", "\n")
        return seen

    def exit_code_after_ctrl_c(self) -> int:
        """Press Ctrl-C until the program is gone: CPython's readline misses a signal that comes just before its select()."""
        for _ in range(20):
            self.type("\x03")
            try:
                return self.process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("Ctrl-C does not end the program")

    def exit_code(self) -> int:
        return self.process.wait(timeout=30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def dialogue(tmp_path: Path) -> Iterator[Dialogue]:
    opened: list[Terminal] = []

    def start(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(list(arguments), {"XDG_DATA_HOME": str(tmp_path), **environment}))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(dialogue: Dialogue) -> None:
    terminal = dialogue()
    assert (
        terminal.until("> ") == "Fake: 1000 tokens of context, nothing is drafted.\n/help lists the commands, Ctrl-D leaves.\n> "
    )
    terminal.type("Hi\n")
    terminal.until("aaaa")
    terminal.type("\x03")
    rest = terminal.until("> ")
    assert "(stopped)\n[" in rest and " t/s]\n> " in rest and "Traceback" not in rest
    # The control character that the model wrote does not reach the terminal.
    terminal.type("Go on\n")
    assert "hello[31m there\n[" in terminal.until("> ")
    terminal.type("/exit\n")
    assert terminal.exit_code() == 0


def test_ctrl_c_at_the_prompt_clears_the_line_and_twice_leaves(dialogue: Dialogue) -> None:
    terminal = dialogue()
    terminal.until("> ")
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.type("\x03")
    assert terminal.until("\n> ").endswith("\n> ")
    terminal.type("\x03")
    assert terminal.until("> ") == "\n(Ctrl-C again or Ctrl-D leaves)\n> "
    # A line in between: the next Ctrl-C is a first one again.
    terminal.type("/clear\n")
    terminal.until("(a new conversation)\n> ")
    terminal.type("\x03")
    terminal.until("leaves)\n> ")
    assert terminal.exit_code_after_ctrl_c() == 0


def test_the_end_of_input_leaves(dialogue: Dialogue) -> None:
    terminal = dialogue()
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    ("no_color", "line"),
    [
        ("", "\x1b[2mFake: 1000 tokens of context, nothing is drafted.\x1b[0m\n"),
        ("1", "Fake: 1000 tokens of context, nothing is drafted.\n"),
    ],
)
def test_the_programs_own_words_are_dimmed_if_wanted(dialogue: Dialogue, no_color: str, line: str) -> None:
    terminal = dialogue(TERM="xterm", NO_COLOR=no_color)
    assert terminal.until("\n").startswith(line)
