"""What a session's passes take, in seconds, and what they build at first use."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from math import inf
from statistics import median
from time import perf_counter

from entmtp_local.native.session import Session
from entmtp_local.speculative.cost import n_unsettled
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

# Passes of each size and drafts of each shape that are timed at least, where there is time.
_N_ROUNDS = 6
_N_FED = 2  # tokens that a draft is usually fed: one was accepted
_MOST_FED = 13  # of which graphs are built ahead
_MOST_LEVELS = 16  # that one graph drafts; the engine's llama_entmtp_pass::N_LEVELS_MAX
_PROMPT = 256  # tokens whose memory the head has touched before its first prompt,
_SHORT = 0.003  # where a pass takes no longer than so many seconds, beside which that would be felt


def pass_seconds(
    session: Session,
    sizes: Sequence[int],
    shapes: Sequence[TreeShape] = (),
    limit: float = 3.0,
    *,
    at_least: float = 0.0,
    keep: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[int, float], list[float]]:
    """Seconds that passes take, the median of as many rounds as there is time for, in each of which each is timed.

    The least of some would be what a pass takes at its best, and passes of many nodes, which compute more, are further from that
    than passes of one.

    Args:
        sizes: nodes of chains that are verified, the root included; those that do not fit are left out.
        shapes: that are drafted.
        limit: seconds that verifications may take, and drafts, after which no more is measured than what one and four nodes and
            each draft take.
        at_least: seconds that rounds go on for where they are short: memory is faster in some tenths of a second than in others.
        keep: measure behind the committed tokens, which stay; otherwise behind a single one, and the session is empty afterwards.
        stop: polled between passes; what is found then may be little.
    Returns: seconds by size, and of each shape; where it was stopped, 0 of a shape that was not drafted.
    """
    assert not (keep and shapes), "drafts add to the committed tokens"
    if stop():
        if not keep:
            session.clear()
        return {}, [0.0] * len(shapes)
    if not keep:
        _begin(session)
    trees = _chains(session, sorted(sizes, key=lambda size: (size not in (1, 4), size)))
    taken: dict[int, list[float]] = {size: [] for size in trees}
    drafted: list[list[float]] = [[] for _ in shapes]

    def verified(tree: DraftTree) -> float:
        if not keep and not session.n_past:
            # drafts were timed, or this is an engine in which nothing is left of a sequence that is not committed
            _begin(session)
        return _verified_in(session, tree)

    begin, drafting, i = perf_counter(), 0.0, 0
    # Round by round, so that something else on this machine makes no single pass dear. The first pass of a size builds its
    # graph, which counts only where there is no time for another.
    while not stop() and (i < _N_ROUNDS or perf_counter() < begin + min(at_least, limit)):
        for size, tree in trees.items():
            if stop() or (perf_counter() - begin - drafting > limit and (i > 0 or size not in (1, 4))):
                continue
            seconds = verified(tree)
            # plain decoding has nothing in between, and is faster for it
            for _ in range(n_unsettled(seconds) if size == 1 and i > 0 else 0):
                if not stop():
                    seconds = verified(tree)
            taken[size].append(seconds)
        if shapes and not stop() and (i == 0 or drafting < limit):
            begun = perf_counter()
            _begin(session)
            _draft_once(session, shapes[0])
            for shape, some in zip(shapes, drafted, strict=True):
                if not stop():
                    some.append(_drafted_in(session, shape))
            session.clear()
            drafting += perf_counter() - begun
        i += 1
    if not keep:
        session.clear()
    found = {size: median(some[1:] or some) for size, some in taken.items() if some}
    return found, [median(some[1:] or some or [0.0]) for some in drafted]


def warm_up(session: Session, sizes: Sequence[int], shape: TreeShape = ROOT_ONLY, limit: float = 1.0) -> None:
    """Have the engine build what verifying so many nodes takes, and drafting, rather than when tokens are waited for.

    Where passes are short it also touches the memory that a prompt takes in the draft head. Python's collector is told to leave
    alone what there is.

    Does nothing behind committed tokens, which stay. Behind longer contexts graphs are others, every 256 tokens.

    Args:
        shape: that is drafted; a graph is built for each number of tokens that may have been accepted before.
        limit: seconds after which no more is begun; what is left is built when it is needed.
    """
    if session.n_past:
        return
    end = perf_counter() + limit
    n_fed = min(shape.max_depth + 1, _MOST_FED) if 0 < shape.max_depth <= _MOST_LEVELS else 0
    _begin(session)
    chains = _chains(session, sorted(sizes))
    if sum(range(n_fed + 1)) + shape.n_nodes > session.n_ctx or not chains:
        n_fed = 0
    with session.steady_draft_vocab():
        if n_fed:
            begun = perf_counter()
            _begin(session)
            if perf_counter() < min(begun + _SHORT, end):
                session.clear()
                session.prefill([0] * min(_PROMPT, session.n_ctx - shape.n_nodes), lambda: False)
                _draft_once(session, shape)
                _begin(session)
            _draft_once(session, shape)
        fed = 0
        for size, tree in chains.items():
            if fed >= min(size, n_fed):
                if perf_counter() < end:
                    _verified_in(session, tree)
                continue
            while fed < min(size, n_fed) and perf_counter() < end:
                fed += 1
                _accept(session, tree, fed)
                # the first level builds the graph of all of them
                session.draft(shape, inf)
    session.clear()
    # What is there now stays. Looked through for garbage while a text is written, all modules and the vocabulary take as long as
    # ten steps of a small model.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _chains(session: Session, sizes: Sequence[int]) -> dict[int, DraftTree]:
    """Chains of so many nodes; those that cannot be verified are left out."""
    limits = session.limits
    # recurrent layers go back along a chain no further than they store states, which is as far as drafts go
    most = limits.max_nodes if limits.trees else min(limits.max_nodes, limits.max_depth)
    room = min(most + 1, session.n_ctx - session.n_past)
    return {size: DraftTree(TreeShape.chain(size - 1), (0,) * size) for size in sizes if size <= room}


def _verified_in(session: Session, tree: DraftTree) -> float:
    begin = perf_counter()
    session.verify(tree)
    session.wait()
    taken = perf_counter() - begin
    session.discard()
    return taken


def _begin(session: Session) -> None:
    """Leave one token in a session, where it has room for more.

    A pass of an empty one sets up the recurrent states, which no pass within a text does, and builds its graph each time.
    """
    session.clear()
    if session.n_ctx > 1:
        session.prefill([0], lambda: False)


def _draft_once(session: Session, shape: TreeShape) -> None:
    """So that no token of the beginning waits for the drafts that follow."""
    session.start(0)
    session.draft(shape)


def _accept(session: Session, tree: DraftTree, n: int) -> None:
    """Verify a chain and commit its first n nodes, which the next draft is fed."""
    session.verify(tree)
    session.commit(tree, range(n))
    session.follow(tree, range(n), 0)


def _drafted_in(session: Session, shape: TreeShape) -> float:
    """A draft behind an accepted token."""
    _accept(session, DraftTree(TreeShape.chain(_N_FED - 1), (0,) * _N_FED), _N_FED)
    begin = perf_counter()
    session.draft(shape)
    return perf_counter() - begin
