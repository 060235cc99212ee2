"""One answer to one prompt as every arm reports it, and what is asked for. Knows nothing of who answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from entmtp_local.errors import ServerError
from entmtp_local.speculative.sampling import SamplingOptions

# An answer's counters leave out what lies around them: the request's way, tokenizing, writing the answer down.
_OVERHEAD_SECONDS = 0.1
_OVERHEAD_SHARE = 0.1
# Clocks are read at slightly different moments.
_CLOCK_SECONDS = 0.005
# A busy machine may keep an answer waiting once; a counter that is wrong is wrong each time.
_N_TRIES = 3


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue, the same for every arm.

    Args:
        prompt: token ids.
        n: tokens to generate at most.
        sampling: with its seed.
    """

    prompt: tuple[int, ...]
    n: int
    sampling: SamplingOptions


@dataclass(slots=True)
class Text:
    """What came back.

    Args:
        tokens: generated ids, one that ends the text left out; None where the arm does not tell.
        n: of them.
        ended: whether the model ended the text.
        n_prompt: tokens of the prompt.
        prefill_seconds: until the first token.
        decode_seconds: from the first token to the last.
        n_drafted, n_accepted: drafted tokens, and those of them that were kept.
        n_steps: passes of the target after the first token; None where the arm does not tell.
        accepted_per_depth: [d] = steps that accepted a token at depth d + 1; empty where the arm does not tell.
        parts: seconds by part of the step; empty where the arm does not tell.
        pace: (tokens, seconds since the first token), every few tokens; empty where the arm does not tell.
    """

    tokens: list[int] | None
    n: int
    ended: bool
    n_prompt: int
    prefill_seconds: float
    decode_seconds: float
    n_drafted: int = 0
    n_accepted: int = 0
    n_steps: int | None = None
    accepted_per_depth: list[int] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    pace: list[tuple[int, float]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Everything but the tokens, for a JSON file."""
        return {
            "n": self.n,
            "ended": self.ended,
            "n_prompt": self.n_prompt,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "n_drafted": self.n_drafted,
            "n_accepted": self.n_accepted,
            "n_steps": self.n_steps,
            "accepted_per_depth": self.accepted_per_depth,
            "parts": self.parts,
            "pace": [list(point) for point in self.pace],
        }


class ClockError(ServerError):
    """An arm's own timings do not fit the time that passed."""


def check_clock(name: str, text: Text, wall_seconds: float) -> None:
    """Compare an arm's counters with the wall clock.

    Raises: ClockError where they count more than passed, or leave much of it out.
    """
    counted = text.prefill_seconds + text.decode_seconds
    if counted > wall_seconds + _CLOCK_SECONDS:
        raise ClockError(
            f"the timings of {name} contradict the clock: it counts {counted:.3f} s where {wall_seconds:.3f} s passed."
        )
    if wall_seconds - counted > _OVERHEAD_SECONDS + _OVERHEAD_SHARE * wall_seconds:
        raise ClockError(
            f"the timings of {name} leave time out: it counts {counted:.3f} s where {wall_seconds:.3f} s passed; "
            "nothing else may run on this machine meanwhile."
        )


def on_the_clock(name: str, answer: Callable[[], Text]) -> Text:
    """An answer whose own timings fit the time that it took; asked for again where they do not.

    Raises: ClockError where they never do.
    """
    for attempt in range(_N_TRIES):
        begin = time.perf_counter()
        text = answer()
        wall = time.perf_counter() - begin
        try:
            check_clock(name, text, wall)
        except ClockError:
            if attempt == _N_TRIES - 1:
                raise
            continue
        break
    return text
