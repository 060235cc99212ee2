"""Ctrl-C as a flag that loops poll, so that it never cuts through a half-finished step; and the signals that end a program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

#: What a shell reports for a program that SIGTERM ended.
EXIT_TERMINATED = 143


class Interrupt:
    """While entered, Ctrl-C sets a flag instead of raising KeyboardInterrupt; the flag is what the object returns."""

    def __init__(self) -> None:
        self.count = 0  # how often Ctrl-C was pressed
        self._raises = False
        self._previous: Any = None

    def __call__(self) -> bool:
        return self.count > 0

    def __enter__(self) -> Interrupt:
        self.count, self._raises = 0, False
        # Python delivers signals to the main thread only and refuses a handler from any other.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def take(self) -> int:
        """How often Ctrl-C was pressed since the last time."""
        n, self.count = self.count, 0
        return n

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, Ctrl-C raises KeyboardInterrupt again, once; so does one that came before and that nobody took."""
        self._raises = True
        try:
            if self.take():
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt
        self.count += 1


@contextmanager
def never_lost() -> Iterator[Callable[[], None]]:
    """While entered, Ctrl-C raises KeyboardInterrupt as ever, and what is yielded raises it where that was swallowed.

    An exception that a signal raises within a destructor or a callback is printed and forgotten.
    """
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While entered, signals that would end the program at once let it put right first what it changed around it."""
    previous: dict[signal.Signals, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_TERMINATED)

    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup's program goes on without its terminal
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, end)
    except ValueError:
        pass  # not the main thread, which gets no signals
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
