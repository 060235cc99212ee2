"""The commands of the chat: a table, and what each does."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from entmtp_local.chat.clipboard import copy
from entmtp_local.chat.reasoning import without_reasoning
from entmtp_local.chat.settings import THINKING
from entmtp_local.chat.store import questions
from entmtp_local.chat.stream import figures
from entmtp_local.chat.trace import tokens_of
from entmtp_local.chat.trace_view import TraceView
from entmtp_local.errors import EntMTPError, UsageError
from entmtp_local.files import open_file
from entmtp_local.speculative.policy import COMMON, parse_policy

if TYPE_CHECKING:
    from entmtp_local.chat.keeping import Keeper
    from entmtp_local.chat.repl import Repl

_MAX_FILE = 4 << 20  # bytes; no context holds as much
PATHS = "paths"


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the model.

    Args:
        question: what.
        snapshot: the conversation that comes back where nothing is answered.
    """

    question: str
    snapshot: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """Let the user change a question, and ask it in place of the last one."""

    question: str


class Leave:
    """Leave the chat."""


Action = Ask | Edit | Leave | None


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Args:
        usage: its arguments, as help shows them.
        help: one line.
        run: does it, given what stands behind its name. Raises EntMTPError where it cannot.
        complete: what its next word may be, given those before; PATHS for files.
    """

    usage: str
    help: str
    run: Callable[[Repl, str], Action]
    complete: Callable[[Repl, str], Iterable[str] | str] = lambda _, before: ()


def help_text(width: int) -> str:
    """All commands, one line each, or two where there is no room."""
    rows = [(f"/{name} {command.usage}".rstrip(), command.help) for name, command in COMMANDS.items()]
    rows += [
        (
            "Ctrl-C",
            "stops the answer; what was said stays, a message without a word of one does not. Clears the line; twice leaves.",
        ),
        ("Ctrl-D", "leaves."),
        ('"""', "begins a message of several lines, and ends it; Alt-Enter starts a new line in any."),
    ]
    left = max(len(usage) for usage, _ in rows)
    if width < left + 40:
        return "\n".join(f"{usage}\n    {text}" for usage, text in rows)
    return "\n".join(f"{usage:<{left}}  {text}" for usage, text in rows)


def _help(chat: Repl, argument: str) -> Action:
    chat.terminal.note(help_text(chat.terminal.size[0]))
    return None


def _exit(chat: Repl, argument: str) -> Action:
    return Leave()


def _clear(chat: Repl, argument: str) -> Action:
    chat.conversation.clear()
    chat.attached.clear()
    chat.last = None
    if chat.keeper is not None:
        chat.keeper.new()
    chat.say("(a new conversation)")
    return None


def _regen(chat: Repl, argument: str) -> Action:
    snapshot = chat.conversation.as_json()
    question = chat.conversation.undo()
    if question is None:
        raise UsageError("there is no answer to give again.")
    return Ask(question, snapshot)


def _undo(chat: Repl, argument: str) -> Action:
    if chat.attached:
        name, _ = chat.attached.pop().split(":\n", 1)
        chat.say(f"({name} does not go with your next message any more)")
        return None
    question = chat.conversation.undo()
    if question is None:
        raise UsageError("there is nothing to take back.")
    chat.last = None
    chat.keep()
    chat.say(f"(taken back: {_short(question)})")
    return None


def _edit(chat: Repl, argument: str) -> Action:
    messages = chat.conversation.messages
    if not messages:
        raise UsageError("there is no question to change.")
    if not argument:
        if not chat.terminal.interactive:
            raise UsageError("in a pipe /edit needs the new question: /edit TEXT.")
        return Edit(messages[-2]["content"])
    snapshot = chat.conversation.as_json()
    chat.conversation.undo()
    return Ask(argument, snapshot)


def _system(chat: Repl, argument: str) -> Action:
    conversation = chat.conversation
    if argument:
        before, conversation.system = conversation.system, None if argument == "none" else argument
        try:
            conversation.ask("?")
        except Exception:
            conversation.system = before
            raise
        chat.keep()
    chat.say(f"(system message: {_short(conversation.system) if conversation.system else 'none'})")
    return None


def _set(chat: Repl, argument: str) -> Action:
    if not argument:
        chat.terminal.note("\n".join(f"{each:<20} {chat.settings.shown(each)}" for each in chat.settings.names()))
        return None
    name, *rest = argument.split(None, 1)
    value = "".join(rest).strip()
    name = name.lower().removeprefix("--").replace("_", "-")
    settings = chat.settings
    if name == "policy":
        return _policy(chat, value)
    if value:
        settings.change(name, value, chat.check_sampling)
        if name == "draft-vocab":
            chat.session.set_draft_vocab(settings.draft_vocab)
    if name not in settings.names():
        raise UsageError(f"there is no setting {name}; known are {', '.join(settings.names())}, and /policy.")
    chat.say(f"({name} {settings.shown(name)})")
    return None


def _policy(chat: Repl, argument: str) -> Action:
    if argument:
        wanted = parse_policy(argument)
        limits = chat.session.limits
        if wanted.max_depth > 0 and limits.max_depth == 0:
            why = limits.reason or "the model was loaded without its MTP head"
            raise UsageError(f"nothing can be drafted: {why}. Start again with --policy {argument}, where there is a head.")
        chat.settings.policy, chat.settings.plain_step = chat.ready(wanted)
    chat.say(f"(policy {chat.settings.policy.name})")
    return None


def _think(chat: Repl, argument: str) -> Action:
    conversation, settings = chat.conversation, chat.settings
    if argument:
        if argument not in THINKING:
            raise UsageError(f"/think takes {', '.join(THINKING)}, not {argument}.")
        if argument in ("on", "off") and not chat.has_thinking:
            chat.say("(this model's chat template has no switch for thinking; only /think hide and /think show change something)")
            return None
        settings.hides_thinking = argument == "hide"
        if argument in ("on", "off"):
            conversation.thinking = argument == "on"
        chat.keep()
    asked = {None: "as the template has it", True: "on", False: "off"}[conversation.thinking]
    chat.say(f"(thinking {asked}{', not shown' if settings.hides_thinking else ''})")
    return None


def _read(chat: Repl, argument: str) -> Action:
    path, question = _file_and_rest(argument)
    try:
        with open_file(path) as file:
            data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise UsageError(f"{path} has more than {_MAX_FILE >> 20} MiB, which no context holds.")
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; convert it first, for instance with iconv.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    fence = "```"
    while fence in text:
        fence += "`"
    chat.attached.append(f"{path.name}:\n{fence}\n{text.rstrip()}\n{fence}")
    if question:
        return Ask(question)
    chat.say(f"({path.name}, {len(text.split())} words, goes with your next message)")
    return None


def _file_and_rest(argument: str) -> tuple[Path, str]:
    """FILE or FILE QUESTION; a name with blanks in it stands alone or in quotation marks."""
    if not argument:
        raise UsageError("/read needs the name of a file.")
    whole = _path(argument)
    try:
        if whole.is_file():
            return whole, ""
        if argument[0] in "'\"":
            name = shlex.split(argument)[0]
            return _path(name), argument[len(name) + 2 :].strip()
    except (OSError, ValueError, IndexError):
        pass
    name, _, rest = argument.partition(" ")
    return _path(name), rest.strip()


def _path(name: str) -> Path:
    # Path.expanduser raises where there is no such user
    return Path(os.path.expanduser(name))


def _save(chat: Repl, argument: str) -> Action:
    keeper = _keeper(chat)
    before = keeper.name
    keeper.rename(argument or before)
    keeper.leave()
    renamed = f", no longer as {before}" if keeper.name != before else ""
    chat.say(f"(kept as {keeper.name}{renamed})")
    return None


def _load(chat: Repl, argument: str) -> Action:
    if not argument:
        raise UsageError("/load needs the name of a conversation; /sessions lists them.")
    if chat.keeper is not None and argument != chat.keeper.name:
        chat.keeper.leave()
    chat.resume(argument)
    return None


def _sessions(chat: Repl, argument: str) -> Action:
    rows: list[tuple[str, str]] = []
    for name in chat.store.names():
        try:
            kept = chat.store.load(name)
        except UsageError:
            continue  # nothing that was said is in it
        except EntMTPError:  # one that cannot be read is listed all the same
            rows.append((name, f"cannot be read: /load {name} says why"))
            continue
        if kept.n_turns:
            rows.append((name, f"{_when(kept.updated)}  {questions(kept.n_turns):>13}  {kept.title}"))
    if not rows:
        chat.terminal.note("(no conversation has been kept yet)")
    left = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        mark = "*" if chat.keeper is not None and name == chat.keeper.name else " "
        chat.terminal.note(chat.terminal.in_a_row(f"{mark} {name:<{left}}  {about}"))
    return None


def _when(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}" if seconds else "cut off"
    except (ValueError, OverflowError, OSError):
        return "some time"


def _keeper(chat: Repl) -> Keeper:
    if chat.keeper is None:
        raise UsageError("conversations are not kept here: start the chat on a terminal, without --no-save.")
    return chat.keeper


def _stats(chat: Repl, argument: str) -> Action:
    context = f"context: {len(chat.conversation.closed())} of {chat.session.n_ctx} tokens"
    if chat.last is None:
        if not chat.conversation.messages:
            raise UsageError("there are no figures yet: nothing has been answered.")
        chat.terminal.note(f"no figures of the last answer; {context}")
        return None
    stats, total, settings = chat.last.stats, chat.total, chat.settings
    chat.terminal.note(f"last answer: {figures(stats, settings.rule, settings.plain_step)}")
    if chat.n_answers > 1:
        chat.terminal.note(f"all {chat.n_answers} answers: {figures(total, settings.rule, settings.plain_step)}")
    chat.terminal.note(
        f"prompt: {stats.n_prompt} tokens, {stats.n_prefilled} of them read in {stats.seconds['prefill']:.2f} s; {context}"
    )
    if stats.n_nodes:
        depths = ", ".join(str(n) for n in stats.accepted_per_depth)
        chat.terminal.note(
            f"accepted at each depth: {depths}; siblings {stats.sibling_hits}, copied {stats.copied_hits} of {stats.n_copied}"
        )
        parts = ", ".join(f"{part} {stats.seconds[part]:.2f}" for part in ("draft", "verify", "accept", "commit", "schedule"))
        chat.terminal.note(f"seconds: {parts}")
    return None


def _trace(chat: Repl, argument: str) -> Action:
    if argument in ("on", "off"):
        chat.settings.trace = argument == "on"
        chat.say(f"(trace {argument})")
    elif argument:
        raise UsageError(f"/trace takes on or off, or nothing for the last answer, not {argument}.")
    elif chat.last is None:
        raise UsageError("there is nothing to trace yet; /trace on shows it with each answer.")
    else:
        view = TraceView(chat.terminal)
        for step in chat.last.steps:
            view.add(tokens_of(step, lambda token: chat.session.piece(token, special=True)))
        view.finish()
    return None


def _copy(chat: Repl, argument: str) -> Action:
    messages = chat.conversation.messages
    if not messages:
        raise UsageError("there is no answer to copy.")
    text = without_reasoning(messages[-1]["content"], chat.conversation.tags, inside=True)
    chat.say(f"({copy(text, chat.terminal)})")
    return None


def _short(text: str, n: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= n else line[: n - 1] + "…"


def _first(*words: str) -> Callable[[Repl, str], Iterable[str]]:
    """Completes the first word alone."""
    return lambda chat, before: () if before else words


def _settings(chat: Repl, before: str) -> Iterable[str]:
    return chat.settings.values(before) if before else [f"{name} " for name in chat.settings.names()]


def _conversations(chat: Repl, before: str) -> Iterable[str]:
    return () if before else chat.store.names()


#: Other names.
ALIASES = {"quit": "exit"}
COMMANDS: dict[str, Command] = {
    "help": Command("", "shows this.", _help),
    "exit": Command("", "leaves.", _exit),
    "clear": Command("", "starts a new conversation.", _clear),
    "regen": Command("", "answers the last question again.", _regen),
    "undo": Command("", "takes the last question and its answer back, or a file that waits.", _undo),
    "edit": Command("[TEXT]", "changes the last question and asks it again.", _edit),
    "system": Command("[TEXT]", "tells the model who it is; none for nothing.", _system, _first("none")),
    "set": Command("[NAME VALUE]", "shows or changes how answers are sampled and shown.", _set, _settings),
    "policy": Command("[NAME]", "shows or changes what is drafted.", _policy, _first(*COMMON)),
    "think": Command("on|off|hide|show", "asks for reasoning or for none, hides or shows it.", _think, _first(*THINKING)),
    "read": Command("FILE [TEXT]", "puts a file before your next message, or before TEXT.", _read, lambda chat, before: PATHS),
    "save": Command("[NAME]", "renames the conversation; it is kept anyway.", _save),
    "load": Command("NAME", "goes on with another conversation.", _load, _conversations),
    "sessions": Command("", "lists the conversations that are kept.", _sessions),
    "stats": Command("", "shows the figures of the last answer and of all.", _stats),
    "trace": Command("[on|off]", "shows how each token came, of the last answer or from now on.", _trace, _first("on", "off")),
    "copy": Command("", "puts the last answer into the clipboard.", _copy),
}
