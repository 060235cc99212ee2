"""How far a prompt has been read, where that takes long enough to wonder."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from entmtp_local.chat.terminal import Terminal

_PATIENCE = 0.7  # seconds without a word
_WIDTH = 24


class ReadingProgress:
    """A bar on the terminal, from the engine's passes over a prompt; nothing in a pipe."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = perf_counter) -> None:
        self._terminal, self._clock = terminal, clock
        self._begin: float | None = clock()
        self._shown = False

    def show(self, n_read: int, n_tokens: int) -> None:
        """Called between passes."""
        if self._begin is None or n_read >= n_tokens or self._clock() - self._begin < _PATIENCE:
            return
        self._shown = True
        done = _WIDTH * n_read // max(1, n_tokens)
        self._terminal.status(f"reading [{'#' * done}{'.' * (_WIDTH - done)}] {n_read} of {n_tokens} tokens")

    def end(self) -> None:
        """The prompt is read: take the bar away."""
        self._begin = None
        if self._shown:
            self._shown = False
            self._terminal.status("")
