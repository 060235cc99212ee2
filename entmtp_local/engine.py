"""The generation loop: one for chat, run and every later consumer. It yields a Step record per verification pass.

It knows neither llama.cpp nor text: an engine, a sampler and a policy are given to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import nan
from time import perf_counter
from typing import Any

from entmtp_local.errors import EngineError
from entmtp_local.speculative.copying import NO_COPY, CopyDrafter, chain_of, merge
from entmtp_local.speculative.protocol import Evidence, Outcome, Policy, SpeculativeEngine, TokenChooser
from entmtp_local.speculative.rest import Rest
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from entmtp_local.speculative.verify import STRICT, AcceptanceRule, Target

_EXPECTED = 8.0  # accepted tokens a step that deep drafts of an answer are expected to bring at most, before any has


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Where a step's time went, seconds."""

    schedule: float
    draft: float
    verify: float
    accept: float
    commit: float  # rollback in the target, and the drafter's catch-up, which is also the next draft's first level

    @property
    def total(self) -> float:
        return self.schedule + self.draft + self.verify + self.accept + self.commit


@dataclass(frozen=True, slots=True)
class Step:
    """One verification pass and what it gave."""

    tokens: tuple[int, ...]  # emitted: accepted drafts and the bonus token, an end-of-generation token left out
    tree: DraftTree
    path: tuple[int, ...]  # accepted nodes, root first
    seconds: StepSeconds
    entropies: tuple[float, ...] = ()  # of the distribution that each emitted token was chosen from, nats, where they are wanted

    @property
    def n_nodes(self) -> int:
        """Drafted nodes, the root not counted."""
        return self.tree.shape.n_nodes - 1

    @property
    def accepted(self) -> tuple[int, ...]:
        """Accepted drafted nodes."""
        return self.path[1:]


@dataclass(slots=True)
class Stats:
    """Sums over the steps of a generation."""

    n_prompt: int = 0
    n_prefilled: int = 0  # prompt tokens that had to be computed
    n_generated: int = 0
    n_ends: int = 0  # tokens that ended an answer, which are not among the generated ones
    n_steps: int = 0
    n_nodes: int = 0
    n_plain_steps: int = 0  # steps that drafted nothing
    n_copied: int = 0  # nodes that were found in the text
    copied_hits: int = 0  # of which accepted
    sibling_hits: int = 0  # accepted nodes that were not the best-ranked of their parent's children
    accepted_per_depth: list[int] = field(default_factory=list)  # [d] = nodes accepted at depth d + 1
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prefill", "decode", "draft", "verify", "accept", "commit", "schedule"), 0.0)
    )
    _decode_begin: float = 0.0

    def first_token(self, now: float, n_emitted: int) -> None:
        self._decode_begin = now
        self.n_generated = n_emitted

    def add(self, step: Step, now: float) -> None:
        self.n_steps += 1
        self.n_generated += len(step.tokens)
        self.n_nodes += step.n_nodes
        self.n_plain_steps += step.n_nodes == 0
        self.n_copied += len(step.tree.copied)
        children, parent = step.tree.shape.children, 0
        for depth, node in enumerate(step.accepted):
            if depth == len(self.accepted_per_depth):
                self.accepted_per_depth.append(0)
            self.accepted_per_depth[depth] += 1
            if node in step.tree.copied:
                self.copied_hits += 1
            else:
                self.sibling_hits += node != children[parent][0]
            parent = node
        seconds, spent = self.seconds, step.seconds
        seconds["schedule"] += spent.schedule
        seconds["draft"] += spent.draft
        seconds["verify"] += spent.verify
        seconds["accept"] += spent.accept
        seconds["commit"] += spent.commit
        seconds["decode"] = now - self._decode_begin

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed as llama.cpp counts it: the first token belongs to the prompt's pass."""
        decode = self.seconds["decode"]
        return max(0, self.n_generated - 1) / decode if decode > 0 else 0.0

    @property
    def tokens_per_step(self) -> float:
        # one that ends the answer takes a step as any other does
        return max(0, self.n_generated + self.n_ends - 1) / self.n_steps if self.n_steps else 0.0

    @property
    def nodes_per_step(self) -> float:
        return self.n_nodes / self.n_steps if self.n_steps else 0.0

    @property
    def acceptance(self) -> float:
        """Accepted among drafted nodes."""
        return sum(self.accepted_per_depth) / self.n_nodes if self.n_nodes else 0.0

    def join(self, other: Stats) -> None:
        """Add those of a generation that goes on with the same text behind a shorter prompt."""
        self.n_prompt = other.n_prompt
        self.n_prefilled += other.n_prefilled
        self.n_generated += other.n_generated
        self.n_ends += other.n_ends
        self.n_steps += other.n_steps
        self.n_nodes += other.n_nodes
        self.n_plain_steps += other.n_plain_steps
        self.n_copied += other.n_copied
        self.copied_hits += other.copied_hits
        self.sibling_hits += other.sibling_hits
        longest = zip_longest(self.accepted_per_depth, other.accepted_per_depth, fillvalue=0)
        self.accepted_per_depth = [a + b for a, b in longest]
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "n_prompt": self.n_prompt,
            "n_prefilled": self.n_prefilled,
            "n_generated": self.n_generated,
            "seconds": dict(self.seconds),
            "tokens_per_second": self.tokens_per_second,
            "n_steps": self.n_steps,
            "tokens_per_step": self.tokens_per_step,
            "accepted_per_depth": list(self.accepted_per_depth),
            "sibling_hits": self.sibling_hits,
            "n_copied": self.n_copied,
            "copied_hits": self.copied_hits,
            "nodes_per_step": self.nodes_per_step,
        }


class Generation:
    """An answer under way: iterate over it to get its steps. Can be left at any time; the engine stays consistent."""

    def __init__(
        self,
        engine: SpeculativeEngine,
        prompt: Sequence[int],
        policy: Policy,
        rule: AcceptanceRule,
        sampler: TokenChooser,
        max_tokens: int,
        stop: Callable[[], bool],
        copies: CopyDrafter | None,
        entropies: bool,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._prompt = list(prompt)
        self.policy = policy.within(engine.limits)
        # for such a sampler an engine may look at no rows but those that the arg-max leads to
        assert rule.lossless or not sampler.greedy, "a sampler that takes the arg-max goes with strict acceptance"
        self.rule = rule
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._stop = stop
        self._clock = clock
        self._entropies = entropies
        self._copies = copies if engine.limits.max_copied > 0 and self.policy.max_nodes > 0 else None
        self._usual = min(_EXPECTED, float(self.policy.max_depth))  # tokens of drafts that were accepted lately, a step
        self.tokens: list[int] = []  # generated ids, the end-of-generation token not among them
        self.end: int | None = None  # that token
        self.finish_reason = "interrupted"  # or "stop", "length", "context"
        self.stats = Stats(n_prompt=len(self._prompt))
        self._turn = -1  # of the engine, when the prompt was in it
        self._rest = Rest(self.policy)
        self._steps = self._run()

    def __iter__(self) -> Iterator[Step]:
        return self._steps

    def _run(self) -> Iterator[Step]:
        try:
            yield from self._decode()
        finally:
            # a generation that is left may be found so when the engine holds another text
            if self._engine.turn == self._turn:
                self._rest.end()

    def _decode(self) -> Iterator[Step]:
        engine, stats, clock, rest = self._engine, self.stats, self._clock, self._rest
        if self._max_tokens <= 0:
            self.finish_reason = "length"
            return
        self._sampler.reset()
        self._sampler.prime(self._prompt)
        choose = engine.chooser(self._sampler)
        target = Target(choose, self._sampler.take, engine.rows(self._sampler), engine.is_eog)
        accept = self.rule.accept

        begin = clock()
        stats.n_prefilled = engine.prefill(self._prompt, self._stop)
        stats.seconds["prefill"] = clock() - begin
        self._turn = engine.turn
        if engine.n_past < len(self._prompt):
            return
        pending = choose(-1)
        watched = self.policy.needs_entropy
        entropy = engine.entropy(-1) if watched else nan
        ended = self._ends((pending,))
        emitted = self._emit((pending,))
        stats.first_token(clock(), len(emitted))
        seen = (engine.entropy(-1),) * len(emitted) if self._entropies else ()
        yield Step(emitted, DraftTree(ROOT_ONLY, (pending,)), (0,), StepSeconds(0.0, 0.0, 0.0, 0.0, 0.0), seen)
        if ended:
            return

        self._check_turn()
        t0 = clock()
        engine.start(pending)
        if self._copies is not None:
            self._copies.restart([*self._prompt, pending])
        stats.seconds["commit"] += clock() - t0
        n_accepted, learning = 0, 0.0
        rest.begin(engine.n_past)
        while not self._stop():
            self._check_turn()
            t0 = clock()
            shape = ROOT_ONLY
            if not rest.left:
                shape = self.policy.plan(Evidence(engine.n_past, n_accepted, entropy))
                # every node needs a cell of the context, accepted or not
                if engine.n_past + shape.n_nodes > engine.n_ctx:
                    shape = ROOT_ONLY
            t1 = clock()
            drafted, tree = self._draft(shape, pending)
            t2 = clock()
            engine.verify(tree)
            t3 = clock()
            try:
                accepted = accept(tree, target, self._max_tokens - len(self.tokens))
                if watched:
                    entropy = engine.entropy(accepted.path[-1])
                if self._entropies:
                    seen = tuple(engine.entropy(node) for node in accepted.path[: len(accepted.tokens)])
            except BaseException:
                engine.discard()
                raise
            pending = accepted.bonus
            n_accepted = len(accepted.path) - 1
            t4 = clock()
            engine.commit(tree, accepted.path)
            ended = self._ends(accepted.tokens) or self._full()
            engine.follow(tree, accepted.path, None if ended else pending)
            if self._copies is not None:
                self._copies.extend(accepted.tokens)
                if not tree.copied:
                    self._usual += 0.1 * (n_accepted - self._usual)
            t5 = clock()
            # a step takes what learning from it takes, too, which is known from the one before
            seconds = t5 - t0 + learning
            if rest.left and tree.shape is ROOT_ONLY:
                rest.add(seconds, t4 - t2, engine.n_past)
            else:
                rest.end()
                self.policy.learn(Outcome(drafted, tree, accepted.path, t2 - t1, t4 - t2, seconds))
                rest.begin(engine.n_past)
            t6 = clock()
            learning = t6 - t5
            emitted = self._emit(accepted.tokens)
            spent = StepSeconds(t1 - t0 + learning, t2 - t1, t3 - t2, t4 - t3, t5 - t4)
            step = Step(emitted, tree, accepted.path, spent, seen[: len(emitted)])
            stats.add(step, t6)
            stats.n_ends += self.finish_reason == "stop"
            yield step
            if ended:
                return

    def _check_turn(self) -> None:
        if self._engine.turn != self._turn:
            raise EngineError("another prompt was started meanwhile; begin a new generation.")

    def _draft(self, shape: TreeShape, pending: int) -> tuple[DraftTree, DraftTree]:
        """What the head drafted, and what is verified next: part or all of that, or copied text, or both."""
        engine = self._engine
        copy = NO_COPY
        if self._copies is not None:
            room = engine.n_ctx - engine.n_past - shape.n_nodes
            copy = self._copies.propose(min(room, engine.limits.max_copied))
        if (shape.n_nodes == 1 or copy.expected > self._usual) and (chain := chain_of(pending, copy.tokens)):
            return chain, chain
        if shape.n_nodes == 1:
            tree = DraftTree(shape, (pending,))
            return tree, tree
        drafted = engine.draft(shape, self.policy.least)
        if drafted.ends and not self.rule.lossless:
            # an end that is not verified is chosen only where the row of the node before it is asked, which such rules may not do
            drafted = replace(drafted, ends=())
        tree = self.policy.select(drafted)
        return drafted, merge(tree, copy.tokens) if copy.tokens and engine.limits.trees else tree

    def _ends(self, tokens: Sequence[int]) -> bool:
        """Whether nothing follows the tokens, and why."""
        if self._engine.is_eog(tokens[-1]):
            self.end = tokens[-1]
            self.finish_reason = "stop"
        elif len(self.tokens) + len(tokens) >= self._max_tokens:
            self.finish_reason = "length"
        else:
            return False
        return True

    def _full(self) -> bool:
        """Whether the pending token has no place in the context."""
        if self._engine.n_past < self._engine.n_ctx:
            return False
        self.finish_reason = "context"
        return True

    def _emit(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        visible = tokens[:-1] if self.finish_reason == "stop" else tokens
        self.tokens.extend(visible)
        return visible


def generate(
    engine: SpeculativeEngine,
    prompt: Sequence[int],
    *,
    policy: Policy = OFF,
    rule: AcceptanceRule = STRICT,
    sampler: TokenChooser,
    max_tokens: int,
    stop: Callable[[], bool] | None = None,
    copies: CopyDrafter | None = None,
    entropies: bool = False,
    clock: Callable[[], float] = perf_counter,
) -> Generation:
    """Continue a prompt.

    Args:
        engine: a Session, or anything else that satisfies the protocol.
        prompt: token ids; what the engine already holds of them is not computed again.
        policy: what to draft; reduced to what the engine can verify.
        rule: which drafted tokens are accepted; any but a lossless one changes the distribution of the text.
        sampler: chooses the target's tokens.
        max_tokens: tokens to generate at most.
        stop: polled between passes; True ends the generation with finish_reason "interrupted".
        copies: drafts what stood in the text before, beside the policy's drafts; may be kept from one prompt to the next.
        entropies: note the entropy behind each token, which takes a look at a whole row for each.
        clock: seconds; an engine that only replays what was logged has a time of its own.
    Returns: a Generation to iterate over.
    """
    return Generation(engine, prompt, policy, rule, sampler, max_tokens, stop or (lambda: False), copies, entropies, clock)
