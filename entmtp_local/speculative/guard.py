"""Watches an adaptive policy from outside and steps aside while something simpler is faster.

What plain decoding and chains would have brought is known without trying them: whatever is drafted, the tokens that follow show
how far its best-ranked chain was right. So steps are compared with what a chain of each length would have given and taken at
the same place, and nothing is spent on trying one until there is good reason to.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

from entmtp_local.speculative.cost import in_a_row, without_pause
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.protocol import Evidence, Limits, Outcome, Policy
from entmtp_local.speculative.throughput import Throughput
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

_WINDOW = 128  # steps that the averages look back over
_LOOK = 32  # steps between two looks at them
_MARGIN = 0.02  # of a step's tokens, by which something else must be better
_UNSEEN = 4.0  # square of the tokens that one step not seen yet may differ by
_SURE = 3.0  # standard errors by which it must be better
_HOLD, _LONGEST_HOLD = 64, 4096  # steps aside, the first time and at most
_SOONER = 8  # steps aside, of as many as the first time, between two looks at whether a chain is slower
_AGAIN = 16  # steps between two looks after stepping aside was right: what was slow may be several times as slow
_TOGETHER = 8  # steps that are compared together, which takes less than one by one
# Where steps are short, comparing is a part of them that is felt: once many were compared, so many are passed over between two
# times, which show no more than how far the chains before them were right.
_MANY, _SHORT, _PASSED_OVER = 64, 0.008, 24
_TRUST = 512  # steps without a look, after stepping aside was wrong


class Guard:
    """A throughput policy that is compared with plain decoding and with chains.

    Args:
        policy: what is guarded.
    """

    needs_profile = True

    def __init__(self, policy: Throughput) -> None:
        self._policy = policy
        self.name, self.needs_entropy = policy.name, policy.needs_entropy
        self.max_depth, self.max_nodes = policy.max_depth, policy.max_nodes
        self._chains = [ROOT_ONLY, *(TreeShape.chain(depth) for depth in range(1, policy.max_depth + 1))]
        self._others = Comparison(policy.max_depth)
        self._tokens, self._seconds = 0.0, 0.0  # averages of a step
        self._n_steps = 0  # since the averages began
        self._n_learnt, self._usual = 0, 0.0  # seconds of a step, since the beginning
        self._uncompared: list[Outcome] = []  # steps to come to `_others`
        # how many of those behind them do not; and of those that did not their number, their tokens and seconds
        self._passes, self._passed = 0, (0, 0, 0.0)
        self._uncounted = 0  # of them, steps to come to `_look`
        self._next_past = -1  # committed tokens, if the next step goes on with this text
        self.aside: int | None = None  # levels of the chain that is used instead
        self._left = 0  # steps aside that are left
        self._hold = _HOLD
        self._before = 0.0  # tokens per second, before it stepped aside
        self._quiet = 0  # steps without a look that are left
        self._since_look = 0

    def calibrated(self, profile: Profile) -> None:
        self._policy.calibrated(profile)

    def plan(self, evidence: Evidence) -> TreeShape:
        self._at(evidence.n_past)
        return self._policy.plan(evidence) if self.aside is None else self._chains[self.aside]

    def _at(self, n_past: int) -> None:
        """Notice where another text begins."""
        if n_past != self._next_past:
            self._compare_all()
            self._others.forget()
            self._next_past = n_past

    @property
    def least(self) -> float:
        return self._policy.least if self.aside is None else -inf

    def select(self, tree: DraftTree) -> DraftTree:
        return self._policy.select(tree) if self.aside is None else tree

    def learn(self, outcome: Outcome) -> None:
        n_tokens = len(outcome.path)
        self._next_past += n_tokens
        if self.aside is not None:
            self._average(1, n_tokens, outcome.seconds)
            self._policy.passed_over(outcome, self._next_past)
            self._left -= 1
            # A chain was chosen by costs that may be wrong. Replays gain where they are, and lose nowhere, if it is left as soon
            # as it has lost anything. What plain steps take is known, and the first ones behind drafts do not show it.
            looks = self.aside and self._n_steps <= _HOLD and self._n_steps % _SOONER == 0
            if self._left == 0 or (looks and self._rate < self._before):
                self._judge()
            return
        explores = self._policy.exploring
        self._policy.learn(outcome)
        if explores:
            # what it takes to look for something better is bounded, and says nothing of how good the policy is
            self._compare_all()
            self._others.forget()
        elif self._passes:
            self._passes -= 1
            n, before, seconds = self._passed
            self._passed = n + 1, before + n_tokens, seconds + without_pause(outcome.seconds, self._usual)
            if outcome.verified.copied:
                self._others.forget()
            elif self._others.waits:
                self._others.go_on([outcome.verified.tokens[node] for node in outcome.path])
        else:
            self._uncompared.append(outcome)
            enough = len(self._uncompared) >= _TOGETHER
            if enough or outcome.drafted.shape is ROOT_ONLY:
                self._compare_all()
            if enough and self._usual < _SHORT and self._others.n >= _MANY:
                self._passes = _PASSED_OVER

    def rest(self, n_past: int) -> tuple[int, float]:
        self._at(n_past)
        # where it is not known yet how far a chain was right, steps have to be seen one by one
        return (0, 0.0) if self.aside is not None or self._others.waits else self._policy.rest(n_past)

    def rested(self, n: int, seconds: float, verify_seconds: float) -> None:
        self._compare_all()
        self._next_past += n
        self._policy.rested(n, seconds, verify_seconds)
        self._average(n, 1, seconds / n)
        self._look(n)

    def _average(self, n: int, n_tokens: float, seconds: float) -> float:
        """Take n steps into the averages, each of so many tokens and seconds; their seconds without a pause."""
        taken = without_pause(seconds, self._usual) if self._usual else seconds
        self._n_steps += n
        self._n_learnt += n
        weight = max(in_a_row(1 / _WINDOW, n), n / self._n_steps)
        self._usual += max(in_a_row(1 / _WINDOW, n), n / self._n_learnt) * (taken - self._usual)
        self._tokens += weight * (n_tokens - self._tokens)
        self._seconds += weight * (taken - self._seconds)
        return taken

    @property
    def _rate(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0

    def _compare_all(self) -> None:
        """Note what chains would have brought in the last steps; step aside where one has been better for long."""
        (n_passed, n_tokens, seconds_passed), self._passed = self._passed, (0, 0, 0.0)
        if n_passed:
            self._average(n_passed, n_tokens / n_passed, seconds_passed / n_passed)
            self._uncounted += n_passed
        steps = [(outcome, self._average(1, len(outcome.path), outcome.seconds)) for outcome in self._uncompared]
        self._uncompared = []
        cost = self._policy.cost
        if cost is None or not steps:
            return
        # it may draft nothing, too
        rate = max(self._rate, self._policy.plain_rate)
        seconds = dict(zip(cost.sizes, cost.seconds, strict=True))
        prices = [
            rate * (seconds[n + 1] + self._policy.draft_seconds(n) + self._policy.plain_overhead) if n + 1 in seconds else None
            for n in range(self.max_depth + 1)
        ]
        n = 0
        for outcome, taken in steps:
            if outcome.verified.copied:
                # what chains would have brought here is not known, nor how those that were right so far went on
                self._others.forget()
                continue
            n += 1
            # a step that drafted nothing is plain decoding, and shows nothing of chains
            if outcome.drafted.shape.n_nodes > 1 or self._others.waits:
                tokens = [outcome.verified.tokens[node] for node in outcome.path]
                self._others.add(outcome.drafted, tokens, len(tokens) - rate * taken, prices)
        if n:
            self._look(n)

    def _look(self, n: int) -> None:
        """Count n steps, and step aside where that is due and something else has been better."""
        n, self._uncounted = n + self._uncounted, 0
        self._quiet -= n
        self._since_look += n
        due = self._since_look >= _AGAIN if self._hold > _HOLD else self._since_look >= _LOOK and self._n_steps >= _WINDOW // 2
        if due:
            self._since_look = 0
        if self._quiet <= 0 and due:
            better = self._others.better(_MARGIN * self._tokens)
            if better is not None:
                self._step_aside(better)

    def _step_aside(self, n_levels: int) -> None:
        """Use a chain of so many levels instead."""
        self.aside, self._left, self._before = n_levels, self._hold, self._rate
        self._n_steps = 0

    def _judge(self) -> None:
        """Go back to the policy: to leave it sooner the next time if it was better to be aside, or not to for long."""
        if self._rate > self._before:
            self._hold = min(_LONGEST_HOLD, 2 * self._hold)
        else:
            self._hold, self._quiet = _HOLD, _TRUST
        self.aside = None
        self._n_steps = self._passes = 0
        self._others = Comparison(self.max_depth)

    def within(self, limits: Limits) -> Policy:
        policy = self._policy.within(limits)
        if policy is self._policy:
            return self
        return Guard(policy) if isinstance(policy, Throughput) else policy


class Comparison:
    """What chains of every length would have gained over the steps that were taken, in tokens a step.

    Args:
        depth: the longest chain.
    """

    def __init__(self, depth: int) -> None:
        self.n = 0  # steps that were seen to their end
        self._mean, self._square = [0.0] * (depth + 1), [0.0] * (depth + 1)
        # chains that are right so far and how far, with what the step gained and what each chain would have cost
        self._open: list[tuple[list[int], int, float, list[float | None]]] = []

    @property
    def waits(self) -> bool:
        """Whether it is still open how far some chain was right."""
        return bool(self._open)

    def forget(self) -> None:
        """What follows does not continue the text."""
        self._open.clear()

    def add(self, drafted: DraftTree, tokens: Sequence[int], gained: float, prices: list[float | None]) -> None:
        """Take a step.

        Args:
            drafted: all that was drafted.
            tokens: the root's, and those accepted below it.
            gained: tokens of the step less its price.
            prices: [n] in tokens, of a step with a chain of n; None for one that cannot be had.
        """
        self.go_on(tokens)
        if drafted.shape.n_nodes == 1:
            return
        spine, node = [], 0
        while drafted.shape.children[node]:
            node = drafted.shape.children[node][0]
            spine.append(drafted.tokens[node])
        self._follow(spine, 0, tokens[1:], gained, prices)

    def go_on(self, tokens: Sequence[int]) -> None:
        """Take the tokens of a step for what they show of those before it; arguments are those of `add`."""
        going, self._open = self._open, []
        for spine, n_right, before, then in going:
            self._follow(spine, n_right, tokens, before, then)

    def _follow(self, spine: list[int], n_right: int, tokens: Sequence[int], gained: float, prices: list[float | None]) -> None:
        for token in tokens:
            if n_right == len(spine) or spine[n_right] != token:
                break
            n_right += 1
        else:
            if n_right < len(spine):
                self._open.append((spine, n_right, gained, prices))
                return
        self._count(len(spine), n_right, gained, prices)

    def _count(self, length: int, n_right: int, gained: float, prices: list[float | None]) -> None:
        self.n += 1
        weight = max(1 / _WINDOW, 1 / self.n)
        for n, price in enumerate(prices):
            # where all that was drafted was right, nothing is known of a longer chain: it counts as no better
            known = n <= length or n_right < length
            more = 1 + min(n, n_right) - price - gained if price is not None and known else 0.0
            self._mean[n] += weight * (more - self._mean[n])
            self._square[n] += weight * (more * more - self._square[n])

    def better(self, margin: float) -> int | None:
        """The length of the chain that is surely better by the margin, the best of them; None where there is none."""
        found = max(range(len(self._mean)), key=self._mean.__getitem__)
        mean = self._mean[found]
        n = max(1, min(self.n, _WINDOW))
        # few steps may not have seen yet how far drafts can hold
        error = sqrt((max(0.0, self._square[found] - mean * mean) + _UNSEEN / n) / n)
        return found if mean > max(margin, _SURE * error) else None
