"""An external llama-server on loopback: started, asked, and ended whatever happens.

Any program that takes llama-server's arguments and answers its /health and /completion, with timings, will do. Its own counters
are what is reported; they are held against the clock on the wall.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from entmtp_local.bench.text import Request, Text, on_the_clock
from entmtp_local.errors import ServerError, UsageError

_HOST = "127.0.0.1"
_N_PORTS = 3
_MAX_TOKEN = 2**31
_FASTEST_MS = 1e-3  # that a token can take
_PR_SET_PDEATHSIG = 1


def check_binary(path: Path, name: str, remedy: str) -> None:
    """Refuse a server that cannot be started, before anything is measured.

    Raises: UsageError that ends with the remedy.
    """
    if not path.is_file():
        raise UsageError(f"there is no program {path} for {name}; {remedy}.")
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path}, given for {name}, is not a program that can be run; {remedy}.")


class Server:
    """A running server; a context manager.

    Args:
        name: of the arm, for sentences.
        command: program and arguments, host and port left out.
        model: the file that it serves.
        eog: tokens that end a text.
        startup_seconds: that loading may take.
        answer_seconds: that one answer may take.
    Raises: ServerError where it does not start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        model: Path,
        eog: Collection[int] = (),
        *,
        startup_seconds: float = 900.0,
        answer_seconds: float = 3600.0,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._model = model
        self._eog = frozenset(eog)
        self._startup_seconds = startup_seconds
        self._answer_seconds = answer_seconds
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._process: subprocess.Popen[bytes] | None = None
        try:
            for attempt in range(_N_PORTS):
                if self._start(is_last=attempt == _N_PORTS - 1):
                    break
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """End the process and those that it started. Harmless when called twice."""
        try:
            self._end()
        finally:
            self._log.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # the process is the first of its session: a server behind a script of the user's is in its group
            with suppress(ProcessLookupError, PermissionError):  # macOS forbids what has ended
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # -- starting

    def _start(self, *, is_last: bool) -> bool:
        """Whether it runs; False where another program took its port, and another one is to be tried."""
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            self._port = int(probe.getsockname()[1])
        self._log.seek(0)
        self._log.truncate()
        command = [*self._command, "--host", _HOST, "--port", str(self._port)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                # Ctrl-C in the terminal is ours alone
                start_new_session=True,
                preexec_fn=_ends_with_parent(),
            )
        except OSError as error:
            raise ServerError(
                f"{command[0]} cannot be started for {self.name} ({error.strerror or error}); give the path of a llama-server."
            ) from None
        end = time.monotonic() + self._startup_seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                if not self._port_was_taken():
                    raise ServerError(self._ended("while it started"))
                if is_last:
                    raise ServerError(
                        f"{self.name} found its ports taken by other programs {_N_PORTS} times; run the command again."
                    )
                self._end()
                return False
            if self._is_ready():
                self._check_identity()
                return True
            time.sleep(0.05)
        raise ServerError(f"{self.name} was not ready after {self._startup_seconds:.0f} s{self._last_words()}.")

    def _is_ready(self) -> bool:
        try:
            return self._ask("GET", "/health", None, timeout=5.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _check_identity(self) -> None:
        """Refuse what answers on the port but is another program: one that took the port, or no llama-server."""
        assert self._process is not None
        served = None
        try:
            status, data = self._ask("GET", "/props", None, timeout=5.0)
            answer = json.loads(data) if status == 200 else {}
            served = answer.get("model_path") if isinstance(answer, dict) else None
        except (OSError, http.client.HTTPException, ValueError):
            pass
        # forks have no model_path; what they are is seen at their first answer
        if self._process.poll() is not None or (isinstance(served, str) and Path(served).name != self._model.name):
            raise ServerError(f"another program answers on the port of {self.name}; run the command again.")

    # -- asking

    def complete(self, request: Request) -> Text:
        """Continue a prompt.

        Raises: ServerError where the server fails; ClockError where its counters are wrong again and again.
        """
        return on_the_clock(self.name, lambda: self._parse(self._completion(request), request))

    def _completion(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "prompt": list(request.prompt),
            "n_predict": request.n,
            "cache_prompt": False,
            "stream": False,
            "return_tokens": True,
            # at temperature 0 nothing else is worth a server's time
            "samplers": ["temperature"] if sampling.greedy else ["top_k", "top_p", "min_p", "temperature"],
            "temperature": sampling.temp,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": sampling.seed,
        }
        try:
            status, data = self._ask("POST", "/completion", json.dumps(body).encode(), timeout=self._answer_seconds)
        except TimeoutError:
            raise ServerError(f"{self.name} gave no answer within {self._answer_seconds:.0f} s{self._last_words()}.") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(self._ended("in the middle of an answer", error)) from None
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{self.name} does not answer as a llama-server does (status {status}, no JSON object).")
        if status != 200:
            said = answer.get("error")
            detail = said.get("message") if isinstance(said, dict) else said
            raise ServerError(f"{self.name} refused a prompt of {len(request.prompt)} tokens: {detail or f'status {status}'}.")
        return answer

    def _parse(self, answer: dict[str, Any], request: Request) -> Text:
        timings = answer.get("timings")
        try:
            n_counted, milliseconds = int(timings["predicted_n"]), float(timings["predicted_ms"])  # type: ignore[index]
            prefill = float(timings["prompt_ms"]) / 1e3  # type: ignore[index]
            n_drafted, n_accepted = int(timings.get("draft_n", 0)), int(timings.get("draft_n_accepted", 0))  # type: ignore[union-attr]
            n_read = int(timings["prompt_n"])  # type: ignore[index]
            counts = tuple(map(float, (n_counted, n_drafted, n_accepted, milliseconds, prefill)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise ServerError(f"the answer of {self.name} has no timings of llama-server's; it cannot be measured.") from None
        if (
            not all(math.isfinite(count) and count >= 0 for count in counts)
            or n_accepted > n_drafted
            or milliseconds < _FASTEST_MS * (n_counted - 1)
        ):
            raise ServerError(
                f"the timings of {self.name} cannot be: {n_counted} tokens in {milliseconds:g} ms, {n_accepted} of {n_drafted} "
                f"drafted ones kept, {1e3 * prefill:g} ms for the prompt."
            )
        if n_counted > request.n + 1:
            raise ServerError(f"{self.name} counts {n_counted} tokens where {request.n} were asked for; it cannot be measured.")
        n_prompt = len(request.prompt)
        if n_read != n_prompt:
            raise ServerError(f"{self.name} read {n_read} tokens of a prompt of {n_prompt}; it must begin each prompt anew.")
        tokens = answer.get("tokens")
        ended = answer.get("stop_type") == "eos" or bool(answer.get("stopped_eos"))
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens) or (not tokens and n_counted > 1):
            # some forks tell no tokens: how many there are is all that is known, and the text cannot be checked
            tokens = None
        elif not all(abs(token) < _MAX_TOKEN for token in tokens):
            raise ServerError(f"{self.name} gives {max(tokens, key=abs)} as a token; it does not answer as a llama-server does.")
        elif abs(len(tokens) - n_counted) > 1:
            raise ServerError(f"{self.name} gives {len(tokens)} tokens and counts {n_counted}; it cannot be measured.")
        elif tokens and tokens[-1] in self._eog:
            tokens, ended = tokens[:-1], True
        if tokens is not None and not ended and max(n_counted, len(tokens)) < request.n:
            raise ServerError(
                f"{self.name} gives {len(tokens)} of {request.n} tokens and does not say that the text ended; its context may be "
                "too small: give it a larger one, or a smaller -n."
            )
        n = max(0, n_counted - ended) if tokens is None else len(tokens)
        # each pass gives the drafts that it accepts and one token more
        return Text(
            tokens=tokens,
            n=n,
            ended=ended,
            n_prompt=n_prompt,
            prefill_seconds=prefill,
            decode_seconds=milliseconds / 1e3,
            n_drafted=n_drafted,
            n_accepted=n_accepted,
            n_steps=max(1, n_counted - 1 - n_accepted),
        )

    def _ask(self, method: str, path: str, body: bytes | None, *, timeout: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    # -- what went wrong

    def _lines(self) -> list[str]:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 65536))
        return [line.strip() for line in self._log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]

    def _port_was_taken(self) -> bool:
        return any("bind" in line.lower() or "address already in use" in line.lower() for line in self._lines())

    def _last_words(self) -> str:
        """The last line that speaks of an error, or the last line."""
        lines = self._lines()
        # what follows an error is how the program ends, which says less
        told = [line for line in lines if any(word in line.lower() for word in ("error", "failed", "invalid", "abort", "assert"))]
        line = (told or lines)[-1:]
        return f"; its last words: {line[0][:300]}" if line else ""

    def _ended(self, when: str, error: Exception | None = None) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return f"{self.name} broke off {when} ({type(error).__name__}){self._last_words()}."
        how = f"with code {code}" if code >= 0 else f"by {_signal_name(-code)}"
        by_hand = shlex.join(self._command)
        return f"{self.name} ended {how} {when}{self._last_words()}; to see more: {by_hand}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ends_with_parent() -> Callable[[], None] | None:
    """Where the system can, a server dies with this program even if that is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def run() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return run
