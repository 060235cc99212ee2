"""Ctrl-C as a flag that the generation loop polls, so that it never cuts through a half-finished step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While entered, Ctrl-C sets a flag instead of raising KeyboardInterrupt; the flag is what the object returns."""

    def __init__(self) -> None:
        self.count = 0  # how often Ctrl-C was pressed
        self._previous: Any = None

    def __call__(self) -> bool:
        return self.count > 0

    def __enter__(self) -> Interrupt:
        self.count = 0
        # Python delivers signals to the main thread only and refuses a handler from any other.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
