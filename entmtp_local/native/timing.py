"""What a session's passes take, in seconds, and what they build at first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from entmtp_local.native.session import Session
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

# Passes of each size that are timed, where there is time.
_N_ROUNDS = 6


def verification_seconds(
    session: Session,
    sizes: Sequence[int],
    limit: float = 3.0,
    *,
    keep: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, float]:
    """Seconds that chains of so many nodes take to verify, the least of as many passes as there is time for.

    Args:
        sizes: nodes, the root included; those that do not fit are left out.
        limit: seconds after which no more is measured than what one and four nodes take.
        keep: measure behind the committed tokens, which stay; otherwise the session is emptied before and after.
        stop: polled between passes; what is found then may be little.
    """
    if not keep:
        session.clear()
    trees = _chains(session, sorted(sizes, key=lambda size: (size not in (1, 4), size)))
    found: dict[int, float] = {}
    end = perf_counter() + limit
    # Round by round, so that something else on this machine makes no single size dear. The first pass of a size builds its
    # graph, which counts only where there is no time for another.
    for i in range(_N_ROUNDS):
        for size, tree in trees.items():
            if stop() or (perf_counter() > end and (i > 0 or size not in (1, 4))):
                continue
            taken = _verified_in(session, tree)
            if size == 1:
                # plain decoding has nothing in between, and is faster for it
                taken = min(taken, _verified_in(session, tree))
            found[size] = taken if i < 2 else min(found[size], taken)
    if not keep:
        session.clear()
    return found


def warm_up(session: Session, sizes: Sequence[int], limit: float = 1.0) -> None:
    """Have the engine build what verifying so many nodes takes, rather than when tokens are waited for.

    Does nothing behind committed tokens, which stay.

    Args:
        limit: seconds after which no more is begun; what is left is built when it is needed.
    """
    if session.n_past:
        return
    end = perf_counter() + limit
    for tree in _chains(session, sizes).values():
        if perf_counter() < end:
            _verified_in(session, tree)
    session.clear()


def draft_seconds(
    session: Session, shapes: Sequence[TreeShape], limit: float = 3.0, *, stop: Callable[[], bool] = lambda: False
) -> list[float]:
    """Seconds that drafting each shape takes, the least of some drafts. The session is empty afterwards."""
    session.clear()
    session.prefill([0], lambda: False)
    session.start(0)
    end = perf_counter() + limit
    found = [_drafted_in(session, shape, 0.0 if stop() else end) for shape in shapes]
    session.clear()
    return found


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


def _drafted_in(session: Session, shape: TreeShape, end: float) -> float:
    """The least of some drafts. The first one builds a graph; where drafts take long, that is little of them."""
    root = DraftTree(ROOT_ONLY, (0,))
    taken: list[float] = []
    while len(taken) < 4 and (not taken or perf_counter() < end):
        begin = perf_counter()
        session.draft(shape)
        taken.append(perf_counter() - begin)
        # a draft needs a token that the head has not seen
        session.verify(root)
        session.commit(root, (0,))
        session.follow(root, (0,), 0)
    return min(taken[1:] or taken)
