"""Arms without processes, whose texts and speeds are scripted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fake_llama_server import scripted

from entmtp_local.bench.record import Record
from entmtp_local.bench.rounds import Plan, Subject
from entmtp_local.bench.text import Request, Text
from entmtp_local.bench.worker import Gap
from entmtp_local.errors import ServerError
from entmtp_local.speculative.sampling import SamplingOptions

N_VOCAB = 50_000


def plan(**values: Any) -> Plan:
    defaults: dict[str, Any] = {
        "temps": (0.0,),
        "workloads": ("code", "prose"),
        "n_tokens": 40,
        "n_rounds": 2,
        "n_warmup": 4,
        "cool_down": 0.0,
        "sampling": SamplingOptions(),
    }
    return Plan(**(defaults | values))


def begin(a_plan: Plan, n_models: int = 1) -> Record:
    settings = {
        "temps": list(a_plan.temps),
        "workloads": list(a_plan.workloads),
        "n_rounds": a_plan.n_rounds,
        "n_tokens": a_plan.n_tokens,
        "n_prompts": 2,
        "n_threads": 2,
        "device": "a device",
    }
    record = Record.begin(None, settings, "2026-01-01", resume=False)
    record.content["models"] = [
        {"label": f"model-{i}", "size_bytes": (i + 1) * 2**20, "quantisation": "Q4_0", "n_vocab": N_VOCAB}
        for i in range(n_models)
    ]
    return record


def wrong_from_5(tokens: list[int]) -> list[int]:
    """The sixth token is another one."""
    return [token + (i == 5) for i, token in enumerate(tokens)]


@dataclass
class FakeArm:
    """
    Args:
        speed: tokens per second that it tells; may depend on the round, counted by its openings of a workload.
        edit: changes the tokens.
        fails_at: the opening at which it fails.
    """

    name: str
    kind: str = "ours"
    speed: Callable[[int], float] | float = 100.0
    edit: Callable[[list[int]], list[int]] = lambda tokens: tokens
    fails_at: int | None = None
    opened: int = 0
    log: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    pid: int = field(default_factory=os.getpid)

    @contextmanager
    def open(self) -> Iterator[FakeArm]:
        self.log.append(self.name)
        self.opened += 1
        if self.fails_at == self.opened:
            raise ServerError(f"{self.name} ended with code 1.")
        yield self
        self.log.append(f"{self.name} closed")

    def complete(self, request: Request) -> Text:
        self.requests.append(request)
        seed = request.sampling.seed or 0
        tokens = self.edit(scripted(list(request.prompt), request.n, seed if request.sampling.temp > 0 else 0))
        speed = self.speed(self.opened - 1) if callable(self.speed) else self.speed
        return Text(
            tokens,
            len(tokens),
            False,
            len(request.prompt),
            prefill_seconds=0.01,
            decode_seconds=(len(tokens) - 1) / speed,
            n_drafted=30,
            n_accepted=10,
            n_steps=len(tokens) - 11,
            accepted_per_depth=[8, 2],
            parts={"draft": 0.01, "verify": 0.02, "accept": 0.0, "commit": 0.0, "schedule": 0.0},
            pace=[(len(tokens) // 2, 0.5 * (len(tokens) - 1) / speed), (len(tokens), (len(tokens) - 1) / speed)],
        )


class FakeJudge(FakeArm):
    """Plain decoding, in whose rows any other token is as much less as it is told."""

    gap_of = 1.0
    asked: list[tuple[tuple[int, ...], int, int]] = []

    def gap(self, text: Sequence[int], one: int, other: int) -> Gap:
        self.asked.append((tuple(text), one, other))
        return Gap(self.gap_of, 0.001)


def subject(arms: Sequence[FakeArm], *, gap: float = 1.0, number: int = 0, a_plan: Plan | None = None) -> Subject:
    judge = FakeJudge("judge")
    judge.gap_of, judge.asked = gap, []
    names = (a_plan or plan()).workloads
    prompts = {name: [[10 * i + 1, 2, 3], [10 * i + 4, 5]] for i, name in enumerate(names)}
    made = Subject(number, f"model-{number}", prompts, {name: [9, 9] for name in names}, lambda temp, name: arms, judge.open)
    return made
