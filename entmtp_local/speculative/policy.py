"""Policies by name: what `--policy` accepts."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

from entmtp_local.errors import UsageError
from entmtp_local.files import open_file
from entmtp_local.speculative.cost import SIZES
from entmtp_local.speculative.entmtp import SIGNALS, EntMTP
from entmtp_local.speculative.entropy_chain import EntropyChain
from entmtp_local.speculative.grown import WAYS, GrownTree
from entmtp_local.speculative.guard import Guard
from entmtp_local.speculative.profile import ALL
from entmtp_local.speculative.profile import MAX_NODES as MAX_GROWN
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.static import NARROW, OFF, WIDE, StaticPolicy, chain
from entmtp_local.speculative.throughput import VARIANTS, Throughput
from entmtp_local.speculative.tree import ROOT_ONLY, TreeShape

# The engine's LLAMA_ENTMTP_MAX_NODES, less the root.
MAX_DRAFTED = 255

# The engine's LLAMA_ENTMTP_MAX_TOP, less the best.
MAX_RANK = 63

KNOWN = (
    "off, throughput, chain:N (N from 1 to 255), entmtp, entmtp:constant, entmtp:path, entropy-chain, medusa:N and hydra:N "
    "(N from 1 to 31), from entmtp to here also with :TASK for one calibrated task, tree:narrow, tree:wide, "
    "or tree:FILE.json with a list of parents, or an object of parents and ranks"
)

#: Policies that a shell or a chat completes; a file follows the last.
COMMON = ("off", "throughput", "chain:3", "entmtp", "entropy-chain", "tree:narrow", "tree:wide", "tree:")


def sizes_of(policy: Policy) -> tuple[int, ...]:
    """Sizes of trees, the root included, that a policy's steps are likely to need."""
    most = policy.max_nodes + 1
    return tuple(size for size in SIZES if size <= most) if policy.needs_profile else tuple(sorted({1, most}))


def drafted_by(policy: Policy) -> TreeShape:
    """The shape that a policy drafts, as far as the engine's graphs tell shapes apart; the root alone where it has several."""
    if isinstance(policy, StaticPolicy):
        return policy.shape
    return TreeShape.chain(policy.max_depth) if isinstance(policy, Guard | Throughput) else ROOT_ONLY


def parse_policy(text: str) -> Policy:
    """The policy that a `--policy` value names.

    Raises: UsageError naming what is known.
    """
    kind, _, argument = text.partition(":")
    if text == "off":
        return OFF
    if kind == "throughput" and (argument in VARIANTS) and text != "throughput:":
        return Guard(Throughput()) if not argument else Throughput(argument)
    if kind == "entmtp" and text != "entmtp:":
        signal, _, task = argument.partition(":")
        if signal in SIGNALS:
            return EntMTP(signal, task or ALL)
        return EntMTP(task=argument or ALL)
    if kind == "entropy-chain" and text != "entropy-chain:":
        return EntropyChain(argument or ALL)
    if kind in WAYS:
        number, _, task = argument.partition(":")
        if re.fullmatch("[0-9]{1,2}", number) and 1 <= int(number) <= MAX_GROWN:
            return GrownTree(kind, int(number), task or ALL)
    if kind == "chain" and re.fullmatch("[0-9]{1,3}", argument) and 1 <= int(argument) <= MAX_DRAFTED:
        return chain(int(argument))
    if kind == "tree":
        for built_in in (NARROW, WIDE):
            if text == built_in.name:
                return built_in
        if argument:
            return _read_tree(Path(os.path.expanduser(argument)))
    if kind == "throughput":
        # for experiments; those who want one know that there are some
        raise UsageError(f"there is no policy '{text}'; of throughput there are {', '.join(filter(None, VARIANTS))}.")
    raise UsageError(f"there is no policy '{text}'; known are {KNOWN}.")


def _read_tree(path: Path) -> Policy:
    wanted = "a JSON list of parents such as [-1, 0, 0, 1], or an object with lists 'parents' and 'ranks'"
    try:
        with open_file(path) as file:
            content = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no policy 'tree:{path}' and no file {path}; known are {KNOWN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"cannot read a tree from {path} ({why}); it must hold {wanted}.") from None
    fields = content if isinstance(content, dict) else {"parents": content}
    parents, ranks = _int_list(fields.get("parents")), _int_list(fields.get("ranks"))
    if parents is None or (ranks is None and fields.get("ranks") is not None):
        raise UsageError(f"{path} does not hold a tree: it must hold {wanted}.")
    if not 2 <= len(parents) <= MAX_DRAFTED + 1:
        raise UsageError(
            f"{path} holds a tree of {len(parents)} nodes; it must have a root and 1 to {MAX_DRAFTED} drafted nodes."
        )
    # siblings without ranks are ranked in their order, so that a node with too many children has too high ranks, too
    highest = max(Counter(parents).values()) - 1 if ranks is None else max(ranks, default=0)
    if highest > MAX_RANK:
        raise UsageError(f"{path} asks for a continuation of rank {highest}; ranks go from 0 to {MAX_RANK}.")
    try:
        shape = TreeShape.from_parents(parents, ranks)
    except ValueError as error:
        raise UsageError(f"{path} does not hold a tree: {error}.") from None
    return StaticPolicy(f"tree:{path}", shape)


def _int_list(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    return None
