"""Whole conversations with commands, on a scripted session: what is shown, what the model is given, what is kept."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
from pathlib import Path

import pytest
from fakes import FakeSession, encode
from transcripts import PLAIN, Chat

from entmtp_local.chat.commands import COMMANDS, help_text
from entmtp_local.chat.terminal import Terminal
from entmtp_local.chat.wrapping import columns_of
from entmtp_local.cli import chat as command
from entmtp_local.speculative.protocol import Limits
from entmtp_local.speculative.tree import DraftTree

KEEPING = PLAIN.replace("%}A{%", "%}a:{%")
SWITCHED = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chat:
    return Chat(monkeypatch, tmp_path)


def test_regen_undo_and_edit(chat: Chat) -> None:
    result = chat(["one", "two", "three", "four"], "Hi", "/regen", "/edit Ho", "More", "/undo", "/undo", "/undo")
    assert result.stdout == "one\ntwo\nthree\nfour\n"
    assert chat.asked == ["u:Hi|A", "u:Hi|A", "u:Ho|A", "u:Ho|a:three|u:More|A"]
    assert "(taken back: More)" in result.stderr and "error: there is nothing to take back." in result.stderr


def test_edit_without_a_text_asks_for_one(chat: Chat) -> None:
    result = chat(["one", "two"], "Hi", "/edit", "Ho", "/edit", "", "/edit")
    assert chat.asked == ["u:Hi|A", "u:Ho|A"] and "(left as it was)" in result.stderr and "(was: Ho)" in result.stderr
    assert "in a pipe /edit needs" in chat(["one"], "Hi", "/edit", person=False).stderr


def test_what_cannot_be_answered_again_stays(chat: Chat) -> None:
    """An interrupted /regen leaves the answer that there was."""

    def interrupt(n: int) -> None:
        if len(chat.session.prompts) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    chat(["one", "never", "three"], "Hi", on_token=interrupt)
    assert chat.store.load(chat.store.names()[0]).content["messages"][-1]["content"] == "one"
    failing = "{% if messages[-1].content == 'bad' %}{{ raise_exception('No.') }}{% endif %}" + PLAIN
    chat.template = failing
    result = chat(["one", "two"], "Hi", "/edit bad", "More")
    assert "refuses this conversation: No." in result.stderr
    assert chat.asked == ["u:Hi|A", "u:Hi|a:one|u:More|A"]


def test_several_lines_between_quotation_marks(chat: Chat) -> None:
    chat(["a", "b", "c"], '"""One', "two", '/exit"""', '"""/help"""', '"""not closed')
    assert chat.asked[0] == "u:One\ntwo\n/exit|A" and chat.asked[1].endswith("u:/help|A") and "u:not closed" in chat.asked[2]


def test_what_begins_with_a_slash_and_is_no_command_is_a_message(chat: Chat) -> None:
    chat(["a"], "/usr/bin/python is what?")
    assert chat.asked == ["u:/usr/bin/python is what?|A"]


def test_system_message(chat: Chat) -> None:
    result = chat(["a", "b"], "/system Be brief.", "Hi", "/system none", "Ho", "/system")
    assert chat.asked == ["s:Be brief.|u:Hi|A", "u:Hi|a:a|u:Ho|A"]
    assert "(system message: Be brief.)" in result.stderr and result.stderr.count("(system message: none)") == 2
    chat(["a"], "Hi", options=["--system", "You are a cat."])
    assert chat.asked == ["s:You are a cat.|u:Hi|A"]
    chat.template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    assert "refuses" in chat(["a"], "/system Be brief.", "Hi").stderr and chat.asked == ["u:Hi|A"]


def test_settings_reach_the_sampler_and_the_session(chat: Chat) -> None:
    before = ["/set temp 0.5", "/set --top_k 7", "/set seed 9", "/set max-tokens 3", "/set logit-bias 5-inf"]
    later = ["/set seed -1", "/set logit-bias none", "/set max-tokens none", "Ho", "/set"]
    result = chat(["abcdef", "g"], *before, "/set draft-vocab full", "/set copy off", "Hi", *later)
    # four changes of the sampler are tried before the first answer, and two before the second
    assert len(chat.session.samplers) == 8
    first, second = chat.session.samplers[4].options, chat.session.samplers[7].options
    assert (first.temp, first.top_k, first.seed, first.logit_bias) == (0.5, 7, 9, ((5, float("-inf")),))
    assert second.logit_bias == () and second.temp == 0.5
    assert result.stdout == "abc\ng\n" and "(cut after 3 tokens; /set max-tokens changes that)" in result.stderr
    assert chat.session.draft_vocabs == [0]
    assert "\ntop-k                7\n" in result.stderr and "\ncopy                 off\n" in result.stderr


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("/set temp hot", "temp must be a number, not hot"),
        ("/set temp -1", "error: temp must be 0 or more"),
        ("/set top-k 1.5", "top-k must be a whole number"),
        ("/set seed -7", "seed must be a whole number from 0, or -1 to draw one, not -7."),
        ("/set seed abc", "seed must be a whole number from 0, or -1 to draw one, not abc."),
        ("/set max-tokens 0", "max-tokens must be a whole number from 1, or none, not 0."),
        ("/set draft-vocab 0", "draft-vocab must be a whole number from 1, or auto or full, not 0."),
        ("/set nothing 3", "there is no setting nothing; known are temp"),
        ("/set nothing", "there is no setting nothing"),
        ("/set overflow explode", "overflow must be stop or drop"),
        ("/set acceptance loose", "acceptance must be strict or typical"),
        ("/set trace maybe", "trace must be on or off"),
        ("/set logit-bias x", "is not a token id"),
        ("/set policy nope", "there is no policy 'nope'"),
        ("/policy tree:/nowhere.json", "no file /nowhere.json"),
        ("/policy chain:300", "there is no policy"),
        ("/policy tree:/", "cannot read a tree from / (it is no regular file); it must hold"),
        ("/think hard", "/think takes on, off, hide"),
        ("/trace sideways", "/trace takes on or off"),
        ("/trace", "nothing to trace yet"),
        ("/stats", "no figures yet"),
        ("/copy", "no answer to copy"),
        ("/regen", "no answer to give again"),
        ("/edit Ho", "no question to change"),
        ("/read", "/read needs the name of a file"),
        ("/read /no/such/file", "cannot be read: No such file"),
        ("/read /", "/ cannot be read: it is no regular file"),
        ("/read /dev/zero", "it is no regular file"),
        ("/read ~nobody-here/x", "cannot be read: No such file"),
        ("/read a\0b", "embedded null byte"),
        ("/load", "/load needs the name"),
        ("/load nobody", "there is no conversation nobody"),
        ("/load ../../etc/passwd", "cannot be a conversation's name"),
        ("/save a/b", "cannot be a conversation's name"),
        ("/save empty", "there is nothing to save yet"),
        ("/nope", "there is no command /nope"),
        ("/hel", "there is no command /hel: did you mean /help?"),
        ("/EXIT", "there is no command /EXIT: did you mean /exit?"),
        ("/", "there is no command /: /help lists them"),
        ("/undo 2", "/undo stands alone: nothing may follow it"),
        ("/clear x", "/clear stands alone"),
        ("/stats x", "/stats stands alone"),
        ("/set grammar root ::= (", "expecting ')' at its end"),
        ("/nope with words", "there is no command /nope"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(chat: Chat, entry: str, words: str) -> None:
    result = chat(["fine"], entry, "Hi")
    (error,) = [line for line in result.stderr.splitlines() if line.removeprefix("> ").startswith("error: ")]
    assert words in error and result.exit_code == 0
    assert result.stdout == "fine\n" and chat.asked == ["u:Hi|A"]


def test_policies_can_be_changed_within_what_the_session_was_opened_for(chat: Chat) -> None:
    result = chat(["abcdef", "abcdef"], "Hi", "/policy chain:2", "Ho", "/stats", "/policy", options=["--policy", "chain:3"])
    assert result.stderr.count("(policy chain:2)") == 2 and "accepted at each depth: 2, 2;" in result.stderr
    chat.monkeypatch.setattr(FakeSession, "limits", Limits(trees=True, max_depth=3, max_nodes=3, reason=""))
    result = chat(["a"], "/policy chain:20", "/policy hydra:16", options=["--policy", "chain:3"])
    why = "the model was opened for 3 drafted tokens a step at most; start with --policy"
    assert f"drafting chain:3 instead of chain:20: {why} chain:20 for more." in result.stderr
    assert f"drafting hydra:3 instead of hydra:16: {why} hydra:16 for more." in result.stderr
    chat.monkeypatch.setattr(FakeSession, "limits", Limits(trees=False, max_depth=0, max_nodes=0, reason=""))
    result = chat(["a"], "/policy chain:2")
    assert "nothing can be drafted" in result.stderr and "Start again with --policy chain:2" in result.stderr


def test_figures_are_those_of_the_answer_that_is_there(chat: Chat) -> None:
    result = chat(["one", "two"], "Hi", "/undo", "/stats", "/trace", "Ho", "/clear", "/stats")
    assert result.stderr.count("there are no figures yet") == 2 and "nothing to trace yet" in result.stderr
    result = chat(["one", "two"], "Hi", "Ho", "/undo", "/stats")
    assert "no figures of the last answer; context: 11 of 1000 tokens" in result.stderr
    result = chat([], "/stats", options=["--continue"])
    assert "no figures of the last answer; context: 11 of 1000 tokens" in result.stderr


def test_plain_decoding_has_one_token_a_step(chat: Chat) -> None:
    """The first token is of the prompt's pass, the end of an answer takes a step of its own."""
    chat.monkeypatch.setattr(FakeSession, "draft", lambda self, shape, least: DraftTree(shape, (0,) * shape.n_nodes))
    result = chat(["some words"], "Hi", "/stats", options=["--policy", "chain:1"])
    assert "1.00 tokens/step, 0 % accepted" in result.stderr


def test_thinking_is_switched_by_the_template_and_hidden_by_the_chat(chat: Chat) -> None:
    chat.template = SWITCHED
    result = chat(["<think>hm</think>a", "b"], "/think hide", "Hi", "/think off", "Ho", "/think on")
    assert result.stdout == "a\nb\n"
    assert chat.asked[0] == "u:Hi|A" and chat.asked[1].endswith("A!")
    assert "(thinking as the template has it, not shown)" in result.stderr and "(thinking off)" in result.stderr
    result = chat(["<think>hm</think>a"], "/think hide", "/think show", "Hi")
    assert result.stdout == "<think>hm</think>a\n" and "(thinking as the template has it)" in result.stderr
    chat.template = PLAIN
    result = chat(["a"], "/think off", "/think on")
    assert result.stderr.count("no switch for thinking") == 2 and "(thinking o" not in result.stderr


def test_a_file_goes_with_the_next_message(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "my notes.txt"
    file.write_text("alpha\n```\nbeta\n")
    (tmp_path / "plain.txt").write_text("gamma")
    result = chat(["a", "b"], f"/read {file}", "What is this?", f"/read {tmp_path}/plain.txt And this?")
    assert "(my notes.txt, 3 words, goes with your next message)" in result.stderr
    assert chat.asked[0] == "u:my notes.txt:\n````\nalpha\n```\nbeta\n````\n\nWhat is this?|A"
    assert chat.asked[1].endswith("u:plain.txt:\n```\ngamma\n```\n\nAnd this?|A")
    result = chat(["a", "b"], "Hi", f"/read {file}", f"/read {tmp_path}/plain.txt", "/undo", "/undo", "And now?", "/undo")
    assert "(plain.txt does not go with your next message any more)\n> (my notes.txt does not go" in result.stderr
    assert chat.asked[1] == "u:Hi|a:a|u:And now?|A" and "(taken back: And now?)" in result.stderr
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in chat([], f"/read {tmp_path}/binary").stderr


def test_conversations_are_kept_and_gone_on_with(chat: Chat) -> None:
    chat(["one"], "/system S", "Hi")
    (name,) = chat.store.names()
    result = chat(["two"], "Ho", options=["--continue"])
    assert f"(going on with {name}: 1 question)" in result.stderr and "> Hi\none\n" in result.stderr
    assert chat.asked == ["s:S|u:Hi|a:one|u:Ho|A"]
    kept = json.loads((chat.folder / f"{name}.json").read_text())
    assert [m["content"] for m in kept["conversation"]["messages"]] == ["Hi", "one", "Ho", "two"]
    assert (chat.folder / f"{name}.json").stat().st_mode & 0o077 == 0 and chat.folder.stat().st_mode & 0o077 == 0


def test_names_lists_and_going_back_and_forth(chat: Chat) -> None:
    result = chat(["one", "two", "three"], "Hi", "/save first", "/clear", "Ho", "/save first", "/load first", "More", "/sessions")
    assert "(kept as first, no longer as 20" in result.stderr and "there is a conversation first already" in result.stderr
    assert chat.asked[-1] == "u:Hi|a:one|u:More|A"
    assert len(chat.store.names()) == 2 and "* first" in result.stderr and "2 questions  Hi" in result.stderr
    assert chat(["x"], "And?", options=["--load", "first"]).stdout == "x\n"
    assert chat.asked[-1].startswith("u:Hi|a:one|u:More|a:three|")


def test_a_pipe_keeps_nothing_unless_it_goes_on_with_something(chat: Chat) -> None:
    chat(["one"], "Hi", person=False)
    assert chat.store.names() == []
    chat(["one"], "Hi", options=["--no-save"])
    assert chat.store.names() == []
    chat(["one"], "Hi")
    chat(["two"], "Ho", options=["--continue"], person=False)
    assert chat.store.load(chat.store.names()[0]).n_turns == 2
    result = chat([], "/save it", person=False)
    assert "conversations are not kept here" in result.stderr and result.exit_code == 1
    # what is kept can be read all the same
    result = chat(["three"], "/sessions", f"/load {chat.store.names()[0]}", "Hm", options=["--no-save"])
    assert "2 questions  Hi" in result.stderr and "2 questions, which stays as it is kept)" in result.stderr
    assert chat.asked == ["u:Hi|a:one|u:Ho|a:two|u:Hm|A"] and chat.store.load(chat.store.names()[0]).n_turns == 2


def test_a_conversation_is_looked_for_before_anything_is_loaded(chat: Chat) -> None:
    chat.monkeypatch.setattr(command, "prepare", lambda _: pytest.fail("the model was looked at"))
    for options in (["--continue"], ["--load", "nope"]):
        assert chat([], options=options).exit_code == 2


def test_a_chat_says_what_it_is_and_how_to_come_back(chat: Chat) -> None:
    result = chat(["one"], "Hi", "/save it", "/quit")
    assert result.stderr.startswith("Fake: 1000 tokens of context, nothing is drafted.\n/help lists")
    assert result.stderr.endswith("(kept as it: --continue goes on with it, or --load it)\n")
    assert "kept as" not in chat(["one"], options=["--no-save"]).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--continue"], "no conversation to go on with yet"),
        (["--load", "x"], "there is no conversation x"),
        (["--continue", "--no-save"], "--no-save keeps nothing"),
        (["--continue", "--load", "x"], "give one of them"),
    ],
)
def test_going_on_with_nothing_is_refused(chat: Chat, options: list[str], words: str) -> None:
    result = chat(["x"], "Hi", options=options)
    assert result.exit_code == 2 and words in result.stderr and chat.asked == []


def test_the_model_state_is_kept_and_used(chat: Chat) -> None:
    chat.template = KEEPING
    chat(["y" * 300], "x" * 100)
    (name,) = chat.store.names()
    assert chat.store.state_path(name).exists()
    chat(["two"], "Ho", options=["--continue"])
    (state,) = chat.session.loaded
    assert bytes(token for token in state.tokens if token < 256).decode() == f"u:{'x' * 100}|a:{'y' * 300}|"
    path = chat.store.state_path(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = chat(["three"], "Hm", options=["--continue"])
    assert chat.session.loaded == [] and "is damaged; the text is read again)" in result.stderr and result.stdout == "three\n"


def test_another_models_ids_are_not_used(chat: Chat) -> None:
    chat([list(b"hello")], "Hi")  # type: ignore[list-item]
    (name,) = chat.store.names()
    path = chat.store.path(name)
    kept = json.loads(path.read_text())
    assert kept["conversation"]["ids"]
    kept["model"]["fingerprint"] = "another"
    path.write_text(json.dumps(kept))
    result = chat(["x"], "Ho", options=["--continue"])
    assert "another model had this conversation" in result.stderr
    assert chat.session.prompts == [encode("u:Hi|a:hello|u:Ho|A")], "split anew"


def test_ids_that_are_not_what_was_written_are_not_used(chat: Chat) -> None:
    chat.template = KEEPING
    chat([list(b"hello")], "Hi")  # type: ignore[list-item]
    path = chat.store.path(chat.store.names()[0])
    whole = path.read_text()
    chat([], options=["--continue"])
    for damaged, exact in (
        (whole, True),
        (whole.replace("104,", "105,"), False),
        (re.sub(r'"updated": [\d.]+', '"updated": 9e99', whole), True),
    ):
        path.write_text(damaged)
        result = chat(["x"], "/sessions", "Ho", options=["--continue"])
        ids = list(b"hello") if exact else encode("hello")
        assert result.stdout == "x\n", result.stderr
        assert chat.session.prompts[0][7 : 7 + len(ids)] == ids
    assert "some time" in result.stderr


def test_a_killed_process_loses_nothing_of_the_answer(chat: Chat) -> None:
    chat(["one"], "Hi")
    (name,) = chat.store.names()
    journal = chat.store.journal(name, "Ho", 2)
    for part in ("so ", "far"):
        journal.add(part)
    journal.close()
    with (chat.folder / f"{name}.part").open("ab") as file:
        file.write(b'{"text": "tor')
    result = chat(["again"], "/regen", options=["--continue"])
    assert "> Ho\nso far\n" in result.stderr and "was cut off when the program ended" in result.stderr
    assert chat.asked == ["u:Hi|a:one|u:Ho|A"]
    assert not (chat.folder / f"{name}.part").exists()
    kept = chat.store.load(name)
    assert kept.content["messages"][-1]["content"] == "again" and not kept.cut


def test_a_killed_process_keeps_a_first_question(chat: Chat) -> None:
    chat.store.journal("fresh", "Hello?", 0).close()
    result = chat(["yes"], "/regen", options=["--continue"])
    assert chat.asked == ["u:Hello?|A"] and "going on with fresh: 1 question)" in result.stderr


def test_a_process_that_is_killed_while_it_answers_again_keeps_one_of_both(chat: Chat) -> None:
    chat(["one", "two"], "Hi", "Ho")
    (name,) = chat.store.names()
    journal = chat.store.journal(name, "Ho, really", 2)
    journal.add("thr")
    journal.close()
    assert [m["content"] for m in chat.store.load(name).content["messages"]] == ["Hi", "one", "Ho, really", "thr"]


def test_a_question_that_was_refused_is_not_found_again(chat: Chat) -> None:
    chat([], "x" * 300, n_ctx=100)
    assert chat.store.names() == []
    chat(["one"], "Hi", "x" * 300, n_ctx=100)
    (name,) = chat.store.names()
    assert chat.store.load(name).n_turns == 1


def test_states_of_conversations_long_unused_are_deleted(chat: Chat) -> None:
    for i in range(7):
        chat(["y" * 300], f"Hi {i}", f"/save c{i}")
    states = {path.stem for path in chat.folder.glob("*.state")}
    assert len(states) == 5 and "c6" in states and len(chat.store.names()) == 7


def test_damaged_transcripts_are_refused_in_one_sentence(chat: Chat) -> None:
    chat(["one", "two"], "Hi", "Ho", "/save it")
    path = chat.store.path("it")
    whole = path.read_bytes()
    draw = random.Random(3)
    cases = [b"", b"[]", b"{}", b"null", b"[" * 100_000, whole[: len(whole) // 2]]
    cases += [whole.replace(b'"version": 1', b'"version": 2'), whole.replace(b'"role": "user"', b'"role": 5')]
    cases += [whole.replace(b'"ids": [', b'"ids": [-5, '), whole.replace(b'"marks": [', b'"marks": [7, ')]
    cases += [whole.replace(b'"content": "one"', b'"content": null'), whole.replace(b'"n_dropped": 0', b'"n_dropped": 99')]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        cases.append(bytes(flipped))
    n_refused = 0
    for case in cases:
        path.write_bytes(case)
        result = chat(["x"], "/sessions", "/load it", "Hm")
        errors = [line for line in result.stderr.splitlines() if "error: " in line]
        assert len(errors) <= 1 and result.stdout == "x\n"
        n_refused += bool(errors)
    assert n_refused >= 12
    path.write_bytes(cases[6])
    assert "has version 2, and this program reads version 1" in chat([], options=["--load", "it"]).stderr


def test_a_folder_that_cannot_be_written_is_told_once(chat: Chat) -> None:
    chat.folder.parent.mkdir(parents=True)
    chat.folder.write_text("a file is in the way")
    result = chat(["one", "two"], "Hi", "Ho", "/sessions")
    assert result.stdout == "one\ntwo\n" and result.stderr.count("cannot be kept in") == 1


LONG = "w" * 30


def test_a_place_is_noted_at_each_question_and_each_answer(chat: Chat) -> None:
    """Behind the question, where a template that drops reasoning goes on, and behind the answer, where any other does."""
    chat.monkeypatch.setattr(FakeSession, "needs_checkpoints", True)
    chat.template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content.split('</think>')[-1] }}|{% endfor %}"
    chat.template += "{% if add_generation_prompt %}assistant:<think>{% endif %}"
    result = chat(["hm</think>one", "hm</think>two"], "Hi", "Ho")
    assert result.stdout == "hm</think>one\ntwo\n".replace("two", "hm</think>two")
    first, second = len(encode("u:Hi|")), len(encode("u:Hi|a:one|u:Ho|"))
    answer = len(encode("assistant:<think>hm</think>one"))
    assert chat.session.checkpoints == [first, first + answer, second, second + answer]
    # what was read ahead is what the next prompt begins with
    assert chat.session.prompts[2] == encode("u:Hi|a:one|u:Ho|")


def test_overflow_drops_the_oldest_turns(chat: Chat) -> None:
    result = chat([LONG, LONG, LONG], LONG, LONG, LONG, options=["--overflow", "drop"], n_ctx=200)
    turn = f"u:{LONG}|a:{LONG}|"
    assert chat.asked == [f"u:{LONG}|A", f"{turn}u:{LONG}|A", f"{turn}u:{LONG}|A"]
    assert "the model no longer sees the oldest question and its answer" in result.stderr
    kept = chat.store.load(chat.store.names()[0])
    assert kept.n_turns == 3 and kept.content["n_dropped"] == 2, "the transcript has all of it"
    chat(["x"], "And?", options=["--continue"], n_ctx=1000)
    assert chat.asked == [f"{turn}{turn}u:And?|A"]


def test_an_answer_goes_on_when_turns_are_dropped_under_it(chat: Chat) -> None:
    answers = ["v" * 60, "w" * 90]
    said = "w" * 90

    # the script's second answer is interrupted by the full context: the third entry is its rest
    def rest(n: int) -> None:
        if len(chat.session.prompts) == 3 and len(chat.session._answers) == 0:
            done = len(chat.session.prompts[2]) - len(encode("u:Ho|A"))
            chat.session._answers.append(encode(said[done:]))

    result = chat(answers, "Hi", "Ho", options=["--overflow", "drop"], n_ctx=140, on_token=rest)
    assert result.stdout == "v" * 60 + "\n" + said + "\n"
    assert chat.asked[2].startswith("u:Ho|A" + "w" * 20) and "no longer sees" in result.stderr


def test_a_message_that_can_never_fit_is_refused_by_every_policy(chat: Chat) -> None:
    for overflow in ("stop", "drop"):
        result = chat(["one", "two"], "Hi", "x" * 300, "Ho", options=["--overflow", overflow], n_ctx=200)
        told = "this message alone has 304 tokens and the context holds 200: shorten it, or start again with --continue -c 2048."
        assert told in result.stderr and result.stdout == "one\ntwo\n"
        assert chat.asked[-1] == "u:Hi|a:one|u:Ho|A", "nothing was dropped for it"


def test_no_larger_context_is_proposed_than_the_model_was_trained_for(chat: Chat) -> None:
    result = chat(["one"], "x" * 2100, n_ctx=2048)
    assert "holds 2048: shorten it; this model was trained for no more than 2048 tokens." in result.stderr
    # one that would not do is not proposed either
    assert "trained for no more than 2048 tokens" in chat(["one"], "x" * 2100, n_ctx=1500).stderr
    # nothing has been said that could be gone on with
    assert "shorten it, or start again with -c 2048." in chat(["one"], "x" * 500, n_ctx=400).stderr
    result = chat(["y" * 2000], "x" * 100, n_ctx=1500)
    assert "the answer was cut" in result.stderr and "--continue -c 2048)" in result.stderr


def test_the_trace_of_an_answer(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    result = chat(
        ["hello there", "abc"], "Hi", "/trace", "/trace on", "Ho", options=["--policy", "chain:2", "--trace-file", str(file)]
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "hello there" and lines[1:3] == ["-0.5  0.5", "hello > there"]
    assert lines[3].split() == ["-0.5", "0.5", "1.5"] and lines[4].split() == ["a", ">b", ">c"]
    assert "the model's own, >best draft, +second choice, =copied" in result.stderr
    without = chat(["hello there"], "Hi", "/trace").stderr
    assert "/trace on writes the entropies of answers to come" in without and "above each token the entropy" not in without
    content = json.loads(file.read_text())
    assert (content["format"], content["version"], len(content["answers"])) == ("entmtp-trace", 1, 2)
    step = content["answers"][1]["steps"][1]
    assert step["parents"] == [-1, 0, 1] and step["path"][:2] == [0, 1]
    assert [token["how"] for token in step["tokens"]] == ["spine", "spine"]
    assert step["tokens"][0]["entropy"] == 0.5


def test_copy_hands_the_answer_without_its_reasoning_to_a_program(chat: Chat, tmp_path: Path) -> None:
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/clipboard\n")
    program.chmod(0o755)
    chat.monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = chat(["<think>hm</think>\n\nthe answer"], "Hi", "/copy")
    assert (tmp_path / "clipboard").read_text() == "the answer" and "(copied, 10 characters)" in result.stderr


def test_help_has_one_line_for_each_and_two_where_it_is_narrow() -> None:
    wide, narrow = help_text(80).splitlines(), help_text(40).splitlines()
    assert len(narrow) == 2 * len(wide) == 2 * (len(COMMANDS) + 3)
    for name, line in zip(COMMANDS, wide, strict=False):
        assert line.startswith(f"/{name}") and COMMANDS[name].help in line


def test_no_sequence_of_commands_ends_in_a_traceback(chat: Chat) -> None:
    draw = random.Random(11)
    arguments = [
        "",
        "on",
        "off",
        "hide",
        "none",
        "x",
        "it",
        "temp 0",
        "temp",
        "seed 5",
        "policy off",
        "/",
        "é漢\u0301",
        "'",
        '"',
        "-1 2 3",
    ]
    arguments += [
        "chain:2",
        "throughput",
        "overflow drop",
        "trace on",
        "markdown off",
        "a\tb",
        "\x01\x02",
        "9" * 40,
        "logit-bias 999999+1",
    ]
    names = [*COMMANDS, "nope"]
    names.remove("exit")
    for _ in range(25):
        entries = []
        for _ in range(15):
            if draw.random() < 0.3:
                entries.append(draw.choice(["Hi", "What?", '"""', "漢字 ok", "/", "//", "/ help"]))
            else:
                entries.append(f"/{draw.choice(names)} {draw.choice(arguments)}".strip())
        result = chat(["answer"] * 40, *entries)
        assert result.exit_code == 0, result.stderr


def test_save_always_renames_the_conversation(chat: Chat) -> None:
    chat.template = KEEPING
    result = chat(["y" * 300, "two"], "Hi", "/save first", "/save second", "/save second", "/save", "Ho")
    assert "(kept as second, no longer as first)" in result.stderr and result.stderr.count("(kept as second)") == 2
    assert sorted(path.name for path in chat.folder.iterdir()) == ["second.json", "second.state"]
    chat(["three"], "Hm", "/save third", options=["--load", "second"])
    assert chat.store.names() == ["third"] and chat.store.load("third").n_turns == 3


def test_a_message_that_only_the_conversation_leaves_no_room_for(chat: Chat) -> None:
    result = chat(["y" * 80], "Hi", "x" * 120, n_ctx=200)
    assert "the conversation with this message has 212 tokens and the context holds 200: /clear starts" in result.stderr
    assert "/set overflow drop lets go of the oldest questions, or start again with --continue -c 2048." in result.stderr


def test_conversations_without_questions_are_neither_listed_nor_left_there(chat: Chat) -> None:
    result = chat(["one", "two"], "Hi", "/undo", "/sessions", "/clear", "/sessions", "Ho", "/undo")
    assert result.stderr.count("(no conversation has been kept yet)") == 2
    assert list(chat.folder.iterdir()) == [] and "kept as" not in result.stderr
    # one that an older program left
    chat(["one"], "Hi", "/save it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Terminal, "in_a_row", lambda self, text: f"{text[:5]}…")
        assert "  it …\n" in chat([], "/sessions").stderr
    content = json.loads(chat.store.path("it").read_text())
    content["conversation"]["messages"] = []
    chat.store.path("it").write_text(json.dumps(content))
    assert "(no conversation has been kept yet)" in chat([], "/sessions").stderr


@pytest.mark.parametrize("columns", [80, 40, 10])
def test_each_conversation_is_a_row_of_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(Terminal, "size", (columns, 24))
    terminal = Terminal(io.StringIO(), io.StringIO(), Screen(), show_stats=False)
    rows = [terminal.in_a_row(f"* name  2026-11-22  {letter * 90}") for letter in ("x", "漢", "ab ")]
    assert all(columns_of(row) <= columns and row.startswith("* name") and row.endswith("…") for row in rows)
    assert terminal.in_a_row("* a") == "* a" and "\x1b" not in terminal.in_a_row("\x1b[2J")
