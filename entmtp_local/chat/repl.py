"""The chat loop: read a line, stream the answer, keep the conversation.

Works on a terminal and in a pipe. Knows nothing of how tokens are drafted or verified.
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from entmtp_local.chat.conversation import Conversation, Prompt
from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.chat.stream import TextStream, dimmed, stats_line, without_control
from entmtp_local.engine import Generation, generate
from entmtp_local.errors import ContextFullError, EngineError, ModelFileError, UsageError
from entmtp_local.native.session import Session
from entmtp_local.speculative.copying import CopyDrafter
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.verify import AcceptanceRule

PROMPT = "> "

HELP = """\
/clear  forget the conversation and start a new one
/exit   leave (so do Ctrl-D, and Ctrl-C twice)
/help   show this
Ctrl-C  stop the answer; what was said so far stays in the conversation"""

# Room for an answer in the context size that a full context is told to use.
_N_ANSWER = 1024


@dataclass(frozen=True, slots=True)
class Terminal:
    """The three standard streams, and what the user sees of them.

    Args:
        stdin, stdout, stderr: text streams.
        show_stats: write the line of figures after each answer.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    show_stats: bool

    @property
    def interactive(self) -> bool:
        """A person types: prompt, hints and line editing are wanted."""
        return self.stdin.isatty()

    def read_line(self) -> str:
        """Read one line, without its newline.

        Raises: EOFError at the end of input, KeyboardInterrupt at Ctrl-C, UsageError for bytes that are not UTF-8.
        """
        try:
            line = self._raw_line()
            line.encode("utf-8")
        except UnicodeError:
            raise UsageError("the input is not UTF-8 text; convert it first, for instance with iconv.") from None
        return line

    def _raw_line(self) -> str:
        if self.interactive and self.stdout.isatty():
            # input() is the one way to the line editing of the readline module.
            return input(PROMPT)
        if self.interactive:
            self.note(PROMPT, end="")
        line = self.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    def write(self, text: str) -> None:
        """Show a part of an answer at once."""
        if text:
            self.stdout.write(without_control(text) if self.stdout.isatty() else text)
            self.stdout.flush()

    def note(self, text: str, end: str = "\n") -> None:
        """Tell the user something that is not the model's words."""
        self.stderr.write(dimmed(text, self.stderr) + end)
        self.stderr.flush()


class Repl:
    """One session's chat.

    Args:
        session: the open session.
        conversation: an empty conversation over the session's vocabulary.
        policy: what to draft.
        rule: which drafted tokens are accepted.
        sampling: a seed of None draws one for each answer.
        max_tokens: most tokens of an answer; None ends with the model's own end or a full context.
        stop_texts: the answer ends before the first of these.
        terminal: where to read and write.
        copies: drafts from the conversation so far, None for no such drafts.
    """

    def __init__(
        self,
        session: Session,
        conversation: Conversation,
        policy: Policy,
        rule: AcceptanceRule,
        sampling: SamplingOptions,
        max_tokens: int | None,
        stop_texts: tuple[str, ...],
        terminal: Terminal,
        copies: CopyDrafter | None = None,
    ) -> None:
        self._session = session
        self._conversation = conversation
        self._policy = policy
        self._rule = rule
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._stop_texts = stop_texts
        self._terminal = terminal
        self._copies = copies
        self._failed = False
        self._interrupted = False

    def run(self) -> int:
        """Chat until the user leaves or the input ends.

        Returns: the exit code; 1 when a line of piped input got no answer.
        """
        if self._terminal.interactive:
            _enable_line_editing()
            self._terminal.note("/help lists the commands, Ctrl-D leaves.")
        leaving = False
        while True:
            try:
                line = self._terminal.read_line().strip()
            except EOFError:
                if self._terminal.interactive:
                    self._terminal.note("")
                break
            except KeyboardInterrupt:
                if not self._terminal.interactive:
                    return 130
                self._terminal.note("")
                if leaving:
                    break
                leaving = True
                self._terminal.note("(Ctrl-C again or Ctrl-D leaves)")
                continue
            except UsageError as error:
                if not self._terminal.interactive:
                    raise
                self._terminal.note(f"error: {error}")
                continue
            leaving = False
            if not self._handle(line):
                break
            if self._interrupted and not self._terminal.interactive:
                return 130
        return 1 if self._failed and not self._terminal.interactive else 0

    def _handle(self, line: str) -> bool:
        """Act on one line; False leaves."""
        if line == "/exit":
            return False
        if line == "/clear":
            self._conversation.clear()
            if self._terminal.interactive:
                self._terminal.note("(a new conversation)")
        elif line == "/help":
            self._terminal.note(HELP)
        elif re.fullmatch(r"/[a-z]+", line):
            self._fail(f"there is no command {line}: /help lists them.")
        elif line:
            self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        try:
            prompt = self._conversation.ask(question)
        except ModelFileError as error:
            self._fail(str(error))
            return
        try:
            self._stream(prompt)
        except ContextFullError:
            self._fail(
                f"the conversation with this message has {len(prompt.ids)} tokens and the context holds "
                f"{self._session.n_ctx}: /clear starts a new conversation, or start again with "
                f"-c {_round_up(len(prompt.ids) + _N_ANSWER)}."
            )
        except EngineError as error:
            # The session holds what was committed or nothing; the next question brings back what is missing.
            self._terminal.write("\n")
            self._fail(str(error))

    def _stream(self, prompt: Prompt) -> None:
        text = TextStream(self._stop_texts)
        n_ctx = self._session.n_ctx
        with Interrupt() as interrupt, self._session.new_sampler(self._sampling.with_seed()) as sampler:
            generation = generate(
                self._session,
                prompt.ids,
                policy=self._policy,
                rule=self._rule,
                sampler=sampler,
                max_tokens=self._max_tokens or n_ctx,
                stop=lambda: interrupt() or text.stopped,
                copies=self._copies,
            )
            for step in generation:
                for token in step.tokens:
                    # Special tokens are spelled out, so that the history reads back as the same tokens.
                    self._terminal.write(text.feed(self._session.piece(token, special=True)))
        self._terminal.write(text.finish())
        # Piped answers end with exactly one newline; a terminal must not go on in the middle of a line.
        if not text.text.endswith("\n"):
            self._terminal.write("\n")
        # Stopped before the first token: as if it had not been asked.
        if generation.tokens:
            self._conversation.answered(prompt, text.text, None if text.stopped else generation.tokens)
        self._interrupted = interrupt()
        self._report(generation, self._interrupted, n_ctx)

    def _report(self, generation: Generation, interrupted: bool, n_ctx: int) -> None:
        if interrupted:
            self._terminal.note("(stopped)")
        elif generation.finish_reason == "context":
            self._terminal.note(
                f"(the context of {n_ctx} tokens is full and the answer was cut: /clear starts a new conversation, "
                f"or start again with -c {_round_up(2 * n_ctx)})"
            )
            self._failed = True
        elif generation.finish_reason == "length":
            self._terminal.note(f"(cut after -n {self._max_tokens} tokens)")
        if self._terminal.show_stats:
            self._terminal.note(stats_line(generation.stats, generation.rule))

    def _fail(self, sentence: str) -> None:
        self._failed = True
        self._terminal.note(f"error: {sentence}")


def _enable_line_editing() -> None:
    # Importing it is what switches input() over; some Pythons lack it.
    with suppress(ImportError):
        importlib.import_module("readline")


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // 1024) * 1024
