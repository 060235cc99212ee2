"""Which rows of the output matrix to draft from, and in what type: those that promise most tokens per second.

Logged texts are read once more for every type, with a chain drafted at each position from as many tokens as any choice has. How
far the text follows it, where only the first N tokens could have been drafted, is counted; what a level takes with N rows of that
type is measured. Chains stand for trees: both gain and lose with the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from entmtp_local.calibration.wide_log import Int32Array, WideLog
from entmtp_local.native.draft_head import COPIED_AHEAD
from entmtp_local.native.session import Session
from entmtp_local.native.timing import pass_seconds
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.draft_vocab import DraftHead, PassCost
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

_DEPTH = 5
_FEWEST = 4096  # rows of a choice; fewer save next to nothing more
_TEXT = 64  # tokens of a text that are read again: several texts say more than a long one
_FEWEST_POSITIONS = 100
# What is in use stays unless something else is better by more than counts of some hundred positions err.
_MIN_GAIN = 0.01

Prompts = Mapping[str, Sequence[list[int]]]


@dataclass(frozen=True, slots=True)
class DraftPrice:
    """Seconds of a draft: beside its levels, of a level without rows of the output matrix, and of each row."""

    fixed: float
    level: float
    row: float


def choose_head(
    session: Session,
    log: WideLog,
    prompts: Prompts,
    costs: CostTable,
    kinds: Sequence[str],
    seconds: float,
    stop: Callable[[], bool],
) -> DraftHead | None:
    """Compare what drafts can read, and go on with the best of it. The session is empty afterwards.

    Args:
        log: of texts that continue these prompts, in their order.
        kinds: types to compare, the one in use first; those that cannot be had are left out.
        seconds: that reading texts may take for each type, roughly.
        stop: polled between passes; nothing changes then.
    Returns: the choice; None where there is none, too little text to tell by, or `stop` ended it.
    """
    sizes = [size for size in session.draft_vocab_sizes if _FEWEST <= size <= COPIED_AHEAD]
    # a copy of more rows is made only where it is asked for
    if not log.texts or not (sizes or (len(kinds) > 1 and session.n_draft_vocab <= COPIED_AHEAD)):
        return None
    depth = min(_DEPTH, session.limits.max_depth)
    position = costs.verify_seconds(1) + costs.draft_seconds(TreeShape.chain(depth))
    texts = _some(log, prompts, int(seconds / position))
    if sum(len(tokens) - 1 for some in texts.values() for _, tokens in some) < _FEWEST_POSITIONS:
        return None
    usual = (kinds[0], session.usual_draft_vocab)
    speeds: dict[tuple[str, int], tuple[float, float]] = {}
    prices: dict[str, DraftPrice] = {}
    for kind in kinds:
        if not session.read_draft_head(kind):
            continue
        prices[kind] = price = _price(session, sizes, depth, costs.verify_seconds(1), stop)
        n_tail = session.set_draft_vocab(sizes[-1]) - sizes[-1] if sizes else 0
        drafts = [[(_drafted(session, *text, depth, stop), text[1]) for text in some] for some in texts.values()]
        if stop():
            break
        for size in sizes or [0]:
            known = (size, session.n_vocab - n_tail) if size else None
            lengths = [np.concatenate([accepted(drafted, tokens, known) for drafted, tokens in some]) for some in drafts]
            level = price.level + (size + n_tail) * price.row if size else price.level
            speeds[kind, size] = fastest_chain(lengths, depth, costs, price.fixed, level)
    if sizes:
        session.set_draft_vocab(None)
    session.clear()
    if stop():
        session.read_draft_head(kinds[0])
        return None
    best = max(speeds, key=lambda choice: speeds[choice][0])
    if usual in speeds and speeds[best][0] < (1 + _MIN_GAIN) * speeds[usual][0]:
        best = usual
    kind, size = best
    head = DraftHead(
        kind,
        size,
        PassCost(speeds[best][1], prices[kind].level, prices[kind].row),
        {each: {str(n): speed for (other, n), (speed, _) in speeds.items() if other == each} for each in prices},
    )
    session.read_draft_head(kind)
    session.adopt_draft_head(head)
    return head


def accepted(drafts: Int32Array, tokens: Int32Array, known: tuple[int, int] | None) -> Int32Array:
    """How far a text follows chains that were drafted at its positions.

    Args:
        drafts: (n, depth) i32, below tokens[:n].
        tokens: of the text.
        known: tokens below the first number and from the second on can be drafted, others are taken for misses; None = all.
    Returns: (n,) i32. At the end of the text only what it still has is counted.
    """
    n, depth = drafts.shape
    beyond = np.concatenate([tokens[1:], np.full(depth, -1, dtype=tokens.dtype)])
    right = drafts == sliding_window_view(beyond, depth)[:n]
    if known is not None:
        right &= (drafts < known[0]) | (drafts >= known[1])
    lengths: Int32Array = np.minimum.accumulate(right, axis=1).sum(axis=1, dtype=np.int32)
    return lengths


def fastest_chain(lengths: Sequence[Int32Array], depth: int, costs: CostTable, fixed: float, level: float) -> tuple[float, float]:
    """Tokens per second of the chain that is best for each kind of text, on average, and seconds of its steps without levels.

    Args:
        lengths: of `accepted`, by kind of text.
        fixed, level: seconds of a draft.
    """
    speeds, seconds = [], []
    for each in lengths:
        best = (0.0, 0.0)
        for n in range(1, depth + 1):
            beside = costs.verify_seconds(n + 1) + costs.step + fixed
            best = max(best, (float(1 + np.minimum(each, n).mean()) / (beside + n * level), beside))
        speeds.append(best[0])
        seconds.append(best[1])
    return float(np.exp(np.log(speeds).mean())), float(np.mean(seconds))


def _some(log: WideLog, prompts: Prompts, n_tokens: int) -> dict[str, list[tuple[list[int], Int32Array]]]:
    """Prompts and what follows them, by task: about so many tokens in all."""
    found: dict[str, list[tuple[list[int], Int32Array]]] = {}
    for task, some in prompts.items():
        left = n_tokens // len(prompts)
        for prompt, text in zip(some, log.of_task(task).texts, strict=False):
            tokens = text.tokens[: min(_TEXT, max(2, left))]
            if len(tokens) > 1 and (left > 0 or task not in found):
                found.setdefault(task, []).append((prompt, tokens))
                left -= len(tokens)
    return found


def _price(session: Session, sizes: Sequence[int], depth: int, plain: float, stop: Callable[[], bool]) -> DraftPrice:
    """
    Args:
        plain: seconds of a pass of one token.
    """
    shapes = [TreeShape.chain(1), TreeShape.chain(depth)]
    levels: dict[int, float] = {}
    fixed = 0.0
    # twice: what else runs on this machine for a moment is not what a type costs
    for size in 2 * (list(dict.fromkeys((sizes[0], sizes[-1]))) if sizes else [None]):
        n_rows = session.set_draft_vocab(size) if size is not None else 0
        one, deep = pass_seconds(session, (), shapes, stop=stop)[1]
        # where another program made the shallow draft look as long as the deep one, a level still is some part of a draft
        level = max(one / 10, (deep - one) / (depth - 1)) if depth > 1 else one
        if level <= levels.get(n_rows, level):
            levels[n_rows], fixed = level, max(0.0, one - level)
    (few, less), (many, more) = min(levels.items()), max(levels.items())
    row = 0.0
    if many > few:
        # however few rows seem to make no difference, reading all of them is not free
        least = plain * session.draft_cost.row / session.draft_cost.target / 2
        row = max(least, (more - less) / (many - few))
    return DraftPrice(fixed, max(less / 10, less - few * row), row)


def _drafted(session: Session, prompt: list[int], tokens: Int32Array, depth: int, stop: Callable[[], bool]) -> Int32Array:
    """(n - 1, depth) i32: chains drafted along n tokens that follow a prompt."""
    shape = TreeShape.chain(depth)
    found: list[tuple[int, ...]] = []
    session.clear()
    session.prefill(prompt, stop)
    *before, last = tokens.tolist()
    if stop():
        return np.zeros((0, depth), dtype=np.int32)
    session.start(before[0])
    for token, following in zip(before, (*before[1:], last), strict=True):
        if stop():
            break
        found.append(session.draft(shape).tokens[1:])
        root = DraftTree(ROOT_ONLY, (token,))
        session.verify(root)
        session.commit(root, (0,))
        session.follow(root, (0,), following)
    return np.array(found, dtype=np.int32).reshape(-1, depth)
