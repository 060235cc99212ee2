"""Policies: what to draft at this step. Static ones only so far; each is a constructor with a name for `--policy`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from entmtp_local.errors import UsageError
from entmtp_local.speculative.protocol import Limits
from entmtp_local.speculative.tree import ROOT_ONLY, TreeShape

# The engine's LLAMA_ENTMTP_MAX_NODES, less the root.
MAX_DRAFTED = 255

# No model's 256th guess is worth a node, and every vocabulary has as many tokens.
MAX_RANK = 255

KNOWN = "off, chain:N (N from 1 to 255), tree:narrow, tree:wide, or tree:FILE.json with a list of parents"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a policy may look at before a step."""

    n_past: int
    n_accepted_last: int  # drafted tokens that the previous step accepted


class Policy(Protocol):
    """Chooses the shape of each step's tree."""

    @property
    def name(self) -> str: ...

    @property
    def max_depth(self) -> int:
        """Deepest node that it ever drafts."""
        ...

    @property
    def max_nodes(self) -> int:
        """Most nodes that it ever drafts, the root not counted."""
        ...

    def plan(self, evidence: Evidence) -> TreeShape: ...

    def within(self, limits: Limits) -> Policy:
        """The nearest policy that stays within what the engine can verify; itself where nothing is missing."""
        ...


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """The same shape at every step: nothing, a chain, or a tree."""

    name: str
    shape: TreeShape

    @property
    def max_depth(self) -> int:
        return self.shape.max_depth

    @property
    def max_nodes(self) -> int:
        return self.shape.n_nodes - 1

    def plan(self, evidence: Evidence) -> TreeShape:
        return self.shape

    def within(self, limits: Limits) -> Policy:
        if self.max_depth <= limits.max_depth and self.max_nodes <= limits.max_nodes and (limits.trees or self.shape.is_chain):
            return self
        depth = min(self.shape.spine().max_depth, limits.max_depth, limits.max_nodes)
        return chain(depth) if depth > 0 else OFF


OFF = StaticPolicy("off", ROOT_ONLY)


def chain(depth: int) -> StaticPolicy:
    """Draft `depth` tokens one after another: what stock llama.cpp does."""
    return StaticPolicy(f"chain:{depth}", TreeShape.chain(depth))


# Hand-made until calibration grows trees from measured acceptance: a spine, and siblings where the head is least sure
# relative to what is at stake, near the root.
NARROW = StaticPolicy("tree:narrow", TreeShape.from_parents([-1, 0, 0, 1, 1, 3, 5]))
WIDE = StaticPolicy("tree:wide", TreeShape.from_parents([-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7, 7, 10]))


def parse_policy(text: str) -> Policy:
    """The policy that a `--policy` value names.

    Raises: UsageError naming what is known.
    """
    kind, _, argument = text.partition(":")
    if text == "off":
        return OFF
    if kind == "chain" and re.fullmatch("[0-9]{1,3}", argument) and 1 <= int(argument) <= MAX_DRAFTED:
        return chain(int(argument))
    if kind == "tree":
        for built_in in (NARROW, WIDE):
            if text == built_in.name:
                return built_in
        if argument:
            return _read_tree(Path(argument))
    raise UsageError(f"there is no policy '{text}'; known are {KNOWN}.")


def _read_tree(path: Path) -> Policy:
    wanted = "a JSON list of parents such as [-1, 0, 0, 1], or an object with lists 'parents' and 'ranks'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no policy 'tree:{path}' and no file {path}; known are {KNOWN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read a tree from {path} ({error}); it must hold {wanted}.") from None
    fields = content if isinstance(content, dict) else {"parents": content}
    parents, ranks = _int_list(fields.get("parents")), _int_list(fields.get("ranks"))
    if parents is None or (ranks is None and fields.get("ranks") is not None):
        raise UsageError(f"{path} does not hold a tree: it must hold {wanted}.")
    if not 2 <= len(parents) <= MAX_DRAFTED + 1:
        raise UsageError(
            f"{path} holds a tree of {len(parents)} nodes; it must have a root and 1 to {MAX_DRAFTED} drafted nodes."
        )
    if ranks is not None and max(ranks) > MAX_RANK:
        raise UsageError(f"{path} asks for a continuation of rank {max(ranks)}; ranks go from 0 to {MAX_RANK}.")
    try:
        return StaticPolicy(f"tree:{path}", TreeShape.from_parents(parents, ranks))
    except ValueError as error:
        raise UsageError(f"{path} does not hold a tree: {error}.") from None


def _int_list(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    return None
