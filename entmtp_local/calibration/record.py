"""Writes texts one plain token at a time and drafts a wide tree at every position of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from entmtp_local.bench.repetition import find_loop
from entmtp_local.calibration.wide_log import LoggedText
from entmtp_local.native.sampler import Sampler
from entmtp_local.native.session import Session
from entmtp_local.speculative.profile import shape_of
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

# Chances by rank that are typical of MTP heads; they only decide which nodes are worth logging.
_TYPICAL = (0.62, 0.15, 0.06, 0.035)
DEPTH = 8
_LOOP_INTERVAL = 32  # tokens between two looks for a loop


def likely_tree(n_nodes: int, depth: int, chances: Sequence[float] = _TYPICAL) -> list[tuple[int, ...]]:
    """The most likely nodes of a tree in which every node has the same chances by rank, as paths of ranks.

    Returns: up to n_nodes paths, the root's () first, parents before children.
    """
    heap: list[tuple[float, tuple[int, ...]]] = [(-1.0, ())]
    found: list[tuple[int, ...]] = []
    while heap and len(found) < n_nodes:
        value, path = heapq.heappop(heap)
        found.append(path)
        if len(path) < depth:
            for rank, chance in enumerate(chances):
                heapq.heappush(heap, (value * chance, (*path, rank)))
    return found


def wide_shape(depth: int, n_nodes: int = 96, n_beside: int = 3) -> TreeShape:
    """The tree that is logged: the likeliest nodes, and a spine with some siblings at every depth."""
    paths = set(likely_tree(n_nodes, depth))
    for level in range(depth):
        paths.update((0,) * level + (rank,) for rank in range(n_beside))
    return shape_of(list(paths))


def record(
    session: Session,
    prompt: Sequence[int],
    sampler: Sampler,
    n: int,
    shape: TreeShape,
    *,
    task: str,
    stop: Callable[[], bool] = lambda: False,
) -> LoggedText | None:
    """Continue a prompt by up to n tokens.

    Args:
        session: its context is overwritten.
        shape: drafted at every position; nothing of it is verified.
        stop: polled between tokens.
    Returns: the text, shorter where the model ended it or the context was full, or where it fell into a loop, of which it has one
        copy: the others are drafted perfectly, and say nothing of other texts. None where `stop` ended it.
    """
    sampler.reset()
    sampler.prime(prompt)
    session.prefill(prompt, stop)
    if stop():
        return None
    choose = session.chooser(sampler)
    entropies = [session.entropy(-1)]
    tokens = [choose(-1)]
    drafted: list[DraftTree] = []
    session.start(tokens[0])
    ended = session.is_eog(tokens[0])
    while not ended and len(tokens) < n and session.n_past + shape.n_nodes < session.n_ctx:
        if stop():
            return None
        drafted.append(session.draft(shape))
        root = DraftTree(ROOT_ONLY, (tokens[-1],))
        session.verify(root)
        entropies.append(session.entropy(0))
        tokens.append(choose(0))
        session.commit(root, (0,))
        ended = session.is_eog(tokens[-1])
        session.follow(root, (0,), None if ended else tokens[-1])
        if len(tokens) % _LOOP_INTERVAL == 0 and n_before_copies(tokens):
            break
    n_kept = n_before_copies(tokens)
    if n_kept:
        tokens, entropies, drafted = tokens[:n_kept], entropies[:n_kept], drafted[: n_kept - 1]
    size = (len(drafted), shape.n_nodes)
    return LoggedText(
        task=task,
        n_prompt=len(prompt),
        tokens=np.array(tokens, dtype=np.int32),
        ended=ended,
        entropies=np.array(entropies, dtype=np.float32),
        drafts=np.array([tree.tokens for tree in drafted], dtype=np.int32).reshape(size),
        logp=np.array([tree.logp for tree in drafted], dtype=np.float32).reshape(size),
        head_entropies=np.array([tree.entropy for tree in drafted], dtype=np.float32).reshape(size),
    )


def n_before_copies(tokens: Sequence[int]) -> int:
    """Tokens up to the end of a loop's first copy, where the text repeats it to its end; 0 where it does not."""
    loop = find_loop(tokens)
    if loop is None or list(tokens[loop.start + loop.period :]) != list(tokens[loop.start : -loop.period]):
        return 0
    return loop.start + loop.period
