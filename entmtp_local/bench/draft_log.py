"""What the draft head would have proposed at every position of a text, and what follows from it.

A decoding run drafts only where its own steps happen to begin. Here the text advances one token at a time and a comb is
drafted at each: a spine of best guesses, every spine node with the next best guesses beside it. From that log the acceptance of
each rank at each depth is counted, and a run with any chain can be replayed without the model. Knows neither models nor engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DraftLog:
    """One generated text and the combs drafted along it.

    Args:
        tokens: (n,) i32, everything generated, a token that ends the generation included.
        combs: (n_drafted, depth, width) i32; combs[i] was drafted with tokens[i] pending. n_drafted is n - 1 where the whole
            text was logged.
        ended: whether the last token is one that ends the generation.
    """

    tokens: Int32Array
    combs: Int32Array
    ended: bool


@dataclass(slots=True)
class AcceptanceCounts:
    """How often each candidate was the text's own token, where the spine above it was right."""

    depth: int
    width: int
    hits: npt.NDArray[np.int64] = field(init=False)  # (depth, width)
    reached: npt.NDArray[np.int64] = field(init=False)  # (depth,) positions whose spine is right up to the depth above

    def __post_init__(self) -> None:
        self.hits = np.zeros((self.depth, self.width), dtype=np.int64)
        self.reached = np.zeros(self.depth, dtype=np.int64)

    def add(self, log: DraftLog) -> None:
        """Count a text; candidates that lie beyond its end are not judged."""
        tokens, combs = log.tokens, log.combs
        alive = np.ones(len(combs), dtype=bool)
        for d in range(1, self.depth + 1):
            n = max(0, min(len(combs), len(tokens) - d))
            alive = alive[:n]
            right = (combs[:n, d - 1, : self.width] == tokens[d : d + n, None]) & alive[:, None]  # (n, width)
            self.reached[d - 1] += int(alive.sum())
            self.hits[d - 1] += right.sum(axis=0)
            alive = right[:, 0]

    def conditional(self) -> list[list[float | None]]:
        """[depth - 1][rank] = P(the candidate is the true token | the spine is right above it); None where never reached."""
        return [[int(hit) / int(n) if n else None for hit in row] for row, n in zip(self.hits, self.reached, strict=True)]


@dataclass(slots=True)
class ChainRun:
    """What decoding the logged texts with a chain of fixed length would have given."""

    length: int
    n_tokens: int = 0  # emitted after each text's first token, tokens that end a text not counted
    accepted: list[int] = field(default_factory=list)  # of each step
    accepted_per_depth: list[int] = field(default_factory=list)  # [d] = steps that accepted a token at depth d + 1

    @property
    def n_steps(self) -> int:
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        return self.n_tokens / self.n_steps if self.n_steps else 0.0

    def add(self, log: DraftLog) -> None:
        """Replay one text by the rules of speculative.verify.accept: a last token is emitted as the bonus, never accepted."""
        tokens, spines = log.tokens.tolist(), log.combs[:, :, 0].tolist()
        i, n_last = 0, len(tokens) - 1
        while i < n_last:
            n_accepted = 0
            for token in spines[i][: self.length]:
                at = i + n_accepted + 1
                if at >= n_last or token != tokens[at]:
                    break
                n_accepted += 1
            self.accepted.append(n_accepted)
            i += n_accepted + 1
        self.n_tokens += max(0, n_last - log.ended)
        steps = self.accepted
        self.accepted_per_depth = [sum(n > d for n in steps) for d in range(max(steps, default=0))]
