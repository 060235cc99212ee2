"""Acceptance: the target's tokens are followed until they leave the tree, or typical tokens as far as they go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from entmtp_local.errors import UsageError
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from entmtp_local.speculative.verify import (
    ACCEPTANCES,
    STRICT,
    AcceptanceRule,
    Accepted,
    Target,
    Typical,
    accept,
    parse_acceptance,
)

Row = npt.NDArray[np.float32]

#        0
#       1  2
#      3    4 5
#     6
TREE = DraftTree(TreeShape.from_parents([-1, 0, 0, 1, 2, 2, 3]), (100, 11, 12, 13, 14, 15, 16))


def run(rows: dict[int, int], limit: int = 99, last: int = -1) -> tuple[Accepted, list[int]]:
    """Accept with a target that answers `rows[node]` at each node; also the nodes that were asked."""
    asked: list[int] = []

    def choose(node: int) -> int:
        asked.append(node)
        return rows[node]

    return accept(TREE, choose, lambda token: token == last, limit), asked


@pytest.mark.parametrize(
    ("rows", "path", "tokens"),
    [
        ({0: 99}, (0,), (99,)),
        ({0: 11, 1: 99}, (0, 1), (11, 99)),
        ({0: 12, 2: 15, 5: 13}, (0, 2, 5), (12, 15, 13)),  # 13 is in the tree, but not below node 5
        ({0: 11, 1: 13, 3: 16, 6: 16}, (0, 1, 3, 6), (11, 13, 16, 16)),
    ],
)
def test_the_path_of_the_targets_tokens(rows: dict[int, int], path: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    accepted, asked = run(rows)
    assert accepted.path == path
    assert accepted.tokens == tokens
    assert accepted.bonus == tokens[-1]
    assert asked == list(path), "each visited row is sampled once, in order of depth"


def test_nothing_is_emitted_past_the_limit() -> None:
    accepted, asked = run({0: 11, 1: 13, 3: 16, 6: 1}, limit=2)
    assert accepted == Accepted((0, 1), (11, 13))
    assert asked == [0, 1]


def test_a_last_token_is_the_bonus_even_where_it_was_drafted() -> None:
    accepted, asked = run({0: 11, 1: 13, 3: 16, 6: 1}, last=13)
    assert accepted == Accepted((0, 1), (11, 13))
    assert asked == [0, 1]


def test_without_drafts_one_token_comes_out() -> None:
    assert accept(DraftTree(ROOT_ONLY, (7,)), lambda node: 3, lambda token: False, 5) == Accepted((0,), (3,))


# -- typical acceptance

N_VOCAB = 20
TREE_20 = DraftTree(TREE.shape, (10, *TREE.tokens[1:]))


def row(**p: float) -> Row:
    """Logits whose softmax has these probabilities; the rest is spread evenly over tokens 0 to 9, which no tree has."""
    found = np.zeros(N_VOCAB)
    for name, value in p.items():
        found[int(name[1:])] = value
    found[:10] = (1 - found.sum()) / 10
    with np.errstate(divide="ignore"):
        return np.log(found).astype(np.float32)


def entropy(logits: Row, temperature: float = 1.0) -> float:
    """Independent of the package, in double precision."""
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


class Rows:
    """A target with given rows; it chooses token 0 and notes what it was asked and what the sampler was shown."""

    def __init__(self, rows: dict[int, Row], last: int = -1, greedy: bool = False) -> None:
        self.rows, self.last, self.greedy = rows, last, greedy
        self.read: list[int] = []
        self.events: list[tuple[str, int]] = []

    def choose(self, node: int) -> int:
        self.events.append(("choose", node))
        return int(self.rows[node].argmax()) if self.greedy else 0

    def logits(self, node: int) -> Row:
        self.read.append(node)
        self.rows[node].setflags(write=False)
        return self.rows[node]

    def accept(self, tree: DraftTree = TREE_20, limit: int = 99, rule: AcceptanceRule | None = None) -> Accepted:
        target = Target(self.choose, lambda t: self.events.append(("take", t)), self.logits, lambda t: t == self.last)
        return (rule or Typical(1.0)).accept(tree, target, limit)


def test_the_criterion_at_its_border() -> None:
    """With 11 nearly certain, what is asked of a token is epsilon or delta exp(-H), whichever is less."""
    tree = DraftTree(TreeShape.from_parents([-1, 0]), (10, 11))
    for p in (0.02, 0.08, 0.085, 0.095, 0.2):
        # one other token has the rest: entropies from 0.1 to 0.5
        logits = row(t11=p, t12=1 - p)
        wanted = min(0.09, 0.3 * math.exp(-entropy(logits)))
        assert wanted == 0.09, "certain enough that epsilon decides"
        accepted = Rows({0: logits, 1: logits}).accept(tree)
        assert accepted.path == ((0, 1) if p > wanted else (0,)), p
    logits = row(t11=0.2, t12=0.8)
    p = 0.2
    for epsilon, wanted_path in ((p * 1.001, (0,)), (p * 0.999, (0, 1))):
        accepted = Rows({0: logits, 1: logits}).accept(tree, rule=Typical(1.0, epsilon=epsilon, delta=99.0))
        assert accepted.path == wanted_path
    for factor, wanted_path in ((1.001, (0,)), (0.999, (0, 1))):
        delta = factor * p / math.exp(-entropy(logits))
        accepted = Rows({0: logits, 1: logits}).accept(tree, rule=Typical(1.0, epsilon=1.0, delta=delta))
        assert accepted.path == wanted_path


def test_the_less_certain_the_target_is_the_less_is_asked_of_a_token() -> None:
    tree = DraftTree(TreeShape.from_parents([-1, 0]), (10, 11))
    certain, uncertain = row(t11=0.05, t12=0.95), row(t11=0.05)
    assert 0.3 * math.exp(-entropy(certain)) > 0.05 > 0.3 * math.exp(-entropy(uncertain))
    assert Rows({0: certain}).accept(tree).path == (0,)
    assert Rows({0: uncertain, 1: uncertain}).accept(tree).path == (0, 1)


def test_the_temperature_is_the_users() -> None:
    tree = DraftTree(TreeShape.from_parents([-1, 0]), (10, 11))
    logits = row(t11=0.06, t12=0.94)
    for temperature in (0.5, 0.8, 1.0, 1.5, 3.0):
        p = float(np.exp(logits[11] / temperature) / np.exp(logits / temperature).sum())
        wanted = p > min(0.09, 0.3 * math.exp(-entropy(logits, temperature)))
        assert wanted == (temperature > 1.0)
        assert Rows({0: logits, 1: logits}).accept(tree, rule=Typical(temperature)).path == ((0, 1) if wanted else (0,))


ANY = row(t10=0.1, t11=0.1, t12=0.1, t13=0.1, t14=0.1, t15=0.1, t16=0.1)


def test_the_longest_typical_path_is_kept_though_another_begins_better() -> None:
    rows = Rows({0: row(t11=0.6, t12=0.3), 1: row(t10=1.0), 2: row(t14=0.5, t15=0.4), 5: ANY})
    accepted = rows.accept()
    # 11 is more probable than 12, but nothing typical follows it; 14 has no children and is more probable than 15
    assert accepted == Accepted((0, 2, 4), (12, 14, 0))
    assert rows.events == [("take", 12), ("take", 14), ("choose", 4)], "shown in order, then sampled once"
    assert rows.read == [0, 1, 2], "rows below what is not typical, and of leaves, are not looked at"


def test_of_equally_long_paths_the_most_probable_is_kept() -> None:
    first = {0: row(t11=0.5, t12=0.4), 1: row(t13=0.3), 2: row(t14=0.35, t15=0.38), 3: row(t10=1.0)}
    assert Rows(first).accept().path == (0, 2, 5)  # 0.4 * 0.38 > 0.5 * 0.3
    assert Rows(first | {1: row(t13=0.9)}).accept().path == (0, 1, 3)
    assert Rows(first | {3: ANY}).accept().path == (0, 1, 3, 6), "a longer one is kept whatever its probability"


def test_siblings_that_are_not_typical_are_rejected_with_all_below_them() -> None:
    rows = Rows({0: row(t11=0.01, t12=0.9), 2: row(t10=1.0), 1: ANY, 3: ANY})
    assert rows.accept() == Accepted((0, 2), (12, 0))
    assert rows.read == [0, 2]


def test_a_typical_last_token_is_the_bonus_and_nothing_follows_it() -> None:
    rows = Rows(dict.fromkeys(range(7), ANY), last=13)
    # with 13 no last token, 16 below it would make the longest path
    assert Rows(dict.fromkeys(range(7), ANY)).accept() == Accepted((0, 1, 3, 6), (11, 13, 16, 0))
    assert rows.accept() == Accepted((0, 1), (11, 13))
    assert rows.events == [("take", 11), ("take", 13)], "no token is sampled after it"
    assert 3 not in rows.read
    # a path that goes on is longer than one that ends
    longer = Rows({0: ANY, 1: row(t13=0.5), 3: row(t16=0.5), 2: row(t10=1.0)}, last=12)
    assert longer.accept() == Accepted((0, 1, 3, 6), (11, 13, 16, 0))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_typical_tokens_within_the_limit(limit: int) -> None:
    everything = (11, 13, 16, 0)
    rows = Rows(dict.fromkeys(range(7), ANY))
    accepted = rows.accept(limit=limit)
    assert accepted.tokens == everything[:limit]
    assert accepted.path == (0, 1, 3, 6)[: min(limit, 4)], "the last token that may be emitted is not descended into"


def test_without_drafts_the_sampler_chooses() -> None:
    rows = Rows({0: ANY})
    assert rows.accept(DraftTree(ROOT_ONLY, (10,))) == Accepted((0,), (0,))
    assert rows.read == [] and rows.events == [("choose", 0)]


@pytest.mark.parametrize("seed", range(30))
def test_towards_temperature_0_typical_acceptance_is_strict(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = {node: rng.normal(size=N_VOCAB).astype(np.float32) for node in range(7)}
    # the target agrees with a child at most nodes, so that paths of every length occur
    for node, children in enumerate(TREE_20.shape.children):
        if children and rng.random() < 0.8:
            rows[node][TREE_20.tokens[rng.choice(children)]] = 9
    strict = Rows(rows, greedy=True).accept(rule=STRICT)
    assert Rows(rows, greedy=True).accept(rule=Typical(0.001)) == strict
    with pytest.raises(ValueError, match="strict"):
        Typical(0.0)


@pytest.mark.parametrize("name", ACCEPTANCES)
def test_at_temperature_0_the_rule_is_strict_whatever_its_name(name: str) -> None:
    assert parse_acceptance(name, SamplingOptions(temp=0.0, grammar="root ::= [0-9]")) is STRICT


def test_rules_by_name() -> None:
    assert parse_acceptance("strict", SamplingOptions(repeat_penalty=1.2)) is STRICT
    assert STRICT.lossless
    rule = parse_acceptance(
        "typical", SamplingOptions(temp=0.7, logit_bias=((5, -math.inf),), repeat_penalty=1.2, repeat_last_n=0)
    )
    assert rule == Typical(0.7, epsilon=0.09, delta=0.3) and not rule.lossless


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grammar": "root ::= [0-9]"}, "a grammar or a JSON schema"),
        ({"json_schema": "{}"}, "a grammar or a JSON schema"),
        ({"repeat_penalty": 1.1}, "penalties"),
        ({"presence_penalty": 0.5}, "penalties"),
    ],
)
def test_typical_acceptance_refuses_rules_that_depend_on_the_text(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"--acceptance typical cannot be combined with {words}.*--acceptance strict"):
        parse_acceptance("typical", SamplingOptions(**values))
