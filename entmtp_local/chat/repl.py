"""The chat loop: read an entry, do what it says or answer it, keep the conversation.

Works on a terminal and in a pipe. Knows nothing of how tokens are drafted or verified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

from entmtp_local.chat.answer import N_ANSWER, Answer, Answerer
from entmtp_local.chat.commands import ALIASES, COMMANDS, Ask, Command, Edit, Leave
from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.keeping import Keeper
from entmtp_local.chat.quoting import unquoted
from entmtp_local.chat.settings import Settings
from entmtp_local.chat.store import Store, questions
from entmtp_local.chat.stream import stats_line
from entmtp_local.chat.terminal import Terminal
from entmtp_local.chat.trace import AnswerTrace, as_json, write_trace
from entmtp_local.engine import Stats
from entmtp_local.errors import ContextFullError, EngineError, EntMTPError, UsageError
from entmtp_local.native.session import Session
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.sampling import SamplingOptions

_COMMAND = re.compile(r"/([A-Za-z]*)(?:\s+(.*))?", re.DOTALL)
# Of the last answer, when a conversation is taken up again.
_N_REMINDER = 300
_LONGEST_ERROR = 1000


class Repl:
    """One session's chat.

    Args:
        session: the open session.
        conversation: over the session's vocabulary.
        settings: what the user can change.
        stop_texts: the answer ends before the first of these.
        terminal: where to read and write.
        ready: a policy as the session can follow it, and the seconds of a plain step by its cost model.
        check_sampling: raises where the engine cannot sample with these options.
        keeper: keeps the conversation, None for no such thing.
        trace_file: where the trace of all answers is written.
        model: its name there.
        has_thinking: the template has a switch for reasoning.
        n_ctx_train: tokens that the model was trained for, 0 where nobody knows.
    """

    def __init__(
        self,
        *,
        session: Session,
        conversation: Conversation,
        settings: Settings,
        stop_texts: tuple[str, ...],
        terminal: Terminal,
        ready: Callable[[Policy], tuple[Policy, float | None]],
        check_sampling: Callable[[SamplingOptions], None],
        keeper: Keeper | None = None,
        trace_file: Path | None = None,
        model: str = "",
        has_thinking: bool = False,
        n_ctx_train: int = 0,
    ) -> None:
        self.session, self.conversation, self.terminal = session, conversation, terminal
        self.settings: Settings = settings
        self._n_ctx_train = n_ctx_train
        self.keeper: Keeper | None = keeper
        self.ready, self.check_sampling, self.has_thinking = ready, check_sampling, has_thinking
        self.attached: list[str] = []  # files that go with the next message
        self.last: Answer | None = None
        self.total = Stats()
        self.n_answers = 0
        self._answerer = Answerer(session, conversation, settings, stop_texts, terminal)
        self._answerer.traces = trace_file is not None
        self._trace_file, self._model = trace_file, model
        self._traces: list[AnswerTrace] = []
        self._failed = False
        self._leaving = self._stopped = False

    @property
    def store(self) -> Store:
        """The conversations that are kept."""
        return self.keeper.store if self.keeper is not None else Store.default()

    # -- the loop

    def run(self) -> int:
        """Chat until the user leaves or the input ends.

        Returns: the exit code; 1 when a line of piped input got no answer, 130 at Ctrl-C in a pipe.
        """
        interactive = self.terminal.interactive
        if interactive:
            self.terminal.note("/help lists the commands, Ctrl-D leaves.")
            self.terminal.use_editor(self._complete, writes_history=self.keeper is not None)
        try:
            code = self._loop()
            if code is not None:
                return code
            if self.keeper is not None:
                self.keeper.leave()
                if not self.keeper.settle() and self.conversation.messages:
                    self.say(f"(kept as {self.keeper.name}: --continue goes on with it, or --load {self.keeper.name})")
        finally:
            # After an error nothing more is written: the transcript has all answers, and the journal what was said of one.
            if self.keeper is not None:
                self.keeper.close()
        return 1 if self._failed and not interactive else 0

    def _loop(self) -> int | None:
        """Returns: the exit code of a pipe that Ctrl-C ended, None otherwise."""
        interactive, terminal = self.terminal.interactive, self.terminal
        with terminal.pressed, terminal.quiet_keys():
            while not self._leaving:
                try:
                    entry = terminal.read_entry()
                except EOFError:
                    if interactive:
                        terminal.note("")
                    return None
                except KeyboardInterrupt:
                    return 130
                except UsageError as error:
                    if not interactive:
                        raise
                    terminal.note(f"error: {error}")
                    continue
                try:
                    self._handle(entry)
                except KeyboardInterrupt:
                    # of a command; an answer and what is kept of it are never cut through
                    if not interactive:
                        return 130
                    terminal.note("(stopped)")
                if self._stopped and not interactive:
                    return 130
        return None

    def _handle(self, entry: str) -> None:
        """Act on one entry."""
        text = unquoted(entry)
        if text is None:
            text = entry.strip()
            if match := _COMMAND.fullmatch(text):
                self._command(*match.groups(default=""))
                return
        if text:
            self._ask(Ask(text))

    def _command(self, name: str, argument: str) -> None:
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            found = get_close_matches(name.lower(), [*COMMANDS, *ALIASES], n=1)
            meant = f"did you mean /{found[0]}? " if found else ""
            self._fail(f"there is no command /{name}: {meant}/help lists them.")
            return
        if argument and not command.usage:
            self._fail(f"/{name} stands alone: nothing may follow it.")
            return
        try:
            with self.terminal.pressed.raising():
                action = command.run(self, argument.strip())
            if isinstance(action, Edit):
                action = self._edited(action.question)
        except OSError as error:
            self._fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
            return
        except EntMTPError as error:
            self._fail(str(error))
            return
        if isinstance(action, Leave):
            self._leaving = True
        elif isinstance(action, Ask):
            self._ask(action)

    def _edited(self, question: str) -> Ask | None:
        if not self.terminal.edits:
            self.say(f"(was: {question})")
        try:
            entry = self.terminal.change_entry(f'"""{question}"""' if _COMMAND.fullmatch(question) else question)
        except (EOFError, KeyboardInterrupt):
            entry = ""
        text = unquoted(entry)
        command = _COMMAND.fullmatch(entry.strip()) if text is None else None
        text = (entry if text is None else text).strip()
        if not text or command:
            self.say("(left as it was)")
            if command:
                self._command(*command.groups(default=""))
            return None
        snapshot = self.conversation.as_json()
        self.conversation.undo()
        return Ask(text, snapshot)

    def _ask(self, ask: Ask) -> None:
        """Answer a question, with the files that go with it."""
        question = "\n\n".join([*self.attached, ask.question])
        before = self.conversation.as_json() if ask.snapshot is None else ask.snapshot
        try:
            if self._answer(
                question, "your message is not part of the conversation" if ask.snapshot is None else "nothing has changed"
            ):
                return
        except ContextFullError as error:
            n_ctx, n_alone = self.session.n_ctx, self.conversation.n_alone(question)
            n = int(str(error)) if str(error).isdigit() else n_ctx
            files = "; what /read put before it is left out from now on" if self.attached else ""
            self.attached.clear()  # or no message would fit any more
            what, ways = "the conversation with this message", self._more_room(n)
            if n_alone >= n_ctx:
                what, n, ways = "this message alone", n_alone, self._or_larger(["shorten it"], n_alone)
            self._fail(f"{what} has {n} tokens and the context holds {n_ctx}: {ways}{files}.")
        except EngineError as error:
            # The session holds what was committed or nothing; the next question brings back what is missing.
            self._fail(str(error))
        except EntMTPError as error:
            self._fail(str(error))
        # Nothing was answered: as if it had not been asked.
        self.conversation.load(before, ids=True)
        self.keep()

    def _answer(self, question: str, unanswered: str) -> bool:
        """Returns: whether there is an answer; where it was stopped before its first word, `unanswered` is told."""
        journal = self.keeper.journal(question) if self.keeper is not None else None
        n_messages = len(self.conversation.messages)
        try:
            answer = self._answerer.answer(question, journal, self.terminal.pressed)
        finally:
            if journal is not None:
                journal.close()
        self.last = answer
        self.n_answers += 1
        self.total.join(answer.stats)
        answered = len(self.conversation.messages) > n_messages
        if answered:
            self.attached.clear()
            self.keep()
        self._note_trace(question, answer)
        self._report(answer, "" if answered else unanswered)
        # once or more often, in the answer or while it was kept: it is stopped, and no more than that
        self._stopped = self.terminal.pressed.take() > 0
        return answered

    # -- what is told

    def _report(self, answer: Answer, unanswered: str) -> None:
        n_ctx = self.session.n_ctx
        if answer.n_dropped:
            turns = "oldest question and its answer" if answer.n_dropped == 1 else f"{answer.n_dropped} oldest questions"
            self.terminal.note(f"(the context of {n_ctx} tokens was full: the model no longer sees the {turns})")
        if self.terminal.pressed():
            self.terminal.note(f"(stopped; {unanswered})" if unanswered else "(stopped)")
        elif answer.finish_reason == "context":
            self.terminal.note(f"(the context of {n_ctx} tokens is full and the answer was cut: {self._more_room(n_ctx, n_ctx)})")
            self._failed = True
        elif not answer.stats.n_generated:
            self.terminal.note("(the model ended without a word: this message is not kept)")
        elif answer.finish_reason == "length":
            self.terminal.note(f"(cut after {self.settings.max_tokens} tokens; /set max-tokens changes that)")
        if self.settings.stats and self.terminal.show_stats and answer.steps:
            self.terminal.note(stats_line(answer.stats, self.settings.rule, self.settings.plain_step))

    def _more_room(self, n_tokens: int, n_answer: int = N_ANSWER) -> str:
        """What to do about a context that is full, given the tokens that have to fit and those that an answer may want."""
        ways = ["/clear starts a new conversation"]
        if self.settings.overflow != "drop":
            ways.append("/set overflow drop lets go of the oldest questions")
        return self._or_larger(ways, n_tokens, n_answer)

    def _or_larger(self, ways: list[str], n_tokens: int, n_answer: int = N_ANSWER) -> str:
        """Ways, and a larger context where it would do and the model was trained for it."""
        n_ctx, n_train = self.session.n_ctx, self._n_ctx_train
        n = _round_up(n_tokens + n_answer)
        n = min(n, n_train or n)
        if n > max(n_ctx, n_tokens):
            goes_on = "--continue " if self.keeper is not None and self.conversation.messages else ""
            return f"{', '.join(ways)}, or start again with {goes_on}-c {n}"
        return f"{', or '.join(ways)}; this model was trained for no more than {n_train} tokens"

    def say(self, text: str) -> None:
        """Tell a person what a command did; a pipe is left alone."""
        if self.terminal.interactive:
            self.terminal.note(text)

    def _fail(self, sentence: str) -> None:
        self._failed = True
        if len(sentence) > _LONGEST_ERROR:
            # what was entered is in it, of any length
            sentence = f"{sentence[: _LONGEST_ERROR // 2]} … {sentence[-_LONGEST_ERROR // 2 :]}"
        self.terminal.note(f"error: {sentence}")

    def _note_trace(self, question: str, answer: Answer) -> None:
        if self._trace_file is None:
            return
        self._traces.append(AnswerTrace(question, answer.policy, answer.steps))
        content = as_json(self._traces, self._model, lambda token: self.session.piece(token, special=True))
        try:
            write_trace(self._trace_file, content)
        except OSError as error:
            self._fail(f"the trace cannot be written to {self._trace_file}: {error.strerror or error}.")

    # -- what is kept

    def keep(self) -> None:
        """Save the transcript."""
        if self.keeper is not None:
            self.keeper.save()

    def resume(self, name: str) -> None:
        """Go on with a kept conversation.

        Raises: UsageError where there is none, TranscriptError where it cannot be read.
        """
        if self.keeper is not None:
            kept = self.keeper.open(name)
        else:
            kept = self.store.load(name)
            self.conversation.load(kept.content, ids=False)
        self.last = None
        self.attached.clear()
        what = "" if self.keeper is not None else ", which stays as it is kept"
        self.say(f"(going on with {kept.name}: {questions(kept.n_turns)}{what})")
        if self.conversation.messages and self.terminal.interactive:
            question, answer = (message["content"] for message in self.conversation.messages[-2:])
            end = answer if len(answer) <= _N_REMINDER else "…" + answer[-_N_REMINDER:]
            self.terminal.note(f"> {question[:_N_REMINDER]}")
            self.terminal.note(end)
        if kept.cut:
            self.terminal.note("(the last answer was cut off when the program ended; /regen gives it again)")

    # -- completion

    def _complete(self, before: str) -> Iterable[str] | str:
        name, space, argument = before.removeprefix("/").partition(" ")
        if not space:
            return [f"/{each} ".rstrip(" " * (not command.usage)) for each, command in COMMANDS.items()]
        command: Command | None = COMMANDS.get(name)
        return command.complete(self, argument.strip()) if command is not None else ()


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // 1024) * 1024
