"""This runtime as an arm: a session in a process of its own, so that arms share neither memory nor what they learnt.

The engine runs in that process as it does in chat and run; only prompts and answers cross over.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from entmtp_local.bench.text import Request, Text, on_the_clock
from entmtp_local.engine import generate
from entmtp_local.errors import EngineError, EntMTPError
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.native.timing import warm_up
from entmtp_local.speculative.copying import CopyDrafter
from entmtp_local.speculative.policy import drafted_by, parse_policy, sizes_of
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree

# What ends a text, where tokens are compared.
END = -1
_PACE = 32

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Setup:
    """How an arm of this runtime decodes.

    Args:
        options: of the session; the policy's own depth and nodes.
        policy: its name.
        copy: whether text of the prompt and the answer is copied.
        profile: for policies that want one.
    """

    options: SessionOptions
    policy: str
    copy: bool = True
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart two tokens are in a row of the target.

    Args:
        gap: logit of the one less that of the other.
        rounding: largest difference of a logit in that row between a pass of one token and one of many.
    """

    gap: float
    rounding: float


class Answering:
    """The child's side: a session and a policy, which learns from one text to the next."""

    def __init__(self, session: Session, setup: Setup) -> None:
        self._session = session
        self._copy = setup.copy and setup.options.max_copied > 0
        self._policy: Policy = parse_policy(setup.policy).within(session.limits)
        if self._policy.needs_profile:
            if setup.profile is None:
                raise EngineError(f"the policy {setup.policy} needs a profile: this is a bug, please report it.")
            if setup.profile.head is not None:
                self._session.adopt_draft_head(setup.profile.head)
            self._policy.calibrated(setup.profile)
        warm_up(session, sizes_of(self._policy), drafted_by(self._policy))

    def complete(self, request: Request) -> Text:
        session = self._session
        session.clear()
        pace: list[tuple[int, float]] = []
        with session.new_sampler(request.sampling) as sampler:
            generation = generate(
                session,
                request.prompt,
                policy=self._policy,
                sampler=sampler,
                max_tokens=request.n,
                copies=CopyDrafter() if self._copy else None,
            )
            stats = generation.stats
            for _ in generation:
                if stats.n_generated >= (len(pace) + 1) * _PACE:
                    pace.append((stats.n_generated, stats.seconds["decode"]))
        return Text(
            tokens=generation.tokens,
            n=stats.n_generated,
            ended=generation.finish_reason == "stop",
            n_prompt=stats.n_prompt,
            prefill_seconds=stats.seconds["prefill"],
            decode_seconds=stats.seconds["decode"],
            n_drafted=stats.n_nodes,
            n_accepted=sum(stats.accepted_per_depth),
            n_steps=stats.n_steps,
            accepted_per_depth=list(stats.accepted_per_depth),
            parts={part: stats.seconds[part] for part in ("draft", "verify", "accept", "commit", "schedule")},
            pace=pace,
        )

    def gap(self, text: Sequence[int], one: int, other: int) -> Gap:
        """Of the tokens after a text; END stands for the most probable of those that end it."""
        session = self._session
        session.clear()
        session.prefill(text, lambda: False)
        wide = session.logits(-1)
        session.clear()
        if len(text) > 1:
            session.prefill(text[:-1], lambda: False)
            session.start(text[-1])
            session.verify(DraftTree(ROOT_ONLY, (text[-1],)))
            narrow = session.logits(0)
            session.discard()
            session.clear()
        else:
            # nothing is behind the token that a pass of its own could follow
            narrow = wide
        ends = [token for token in range(session.n_vocab) if session.is_eog(token)] if END in (one, other) else []

        def logit(token: int) -> float:
            return float(narrow[ends].max() if token == END else narrow[token])

        finite = np.isfinite(narrow) & np.isfinite(wide)
        return Gap(logit(one) - logit(other), float(np.abs(narrow - wide)[finite].max()))


class Worker:
    """The parent's side; a context manager.

    Args:
        name: of the arm, for sentences.
        answering: a class whose methods are called in the child; a test has its own.
    Raises: what opening the session raises.
    """

    def __init__(self, name: str, setup: Setup, answering: Callable[[Session, Setup], Any] = Answering) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup, answering), daemon=True)
        _start_undisturbed(self._process)
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def complete(self, request: Request) -> Text:
        """Continue a prompt on an empty context."""
        return on_the_clock(self.name, lambda: self._call("complete", request))

    def gap(self, text: Sequence[int], one: int, other: int) -> Gap:
        """See Answering."""
        return self._call("gap", text, one, other)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process. Harmless when called twice."""
        self._pipe.close()
        # it has nothing to put in order
        self._process.kill()
        self._process.join()

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise self._ended() from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            result = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(result, EntMTPError):
            raise result
        return result

    def _ended(self) -> EngineError:
        self._process.join(timeout=2)
        return EngineError(f"{self.name} ended with code {self._process.exitcode} in the middle of its work; try it with run.")


def in_child(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a module's function in a process of its own: what it loads is gone from memory when it returns.

    Raises: the EntMTPError that it raises; EngineError where it dies.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, function, arguments), daemon=True)
    _start_undisturbed(process)
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join(timeout=2)
        raise EngineError(f"the engine ended with code {process.exitcode} while the model was prepared.") from None
    finally:
        ours.close()
        process.kill()
        process.join()
    if isinstance(result, EntMTPError):
        raise result
    return result  # type: ignore[no-any-return]


def _start_undisturbed(process: Any) -> None:
    """Start a child that Ctrl-C in the terminal does not reach: the parent ends it.

    Until it has a session of its own, it ignores the signal as it inherits that.
    """
    try:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        # not the main thread, which Ctrl-C does not reach either
        process.start()
        return
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, previous)


def _serve(pipe: Connection, setup: Setup, answering: Callable[[Session, Setup], Any]) -> None:
    os.setsid()
    try:
        with Session.open(setup.options) as session:
            answers = answering(session, setup)
            pipe.send(None)
            while True:
                try:
                    method, arguments = pipe.recv()
                except EOFError:
                    return
                try:
                    pipe.send(getattr(answers, method)(*arguments))
                except EntMTPError as error:
                    pipe.send(error)
    except EntMTPError as error:
        pipe.send(error)
    except OSError:
        # nobody listens any more
        return


def _run(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    try:
        result = function(*arguments)
    except EntMTPError as error:
        result = error
    pipe.send(result)
