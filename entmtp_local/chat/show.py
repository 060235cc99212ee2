"""What becomes of each step of an answer: text for the view that the settings ask for, and for the journal."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from entmtp_local.chat.reasoning import ReasoningSplitter
from entmtp_local.chat.settings import Settings
from entmtp_local.chat.store import Journal
from entmtp_local.chat.stream import TextStream
from entmtp_local.chat.tags import THINK, Tags
from entmtp_local.chat.terminal import Terminal
from entmtp_local.chat.trace import tokens_of
from entmtp_local.chat.trace_view import TraceView
from entmtp_local.chat.views import INTERVAL, MarkdownView, PlainView, View
from entmtp_local.engine import Step


class Vocabulary(Protocol):
    """What is asked of a session."""

    def piece(self, token: int, *, special: bool) -> bytes: ...


class Show:
    """Gives each step's text to the view that the settings ask for, and to the journal.

    Args:
        tags: what the model writes around its reasoning.
        inside: the prompt has opened it.
    """

    def __init__(
        self,
        terminal: Terminal,
        settings: Settings,
        vocabulary: Vocabulary,
        tags: Tags = THINK,
        *,
        inside: bool,
        journal: Journal | None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._vocabulary, self._journal, self._clock = vocabulary, journal, clock
        self._unnoted: list[str] = []
        self._next_note = 0.0
        self._trace = TraceView(terminal, clock) if settings.trace else None
        self._view: View
        shows = not settings.hides_thinking
        draws = terminal.can_move and settings.markdown
        if draws:
            self._view = MarkdownView(terminal, shows_reasoning=shows, clock=clock)
        else:
            self._view = PlainView(terminal, shows_reasoning=shows, clock=clock)
        # plain text is the model's, tags included, unless part of it is not wanted
        self._splitter = ReasoningSplitter(tags, inside=inside) if draws or not shows else None

    def step(self, step: Step, text: TextStream) -> None:
        """Show what a step emitted.

        Args:
            text: takes the tokens' bytes.
        """
        # Special tokens are spelled out, so that the history reads back as the same tokens.
        self._feed("".join([text.feed(self._piece(token)) for token in step.tokens]))
        if self._unnoted and (now := self._clock()) >= self._next_note:
            self._next_note = now + INTERVAL
            self._note()
        if self._trace is not None:
            self._trace.add(tokens_of(step, self._piece))
            self._trace.tick()
        else:
            self._view.tick()

    def forget(self) -> None:
        """What was drawn is not where it was."""
        (self._trace or self._view).forget()

    def finish(self, text: TextStream) -> None:
        """Show what was held back, and end the line."""
        self._feed(text.finish())
        self._note()
        if self._trace is not None:
            self._trace.finish()
            return
        if self._splitter is not None:
            for is_reasoning, part in self._splitter.finish():
                (self._view.reason if is_reasoning else self._view.feed)(part)
        self._view.finish()

    def _note(self) -> None:
        """Tell the journal what is about to be shown."""
        if self._journal is not None and self._unnoted:
            self._journal.add("".join(self._unnoted))
        self._unnoted.clear()

    def _piece(self, token: int) -> bytes:
        return self._vocabulary.piece(token, special=True)

    def _feed(self, shown: str) -> None:
        if not shown:
            return
        self._unnoted.append(shown)
        if self._splitter is None:
            self._view.feed(shown)
            return
        for is_reasoning, part in self._splitter.feed(shown):
            (self._view.reason if is_reasoning else self._view.feed)(part)
