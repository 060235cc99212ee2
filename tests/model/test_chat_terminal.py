"""The chat under a pseudo-terminal, key by key, on a scripted session: editing, history, interrupting, resizing, going on."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals are a Unix feature")

TESTS = Path(__file__).resolve().parents[1]

# Seconds; a machine may have other things to do.
PATIENCE = 120.0

CHILD = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import pytest
from fakes import FakeSession, install, model_info
from entmtp_local.cli.main import main

long = "Some **bold** words of an answer that goes on and on. " * 40
session = FakeSession([{answers}], on_token=lambda n: time.sleep({delay}))
template = "{{% for m in messages %}}{{{{ m.content }}}}|{{% endfor %}}"
with pytest.MonkeyPatch.context() as patch:
    install(patch, session, model_info(chat_template=template))
    main(["chat", "m.gguf", "--policy", "off", *sys.argv[1:]])
"""


class Person:
    """Types on a terminal and looks at its screen."""

    def __init__(
        self, folder: Path, *options: str, answers: str, delay: float = 0.0, columns: int = 80, **environment: str
    ) -> None:
        code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS), answers=answers, delay=delay)
        ambient = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.screen = pyte.HistoryScreen(columns, 24, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        # keeps the terminal when the child has gone
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", code, *options],
            env={**ambient, "TERM": "xterm-256color", "XDG_DATA_HOME": str(folder), **environment},
            dimensions=(24, columns),
            timeout=PATIENCE,
            # a test run in the background of a shell inherits that Ctrl-C is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._side = os.dup(self.child.child_fd)

    def close(self) -> None:
        os.close(self._side)
        self.child.close(force=True)

    def _read(self, seconds: float) -> bool:
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    @property
    def text(self) -> str:
        """All that has been on the screen, row by row."""
        columns = self.screen.columns
        above = ["".join(row[i].data for i in range(columns)).rstrip() for row in self.screen.history.top]
        return "\n".join([*above, *(line.rstrip() for line in self.screen.display)])

    def sees(self, wanted: str | re.Pattern[str], seconds: float = PATIENCE) -> str:
        """Wait until something stands on the screen."""
        pattern = wanted if isinstance(wanted, re.Pattern) else re.compile(re.escape(wanted))
        end = time.monotonic() + seconds
        while not pattern.search(self.text):
            if not self._read(0.1) and not self.child.isalive():
                self._read(0.1)
                assert pattern.search(self.text), f"the program ended before {wanted!r}: {self.text}"
            assert time.monotonic() < end, f"{wanted!r} did not appear: {self.text}"
        return self.text

    def at_prompt(self, n: int) -> None:
        """Wait until the n-th prompt is being edited; what is typed earlier is echoed by nobody."""
        end = time.monotonic() + PATIENCE
        while self.raw.count(b"\x1b[?2004h") < n or b"> " not in self.screen.display[self.screen.cursor.y].encode():
            self._read(0.1)
            assert time.monotonic() < end, self.text

    def types(self, keys: str) -> None:
        self.child.send(keys)

    def is_as_it_was(self) -> bool:
        """Whether what is typed on the terminal is shown, and read by lines."""
        wanted = termios.ECHO | termios.ICANON | termios.ISIG
        return termios.tcgetattr(self._side)[3] & wanted == wanted

    def leaves(self) -> int:
        """The exit code, once the program has ended."""
        end = time.monotonic() + PATIENCE
        while self._read(0.2) or self.child.isalive():
            assert time.monotonic() < end, f"the program does not end: {self.text}"
        self.child.close()
        assert "Traceback" not in self.text
        return int(self.child.exitstatus)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Callable[..., Person]]:
    opened: list[Person] = []

    def start(*options: str, answers: str = "'one', 'two', 'three'", **more: object) -> Person:
        opened.append(Person(tmp_path, *options, answers=answers, **more))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_markdown_history_and_completion(person: Callable[..., Person]) -> None:
    one = person(answers="'A **bold** word.', 'two'")
    one.at_prompt(1)
    one.types("Hi there\r")
    one.sees("A bold word.")
    assert b"\x1b[1mbold\x1b[0m" in one.raw
    one.at_prompt(2)
    one.types("\x1b[A")
    one.sees(re.compile(r"> Hi there\n(.*\n)*.*> Hi there"))
    one.types("\x15/reg\t")
    one.sees("> /regen")
    one.types("\r")
    one.sees("two")
    one.at_prompt(3)
    one.types("/read ./no-such-fi\t\x15\x04")
    assert one.leaves() == 0
    # the next start knows what was typed in this one
    again = person(answers="'three'")
    again.at_prompt(1)
    again.types("\x1b[A\x1b[A")
    again.sees("> Hi there")
    again.types("\x15\x04")
    assert again.leaves() == 0


def test_completion_knows_values_and_files_and_shows_all_there_is(person: Callable[..., Person], tmp_path: Path) -> None:
    (tmp_path / "my-tree.json").write_text("[-1, 0]")
    one = person(HOME=str(tmp_path))
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("one")
    one.at_prompt(2)
    one.types("/s\t")
    for name in ("/system", "/set", "/save", "/sessions", "/stats"):
        one.sees(re.compile(rf"^ *{name} *$", re.MULTILINE))
    one.types("\x15/set overf\t")
    one.sees("> /set overflow")
    one.types("dr\t")
    one.sees("> /set overflow drop")
    one.types("\r")
    one.sees("(overflow drop)")
    one.at_prompt(3)
    one.types("/policy tree:~/my-t\t")
    one.sees("> /policy tree:~/my-tree.json")
    one.types("\r")
    one.sees(re.compile(r"\(policy\s+tree:"))
    one.at_prompt(4)
    one.types("/rege\t")
    one.sees("> /regen")
    one.types("\r")
    one.sees("two")
    one.at_prompt(5)
    one.types("\x04")
    assert one.leaves() == 0


def test_several_lines(person: Callable[..., Person]) -> None:
    one = person(answers="'one', 'two'")
    one.at_prompt(1)
    one.types('"""first\rsecond"""\r')
    one.sees("one")
    one.at_prompt(2)
    one.types("first\x1b\rsecond\r")
    one.sees("two")
    one.at_prompt(3)
    one.types("/sessions\r")
    one.sees("2 questions  first second")
    one.types("\x04")
    assert one.leaves() == 0


def test_ctrl_c_stops_the_answer_clears_the_line_and_leaves(person: Callable[..., Person]) -> None:
    one = person(answers="long, 'two'", delay=0.005)
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("Some bold words")
    # typed meanwhile: not shown in the middle of the answer, there at the next prompt
    one.types("ahead")
    one.types("\x03")
    text = one.sees("(stopped)")
    # the last word may have been stopped before its mark was closed
    assert "ahead" not in text.split("(stopped)")[0] and "**bold**" not in text
    one.sees(re.compile(r"\(stopped\)\n.*t/s\]\n> ahead"))
    one.types("\x03")
    one.sees(re.compile(r"\n>\n*$"))
    one.types("\x03")
    one.sees("(Ctrl-C again or Ctrl-D leaves)")
    one.at_prompt(3)
    one.types("\x03")
    assert one.leaves() == 0


def test_two_ctrl_c_during_an_answer_stop_it_and_no_more(person: Callable[..., Person]) -> None:
    one = person(answers="long", delay=0.05)
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("Some")
    # the second comes while the answer is being stopped, or just after
    one.types("\x03")
    time.sleep(0.02)
    one.types("\x03")
    one.sees("(stopped)")
    one.at_prompt(2)
    one.types("\x04")
    assert one.leaves() == 0


@pytest.mark.parametrize("wait", [0.0, 0.01, 0.03, 0.1])
def test_ctrl_c_right_after_enter_stops_the_answer(person: Callable[..., Person], wait: float) -> None:
    one = person(answers="long, long[:20]", delay=0.02)
    one.at_prompt(1)
    one.types("Hi\r")
    time.sleep(wait)
    one.types("\x03")
    one.sees(re.compile(r"\(stopped[);]"))
    one.at_prompt(2)
    assert one.child.isalive() and "again or Ctrl-D" not in one.text
    one.types("\x04")
    assert one.leaves() == 0


def test_edit_is_left_by_ctrl_c_and_by_a_command(person: Callable[..., Person]) -> None:
    one = person()
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("one")
    one.at_prompt(2)
    one.types("/edit\r")
    one.sees("edit> Hi")
    one.at_prompt(3)
    one.types("\x03")
    one.sees("(left as it was)")
    one.at_prompt(4)
    one.types("/edit\r")
    one.at_prompt(5)
    one.types("\x15/undo\r")
    one.sees("(taken back: Hi)")
    one.at_prompt(6)
    one.types("\x04")
    assert one.leaves() == 0


def test_ctrl_c_ends_the_search_in_the_history(person: Callable[..., Person]) -> None:
    one = person()
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("one")
    one.at_prompt(2)
    one.types("\x12H")
    one.sees("I-search")
    one.types("\x03")
    one.types("Ho\r")
    one.sees("two")
    assert "I-search" not in one.text.split("> Ho")[1]
    one.at_prompt(3)
    one.types("\x04")
    assert one.leaves() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("answering", [False, True])
def test_signals_that_end_the_chat_leave_the_terminal_as_it_was(
    person: Callable[..., Person], number: signal.Signals, answering: bool
) -> None:
    one = person(answers="long", delay=0.05)
    one.sees("leaves.")
    one.at_prompt(1)
    if answering:
        one.types("Hi\r")
        one.sees("Some")
    one.child.kill(number)
    assert one.leaves() == 143
    assert one.is_as_it_was()


@pytest.mark.parametrize("columns", [40, 100])
def test_the_window_is_resized_in_the_middle_of_an_answer(person: Callable[..., Person], columns: int) -> None:
    one = person(answers="long[:800], 'fine'", delay=0.001)
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("Some bold words")
    one.child.setwinsize(24, columns)
    one.screen.resize(24, columns)
    one.sees("t/s]")
    one.at_prompt(2)
    one.types("Go on\r")
    one.sees("fine")
    one.types("\x04")
    assert one.leaves() == 0 and "> Hi" in one.text


def test_forty_columns_wide_and_combining_characters(person: Callable[..., Person]) -> None:
    answer = "漢字" * 30 + " e\u0301e\u0301 \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5} end of it"
    one = person(answers=repr(answer), columns=40)
    one.at_prompt(1)
    one.types("漢字とé\r")
    one.sees("end of it")
    assert "".join(one.text.split("> 漢字とé")[1].split()).count("漢字") == 30
    one.at_prompt(2)
    one.types("/help\r")
    one.sees("Alt-Enter")
    one.types("\x04")
    assert one.leaves() == 0


def test_no_color_and_dumb_terminals(person: Callable[..., Person]) -> None:
    one = person(answers="'A **bold** `word`.'", NO_COLOR="1")
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("A bold word.")
    one.types("\x04")
    assert one.leaves() == 0 and not re.search(rb"\x1b\[(?:\d+;)*[349]\d(?:;\d+)*m", one.raw)
    plain = person(answers="'A **bold** word.'", TERM="dumb")
    plain.sees("leaves.\n>")
    plain.types("Hi\r")
    plain.sees("A **bold** word.")
    plain.types("\x04")
    assert plain.leaves() == 0 and b"\x1b" not in plain.raw


def test_a_killed_chat_goes_on_where_it_was(person: Callable[..., Person]) -> None:
    one = person(answers="'one', long", delay=0.003)
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("one")
    one.at_prompt(2)
    one.types("Then what?\r")
    one.sees("Some bold words")
    one.child.kill(signal.SIGKILL)
    again = person("--continue", answers="'another try'")
    text = again.sees("was cut off when the program ended")
    assert "2 questions" in text and "> Then what?" in text and "Some **bold** words" in text
    again.at_prompt(1)
    again.types("/edit\r")
    again.sees("> Then what?")
    again.at_prompt(2)
    again.types(" Really?\r")
    again.sees("another try")
    again.at_prompt(3)
    again.types("\x04")
    assert again.leaves() == 0


def test_ctrl_z_is_the_shells(person: Callable[..., Person]) -> None:
    """Here is no shell to go back to: the chat goes on, and the key is no part of what is typed."""
    one = person(answers="'one'")
    one.at_prompt(1)
    one.types("H\x1a")
    one.types("i\r")
    one.sees("one")
    one.at_prompt(2)
    one.types("/sessions\r")
    one.sees(re.compile(r"1 question  Hi$", re.MULTILINE))
    one.types("\x04")
    assert one.leaves() == 0


def test_a_storm_of_ctrl_c_loses_nothing(person: Callable[..., Person], tmp_path: Path) -> None:
    one = person(answers="long", delay=0.01)
    one.at_prompt(1)
    one.types("Hi\r")
    one.sees("Some bold words")
    for _ in range(12):
        one.types("\x03")
        time.sleep(0.01)
    # as many as come at the prompt leave; Ctrl-D does where all were for the answer
    one.sees("(stopped)")
    one.types("\x04")
    end = time.monotonic() + PATIENCE
    while one.child.isalive() and time.monotonic() < end:
        one._read(0.1)
    again = person("--continue", answers="'two'")
    text = again.sees("going on with")
    again.at_prompt(1)
    assert "1 question" in text and "> Hi" in again.text and "bold" in again.text
    again.types("\x04")
    assert again.leaves() == 0


def test_a_window_without_room(person: Callable[..., Person]) -> None:
    one = person(answers="'漢字 and a `word`', 'two'", columns=80)
    one.at_prompt(1)
    for rows, columns in ((1, 1), (2, 2), (2, 5), (24, 80), (3, 1)):
        one.child.setwinsize(rows, columns)
        time.sleep(0.05)
    one.types("Hi\r")
    time.sleep(0.5)
    one.child.setwinsize(24, 80)
    one.at_prompt(2)
    one.types("/sessions\r")
    one.sees("1 question  Hi")
    one.types("\x04")
    assert one.leaves() == 0


def test_no_save_writes_nothing_that_was_typed(person: Callable[..., Person], tmp_path: Path) -> None:
    def asks(*options: str) -> Person:
        one = person(*options)
        one.at_prompt(1)
        one.types(f"secret of {len(options)}\r")
        one.sees("one")
        one.at_prompt(2)
        return one

    before = asks()
    before.types("\x04")
    assert before.leaves() == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert b"secret of 0" in files[tmp_path / "entmtp-local" / "history"]
    one = asks("--no-save")
    # in memory, and before it what is there already
    one.types("\x1b[A")
    one.sees(re.compile(r"> secret of 1\n(.*\n)*.*> secret of 1"))
    one.types("\x1b[A")
    one.sees("> secret of 0")
    one.types("\x15\x04")
    assert one.leaves() == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
