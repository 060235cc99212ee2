"""The generation loop on an engine without a model: what is emitted, when it ends, what is committed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from entmtp_local.engine import Generation, generate
from entmtp_local.errors import ContextFullError, EngineError
from entmtp_local.speculative.copying import CopyDrafter
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy, TokenChooser
from entmtp_local.speculative.static import StaticPolicy
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from entmtp_local.speculative.verify import Typical

Row = npt.NDArray[np.float32]

EOG = 0
N_VOCAB = 40


class RandomEngine:
    """The target's token is a function of all tokens before it; the drafter knows it now and then, at some rank."""

    def __init__(self, seed: int = 1, n_ctx: int = 10_000, limits: Limits | None = None, eog_at: int = 10**9) -> None:
        self.seed, self.n_ctx, self.eog_at = seed, n_ctx, eog_at
        self.limits = limits or Limits(trees=True, max_depth=50, max_nodes=50, reason="")
        self.committed: list[int] = []
        self.seen: list[int] = []  # by the drafter: committed and pending
        self.tree: DraftTree | None = None
        self.n_passes = 0
        self.turn = 0

    @property
    def n_past(self) -> int:
        return len(self.committed)

    def target(self, prefix: Sequence[int]) -> int:
        if len(prefix) == self.eog_at:
            return EOG
        return 1 + hash((self.seed, *prefix[-3:], len(prefix))) % (N_VOCAB - 1)

    def prefill(self, prompt: Sequence[int], stop: Callable[[], bool]) -> int:
        if stop():
            return 0
        if len(prompt) >= self.n_ctx:
            raise ContextFullError("full")
        self.committed = list(prompt)
        self.tree = None
        self.turn += 1
        return len(prompt)

    def path(self, node: int) -> list[int]:
        assert self.tree is not None
        tokens = []
        while node >= 0:
            tokens.append(self.tree.tokens[node])
            node = self.tree.shape.parents[node]
        return tokens[::-1]

    def chooser(self, sampler: TokenChooser) -> Callable[[int], int]:
        return lambda row: self.target(self.committed + (self.path(row) if row >= 0 else []))

    def rows(self, sampler: TokenChooser) -> Callable[[int], Row]:
        return lambda row: self.row(self.committed + self.path(row))

    def row(self, prefix: Sequence[int]) -> Row:
        """The target's token at 0.6, the next number at 0.3, all others share the rest."""
        p = np.full(N_VOCAB, 0.1 / (N_VOCAB - 2), dtype=np.float32)
        right = self.target(prefix)
        p[[right, (right + 1) % N_VOCAB]] = 0.6, 0.3
        return np.log(p)

    def start(self, pending: int) -> None:
        self.seen = [*self.committed, pending]

    def ranked(self, prefix: Sequence[int]) -> list[int]:
        """Continuations, best first as the drafter sees it: the target's token comes first, second or third."""
        right = self.target(prefix)
        others = [token for token in range(1, N_VOCAB) if token != right]
        others.insert(random.Random(hash((self.seed, *prefix))).choice([0, 0, 0, 1, 2]), right)
        return others

    def draft(self, shape: TreeShape, least: float = -math.inf) -> DraftTree:
        assert len(self.seen) == len(self.committed) + 1, "the drafter has caught up"
        tokens = [self.seen[-1]]
        prefixes = [list(self.seen)]
        for node in range(1, shape.n_nodes):
            prefix = prefixes[shape.parents[node]]
            tokens.append(self.ranked(prefix)[shape.ranks[node]])
            prefixes.append([*prefix, tokens[-1]])
        return DraftTree(shape, tuple(tokens))

    def verify(self, tree: DraftTree) -> None:
        assert len(self.committed) + tree.shape.n_nodes <= self.n_ctx, "every node needs a cell"
        self.tree = tree
        self.n_passes += 1

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        self.committed += [tree.tokens[node] for node in path]
        self.tree = None

    def discard(self) -> None:
        self.tree = None

    def follow(self, tree: DraftTree, path: Sequence[int], pending: int | None) -> None:
        self.seen = self.committed + ([pending] if pending is not None else [])

    def is_eog(self, token: int) -> bool:
        return token == EOG


class Sampler:
    greedy = True
    n_best = 1

    def __init__(self) -> None:
        self.resets = 0
        self.primed: list[int] = []
        self.taken: list[int] = []

    def sample(self, ctx: object, row: int) -> int:
        raise AssertionError

    def take(self, token: int) -> None:
        self.taken.append(token)

    def biased(self, row: Row) -> Row:
        return row

    def reset(self) -> None:
        self.resets += 1
        self.primed = []

    def prime(self, tokens: Sequence[int]) -> None:
        self.primed += tokens


PROMPT = [5, 6, 7]
POLICIES = ["off", "chain:1", "chain:3", "chain:6", "tree:narrow", "tree:wide"]


def plain(engine: RandomEngine, n: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(n):
        tokens.append(engine.target(tokens))
    return tokens[len(PROMPT) :]


def run(engine: RandomEngine, policy: Policy | str, max_tokens: int, stop: Callable[[], bool] | None = None):  # type: ignore[no-untyped-def]
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    generation = generate(engine, PROMPT, policy=policy, sampler=Sampler(), max_tokens=max_tokens, stop=stop)
    return generation, list(generation)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_emits_the_targets_tokens(policy: str, seed: int) -> None:
    engine = RandomEngine(seed)
    generation, steps = run(engine, policy, 200)
    assert generation.tokens == plain(engine, 200)
    assert [t for step in steps for t in step.tokens] == generation.tokens
    assert generation.finish_reason == "length" and generation.end is None
    assert engine.committed == [*PROMPT, *generation.tokens[:-1]], "all but the pending token is committed"
    stats = generation.stats
    assert (stats.n_prompt, stats.n_prefilled, stats.n_generated, stats.n_steps) == (3, 3, 200, len(steps) - 1)
    assert stats.n_steps == engine.n_passes
    assert sum(stats.accepted_per_depth) + stats.n_steps == 199
    assert stats.n_nodes == stats.n_steps * parse_policy(policy).max_nodes
    if policy.startswith("tree"):
        assert stats.sibling_hits > 0
    assert stats.accepted_per_depth == sorted(stats.accepted_per_depth, reverse=True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", range(3, 20))
def test_an_end_token_ends_the_answer_and_is_not_part_of_it(policy: str, at: int) -> None:
    engine = RandomEngine(2, eog_at=at)
    generation, steps = run(engine, policy, 100)
    assert generation.finish_reason == "stop" and generation.end == EOG
    assert generation.tokens == plain(RandomEngine(2), at - 3)
    assert all(EOG not in step.tokens for step in steps)
    assert EOG not in engine.committed
    assert engine.committed == [*PROMPT, *generation.tokens]
    assert engine.seen in ([], engine.committed), "the drafter holds no pending token"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_max_tokens_is_exact(policy: str, n: int) -> None:
    engine = RandomEngine(3)
    generation, _ = run(engine, policy, n)
    assert generation.tokens == plain(engine, n)
    assert generation.finish_reason == "length"


def test_no_tokens_wanted() -> None:
    engine = RandomEngine()
    generation, steps = run(engine, "off", 0)
    assert (generation.tokens, steps, generation.finish_reason) == ([], [], "length")
    assert engine.committed == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_context_is_used_to_its_last_cell(policy: str) -> None:
    engine = RandomEngine(4, n_ctx=40)
    generation, _ = run(engine, policy, 500)
    assert generation.finish_reason == "context"
    assert engine.n_past == 40
    assert generation.tokens == plain(engine, 38)


@pytest.mark.parametrize("policy", POLICIES)
def test_stopping_leaves_a_consistent_engine(policy: str) -> None:
    engine = RandomEngine(5)
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return polls > 5

    generation, _ = run(engine, policy, 500, stop)
    assert generation.finish_reason == "interrupted"
    assert generation.tokens == plain(engine, len(generation.tokens))
    assert engine.committed == [*PROMPT, *generation.tokens[:-1]]
    # going on gives what would have come
    rest = generate(engine, [*PROMPT, *generation.tokens], policy=parse_policy(policy), sampler=Sampler(), max_tokens=50)
    list(rest)
    assert generation.tokens + rest.tokens == plain(engine, len(generation.tokens) + 50)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_a_generation_does_not_go_on_over_another_prompt(n_steps: int) -> None:
    engine = RandomEngine(8)
    first = generate(engine, PROMPT, policy=parse_policy("chain:2"), sampler=Sampler(), max_tokens=50)
    steps = iter(first)
    for _ in range(n_steps):
        next(steps)
    second, _ = run(engine, "chain:2", 20)
    assert second.tokens == plain(engine, 20)
    with pytest.raises(EngineError, match="another prompt was started"):
        next(steps)


def test_a_sampler_that_fails_leaves_no_open_tree() -> None:
    class Failing(RandomEngine):
        def chooser(self, sampler: TokenChooser) -> Callable[[int], int]:
            choose = super().chooser(sampler)

            def fail_later(row: int) -> int:
                if self.n_passes == 3:
                    raise EngineError("the grammar allows no token")
                return choose(row)

            return fail_later

    engine = Failing(9)
    with pytest.raises(EngineError, match="grammar"):
        run(engine, "tree:wide", 50)
    assert engine.tree is None
    engine.n_passes = 10
    again, _ = run(engine, "tree:wide", 50)
    assert again.tokens == plain(engine, 50)


def test_stopping_before_the_prompt_is_done() -> None:
    generation, steps = run(RandomEngine(), "chain:3", 10, lambda: True)
    assert (steps, generation.tokens, generation.finish_reason) == ([], [], "interrupted")


def test_a_policy_is_reduced_to_what_the_engine_verifies() -> None:
    engine = RandomEngine(6, limits=Limits(trees=False, max_depth=4, max_nodes=12, reason="chains only"))
    generation, steps = run(engine, "tree:wide", 100)
    assert generation.policy.name == "chain:4"
    assert {step.n_nodes for step in steps[1:]} == {4}
    assert generation.tokens == plain(engine, 100)


def test_sampler_begins_anew_with_the_prompt() -> None:
    sampler = Sampler()
    for n in (1, 2):
        list(generate(RandomEngine(), PROMPT, policy=parse_policy("off"), sampler=sampler, max_tokens=5))
        assert sampler.resets == n
        assert sampler.primed == PROMPT


def test_statistics_add_up() -> None:
    generation, steps = run(RandomEngine(7), "tree:wide", 100)
    report = generation.stats.as_json()
    assert report["tokens_per_step"] == pytest.approx(99 / report["n_steps"])
    assert report["nodes_per_step"] == 12
    parts = sum(report["seconds"][name] for name in ("draft", "verify", "accept", "commit", "schedule"))
    assert parts <= report["seconds"]["decode"] * 1.001
    assert report["tokens_per_second"] == pytest.approx(99 / report["seconds"]["decode"])
    assert sum(step.seconds.total for step in steps) <= report["seconds"]["decode"]


def test_a_token_that_ends_an_answer_takes_a_step_too() -> None:
    generation, _ = run(RandomEngine(2, eog_at=len(PROMPT) + 12), "off", 100)
    stats = generation.stats
    assert (generation.finish_reason, stats.n_generated, stats.n_steps) == ("stop", 12, 12) and stats.tokens_per_step == 1


class RepeatingEngine(RandomEngine):
    """Its text quotes itself: every second stretch of 20 tokens is the one before, but for one token."""

    def target(self, prefix: Sequence[int]) -> int:
        n = len(prefix)
        if n == self.eog_at:
            return EOG
        if n // 20 % 2 and n % 20 != 11:
            return prefix[n - 20]
        return 1 + hash((self.seed, n)) % (N_VOCAB - 1)


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("policy", ["chain:1", "chain:3", "tree:wide"])
def test_copied_text_is_verified_like_any_draft(policy: str, trees: bool) -> None:
    limits = Limits(trees=trees, max_depth=50, max_nodes=50, reason="", max_copied=15)
    runs = {}
    for name, copies in (("without", None), ("with", CopyDrafter())):
        engine = RepeatingEngine(3, limits=limits, n_ctx=1000)
        generation = generate(engine, PROMPT, policy=parse_policy(policy), sampler=Sampler(), max_tokens=2000, copies=copies)
        steps = list(generation)
        assert generation.tokens == plain(engine, 998)
        assert generation.finish_reason == "context"
        assert engine.n_past == 1000
        runs[name] = generation.stats
        if copies is not None:
            accepted = {node for step in steps for node in step.accepted if node in step.tree.copied}
            assert accepted
            assert all(len(step.tree.copied) <= 15 for step in steps)
    assert runs["without"].n_copied == runs["without"].copied_hits == 0
    assert 100 < runs["with"].copied_hits < runs["with"].n_copied
    # the wide tree holds most of what a copy would add
    assert runs["with"].n_steps < (1.05 if policy == "tree:wide" else 1.0) * runs["without"].n_steps


def test_nothing_is_copied_where_nothing_is_drafted() -> None:
    engine = RepeatingEngine(3, limits=Limits(trees=True, max_depth=50, max_nodes=50, reason="", max_copied=15))
    generation = generate(engine, PROMPT, policy=parse_policy("off"), sampler=Sampler(), max_tokens=200, copies=CopyDrafter())
    list(generation)
    assert generation.stats.n_nodes == 0
    assert generation.tokens == plain(engine, 200)


class RestingPolicy(StaticPolicy):
    """Drafts a chain of two, then has `n` steps to rest, of at most 10 seconds; notes what it is asked and told.

    Args:
        n_begin: steps to rest where a text begins.
    """

    def __init__(self, n: int, n_begin: int = 0) -> None:
        super().__init__("", TreeShape.chain(2))
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "n_begin", n_begin)
        object.__setattr__(self, "notes", [])

    def plan(self, evidence: Evidence) -> TreeShape:
        self.notes.append(("planned", evidence.n_past - len(PROMPT)))  # type: ignore[attr-defined]
        return super().plan(evidence)

    def learn(self, outcome: Outcome) -> None:
        self.notes.append(("learnt", outcome.verified.shape.n_nodes))  # type: ignore[attr-defined]

    def rest(self, n_past: int) -> tuple[int, float]:
        if n_past == len(PROMPT):
            return self.n_begin, 10.0  # type: ignore[attr-defined]
        return (self.n if self.notes[-1][0] == "learnt" else 0), 10.0  # type: ignore[attr-defined]

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        self.notes.append(("rested", n, seconds, verify_seconds))  # type: ignore[attr-defined]

    def within(self, limits: Limits) -> Policy:
        return self


class Ticking:
    """A clock that advances by a second a look, and by more in chosen passes.

    Args:
        engine: whose passes are counted.
        slow: passes that take a hundred seconds.
    """

    def __init__(self, engine: RandomEngine, slow: Sequence[int] = ()) -> None:
        self.now, verify = 0.0, engine.verify

        def timed(tree: DraftTree) -> None:
            verify(tree)
            self.now += 100.0 * (engine.n_passes in slow)

        engine.verify = timed  # type: ignore[method-assign]

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def rests_of(engine: RandomEngine, n: int, max_tokens: int, slow: Sequence[int] = (), **options: Any) -> list[tuple[Any, ...]]:
    policy = RestingPolicy(n)
    generation = generate(
        engine, PROMPT, policy=policy, sampler=Sampler(), max_tokens=max_tokens, clock=Ticking(engine, slow), **options
    )
    list(generation)
    assert generation.tokens == plain(engine, max_tokens)
    assert generation.stats.n_generated == max_tokens
    return policy.notes  # type: ignore[attr-defined,no-any-return]


def test_steps_of_a_rest_are_told_together() -> None:
    notes = rests_of(RandomEngine(), 4, 60)
    kinds = [note[0] for note in notes]
    n = len(kinds) // 3
    assert kinds[: 3 * n] == ["planned", "learnt", "rested"] * n and n >= 8
    rests = [note[1:] for note in notes if note[0] == "rested"]
    # five looks at the clock behind a step's first one, one for the learning before; two between draft and acceptance
    assert set(rests[:-1]) == {(4, 4 * 6.0, 4 * 2.0)}
    planned = [note[1] for note in notes if note[0] == "planned"]
    assert all(after - before in (4 + 1, 4 + 2, 4 + 3) for before, after in itertools.pairwise(planned)), "what came in between"


def test_a_long_step_of_a_rest_counts_for_no_more_than_was_said() -> None:
    notes = rests_of(RandomEngine(), 4, 60, slow=[4])
    assert [note[0] for note in notes[:4]] == ["planned", "learnt", "rested", "planned"]
    # six looks at the clock in each of the others, two of them between draft and acceptance; 10 seconds for this one of 106
    assert notes[2][1:] == (4, 3 * 6.0 + 10.0, pytest.approx(3 * 2.0 + 102.0 * 10.0 / 106.0))


def test_a_rest_ends_with_the_text() -> None:
    notes = rests_of(RandomEngine(), 1000, 60)
    assert [note[0] for note in notes] == ["planned", "learnt", "rested"]
    n_first = 60 - 1 - notes[2][1]
    assert 1 <= n_first <= 3, "all tokens but the prompt's and the first step's"


def resting(engine: RandomEngine, policy: RestingPolicy, max_tokens: int = 60, **options: Any) -> Generation:
    return generate(engine, PROMPT, policy=policy, sampler=Sampler(), max_tokens=max_tokens, clock=Ticking(engine), **options)


def told(policy: RestingPolicy) -> list[int]:
    return [note[1] for note in policy.notes if note[0] == "rested"]  # type: ignore[attr-defined]


def test_a_rest_ends_however_the_text_ends() -> None:
    engine, polls = RandomEngine(), itertools.count()
    policy = RestingPolicy(1000)
    stopped = resting(engine, policy, stop=lambda: next(polls) > 10)
    list(stopped)
    assert stopped.finish_reason == "interrupted" and told(policy) == [stopped.stats.n_steps - 1]
    for more in ({"eog_at": 30}, {"n_ctx": 30}):
        engine, policy = RandomEngine(**more), RestingPolicy(1000)
        ended = resting(engine, policy)
        list(ended)
        assert ended.finish_reason == ("stop" if "eog_at" in more else "context")
        assert told(policy) == [ended.stats.n_steps - 1]
    engine, policy = RandomEngine(), RestingPolicy(1000)
    left = resting(engine, policy)
    for _ in range(10):
        next(iter(left))
    left._steps.close()  # type: ignore[attr-defined]
    assert told(policy) == [8], "neither the prompt's token nor the step that drafted"


def test_a_text_begins_within_a_rest() -> None:
    engine, policy = RandomEngine(), RestingPolicy(0, n_begin=7)
    generation = resting(engine, policy)
    list(generation)
    assert generation.tokens == plain(engine, 60)
    notes = policy.notes  # type: ignore[attr-defined]
    assert [note[:2] for note in notes[:2]] == [("rested", 7), ("planned", 7)]
    assert {note[0] for note in notes[1:]} == {"planned", "learnt"}


def test_a_rest_ends_with_a_pass_that_fails() -> None:
    engine, policy = RandomEngine(), RestingPolicy(1000)
    generation, verify = resting(engine, policy), engine.verify

    def failing(tree: DraftTree) -> None:
        if engine.n_passes == 9:
            raise EngineError("broken")
        verify(tree)

    engine.verify = failing  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="broken"):
        list(generation)
    assert told(policy) == [8]


def test_a_rest_is_not_told_in_the_middle_of_another_text() -> None:
    engine, policy = RandomEngine(), RestingPolicy(1000)
    first, second = resting(engine, policy), resting(engine, policy)
    for _ in range(10):
        next(iter(first))
    for _ in range(4):
        next(iter(second))
    first._steps.close()  # type: ignore[attr-defined]
    assert told(policy) == []
    list(second)
    assert told(policy) == [second.stats.n_steps - 1]


def test_plain_decoding_is_never_planned() -> None:
    engine, planned = RandomEngine(), []

    class Plain(StaticPolicy):
        def plan(self, evidence: Evidence) -> TreeShape:
            planned.append(evidence.n_past)
            return super().plan(evidence)

        def within(self, limits: Limits) -> Policy:
            return self

    generation = generate(engine, PROMPT, policy=Plain("off", ROOT_ONLY), sampler=Sampler(), max_tokens=60)
    list(generation)
    assert generation.tokens == plain(engine, 60) and planned == []


def test_copied_text_ends_a_rest() -> None:
    limits = Limits(trees=True, max_depth=50, max_nodes=50, reason="", max_copied=15)
    notes = rests_of(RepeatingEngine(3, limits=limits), 1000, 200, copies=CopyDrafter())
    kinds = [note[0] for note in notes]
    assert kinds.count("rested") > 2 and kinds.count("planned") == 1
    assert all(after == "learnt" for before, after in itertools.pairwise(kinds) if before == "rested")


class DrawingSampler(Sampler):
    greedy = False


class WatchedPolicy(StaticPolicy):
    """Keeps what it is given to learn from."""

    def __init__(self, policy: Policy, outcomes: list[Outcome]) -> None:
        assert isinstance(policy, StaticPolicy)
        super().__init__(policy.name, policy.shape)
        object.__setattr__(self, "outcomes", outcomes)

    def learn(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)  # type: ignore[attr-defined]


class TellingEngine(RandomEngine):
    """Says of each draft's first token that it ends the text."""

    def draft(self, shape: TreeShape, least: float = -math.inf) -> DraftTree:
        return replace(super().draft(shape, least), ends=(1,))


class AskedPolicy(StaticPolicy):
    """Keeps what it is told of ends."""

    def __init__(self) -> None:
        super().__init__("", TreeShape.chain(2))
        object.__setattr__(self, "ends", [])

    def select(self, tree: DraftTree) -> DraftTree:
        self.ends.append(tree.ends)  # type: ignore[attr-defined]
        return tree


def test_only_rules_that_ask_every_row_leave_ends_out() -> None:
    """Others take what was drafted: an end that was left out could never come, where something else was drafted beside it."""
    strict, typical = AskedPolicy(), AskedPolicy()
    run(TellingEngine(1), strict, 20)
    run_typical(TellingEngine(1), typical, 20)
    assert set(strict.ends) == {(1,)} and set(typical.ends) == {()}  # type: ignore[attr-defined]


def run_typical(engine: RandomEngine, policy: Policy | str, max_tokens: int, copies: CopyDrafter | None = None):  # type: ignore[no-untyped-def]
    sampler = DrawingSampler()
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    rule = Typical(1.0)
    generation = generate(engine, PROMPT, policy=policy, rule=rule, sampler=sampler, max_tokens=max_tokens, copies=copies)
    return generation, list(generation), sampler


@pytest.mark.parametrize("policy", POLICIES)
def test_typical_acceptance_takes_drafts_that_the_target_did_not_choose(policy: str) -> None:
    engine = RandomEngine(2)
    generation, steps, sampler = run_typical(engine, policy, 300)
    text = [*PROMPT, *generation.tokens]
    assert generation.finish_reason == "length" and len(generation.tokens) == 300
    assert engine.committed == text[:-1]
    chosen = [engine.target(text[:i]) for i in range(len(PROMPT), len(text))]
    others = [(token, right) for token, right in zip(generation.tokens, chosen, strict=True) if token != right]
    # of two typical tokens the target's own is the first, and the drafter gives the other one now and then
    assert all(token == (right + 1) % N_VOCAB for token, right in others)
    assert bool(others) == (policy != "off")
    accepted = [step.tree.tokens[node] for step in steps for node in step.accepted]
    assert sampler.taken[: len(accepted)] == accepted, "the sampler has seen every token that it did not choose"
    assert len(sampler.taken) - len(accepted) in (0, 1), "the last token may be a drafted one that is not descended into"


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_a_typical_text_is_the_beginning_of_a_longer_one(policy: str, n: int) -> None:
    longer, _, _ = run_typical(RandomEngine(3), policy, 100)
    shorter, _, _ = run_typical(RandomEngine(3), policy, n)
    assert shorter.tokens == longer.tokens[:n]
    assert shorter.finish_reason == "length"


class EndingEngine(RandomEngine):
    """From some place on its own token is the one that ends the text; the other typical one may be drafted there, too."""

    def target(self, prefix: Sequence[int]) -> int:
        return EOG if len(prefix) >= self.eog_at else super().target(prefix)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_a_typical_end_token_ends_the_answer(policy: str) -> None:
    drafted = 0
    for at in range(3, 20):
        engine = EndingEngine(2, eog_at=at)
        generation, _, sampler = run_typical(engine, policy, 100)
        assert generation.finish_reason == "stop" and len(generation.tokens) >= at - 3
        assert EOG not in generation.tokens and EOG not in engine.committed
        assert engine.committed == [*PROMPT, *generation.tokens]
        assert engine.seen in ([], engine.committed), "the drafter holds no pending token"
        assert EOG not in sampler.taken[:-1]
        drafted += EOG in sampler.taken
    assert drafted > 3, "it was a drafted node in some of the answers"


def test_policies_learn_from_what_typical_acceptance_accepts() -> None:
    outcomes: list[Outcome] = []
    engine = RandomEngine(4)
    generation, steps, _ = run_typical(engine, WatchedPolicy(parse_policy("tree:wide"), outcomes), 100)
    assert [outcome.path for outcome in outcomes] == [step.path for step in steps[1:]]
    assert sum(len(outcome.path) - 1 for outcome in outcomes) == sum(generation.stats.accepted_per_depth) > 0


def test_copied_tokens_are_accepted_as_drafted_ones_are() -> None:
    limits = Limits(trees=True, max_depth=50, max_nodes=50, reason="", max_copied=15)
    engine = RepeatingEngine(3, limits=limits, n_ctx=1000)
    generation, steps, _ = run_typical(engine, "chain:1", 600, CopyDrafter())
    text = [*PROMPT, *generation.tokens]
    copied = 0
    n = len(PROMPT)
    for step in steps:
        for token, node in zip(step.tokens, (*step.accepted, None), strict=False):
            assert (token - engine.target(text[:n])) % N_VOCAB in ((0, 1) if node is not None else (0,))
            copied += node in step.tree.copied
            n += 1
    assert copied == generation.stats.copied_hits > 100


def test_a_sampler_that_takes_the_arg_max_goes_with_strict_acceptance_only() -> None:
    with pytest.raises(AssertionError, match="strict"):
        generate(RandomEngine(), PROMPT, policy=parse_policy("chain:1"), rule=Typical(0.8), sampler=Sampler(), max_tokens=5)
