"""Progress lines, log files, child processes and the lock of the engine build.

Knows nothing of what is being built.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

_STEP_COUNT = re.compile(r"^\[\s*(\d+/\d+|\d+%)\]")  # what Ninja and Make print before each step
_TAIL_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Finished:
    """A child process that has ended, and where its output lies."""

    returncode: int
    log: Path

    def output(self) -> str:
        """The end of the log, which is where a failure says why."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")


class Reporter:
    """Prints one line a stage and keeps what the child processes print in log files.

    Args:
        log_dir: folder of the log files; created when the first is written.
        stream: where the progress lines go.
        verbose: print the child processes' output too.
    """

    def __init__(self, log_dir: Path, stream: TextIO | None = None, *, verbose: bool = False) -> None:
        self._log_dir = log_dir
        self._stream = stream if stream is not None else sys.stderr
        self._verbose = verbose
        self._is_terminal = self._stream.isatty()
        self._lock_fd: int | None = None
        self._title = ""

    def note(self, text: str) -> None:
        """Print one line."""
        print(text, file=self._stream, flush=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print what begins, and how long it took once it is done."""
        self._title = title
        started = time.monotonic()
        print(f"{title} ...", end="\n" if self._verbose else "", file=self._stream, flush=True)
        try:
            yield
        except BaseException:
            print(" stopped", file=self._stream, flush=True)
            raise
        seconds = time.monotonic() - started
        # On a terminal the line may hold a step count, which is longer.
        line = f"\r{title} ... {seconds:.1f} s      " if self._is_terminal else f" {seconds:.1f} s"
        print(line, file=self._stream, flush=True)

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold `path` as a lock, waiting for another process that holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                self.note(f"Waiting for another build to end (process {holder}) ...")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()}\n")
            file.flush()
            self._lock_fd = file.fileno()
            try:
                yield
            finally:
                self._lock_fd = None

    def run(
        self,
        argv: Sequence[str],
        log: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a command to its end, its output going to `<log_dir>/<log>.log`."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        path = self._log_dir / f"{log}.log"
        # Children inherit the lock: a compiler that outlives a killed build keeps the next build waiting
        # instead of writing into the same folder with it.
        inherited = () if self._lock_fd is None else (self._lock_fd,)
        with (
            path.open("w", encoding="utf-8", buffering=1) as out,
            subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                cwd=cwd,
                env=dict(env) if env is not None else None,
                pass_fds=inherited,
            ) as child,
        ):
            assert child.stdout is not None
            out.write(f"$ {shlex.join(argv)}\n")
            try:
                for line in child.stdout:
                    out.write(line)
                    self._show(line)
            except BaseException:
                child.terminate()
                raise
        return Finished(child.returncode, path)

    def _show(self, line: str) -> None:
        if self._verbose:
            print(line, end="", file=self._stream, flush=True)
        elif self._is_terminal and (count := _STEP_COUNT.match(line)):
            print(f"\r{self._title} ... {count[1]}", end="", file=self._stream, flush=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a stamp so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a stamp; None when there is none, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
