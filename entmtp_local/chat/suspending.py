"""Ctrl-Z while an answer is streamed: the time until the program goes on is none of the answer's, and what is on the screen then
is the shell's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from time import perf_counter
from types import FrameType, TracebackType
from typing import Any

# Windows has none
_SIGNAL: signal.Signals | None = getattr(signal, "SIGTSTP", None)


class Suspensions:
    """While entered, Ctrl-Z stops the program between passes, and it is noted for how long.

    Args:
        keys: called with True when the terminal is to be as the shell had it, with False when the program goes on.
    """

    def __init__(self, keys: Callable[[bool], None]) -> None:
        self._keys = keys
        self._seconds = 0.0
        self._went_on = False
        self._previous: Any = None

    def clock(self) -> float:
        """Seconds that pass while the program runs."""
        return perf_counter() - self._seconds

    def take(self) -> bool:
        """Whether the program was stopped and went on since the last time."""
        went_on, self._went_on = self._went_on, False
        return went_on

    def __enter__(self) -> Suspensions:
        # a shell without job control has it ignored
        if _SIGNAL and threading.current_thread() is threading.main_thread() and signal.getsignal(_SIGNAL) is signal.SIG_DFL:
            self._previous = signal.signal(_SIGNAL, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if _SIGNAL and self._previous is not None:
            signal.signal(_SIGNAL, self._previous)
            self._previous = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        begin = perf_counter()
        self._keys(True)
        # not SIGSTOP: where no shell could let it go on, the system lets this one pass
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._handle)
        self._keys(False)
        self._seconds += perf_counter() - begin
        self._went_on = True
