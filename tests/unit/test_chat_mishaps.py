"""The chat when things go wrong at the worst moment: nothing that was said is lost, and a person is told in a sentence."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from fakes import FakeSampler, FakeSession
from transcripts import Chat

from entmtp_local.chat import keeping, store
from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.store import Store, Transcript
from entmtp_local.chat.terminal import Terminal
from entmtp_local.cli import chat as command
from entmtp_local.errors import UsageError
from entmtp_local.speculative.sampling import SamplingOptions


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chat:
    return Chat(monkeypatch, tmp_path)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kept(chat: Chat) -> list[str]:
    """The last conversation's messages."""
    return [message["content"] for message in chat.store.load(chat.store.names()[0]).content["messages"]]


def before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]) -> None:
    """Let something happen just before a method runs."""
    method = getattr(owner, name)

    def acting(*arguments: object, **options: object) -> object:
        act()
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, acting)


@pytest.mark.parametrize("entry", ["/regen", "/edit Ho"])
def test_an_answer_that_is_to_be_given_again_stays_until_there_is_another(chat: Chat, entry: str) -> None:
    prefill, n = FakeSession.prefill, 0

    def stopped(self: FakeSession, prompt: list[int], stop: Callable[[], bool]) -> int:
        nonlocal n
        n += 1
        if n == 2:
            interrupt()  # while the prompt is read
        return prefill(self, prompt, stop)

    chat.monkeypatch.setattr(FakeSession, "prefill", stopped)
    result = chat(["one", "two"], "Hi", entry, "More")
    assert "(stopped; nothing has changed)" in result.stderr and kept(chat) == ["Hi", "one", "More", "two"]
    assert chat.asked[-1] == "u:Hi|a:one|u:More|A"


@pytest.mark.parametrize(("owner", "name"), [(Conversation, "answered"), (Store, "save"), (keeping.Keeper, "save")])
@pytest.mark.parametrize("n_times", [1, 3])
def test_ctrl_c_between_the_last_token_and_the_prompt_loses_nothing(chat: Chat, owner: type, name: str, n_times: int) -> None:
    def press() -> None:
        for _ in range(n_times if len(chat.session.prompts) == 1 else 0):
            interrupt()

    before(chat.monkeypatch, owner, name, press)
    chat(["one", "two"], "Hi", "Ho")
    # however often it is pressed then, it neither takes the answer back nor leaves
    assert kept(chat) == ["Hi", "one", "Ho", "two"]


def test_ctrl_c_between_enter_and_the_answer_stops_the_answer(chat: Chat) -> None:
    """Wherever it comes: the answer has no token, and the question was not asked."""
    for place in ("journal", "as_json", "ask"):
        n = 0

        def once() -> None:
            nonlocal n
            n += 1
            if n == 1:
                interrupt()

        with pytest.MonkeyPatch.context() as patch:
            before(patch, keeping.Keeper if place == "journal" else Conversation, place, once)
            if place == "as_json":
                n = -1  # the keeper asks for it first
            result = chat(["never", "two"], "Hi", "Ho")
        assert "(stopped; your message is not part of the conversation)\n" in result.stderr, place
        assert chat.asked[-1].startswith("u:Ho") and kept(chat)[0] == "Ho", place


def test_ctrl_c_in_a_command_ends_the_command(chat: Chat) -> None:
    before(chat.monkeypatch, Store, "names", interrupt)
    result = chat(["one"], "/sessions", "Hi")
    assert result.exit_code == 0 and result.stdout == "one\n" and "(stopped)" in result.stderr


def test_ctrl_c_while_a_policy_is_measured_keeps_the_other_one(chat: Chat) -> None:
    ready = command.ready_policy

    def measuring(plan: object, *rest: object) -> object:
        if plan.policy.name == "chain:2":  # type: ignore[attr-defined]
            raise click.Abort
        return ready(plan, *rest)  # type: ignore[arg-type]

    chat.monkeypatch.setattr(command, "ready_policy", measuring)
    result = chat(["one"], "/policy chain:2", "/policy", "Hi", options=["--policy", "chain:3"])
    assert "stopped; the policy is what it was." in result.stderr and "(policy chain:3)" in result.stderr
    assert result.exit_code == 0 and result.stdout == "one\n"


def test_a_terminal_that_goes_away_in_an_answer_loses_nothing_of_it(chat: Chat) -> None:
    """The journal stays: it has what was said, and the transcript does not."""

    def gone(self: Terminal, text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Terminal, "write", gone)
        assert chat(["one two"], "Hi").exit_code == 1
    result = chat(["again"], "/regen", options=["--continue"])
    assert "> Hi\none two" in result.stderr or "> Hi\no" in result.stderr
    assert "was cut off when the program ended" in result.stderr and kept(chat) == ["Hi", "again"]


def test_a_conversation_is_one_chats_at_a_time(chat: Chat) -> None:
    chat(["one"], "Hi", "/save it")
    other = chat.store.claim("it")
    for options in (["--continue"], ["--load", "it"]):
        result = chat(["x"], "Hm", options=options)
        assert result.exit_code == 2 and "the conversation it is open in another chat" in result.stderr and chat.asked == []
    result = chat(["two"], "/load it", "Ho", "/save it")
    assert result.stderr.count("is open in another chat") == 1 and "or /clear in a chat." in result.stderr
    assert "there is a conversation it already" in result.stderr
    other.drop()
    chat(["three", "four"], "/load it", "Hm", "/load it", "And?")
    assert kept(chat) == ["Hi", "one", "Hm", "three", "And?", "four"]
    assert sorted(path.suffix for path in chat.folder.iterdir()) == [".json", ".json"], "nothing else is left there"


def test_a_chat_that_is_answering_has_its_conversation(chat: Chat) -> None:
    chat(["one"], "Hi", on_token=lambda _: pytest.raises(UsageError, chat.store.claim, chat.store.names()[0]).match("open in"))
    assert kept(chat) == ["Hi", "one"]


def test_a_name_that_is_no_files_name_is_refused(chat: Chat) -> None:
    result = chat(["one"], "Hi", "/save " + "\N{MATHEMATICAL BOLD SMALL A}" * 64)
    assert "cannot be a conversation's name" in result.stderr and kept(chat) == ["Hi", "one"]


def test_a_name_is_kept_where_nothing_can_be_written_under_another(chat: Chat) -> None:
    save = Store.save

    def full(self: Store, transcript: object) -> None:
        if transcript.name == "new":  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")
        save(self, transcript)  # type: ignore[arg-type]

    chat.monkeypatch.setattr(Store, "save", full)
    result = chat(["one", "two"], "Hi", "/save old", "/save new", "Ho")
    assert "No space left on device" in result.stderr and "cannot be kept in" in result.stderr
    assert chat.store.names() == ["old"] and kept(chat) == ["Hi", "one", "Ho", "two"]


def test_what_killed_processes_left_half_written_is_deleted_in_the_end(chat: Chat) -> None:
    chat.folder.mkdir(parents=True)
    old, new = chat.folder / ".it.state.abc123", chat.folder / ".it.state.def456"
    for path in (old, new):
        path.write_bytes(b"half of a state")
    day_before = time.time() - 86_400
    os.utime(old, (day_before, day_before))
    chat(["y" * 300], "Hi")
    assert not old.exists() and new.exists(), "another process may be writing the new one"


def test_pipes_among_the_conversations_are_not_waited_for(chat: Chat) -> None:
    chat(["one"], "Hi", "/save it")
    os.mkfifo(chat.folder / "it.part")
    result = chat(["two"], "Ho", options=["--load", "it"])
    assert result.stdout == "two\n" and kept(chat) == ["Hi", "one", "Ho", "two"]


def test_what_cannot_be_read_is_listed_and_what_to_do_is_said(chat: Chat) -> None:
    chat(["one"], "Hi", "/save it")
    chat.store.path("it").write_text("{")
    result = chat([], "/sessions", "/load it")
    assert "it  cannot be read: /load it says why" in result.stderr
    assert "is damaged: it is not JSON; move it elsewhere, and entmtp-local chat --continue goes on with" in result.stderr


def test_a_file_that_does_not_fit_is_let_go(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 300)
    result = chat(["one"], f"/read {tmp_path}/long.txt", "What is it?", "Hi", n_ctx=200)
    assert "what /read put before it is left out from now on." in result.stderr and chat.asked == ["u:Hi|A"]


def test_settings_are_known_by_the_command_lines_names_too(chat: Chat) -> None:
    chat([], "/set draft_vocab full", "/set --DRAFT-VOCAB auto", "/set\ttemp\t0.25")
    assert chat.session.draft_vocabs == [0, None]


def test_a_system_message_is_given_to_a_conversation_that_goes_on(chat: Chat) -> None:
    chat(["one"], "/system Old.", "Hi")
    chat(["two"], "Ho", options=["--continue", "--system", "New."])
    assert chat.asked == ["s:New.|u:Hi|a:one|u:Ho|A"]


def test_half_of_a_character_in_a_transcript_is_no_reason_to_end(chat: Chat, tmp_path: Path) -> None:
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/clipboard\n")
    program.chmod(0o755)
    chat.monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    chat(["one"], "Hi", "/save it")
    path = chat.store.path("it")
    content = json.loads(path.read_text())
    content["conversation"]["messages"][1]["content"] = "\ud800 one"
    path.write_text(json.dumps(content))
    result = chat(["two"], "/load it", "/copy", "Ho")
    assert (tmp_path / "clipboard").read_text() == "? one" and result.stdout == "two\n"


def test_what_a_model_or_a_file_said_cannot_act_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an answer that is gone on with, names in notices: a note obeys no codes in them."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    terminal = Terminal(io.StringIO(), io.StringIO(), screen, show_stats=False)
    terminal.note("a \x1b]0;title\x07\x1b[2Jred\x9b31m")
    assert screen.getvalue() == "a ]0;title[2Jred31m\n"


def test_a_model_without_a_word_is_no_riddle(chat: Chat) -> None:
    result = chat(["", "two"], "Hi", "Ho")
    assert "(the model ended without a word: this message is not kept)" in result.stderr
    assert result.stdout == "\ntwo\n" and kept(chat) == ["Ho", "two"]


def test_errors_do_not_repeat_all_of_what_was_entered(chat: Chat) -> None:
    result = chat(["one"], "/set " + "9" * 50_000, "/load " + "x" * 50_000, "/read " + "/y" * 9_000, "Hi")
    assert result.stderr.count("error: ") == 3 and len(result.stderr) < 4000 and result.stdout == "one\n"
    assert "there is no setting 999" in result.stderr and "and /policy." in result.stderr


def test_what_cannot_be_sampled_is_refused_when_it_is_set(chat: Chat) -> None:
    sampler = FakeSession.new_sampler

    def checked(self: FakeSession, options: SamplingOptions) -> FakeSampler:
        if options.logit_bias:
            raise UsageError("--logit-bias names token 4000000000, but this model's ids end at 303.")
        return sampler(self, options)

    chat.monkeypatch.setattr(FakeSession, "new_sampler", checked)
    result = chat(["one"], "/set logit-bias 4000000000-1", "Hi")
    assert result.stderr.count("names token 4000000000") == 1 and result.stdout == "one\n"


def full_disc(patch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Nothing can be written any more, `after` transcripts apart."""
    save, n = Store.save, 0

    def full(self: Store, transcript: Transcript) -> None:
        nonlocal n
        n += 1
        if n > after:
            raise OSError(28, "No space left on device")
        save(self, transcript)

    patch.setattr(Store, "save", full)


def test_the_last_line_says_what_is_not_kept(chat: Chat, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_disc(patch)
        last = chat(["one", "two"], "Hi", "Ho").stderr.splitlines()[-1]
        assert last.endswith("(this conversation, 2 questions, is not kept: No space left on device)")
        result = chat(["one", "two"], "Hi", "/clear", "Ho")
        assert result.stderr.count("(this conversation, 1 question, is not kept: ") == 2 and "kept as" not in result.stderr
    with pytest.MonkeyPatch.context() as patch:
        full_disc(patch, 1)
        result = chat(["one", "two", "three"], "Hi", "Ho", "Hm")
        (name,) = (name for name in chat.store.names() if chat.store.path(name).exists())
        told = f"(only the first 1 of 3 questions are kept, as {name}: No space left on device)"
        assert result.stderr.splitlines()[-1].endswith(told) and result.stderr.count("cannot be kept in") == 1
    with pytest.MonkeyPatch.context() as patch:
        full_disc(patch, 1)
        result = chat(["one", "two"], "Hi", "/regen")
        assert "is kept as it was before the last change: No space" in result.stderr.splitlines()[-1]
    chat.monkeypatch.setenv("XDG_DATA_HOME", str(chat.store.path(name)))
    assert "(this conversation, 1 question, is not kept: " in chat(["one"], "Hi").stderr.splitlines()[-1]


def test_a_disc_that_has_room_again_keeps_everything(chat: Chat) -> None:
    save, n = Store.save, 0

    def full_once(self: Store, transcript: Transcript) -> None:
        nonlocal n
        n += 1
        if n in (1, 3):
            raise OSError(28, "No space left on device")
        save(self, transcript)

    chat.monkeypatch.setattr(Store, "save", full_once)
    result = chat(["one", "two", "three"], "Hi", "Ho", "Hm")
    assert "(kept as " in result.stderr.splitlines()[-1] and kept(chat) == ["Hi", "one", "Ho", "two", "Hm", "three"]
    assert result.stderr.count("cannot be kept in") == 2, "the second time is another one"


def test_a_full_disc_leaves_no_empty_file(chat: Chat) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    def opened(number: int, *_: object, **__: object) -> Full:
        os.close(number)
        return Full()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.os, "fdopen", opened)
        full_disc(patch)
        chat(["one"], "Hi")
    assert list(chat.folder.glob("*.part")) == [] and chat.store.names() == []


@pytest.mark.parametrize(("entry", "asked"), [("/regen", "u:Hi|A"), ("/edit Hey", "u:Hey|A")])
def test_a_message_stopped_before_the_first_word_is_said_to_be_none(chat: Chat, entry: str, asked: str) -> None:
    """What goes back from there then goes back from the message before, and nobody is surprised."""
    prefill, n = FakeSession.prefill, 0

    def stopped(self: FakeSession, prompt: list[int], stop: Callable[[], bool]) -> int:
        nonlocal n
        n += 1
        if n == 2:
            interrupt()
        return prefill(self, prompt, stop)

    chat.monkeypatch.setattr(FakeSession, "prefill", stopped)
    result = chat(["one", "two"], "Hi", "Ho", entry)
    assert result.stderr.count("(stopped; your message is not part of the conversation)") == 1
    assert chat.asked[-1] == asked and kept(chat)[1:] == ["two"]
    # with a word of the answer there is nothing to be told but that it was stopped
    result = chat(["long words"], "Hi", on_token=lambda n: interrupt() if n == 3 else None)
    assert "(stopped)\n" in result.stderr and kept(chat)[0] == "Hi"
