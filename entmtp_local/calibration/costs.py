"""Measures what passes cost on this device, in seconds of a session that is idle otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from time import perf_counter

from entmtp_local.errors import UsageError
from entmtp_local.native.session import Session
from entmtp_local.native.timing import pass_seconds
from entmtp_local.speculative.cost import CostTable, without_interruptions
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.tree import TreeShape

# Two chains, and a tree of which every level continues three nodes: what a level and what a wide one take.
_WIDE = 3


def measure_costs(
    session: Session, sizes: Sequence[int], limit: float, n_long: int, stop: Callable[[], bool], at_least: float
) -> CostTable:
    """Measure a table. The session is empty afterwards.

    Args:
        sizes: nodes of verifications, the root included.
        limit: seconds that verifications may take, and drafts, roughly; where passes are slow, fewer sizes are measured.
        n_long: tokens of a long context, to see what they add to a pass; 0 does not look.
        stop: polled between passes; what is measured then is of no use.
        at_least: seconds that are measured for, where that is less than the limit.
    """
    with session.steady_draft_vocab():
        return _measure(session, sizes, limit, n_long, stop, at_least)


def _measure(
    session: Session, sizes: Sequence[int], limit: float, n_long: int, stop: Callable[[], bool], at_least: float
) -> CostTable:
    shapes = _shapes(session)
    found, drafts = pass_seconds(session, sizes, list(shapes.values()), limit, at_least=at_least, stop=stop)
    verify = without_interruptions(found)
    if 1 not in verify:
        return CostTable({1: 1.0})  # stopped at once
    per_token = 0.0
    n_long = min(n_long, session.n_ctx - 2 * max(sizes))
    if n_long > 0 and not stop():
        begin = perf_counter()
        session.prefill([0] * n_long, lambda: stop() or perf_counter() - begin > limit)
        n_past = session.n_past
        if n_past > 0:
            # other passes in between, as above
            found, _ = pass_seconds(session, (1, 4), limit=limit, at_least=at_least, keep=True, stop=stop)
            taken = found.get(1, verify[1])
            # recurrent layers that store a state per token give up all of them with a pass that is not committed
            per_token = max(0.0, (taken - verify[1]) / n_past) if session.n_past == n_past else 0.0
        session.clear()
    return _drafted(CostTable(verify, per_token), shapes, drafts)


def with_drafts(costs: CostTable, session: Session, limit: float, stop: Callable[[], bool], at_least: float) -> CostTable:
    """The table with what drafts take now; arguments are those of `measure_costs`. The session is empty afterwards."""
    shapes = _shapes(session)
    with session.steady_draft_vocab():
        drafts = pass_seconds(session, (), list(shapes.values()), limit, at_least=at_least, stop=stop)[1]
    return _drafted(costs, shapes, drafts)


def _shapes(session: Session) -> dict[str, TreeShape]:
    """What is drafted to know what drafts take."""
    depth = session.limits.max_depth
    if depth == 0:
        return {}
    shapes = {"one": TreeShape.chain(1), "deep": TreeShape.chain(min(depth, 5))}
    if session.drafts_trees and depth >= 3:
        # three chains side by side
        shapes["wide"] = TreeShape.from_parents([-1, 0, 0, 0, *range(1, 1 + _WIDE * (min(depth, 5) - 1))])
    return shapes


def _drafted(costs: CostTable, shapes: Mapping[str, TreeShape], drafts: Sequence[float]) -> CostTable:
    """The table with what these drafts took."""
    if not drafts or 0.0 in drafts:
        return costs
    seconds = dict(zip(shapes, drafts, strict=True))
    n_more = shapes["deep"].max_depth - 1
    # where another program made the shallow draft look as long as the deep one, a level still is some part of a draft
    one = max(seconds["one"] / 10, (seconds["deep"] - seconds["one"]) / n_more) if n_more else seconds["one"]
    level = {1: one}
    if "wide" in seconds and n_more:
        level[_WIDE] = max(one, (seconds["wide"] - seconds["one"]) / n_more)
    return replace(costs, draft_fixed=max(0.0, seconds["one"] - one), level=level)


def shipped_tables() -> list[str]:
    """Names of the tables that come with the program."""
    return sorted(file.name.removesuffix(".json") for file in files(__package__).joinpath("tables").iterdir())


def load_table(name: str) -> CostTable:
    """A shipped table, or the costs of a profile.

    Raises: UsageError where there is no table of that name, ProfileError for a file that is no profile.
    """
    if name in shipped_tables():
        return Profile.load(Path(str(files(__package__).joinpath("tables").joinpath(f"{name}.json")))).costs
    if Path(name).exists():
        return Profile.load(Path(name)).costs
    raise UsageError(f"there are no costs '{name}': name a profile, or one of {', '.join(shipped_tables())}.")
