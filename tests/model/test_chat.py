"""The chat with the shipped model, as a person uses it: typed to, interrupted, left, gone on with; and what is read for it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from model.conftest import cli

from entmtp_local.chat.trace import read_trace

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals are a Unix feature")

OPTIONS = ("--threads", "1", "--seed", "3", "-n", "60")
# The shipped model is short of words: these are what makes a conversation long.
LONG = "Remember these numbers for later, I will ask about them: " + ", ".join(str(7 * i) for i in range(60)) + "."
READ = re.compile(r"prompt: (\d+) tokens, (\d+) of them read")


def pipe(folder: Path, *entries: str, options: tuple[str, ...] = ()) -> Any:
    """A conversation through a pipe; notes go to standard error."""
    environment = {**os.environ, "XDG_DATA_HOME": str(folder)}
    return cli("chat", *OPTIONS, *options, input="\n".join(entries) + "\n", env=environment)


def spawn(folder: Path, *options: str) -> Any:
    ambient = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    return pexpect.spawn(
        sys.executable,
        ["-m", "entmtp_local", "chat", *OPTIONS, *options],
        env={**ambient, "TERM": "xterm-256color", "XDG_DATA_HOME": str(folder)},
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=300,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ask(child: Any, question: str) -> None:
    child.send(question + "\r")
    child.expect(r"t/s")
    child.expect(r"\x1b\[\?2004h")


def figures(child: Any) -> tuple[int, int]:
    """Tokens of the last prompt, and how many of them were computed."""
    child.send("/stats\r")
    child.expect(READ)
    n_prompt, n_read = (int(number) for number in child.match.groups())
    child.expect(r"\x1b\[\?2004h")
    return n_prompt, n_read


def test_going_back_reads_only_what_is_new(tmp_path: Path) -> None:
    """The model has recurrent layers, which cannot forget: without checkpoints all of it would be read again."""
    entries = [LONG, "And what else?", "/stats", "/regen", "/stats", "/undo", "Why is that?", "/stats"]
    result = pipe(tmp_path, *entries)
    assert result.code == 0, result.err
    (n_plain, plain), (n_again, again), (n_other, other) = ((int(a), int(b)) for a, b in READ.findall(result.err))
    assert n_plain == n_again and n_plain > 150
    assert again <= 8, "the same question: only what introduces the answer"
    assert plain < n_plain / 2 and other < n_other / 2, "another one behind the same answer"


def test_leaving_and_going_on_needs_no_prefill(tmp_path: Path) -> None:
    child = spawn(tmp_path)
    child.expect(r"\x1b\[\?2004h")
    for question in (LONG, "Tell me a story about a fox.", LONG, "And further?"):
        ask(child, question)
    n_before, _ = figures(child)
    child.send("/save story\r")
    child.expect("kept as story")
    child.send("\x04")
    child.expect(pexpect.EOF)
    folder = tmp_path / "entmtp-local" / "chats"
    assert sorted(path.name for path in folder.iterdir()) == ["story.json", "story.state"]
    messages = json.loads((folder / "story.json").read_text())["conversation"]["messages"]

    again = spawn(tmp_path, "--continue")
    again.expect("going on with story: 4 questions")
    again.expect(r"\x1b\[\?2004h")
    ask(again, "What was the fox's name?")
    n_prompt, n_read = figures(again)
    assert n_prompt > n_before > 300 and n_read < 40
    again.send("\x04")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0
    kept = json.loads((folder / "story.json").read_text())["conversation"]["messages"]
    assert kept[:-2] == messages and len(kept) == 10

    # a damaged state costs its prefill and nothing else
    state = folder / "story.state"
    data = bytearray(state.read_bytes())
    data[len(data) // 3] ^= 4
    state.write_bytes(data)
    damaged = pipe(tmp_path, "So?", "/stats", options=("--load", "story"))
    assert damaged.code == 0 and "is damaged; the text is read again)" in damaged.err
    ((n_prompt, n_read),) = ((int(a), int(b)) for a, b in READ.findall(damaged.err))
    assert n_read == n_prompt


def test_an_interrupted_answer_stays(tmp_path: Path) -> None:
    child = spawn(tmp_path, "-n", "2000", "--grammar", "root ::= [a-z ] root")
    child.expect(r"\x1b\[\?2004h")
    child.send("Go\r")
    child.expect("[a-z]{3}")
    child.sendintr()
    child.expect(r"\(stopped\)")
    child.expect(r"\x1b\[\?2004h")
    child.send("\x03")
    child.expect("again or Ctrl-D leaves")
    child.expect(r"\x1b\[\?2004h")
    child.send("\x03")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    (path,) = (tmp_path / "entmtp-local" / "chats").glob("*.json")
    question, answer = json.loads(path.read_text())["conversation"]["messages"]
    assert question["content"] == "Go" and re.fullmatch("[a-z ]+", answer["content"])


def test_turns_are_dropped_and_the_chat_goes_on(tmp_path: Path) -> None:
    questions = [f"Tell me something about the number {i}, and do not stop early." for i in range(10)]
    result = pipe(tmp_path, *questions, "/stats", options=("-c", "256", "--overflow", "drop", "--logit-bias", "1-1"))
    assert result.code == 0 and "the model no longer sees the" in result.err and "error" not in result.err
    n_prompt, _ = (int(number) for number in READ.findall(result.err)[0])
    assert n_prompt < 256
    stopped = pipe(tmp_path, *questions, options=("-c", "256"))
    assert stopped.code == 1 and "the context holds 256" in stopped.err or "tokens is full" in stopped.err


def test_the_trace_of_drafts(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    result = pipe(
        tmp_path, "Write a Python function.", options=("--trace-file", str(file), "--policy", "tree:wide", "--temp", "0")
    )
    assert result.code == 0
    (answer,) = read_trace(file)["answers"]
    tokens = [token for step in answer["steps"] for token in step["tokens"]]
    assert "".join(token["text"] for token in tokens).strip() == result.out.strip()
    assert {"root", "spine"} <= {token["how"] for token in tokens}
    assert all(0 <= token["entropy"] < 10 for token in tokens)
    assert answer["policy"] == "tree:wide" and max(len(step["parents"]) for step in answer["steps"]) >= 13
