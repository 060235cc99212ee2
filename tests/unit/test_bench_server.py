"""Servers that are measured against: started, asked, ended, and every way in which they fail."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_llama_server
import pytest
from fake_llama_server import scripted

from entmtp_local.bench.server import Server, check_binary
from entmtp_local.bench.text import ClockError, Request, Text, check_clock, on_the_clock
from entmtp_local.errors import ServerError, UsageError
from entmtp_local.speculative.sampling import SamplingOptions

FAKE = (sys.executable, str(Path(fake_llama_server.__file__)))
MODEL = Path("some.gguf")
GREEDY = SamplingOptions(temp=0.0, seed=0)


def start(*arguments: str, name: str = "the server", **options: float) -> Server:
    return Server(name, (*FAKE, "-m", str(MODEL), *arguments), MODEL, {7}, **options)


def ask(server: Server, n: int = 8, sampling: SamplingOptions = GREEDY) -> Text:
    return server.complete(Request((1, 2, 3), n, sampling))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def sentence(error: pytest.ExceptionInfo[ServerError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_an_answer_is_read_from_the_servers_own_counters() -> None:
    with start("--spec-draft-n-max", "3") as server:
        text = ask(server, 9)
    assert text.tokens == scripted([1, 2, 3], 9)
    assert (text.n, text.n_prompt, text.n_drafted, text.n_accepted, text.n_steps) == (9, 3, 9, 6, 2)
    assert text.prefill_seconds == pytest.approx(fake_llama_server.PROMPT_SECONDS)
    assert text.decode_seconds >= 9 * fake_llama_server.TOKEN_SECONDS


def test_a_seed_reaches_the_server() -> None:
    with start() as server:
        assert ask(server, 8, SamplingOptions(temp=0.8, seed=5)).tokens == scripted([1, 2, 3], 8, 5)


def test_a_token_that_ends_a_text_is_no_part_of_it() -> None:
    with start("--eog", "7") as server:
        text = ask(server, 8)
    assert text.ended and text.n == 7 and text.tokens == scripted([1, 2, 3], 8)[:-1]


def test_a_server_may_take_its_time_to_load() -> None:
    with start("--behave", "slow start") as server:
        assert ask(server).n == 8


def test_it_is_ended_with_the_context_and_when_it_will_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with start() as server:
        pid = server.pid
        assert is_running(pid)
    assert not is_running(pid)
    server.close()
    with pytest.raises(KeyboardInterrupt), start() as server:
        pid = server.pid
        raise KeyboardInterrupt
    assert not is_running(pid)
    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", lambda self, timeout=None: wait(self, timeout and 0.2))
    with start("--behave", "stubborn") as server:
        pid = server.pid
    assert not is_running(pid)


def test_a_server_behind_a_script_is_ended_too(tmp_path: Path) -> None:
    script, noted = tmp_path / "llama-server", tmp_path / "pid"
    script.write_text(f'#!/bin/sh\n{shlex.join(FAKE)} "$@" &\necho $! > {shlex.quote(str(noted))}\nwait\n')
    script.chmod(0o755)
    with Server("the server", [str(script), "-m", "x.gguf"], Path("x.gguf")) as server:
        pid = int(noted.read_text())
        assert is_running(pid) and pid != server.pid
    for _ in range(100):
        # where nobody waits for it, it stays as a name only
        state = Path(f"/proc/{pid}/stat")
        if not is_running(pid) or (state.is_file() and state.read_text().split()[2] == "Z"):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the server behind the script still runs")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_it_dies_with_a_program_that_is_killed() -> None:
    code = (
        "import sys, time; from pathlib import Path; from entmtp_local.bench.server import Server\n"
        f"server = Server('a', {FAKE!r} + ('-m', 'x.gguf'), Path('x.gguf'))\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 5
    while is_running(pid) and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        ("crash at load", ("ended with code 1 while it started", "tensor 'blk.0' is missing", "to see more")),
        ("killed at load", ("ended by SIGSEGV while it started",)),
        ("no server", ("ended with code 0 while it started",)),
        ("port taken", ("ports taken", "3 times")),
        ("other model", ("another program answers on the port",)),
    ],
)
def test_a_server_that_does_not_start_is_one_sentence(behave: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ServerError) as error:
        start("--behave", behave)
    sentence(error, "the server", *words)


def test_a_server_that_is_never_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    began = []
    popen = subprocess.Popen

    class Noted(popen):  # type: ignore[type-arg, misc, valid-type]
        def __init__(self, *args: object, **values: object) -> None:
            super().__init__(*args, **values)
            began.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(ServerError) as error:
        start("--behave", "never ready", startup_seconds=1.0)
    sentence(error, "was not ready after 1 s")
    assert not is_running(began[0])


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        ("die", ("ended with code 3 in the middle of an answer", "GGML_ASSERT")),
        ("page", ("does not answer as a llama-server does",)),
        ("refuse", ("refused a prompt of 3 tokens: Prompt contains invalid tokens",)),
        ("no timings", ("has no timings",)),
        ("huge token", ("as a token; it does not answer as a llama-server does",)),
        ("counts nothing", ("cannot be: 8 tokens in 0 ms",)),
        ("counts back", ("cannot be: 8 tokens in -45 ms",)),
        ("counts no number", ("cannot be: 8 tokens in nan ms",)),
        ("counts for ever", ("cannot be: 8 tokens in inf ms",)),
        ("counts too many", ("has no timings",)),
        ("counts next to nothing", ("cannot be: 8 tokens in 1e-300 ms",)),
        ("keeps what it did not draft", ("4 of 3 drafted ones kept",)),
        ("counts beyond", ("counts 13 tokens where 8 were asked for",)),
        ("gives few", ("gives 2 of 8 tokens and does not say that the text ended",)),
        ("miscounts", ("gives 8 tokens and counts 3",)),
        ("reuses prompts", ("read 2 tokens of a prompt of 3",)),
        ("counts too much", ("contradict the clock",)),
        ("leaves time out", ("leave time out",)),
    ],
)
def test_an_answer_that_cannot_be_measured_is_one_sentence(behave: str, words: tuple[str, ...]) -> None:
    with start("--behave", behave) as server, pytest.raises(ServerError) as error:
        ask(server)
    sentence(error, "the server", *words)


def test_an_answer_that_never_comes_is_given_up() -> None:
    with start("--behave", "hang", answer_seconds=0.3) as server, pytest.raises(ServerError) as error:
        ask(server)
    sentence(error, "gave no answer within 0 s")


def test_a_server_that_tells_no_tokens_can_be_timed() -> None:
    with start("--behave", "no tokens") as server:
        text = ask(server)
    assert text.tokens is None and text.n == 8


def test_programs_that_are_none_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no program .* for --stock; do something"):
        check_binary(tmp_path / "missing", "--stock", "do something")
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="is not a program that can be run"):
        check_binary(tmp_path / "file", "--stock", "do something")
    (tmp_path / "file").chmod(0o755)
    with pytest.raises(ServerError) as error:
        Server("a", (str(tmp_path / "file"),), MODEL)
    sentence(error, "cannot be started", "Exec format error")


# -- the clock


def text_of(prefill: float, decode: float) -> Text:
    return Text([1, 2], 2, False, 3, prefill, decode)


def test_counters_have_to_fit_the_clock() -> None:
    check_clock("a", text_of(0.5, 0.5), 1.0)
    check_clock("a", text_of(0.5, 0.5), 1.15)
    with pytest.raises(ClockError, match="counts 1.000 s where 0.900 s passed"):
        check_clock("a", text_of(0.5, 0.5), 0.9)
    with pytest.raises(ClockError, match="leave time out"):
        check_clock("a", text_of(0.5, 0.5), 1.5)


def test_a_hiccup_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([text_of(1.0, 0.0), text_of(0.0, 0.0)])
    assert on_the_clock("a", lambda: next(answers)).prefill_seconds == 0.0
