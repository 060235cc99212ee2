"""What calibration found of one model on one device: costs of passes, and per task what was fitted on its logged texts.

A versioned JSON file. docs/FORMATS.md describes it; another version, another model, device or build is refused with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from entmtp_local.errors import ProfileError
from entmtp_local.files import open_file, reason, replace_file
from entmtp_local.speculative.acceptance import AcceptanceModel
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.draft_vocab import DRAFT_HEAD_TYPES, SAME, DraftHead, PassCost
from entmtp_local.speculative.tree import TreeShape

_T = TypeVar("_T")
FORMAT, VERSION = "entmtp-local profile", 4
#: The task that stands for all tasks together.
ALL = "all"
#: Of the trees that it holds: drafted nodes, and levels.
MAX_NODES, MAX_DEPTH = 31, 8
# Far above what any profile takes; files beyond that are none, and are not read to their end.
_MOST_BYTES = 1 << 24
#: Signals that its sets of trees are chosen by.
SETS = ("running", "path", "constant")

# A node of a tree as the ranks on its path from the root, whose own path is ().
NodePath = tuple[int, ...]


def shape_of(paths: Sequence[NodePath]) -> TreeShape:
    """The tree that has these paths of ranks; every path's beginning is among them."""
    ordered = sorted(paths, key=lambda path: (len(path), path))
    place = {path: i for i, path in enumerate(ordered)}
    return TreeShape.from_parents(
        [place[path[:-1]] if path else -1 for path in ordered], [path[-1] if path else 0 for path in ordered]
    )


def paths_of(shape: TreeShape) -> list[NodePath]:
    """The path of ranks of each node, the root's () first."""
    paths: list[NodePath] = [()]
    for parent, rank in zip(shape.parents[1:], shape.ranks[1:], strict=True):
        paths.append((*paths[parent], rank))
    return paths


_DIFFERENCES = {
    "model": "with another model",
    "mtp_model": "with another --mtp-model",
    "engine": "by another build of the engine",
    "device": "on another device",
    "n_threads": "with other --threads",
    "n_gpu_layers": "with other --gpu-layers",
    "draft_vocab": "with another --draft-vocab",
    "draft_head_type": "with another --draft-head-type",
}

# Decoded tokens of which a ratio to plain decoding can be told.
ENOUGH_DECODED = 200
# Times what a policy can gain at most: short texts on an idle machine measure no more than that beyond it.
_DOUBTFUL = 1.1


@dataclass(frozen=True, slots=True)
class Key:
    """What a profile's figures hold for.

    Args:
        model: fingerprint of the file, which covers its quantisation.
        mtp_model: fingerprint of the file with the MTP head, where it is another one.
        engine: source, patches and back end of the engine, or a digest of its libraries.
        device: as the engine names it.
        n_threads: of the CPU's part.
        n_gpu_layers: None for all.
        draft_vocab: None for auto, 0 for the whole vocabulary.
        draft_head_type: None for auto.
    """

    model: str
    mtp_model: str | None
    engine: str
    device: str
    n_threads: int
    n_gpu_layers: int | None
    draft_vocab: int | None
    draft_head_type: str | None

    def difference(self, other: Key) -> str:
        """How the other one was measured, in words; "" where nothing differs."""
        found = [words for name, words in _DIFFERENCES.items() if getattr(self, name) != getattr(other, name)]
        return " and ".join(found)


@dataclass(frozen=True, slots=True)
class TreeSet:
    """Trees to choose among by one running signal.

    Args:
        trees: by number of nodes, ascending.
        edges: ascending values of the signal that separate its bins.
        choice: (len(edges) + 1,) the tree of each bin, an index of `trees`.
    """

    trees: tuple[tuple[NodePath, ...], ...]
    edges: tuple[float, ...]
    choice: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TaskFit:
    """What was fitted on the logged texts of one task.

    Args:
        n_positions: logged.
        n_texts: of them.
        acceptance: of AcceptanceModel.as_json.
        by_rank: [depth - 1][rank] share of candidates that were the text's own token, where the spine above was right.
        entropy_edges: of log-entropy, quantiles of the positions.
        gamma: of the bound 1 - sqrt(gamma H) on the acceptance of what a head of entropy H proposes.
        chain_depth, chain_bound: of `entropy-chain`: levels to draft, and the bound below which a chain is cut.
        medusa, hydra: paths in the order in which trees grow, by independent ranks and by measured gain.
        sets: of `entmtp` by signal: "running" entropy, "path" value, "constant".
    """

    n_positions: int
    n_texts: int
    acceptance: Mapping[str, Any]
    by_rank: tuple[tuple[float, ...], ...]
    entropy_edges: tuple[float, ...]
    gamma: float
    chain_depth: int
    chain_bound: float
    medusa: tuple[NodePath, ...]
    hydra: tuple[NodePath, ...]
    sets: Mapping[str, TreeSet]


@dataclass(frozen=True, slots=True)
class Profile:
    """See the module.

    Args:
        key: what it holds for; None for tables that were not measured here.
        tasks: may be empty, and has ALL otherwise.
        quick: whether a quick calibration wrote it.
        head: what drafts are best read from; None where that was not compared.
        measured: what full calibration decoded: rows of the report's table, and by which `throughput` begins a session.
    """

    costs: CostTable
    key: Key | None = None
    tasks: Mapping[str, TaskFit] = field(default_factory=dict)
    quick: bool = True
    created: str = ""
    measured: tuple[Mapping[str, Any], ...] = ()
    head: DraftHead | None = None

    def measured_of(self, task: str) -> list[Mapping[str, Any]]:
        """What was decoded of a task."""
        return [row for row in self.measured if row.get("task") == task]

    def reliable_of(self, task: str) -> list[Mapping[str, Any]]:
        """The same, or nothing where a gain is doubtful: plain decoding was disturbed then, which all gains are over."""
        rows = self.measured_of(task)
        return [] if any(is_doubtful(row, rows) for row in rows) else rows

    def task(self, name: str) -> TaskFit:
        """Raises: ProfileError where the task was not calibrated."""
        if not self.tasks:
            which = "" if name == ALL else f" of {name}"
            raise ProfileError(
                f"the profile knows no texts{which} yet, which this policy is fitted to; run entmtp-local calibrate MODEL first."
            )
        if name not in self.tasks:
            known = ", ".join(task for task in self.tasks if task != ALL) or "none"
            raise ProfileError(
                f"the profile has no task {name} (it has: {known}); run entmtp-local calibrate MODEL --task {name} (or the "
                "file of prompts that is called so) first."
            )
        return self.tasks[name]

    def save(self, path: Path) -> None:
        """Write it; an existing file is replaced when all is written."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "created": self.created,
            "quick": self.quick,
            "key": asdict(self.key) if self.key else None,
            "costs": self.costs.as_json(),
            "head": asdict(self.head) if self.head else None,
            "tasks": {name: asdict(fit) for name, fit in self.tasks.items()},
            "measured": list(self.measured),
        }
        with replace_file(path) as file:
            file.write(json.dumps(content, indent=1).encode())

    @staticmethod
    def load(path: Path, key: Key | None = None) -> Profile:
        """Read a profile.

        Args:
            key: what it is to hold for; None takes any.
        Raises: ProfileError when there is none, when it is damaged or of another version, or when it holds for something else.
        """
        try:
            with open_file(path) as file:
                text = file.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError("too long")
            content = json.loads(text.decode("utf-8"))
        except FileNotFoundError:
            raise ProfileError(f"there is no profile {path}; entmtp-local calibrate MODEL --out {path} writes one.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ProfileError(f"the profile {path} cannot be read ({reason(error)}); calibrate again.") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ProfileError(f"{path} is not a profile of this program; entmtp-local calibrate MODEL --out FILE writes one.")
        if content.get("version") != VERSION or type(content["version"]) is not int:
            raise ProfileError(
                f"the profile {path} is of version {content.get('version')!r:.40}, not {VERSION}; calibrate again."
            )
        try:
            profile = _parse(content)
        except ValueError as error:
            raise ProfileError(f"the profile {path} is damaged ({error}); calibrate again.") from None
        if key is not None and (profile.key is None or profile.key != key):
            if profile.key is None:
                raise ProfileError(f"{path} is a table of costs for --replay, not a profile; calibrate MODEL writes one.")
            raise ProfileError(f"the profile {path} was measured {key.difference(profile.key)}; calibrate again.")
        return profile


# What is read here steers every step: whatever could fail there, or count for something else, is refused here.


def _parse(content: Mapping[str, Any]) -> Profile:
    def part(name: str, parse: Callable[[Any], _T]) -> _T:
        if name not in content:
            raise ValueError(f"it has no '{name}'")
        with _named(name):
            return parse(content[name])

    def parse_tasks(each: Any) -> dict[str, TaskFit]:
        tasks = {}
        for name, fit in _dict(each).items():
            with _named(name):
                tasks[name] = _parse_task(_dict(fit))
        if tasks and ALL not in tasks:
            raise ValueError(f"not one is called '{ALL}'")
        return tasks

    return Profile(
        costs=part("costs", CostTable.from_json),
        key=part("key", lambda each: None if each is None else _parse_key(_dict(each))),
        tasks=part("tasks", parse_tasks),
        quick=part("quick", lambda each: _of(bool, each)),
        created=part("created", lambda each: _of(str, each)),
        measured=part("measured", lambda each: tuple(map(parse_measured, _list(each)))),
        head=part("head", lambda each: None if each is None else _parse_head(_dict(each))),
    )


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Raises: ValueError that says which part of a file cannot be what it should, for whatever that fails with."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{part}: it has no {error}") from None
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{part}: {error}") from None


def _parse_key(content: Mapping[str, Any]) -> Key:
    key = Key(**content)
    for text in (key.model, key.engine, key.device):
        _of(str, text)
    for name in (key.mtp_model, key.draft_head_type):
        if name is not None:
            _of(str, name)
    _whole(key.n_threads, 1)
    for number in (key.n_gpu_layers, key.draft_vocab):
        if number is not None:
            _whole(number)
    return key


def _parse_head(content: Mapping[str, Any]) -> DraftHead:
    kind, size, cost = _of(str, content["kind"]), _whole(content["size"]), _dict(content["cost"])
    speeds = {name: _dict(each) for name, each in _dict(content["speeds"]).items()}
    if kind not in speeds or not {*speeds} <= {SAME, *DRAFT_HEAD_TYPES}:
        raise ValueError("rows of a type that there is none of")
    sizes = set(speeds[kind])
    if str(size) not in sizes or not all(len(n) < 10 and n.isdecimal() for n in sizes):
        raise ValueError("a number of rows that is none")
    if any(set(each) != sizes for each in speeds.values()):
        raise ValueError("types that were compared with other numbers of rows")
    for each in speeds.values():
        for n, speed in each.items():
            each[n] = _number(speed, 0.0, 1e9)
    if set(cost) != {"target", "level", "row"}:
        raise ValueError("costs of rows that lack some or have others")
    seconds = PassCost(**{name: _number(value, 0.0, 1e6) for name, value in cost.items()})
    if speeds[kind][str(size)] < 1e-9 or seconds.target == 0:
        raise ValueError("rows that nothing can be drafted from")
    return DraftHead(kind, size, seconds, speeds)


def is_doubtful(row: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a policy gained more than the tokens of its steps allow: a step with drafts takes no less than one without.

    Something else ran beside plain decoding then.

    Args:
        row: of Profile.measured; of the same task are `rows`, plain decoding among them.
    """
    plain = next((each.get("tokens_per_step", 0.0) for each in rows if each["policy"] == "off"), 0.0)
    return bool(plain and row["ratio"] > _DOUBTFUL * row.get("tokens_per_step", math.inf) / plain)


def parse_measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: ValueError or KeyError where it is no row of Profile.measured."""
    for name in ("task", "policy"):
        _of(str, row[name])
    for name in ("temp", "tokens_per_second", "ratio", "tokens_per_step"):
        _number(row[name], 0.0)
    _whole(row.get("n_tokens", 0))
    return dict(row)


def _parse_task(content: Mapping[str, Any]) -> TaskFit:
    acceptance = _dict(content["acceptance"])
    AcceptanceModel().load(acceptance)
    sets = _dict(content["sets"])
    return TaskFit(
        n_positions=_whole(content["n_positions"]),
        n_texts=_whole(content["n_texts"]),
        acceptance=acceptance,
        by_rank=tuple(map(_parse_shares, _list(content["by_rank"]))),
        entropy_edges=_edges(content["entropy_edges"]),
        gamma=_number(content["gamma"], 0.0),
        chain_depth=_whole(content["chain_depth"], 0, MAX_DEPTH),
        chain_bound=_number(content["chain_bound"], 0.0, 1.0),
        medusa=_paths(content["medusa"]),
        hydra=_paths(content["hydra"]),
        sets={signal: _parse_set(sets[signal]) for signal in SETS},
    )


def _parse_shares(row: Any) -> tuple[float, ...]:
    if not _list(row):
        raise ValueError("a depth without shares")
    return tuple(_number(value, 0.0, 1.0) for value in row)


def _parse_set(content: Mapping[str, Any]) -> TreeSet:
    trees = tuple(_paths(tree) for tree in _list(content["trees"]))
    found = TreeSet(
        trees, _edges(content["edges"]), tuple(_whole(index, 0, len(trees) - 1) for index in _list(content["choice"]))
    )
    if len(found.choice) != len(found.edges) + 1:
        raise ValueError("a set of trees does not have a tree for every bin")
    return found


def _paths(content: Any) -> tuple[NodePath, ...]:
    paths = tuple(tuple(_whole(rank, 0, 63) for rank in _list(path)) for path in _list(content))
    seen: set[NodePath] = set()
    for path in paths:
        if path in seen or (path[:-1] not in seen if path else bool(seen)):
            raise ValueError("paths of a tree that are none, or in the wrong order")
        seen.add(path)
    if not 1 <= len(paths) <= MAX_NODES + 1 or max(map(len, paths)) > MAX_DEPTH:
        raise ValueError(f"a tree without a root, of more than {MAX_NODES} drafted nodes or of more than {MAX_DEPTH} levels")
    return paths


def _edges(content: Any) -> tuple[float, ...]:
    edges = tuple(_number(value) for value in _list(content))
    if any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
        raise ValueError("edges that do not ascend")
    return edges


def _of(kind: type[_T], value: Any) -> _T:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.40} in place of {kind.__name__}")
    return value


def _dict(value: Any) -> dict[str, Any]:
    return _of(dict, value)


def _list(value: Any) -> list[Any]:
    return _of(list, value)


def _whole(value: Any, low: int = 0, high: float = math.inf) -> int:
    if not low <= _of(int, value) <= high:
        raise ValueError(f"{value} where it goes from {low} to {high}")
    return int(value)


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    if type(value) is not int:
        _of(float, value)
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"{value} where it goes from {low} to {high}")
    return float(value)
