"""Ctrl-Z in the middle of an answer, and `fg`: nothing of the shell's is written over, and the time is not the answer's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
from screen import Screen
from transcripts import Chat

from entmtp_local.chat import suspending
from entmtp_local.chat.trace import ROOT, TokenTrace
from entmtp_local.chat.trace_view import TraceView
from entmtp_local.chat.views import MarkdownView

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="jobs are a Unix feature")

SHELL = "[1]+  Stopped\n$ fg\nentmtp-local chat\n"


def test_what_the_shell_wrote_stays_and_the_answer_goes_on_below() -> None:
    screen = Screen(20, 24)
    view = MarkdownView(screen, clock=iter(range(1000)).__next__)  # type: ignore[arg-type]
    view.feed("# Title\n\nSome words of a paragraph that")
    view.tick()
    above = screen.lines
    screen.draw("\n" + SHELL)
    view.forget()
    view.feed(" goes on.")
    view.finish()
    assert screen.lines[: len(above)] == above
    assert screen.lines[len(above) : len(above) + 3] == SHELL.splitlines()
    below = " ".join(" ".join(screen.lines[len(above) + 3 :]).split())
    assert below == "Some words of a paragraph that goes on."


def test_reasoning_and_traces_go_on_at_the_beginning_of_a_row() -> None:
    screen = Screen(40, 24)
    view = MarkdownView(screen, clock=iter(range(1000)).__next__)  # type: ignore[arg-type]
    view.reason("Well, the user")
    view.tick()
    screen.draw("\n" + SHELL)
    view.forget()
    view.reason(" says hello.")
    view.finish()
    assert screen.lines == ["Well, the user", *SHELL.splitlines(), " says hello."]
    screen = Screen(40, 24)
    trace = TraceView(screen, iter(range(1000)).__next__)  # type: ignore[arg-type]
    trace.add([TokenTrace(1, "one", ROOT, 0, 0.5)])
    trace.tick()
    screen.draw("\n" + SHELL)
    trace.forget()
    trace.add([TokenTrace(2, " two", ROOT, 0, 1.5)])
    trace.finish()
    assert screen.lines[2:5] == SHELL.splitlines() and screen.lines[5].split() == ["0.5", "1.5"]


def test_the_time_is_not_the_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chat, late = Chat(monkeypatch, tmp_path), 0.0
    signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def stopped(number: int) -> None:
        nonlocal late
        late += 1000.0
        assert signal.getsignal(number) is signal.SIG_DFL

    monkeypatch.setattr(suspending, "perf_counter", lambda: perf_counter() + late)
    monkeypatch.setattr(signal, "raise_signal", stopped)
    result = chat(["some words"], "Hi", "/stats", on_token=lambda n: os.kill(os.getpid(), signal.SIGTSTP) if n == 4 else None)
    assert late == 1000.0 and result.stdout == "some words\n"
    assert " t/s" in result.stderr and " 0.0 t/s" not in result.stderr
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_the_program_stops_and_goes_on() -> None:
    code = """
from time import perf_counter
from entmtp_local.chat.suspending import Suspensions
keys = []
with Suspensions(keys.append) as suspensions:
    begin, counted = perf_counter(), suspensions.clock()
    print("ready", flush=True)
    while not suspensions.take():
        pass
    lost = perf_counter() - begin - (suspensions.clock() - counted)
print(keys, lost > 0, suspensions.take())
"""

    def as_a_job() -> None:
        # of a group of its own, whose parent can let it go on as a shell does; what ignores the signal hands that down
        os.setpgrp()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, preexec_fn=as_a_job)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    child.send_signal(signal.SIGCONT)
    assert child.communicate(timeout=60)[0] == "[True, False] True False\n" and child.returncode == 0
