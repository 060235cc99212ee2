"""Wide logs whose acceptance is known: which candidate is right is drawn by given chances, and the head says those chances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.speculative.tree import TreeShape

EOG = 7
#: of the states, easy ones first
ENTROPIES = (0.05, 1.0, 3.0)


def synthetic_log(
    shape: TreeShape,
    chances: Sequence[Sequence[float]] = ((0.6, 0.2, 0.05),),
    *,
    n_texts: int = 3,
    n_tokens: int = 150,
    tasks: Sequence[str] = ("code",),
    ended: bool = False,
    n_prompt: int = 5,
    stay: float = 0.97,
    seed: int = 0,
) -> WideLog:
    """Texts in turn of each task.

    Args:
        chances: [state][rank] of a candidate to be right where its parent is.
        stay: chance of a state to last one more token; its entropy is ENTROPIES[state].
    """
    rng = np.random.default_rng(seed)
    log = WideLog(shape, {"model": "synthetic", "temp": 0.8})
    leaves = np.array([not children for children in shape.children])
    for number in range(n_texts):
        tokens = rng.integers(100, 1000, n_tokens).astype(np.int32)
        if ended:
            tokens[-1] = EOG
        states, state = [], 0
        for _ in range(n_tokens):
            state = state if rng.random() < stay else int(rng.integers(len(chances)))
            states.append(state)
        n = n_tokens - 1
        drafts = np.empty((n, shape.n_nodes), dtype=np.int32)
        logp, head = np.zeros((n, shape.n_nodes), dtype=np.float32), np.empty((n, shape.n_nodes), dtype=np.float32)
        for i in range(n):
            by_rank = chances[states[i]]
            said = np.array([max(by_rank[rank], 1e-3) if rank < len(by_rank) else 1e-3 for rank in shape.ranks])
            logp[i, 1:] = np.log(said[1:])
            head[i] = np.where(leaves, np.nan, ENTROPIES[states[i]])
            drafts[i] = 1000 + np.arange(shape.n_nodes)  # wrong ones
            drafts[i, 0] = tokens[i]
            node, at = 0, i + 1
            while at < n_tokens:
                right = int(np.searchsorted(np.cumsum(by_rank), rng.random()))
                found = [child for child in shape.children[node] if shape.ranks[child] == right]
                if right == len(by_rank) or not found:
                    break
                node = found[0]
                drafts[i, node] = tokens[at]
                at += 1
        entropies = np.array([ENTROPIES[state] for state in states], dtype=np.float32)
        log.texts.append(LoggedText(tasks[number % len(tasks)], n_prompt, tokens, ended, entropies, drafts, logp, head))
    return log
