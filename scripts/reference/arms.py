"""What benchmarks that decode the same prompts in several ways have in common: one answer, and sums over answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from entmtp_local.bench import workloads
from entmtp_local.engine import Stats, generate
from entmtp_local.native.model_file import read_model
from entmtp_local.native.session import Session
from entmtp_local.speculative.copying import CopyDrafter
from entmtp_local.speculative.protocol import Policy, TokenChooser
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.verify import STRICT, AcceptanceRule
from scripts.reference.measurement import Writer

N_CTX = 2048

Arm = TypeVar("Arm")


class Given:
    """Chooses given tokens, whatever the model's rows say.

    Args:
        tokens: the text.
        sampler: is asked for every token all the same, so that a step takes what it takes. A greedy one takes some microseconds
            a token longer than where the engine is asked for all arg-maxes at once.
    """

    greedy = False

    def __init__(self, tokens: Sequence[int], sampler: TokenChooser) -> None:
        self._tokens, self._sampler, self._i = tokens, sampler, 0
        self.n_best = sampler.n_best

    def sample(self, ctx: object, row: int) -> int:
        self._sampler.sample(ctx, row)
        self._i += 1
        return self._tokens[self._i - 1]

    def reset(self) -> None:
        self._i = 0

    def take(self, token: int) -> None:
        raise NotImplementedError

    def biased(self, row: Any) -> Any:
        return row

    def prime(self, tokens: Sequence[int]) -> None:
        self._sampler.prime(tokens)


def prompts_of(session: Session, model: Path, n: int) -> dict[str, list[list[int]]]:
    """The first n prompts of each workload as token ids."""
    writer = Writer(session, read_model(model), N_CTX)
    return {name: [writer.prompt_tokens(prompt) for prompt in workloads.load(name)[:n]] for name in workloads.NAMES}


def answer(
    session: Session,
    ids: Sequence[int],
    policy: Policy,
    sampling: SamplingOptions,
    n: int,
    *,
    rule: AcceptanceRule = STRICT,
    copies: CopyDrafter | None = None,
    text: Sequence[int] | None = None,
) -> Stats:
    """Decode up to n tokens behind a prompt, on an empty context.

    Args:
        text: that is decoded, whatever is sampled; `n` then counts for nothing.
    """
    session.clear()
    with session.new_sampler(sampling) as sampler:
        chooser = sampler if text is None else Given(text, sampler)
        n = n if text is None else len(text)
        generation = generate(session, ids, policy=policy, rule=rule, sampler=chooser, max_tokens=n, copies=copies)
        for _ in generation:
            pass
    return generation.stats


def plain_text(session: Session, ids: Sequence[int], sampling: SamplingOptions, n: int) -> list[int]:
    """What plain decoding continues a prompt with, up to n tokens, the one that ends it included.

    The draft vocabulary does not learn of it.
    """
    session.clear()
    with session.steady_draft_vocab(), session.new_sampler(sampling) as sampler:
        generation = generate(session, ids, sampler=sampler, max_tokens=n)
        for _ in generation:
            pass
    return [*generation.tokens, *([] if generation.end is None else [generation.end])]


def n_tokens(stats: Sequence[Stats]) -> int:
    """Tokens after the first one of each answer; one that ends it counts, since it takes a step as any other does."""
    return sum(max(0, s.n_generated + s.n_ends - 1) for s in stats)


def speed(stats: Sequence[Stats]) -> float:
    """Tokens per second of all answers together."""
    return n_tokens(stats) / sum(s.seconds["decode"] for s in stats)


def per_step(stats: Sequence[Stats], total: float) -> float:
    return total / max(1, sum(s.n_steps for s in stats))


def turned(arms: Sequence[Arm], i: int) -> list[Arm]:
    """The arms, beginning with another one at each turn."""
    return [*arms[i % len(arms) :], *arms[: i % len(arms)]]
