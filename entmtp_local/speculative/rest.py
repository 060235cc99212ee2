"""Rests: steps that draft nothing, of which a policy is asked once and told once.

A plain step of a small model may last half a millisecond, and behind a pass nothing of Python is left in the processor's caches:
to plan and to learn from every step would be a part of it that is felt.
"""

from __future__ import annotations

from entmtp_local.speculative.protocol import Policy


class Rest:
    """The rest under way, if there is one.

    Args:
        policy: is asked for rests, and told of their steps when they end.
    """

    __slots__ = ("_longest", "_n", "_policy", "_seconds", "_verify", "left")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.left = 0  # steps to come that draft nothing
        self._n, self._seconds, self._verify = 0, 0.0, 0.0
        self._longest = 0.0  # seconds that a step counts for at most

    def begin(self, n_past: int) -> None:
        """Rest for as long as the policy has nothing to draft behind so many tokens."""
        self.left, self._longest = self._policy.rest(n_past)

    def add(self, seconds: float, verify_seconds: float, n_past: int) -> None:
        """Count a step, behind which so many tokens are committed."""
        if seconds > self._longest:
            # what it took is shortened in all its parts
            verify_seconds *= self._longest / seconds
            seconds = self._longest
        self._n += 1
        self._seconds += seconds
        self._verify += verify_seconds
        self.left -= 1
        if not self.left:
            self.end()
            self.begin(n_past)

    def end(self) -> None:
        """Tell the policy of the steps so far."""
        n, self.left = self._n, 0
        if n:
            self._n = 0
            seconds, verify, self._seconds, self._verify = self._seconds, self._verify, 0.0, 0.0
            self._policy.rested(n, seconds, verify)
