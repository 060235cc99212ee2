"""Fits what a profile holds to logged texts: chances, bounds, trees and thresholds. Reads logs and tables of costs, nothing else.

All of it rests on one fact: whatever a tree holds, only its nodes along the text's own continuation can be accepted. So each
position is reduced to that path, and a static tree's run is a walk over positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.speculative.acceptance import AcceptanceModel, Context
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.entmtp import RunningSignal
from entmtp_local.speculative.entropy import quantile_edges
from entmtp_local.speculative.profile import ALL, SETS, NodePath, TaskFit, TreeSet, paths_of, shape_of
from entmtp_local.speculative.tree import DraftTree, TreeShape

N_ENTROPY_BINS = 8
N_GROWN = 31
N_RANKS = 4
FloatArray = npt.NDArray[np.float64]
_SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 20, 24, 32)


class Positions:
    """The logged positions of some texts, each with the path that the text takes through its tree.

    Args:
        log: texts of one task, or of several.
    """

    def __init__(self, log: WideLog) -> None:
        self.shape = log.shape
        self.paths = paths_of(log.shape)
        self.texts = [text for text in log.texts if len(text.drafts)]
        # of each text and position: the nodes that the text follows, as paths of ranks, best first
        self.followed = [self._followed(text) for text in self.texts]

    def __len__(self) -> int:
        return sum(map(len, self.followed))

    def _followed(self, text: LoggedText) -> list[list[NodePath]]:
        children, paths = self.shape.children, self.paths
        tokens, drafts = text.tokens.tolist(), text.drafts.tolist()
        found = []
        for i, row in enumerate(drafts):
            node, steps = 0, []
            # a text's last token is emitted as the bonus, never accepted
            for at in range(i + 1, len(tokens) - 1):
                following = next((child for child in children[node] if row[child] == tokens[at]), None)
                if following is None:
                    break
                node = following
                steps.append(paths[node])
            found.append(steps)
        return found

    def walk(self, tree: set[NodePath]) -> tuple[int, int, Counter[NodePath]]:
        """A run with a static tree.

        Returns: tokens, steps, and how often each node that the tree lacks would have been accepted next.
        """
        n_tokens = n_steps = 0
        missed: Counter[NodePath] = Counter()
        for text in self.followed:
            at = 0
            while at < len(text):
                n_accepted = 0
                for path in text[at]:
                    if path not in tree:
                        missed[path] += 1
                        break
                    n_accepted += 1
                at += n_accepted + 1
                n_tokens += n_accepted + 1
                n_steps += 1
        return n_tokens, n_steps, missed


def accepted_by_rank(positions: Positions) -> list[list[float]]:
    """[depth - 1][rank]: share of candidates that were the text's own token, where the spine above was right."""
    depth = positions.shape.max_depth
    hits, reached = np.zeros((depth, N_RANKS)), np.zeros(depth)
    for text in positions.followed:
        for i, steps in enumerate(text):
            for d in range(min(depth, len(text) - i - 1)):
                reached[d] += 1
                if len(steps) <= d:
                    break
                rank = steps[d][-1]
                if rank < N_RANKS:
                    hits[d, rank] += 1
                if rank > 0:
                    break
    return [[float(hit) / max(1.0, float(n)) for hit in row] for row, n in zip(hits, reached, strict=True)]


def grow_medusa(by_rank: Sequence[Sequence[float]], n_nodes: int) -> tuple[NodePath, ...]:
    """Grow a tree by the product of independent chances along each path, the most likely node first.

    Args:
        by_rank: [depth - 1][rank] chances.
    Returns: n_nodes + 1 paths in the order in which they were added, the root's () first; fewer where chances end.
    Source: Medusa, arXiv 2401.10774: the best tree of each size, if ranks were independent.
    """
    grown: list[NodePath] = [()]
    frontier: dict[NodePath, float] = {}

    def open_children(path: NodePath, value: float) -> None:
        if len(path) < len(by_rank):
            for rank, chance in enumerate(by_rank[len(path)]):
                if chance > 0:
                    frontier[path + (rank,)] = value * chance

    open_children((), 1.0)
    while frontier and len(grown) <= n_nodes:
        best = max(frontier, key=lambda path: (frontier[path], -len(path)))
        grown.append(best)
        open_children(best, frontier.pop(best))
    return tuple(grown)


def grow_hydra(positions: Positions, n_nodes: int) -> tuple[NodePath, ...]:
    """Grow a tree by what each node adds to the accepted length, measured with the tree so far.

    Returns: as grow_medusa; growth ends where no logged text takes any further node.
    Source: Hydra, arXiv 2402.05109: a rollout verifies the tree and its frontier and advances by the tree alone.
    """
    grown: list[NodePath] = [()]
    tree: set[NodePath] = set()
    while len(grown) <= n_nodes:
        missed = positions.walk(tree)[2]
        if not missed:
            break
        best = max(missed, key=lambda path: (missed[path], -len(path), tuple(-rank for rank in path)))
        grown.append(best)
        tree.add(best)
    return tuple(grown)


def speed(positions: Positions, tree: Sequence[NodePath], costs: CostTable) -> float:
    """Tokens per second of a run with a static tree by a table of costs; the root's () is among its paths."""
    n_tokens, n_steps, _ = positions.walk(set(tree) - {()})
    shape = shape_of(tree)
    seconds = costs.verify_seconds(shape.n_nodes) + costs.draft_seconds(shape) + costs.step
    return n_tokens / (n_steps * seconds) if n_steps else 0.0


def hull(positions: Positions, grown: Sequence[NodePath], costs: CostTable) -> list[int]:
    """Sizes of the growing tree, its root included, that no mixture of others beats: the Pareto hull of seconds and tokens."""
    sizes = [size for size in _SIZES if size <= min(len(grown), max(costs.verify))] or [1]
    points = []
    for size in sizes:
        n_tokens, n_steps, _ = positions.walk(set(grown[1:size]))
        shape = shape_of(grown[:size])
        points.append((costs.verify_seconds(size) + costs.draft_seconds(shape), n_tokens / max(1, n_steps), size))
    kept: list[tuple[float, float, int]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if kept and point[1] <= kept[-1][1]:
            continue
        while len(kept) >= 2 and _slope(kept[-2], point) >= _slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(point)
    return sorted(size for _, _, size in kept)


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-12)


def choose_trees(
    positions: Positions, trees: Sequence[tuple[NodePath, ...]], costs: CostTable, signal: str, n_bins: int = N_ENTROPY_BINS
) -> TreeSet:
    """Thresholds of a running signal between trees, larger trees where the signal is lower.

    The signal's bins hold equally many of the steps that the best single tree takes: steps begin where the last one's drafts
    failed, and there entropies are higher than elsewhere. Each bin gets the tree with the most tokens beyond their price, at the
    rate of the best single tree; trees may only get smaller from bin to bin.

    Args:
        trees: by size, ascending, the root's () among their paths.
        signal: "running", "path" or "constant".
    """
    speeds = [speed(positions, tree, costs) for tree in trees]
    rate = max(speeds)
    best = speeds.index(rate)
    if signal == "constant":
        return TreeSet(tuple(trees), (), (best,))
    values, accepted = _signal_and_lengths(positions, trees, signal, set(trees[best]))
    edges = tuple(float(edge) for edge in np.unique(np.quantile(values, np.arange(1, n_bins) / n_bins))) if len(values) else ()
    bins = np.searchsorted(edges, values, side="right")
    price = []
    for tree in trees:
        shape = shape_of(tree)
        price.append(rate * (costs.verify_seconds(shape.n_nodes) + costs.draft_seconds(shape) + costs.step))
    worth = np.array(
        [[float((1 + accepted[i][bins == b] - price[i]).sum()) for i in range(len(trees))] for b in range(len(edges) + 1)]
    )
    return TreeSet(tuple(trees), edges, _descending(worth))


def _signal_and_lengths(
    positions: Positions, trees: Sequence[tuple[NodePath, ...]], signal: str, walked: set[NodePath]
) -> tuple[FloatArray, list[FloatArray]]:
    """The running signal at each step of a run with the tree `walked`, and the accepted length of each tree there."""

    def length(steps: list[NodePath], tree: set[NodePath]) -> int:
        return next((n for n, path in enumerate(steps) if path not in tree), len(steps))

    values: list[float] = []
    visited: list[list[NodePath]] = []
    running = RunningSignal(signal)
    for text, followed in zip(positions.texts, positions.followed, strict=True):
        at = 0
        while at < len(followed):
            values.append(running.before(float(text.entropies[at])))
            visited.append(followed[at])
            running.after(DraftTree(positions.shape, (), text.logp[at].tolist()))
            at += length(followed[at], walked) + 1
    found = np.array(values)
    # the first steps, before there is a signal, say nothing of it
    known = ~np.isnan(found)
    lengths = [np.array([length(steps, set(tree)) for steps in visited], dtype=np.float64)[known] for tree in trees]
    return found[known], lengths


def _descending(worth: FloatArray) -> tuple[int, ...]:
    """The choice of a column for each row, never a higher one than the row before, with the largest sum."""
    n_bins, n_trees = worth.shape
    total = worth[0].copy()
    back = np.zeros((n_bins, n_trees), dtype=np.int64)
    for b in range(1, n_bins):
        # the best of the columns from i on, which the row before may have
        best, source = -np.inf, n_trees - 1
        following = np.empty(n_trees)
        for i in range(n_trees - 1, -1, -1):
            if total[i] > best:
                best, source = float(total[i]), i
            following[i], back[b, i] = best + worth[b, i], source
        total = following
    choice = [int(np.argmax(total))]
    for b in range(n_bins - 1, 0, -1):
        choice.append(int(back[b, choice[-1]]))
    return tuple(reversed(choice))


def fit_acceptance(positions: Positions, extra: Sequence[str] = (), n_iterations: int = 12) -> AcceptanceModel:
    """The regression of acceptance on every logged node whose parent is on the text's path."""
    model = AcceptanceModel(extra)
    rows, right = acceptance_rows(positions, model)
    if len(right):
        model.fit(rows, right, n_iterations)
    return model


def acceptance_rows(positions: Positions, model: AcceptanceModel) -> tuple[FloatArray, FloatArray]:
    """Features of logged nodes whose parents are on the text's path, and whether they are on it themselves."""
    shape = positions.shape
    place = {path: i for i, path in enumerate(positions.paths)}
    rows: list[FloatArray] = []
    right: list[float] = []
    for text, followed in zip(positions.texts, positions.followed, strict=True):
        running, usual = RunningSignal("running"), 0.0
        for i, steps in enumerate(followed):
            entropy = float(text.entropies[i])
            context = Context(entropy, float(np.exp(running.before(entropy))), usual)
            tree = DraftTree(shape, (), text.logp[i].tolist(), entropy=text.head_entropies[i].tolist())
            on_path = [0, *(place[path] for path in steps)]
            seen = [
                child for depth, node in enumerate(on_path) if i + 1 + depth < len(followed) for child in shape.children[node]
            ]
            rows.append(model.rows(tree, context)[seen])
            right += [float(child in on_path) for child in seen]
            spine = next((n for n, path in enumerate(steps) if path[-1] != 0), len(steps))
            usual += 0.1 * (spine - usual)
    return np.concatenate(rows) if rows else np.zeros((0, len(model.features))), np.array(right)


def fit_bound(positions: Positions) -> float:
    """Gamma of the chance 1 - sqrt(gamma H): that of the smallest squared error for the best-ranked candidates."""
    entropies: list[float] = []
    right: list[float] = []
    for text, followed in zip(positions.texts, positions.followed, strict=True):
        for i, steps in enumerate(followed):
            if i + 1 < len(followed):
                entropies.append(float(text.head_entropies[i, 0]))
                right.append(float(bool(steps) and steps[0] == (0,)))
    if not right:
        return 0.1
    candidates = np.geomspace(1e-3, 2.0, 60)
    chances = np.maximum(0.0, 1.0 - np.sqrt(candidates[:, None] * np.array(entropies)[None, :]))
    return float(candidates[np.argmin(((chances - np.array(right)) ** 2).mean(axis=1))])


def fit_chain(positions: Positions, gamma: float, costs: CostTable) -> tuple[int, float]:
    """Levels and bound of `entropy-chain` with the most tokens per second on the log."""
    depth = positions.shape.max_depth
    spine = [0]
    while positions.shape.children[spine[-1]]:
        spine.append(positions.shape.children[spine[-1]][0])
    verify = [costs.verify_seconds(size) + costs.step for size in range(1, depth + 2)]
    lengths = [[next((n for n, p in enumerate(s) if p[-1] != 0), len(s)) for s in text] for text in positions.followed]
    bounds = [
        np.maximum(0.0, 1.0 - np.sqrt(gamma * np.maximum(text.head_entropies[:, spine[:-1]], 0.0))) for text in positions.texts
    ]
    best = (0.0, 1, 0.0)
    for n_levels in range(1, depth + 1):
        draft = costs.draft_seconds(TreeShape.chain(n_levels))
        for bound in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            n_tokens, seconds = 0, 0.0
            for found, chances in zip(lengths, bounds, strict=True):
                kept = np.cumprod(chances[:, :n_levels] >= bound, axis=1).sum(axis=1).tolist()
                at = 0
                while at < len(found):
                    n_accepted = min(found[at], kept[at])
                    n_tokens += n_accepted + 1
                    seconds += draft + verify[kept[at]]
                    at += n_accepted + 1
            best = max(best, (n_tokens / seconds if seconds else 0.0, n_levels, bound))
    return best[1], best[2]


def fit_task(log: WideLog, costs: CostTable) -> TaskFit:
    """Everything that a profile says of a task.

    Args:
        log: the task's texts.
    """
    positions = Positions(log)
    by_rank = accepted_by_rank(positions)
    hydra = grow_hydra(positions, N_GROWN)
    gamma = fit_bound(positions)
    chain_depth, chain_bound = fit_chain(positions, gamma, costs)
    trees = [tuple(hydra[:size]) for size in hull(positions, hydra, costs)]
    entropies = np.concatenate([text.entropies for text in positions.texts]) if positions.texts else np.zeros(0)
    return TaskFit(
        n_positions=len(positions),
        n_texts=len(positions.texts),
        acceptance=fit_acceptance(positions).as_json(),
        by_rank=tuple(map(tuple, by_rank)),
        entropy_edges=quantile_edges(entropies, N_ENTROPY_BINS),
        gamma=gamma,
        chain_depth=chain_depth,
        chain_bound=chain_bound,
        medusa=grow_medusa(by_rank, N_GROWN),
        hydra=hydra,
        sets={signal: choose_trees(positions, trees, costs, signal) for signal in SETS},
    )


def fit_tasks(log: WideLog, costs: CostTable) -> dict[str, TaskFit]:
    """The fits of each task, and of all together."""
    fits = {task: fit_task(log.of_task(task), costs) for task in log.tasks if any(len(t.drafts) for t in log.of_task(task).texts)}
    return {ALL: fit_task(log, costs), **fits} if fits else {}
