"""llama.cpp's log: kept out of the way, and its last complaint at hand for error sentences."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from typing import Any

_LEVEL_WARN = 3
_LEVEL_ERROR = 4
_LEVEL_CONTINUED = 5

# The library keeps a pointer to the callback for as long as the process lives.
_installed: Any = None


class LogCapture:
    """Receives the log of the whole library; the newest capture gets it."""

    def __init__(self, llama: Any, *, verbose: bool) -> None:
        global _installed
        self._lines: deque[str] = deque(maxlen=8)
        self._level = 0
        self._verbose = verbose

        def receive(level: int, text: bytes, _user_data: Any) -> None:
            self._receive(level, text.decode("utf-8", errors="replace"))

        _installed = llama.llama_log_callback(receive)
        llama.llama_log_set(_installed, ctypes.c_void_p(0))

    def _receive(self, level: int, text: str) -> None:
        if self._verbose:
            sys.stderr.write(text)
        if level != _LEVEL_CONTINUED:
            self._level = level
        if self._level in (_LEVEL_WARN, _LEVEL_ERROR) and text.strip():
            self._lines.append(text.strip())

    def forget(self) -> None:
        """Drop what was logged: it has nothing to do with what fails later."""
        self._lines.clear()

    def last_error(self) -> str:
        """The first of the last lines that the library complained with, without its function name; they name the cause."""
        if not self._lines:
            return "no reason was logged"
        line = self._lines[0]
        self._lines.clear()
        return line.split(": ", 1)[-1].rstrip(".")
