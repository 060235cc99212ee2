"""When to take steps that seem not to be the best, so that what they bring and take stays known."""

from __future__ import annotations

_EXPLORE = 12  # at least so many steps lie between two looks at drafts
_FIRST = 16  # and before the first one from rest, which takes longer than a short answer can make up for
_SPENT = 0.005  # share of the time that looks at drafts may take
_AHEAD = 0.5  # of what the last look took has to be saved before the next one: it may have been an unlucky one
_RUN = 4  # steps of a look, where the first one is dearer than the others
_TAKEN = 2  # of them before a look may end early: a single place in a text says little of the others
_MOST_QUIET = 64  # steps that are told together at most
_PLAIN, _PLAIN_SEEN = 128, 2  # steps between two looks at plain steps, and those of one that tell what they take
# Steps before the first one; where the profile is a thorough one, what plain steps take is known.
_FIRST_PLAIN, _FIRST_PLAIN_KNOWN = 8, 64
# Plain steps that seem not to matter are looked at all the same, since what seems so may be wrong: after so many steps, then
# every so many, and fewer at a time.
_UNWANTED, _UNWANTED_SEEN = (128, 1024), 1


class Looks:
    """Looks at more levels of drafts than seem to pay, and at steps that draft nothing.

    Args:
        n_unsettled: plain steps in a row that take longer than those that follow them.
        known: what plain steps take was measured for long.
    """

    def __init__(self, n_unsettled: int = 0, known: bool = False) -> None:
        self._n_unsettled = n_unsettled
        self.exploring = False  # whether the step under way looks at drafts
        self._since, self._left = 0, 0  # steps since such a look began, and steps of it that are left
        self._saved, self._price = 0.0, 0.0  # seconds that may be spent on looks, and what the last one took
        self._going = 0.0  # the same without its first step, which is the dear one
        self._promised = 0.0  # seconds that its steps were expected to gain
        self._from_rest = False  # whether nothing was drafted before the first look
        self._on_credit = False  # whether nothing was saved for the look, nor is its price known
        self._until_plain = _FIRST_PLAIN_KNOWN if known else _FIRST_PLAIN
        self._plain_left, self._until_unwanted = 0, _UNWANTED[0]

    def at_drafts(self, at_rest: bool, wanted: bool = True) -> bool:
        """Whether the step under way looks at drafts.

        Args:
            wanted: whether there is more to be looked at than what is drafted anyway.
            at_rest: nothing is drafted otherwise. The first draft then feeds the head all that has been accepted meanwhile, and
                those that follow are cheap: they are taken in a row, and for as long as that is faster than to draft nothing.
                But the first look from rest, which nothing was saved for, ends where its drafts promise nothing.
        Returns: what `exploring` is then.
        """
        self._since += 1
        if at_rest and self._on_credit and 0 < self._left <= _RUN - _TAKEN and self._promised < 0 <= self._going:
            # what that spares is not spent on more looks, were its steps as dear as the first: sooner ones are no better
            spared = max(0.0, self._price) * self._left / (_RUN - self._left)
            self._saved, self._price = self._saved - spared, self._price + spared
            self.exploring, self._left = False, 0
        if self._left > 0 or (self.exploring and at_rest and self._going <= 0):
            self._left -= 1
            return True
        self.exploring = wanted and self._since >= _EXPLORE and self._saved >= _AHEAD * self._price
        if self.exploring:
            self._on_credit = self._from_rest and not self._price
            self._since, self._price, self._going, self._promised = 0, 0.0, 0.0, 0.0
            self._left = _RUN - 1 if at_rest else 0
        return self.exploring

    def another_text(self) -> None:
        """End a look at drafts that has gained nothing yet: its next step would be as dear as its first one was.

        One whose drafts promised more than it took goes on: its text had no room for what they were to bring.
        """
        if self._going >= 0 and self._promised <= max(0.0, self._price):
            self.exploring, self._left = False, 0

    def begin_at_rest(self) -> None:
        """Nothing is drafted before the first look: it comes later, and ends early where its drafts promise nothing."""
        self._since, self._from_rest = _EXPLORE - _FIRST, True

    def wait(self, seconds: float) -> None:
        """Let the first look at drafts be saved for as later ones are.

        Args:
            seconds: that one of its steps may take more than one without drafts.
        """
        self._price = _RUN * seconds

    @property
    def begins(self) -> bool:
        """Whether the step under way is the first one of a look at drafts."""
        return self.exploring and self._since == 0

    def at_plain_steps(self, wanted: bool) -> bool:
        """Whether the step under way drafts nothing so that what this takes is known.

        Args:
            wanted: whether it seems to matter.
        """
        self._until_unwanted -= 1
        if self._plain_left > 0:
            self._plain_left -= 1
        elif self._until_unwanted <= 0:
            self._until_unwanted = _UNWANTED[1]
            self._plain_left = self._n_unsettled + _UNWANTED_SEEN - 1
        else:
            self._until_plain -= 1
            if self._until_plain > 0:
                return False
            self._until_plain = _PLAIN
            if not wanted:
                return False
            self._until_unwanted = _UNWANTED[1]
            self._plain_left = self._n_unsettled + _PLAIN_SEEN - 1
        # a look at drafts that was under way is over
        self.exploring, self._left = False, 0
        return True

    def quiet(self, seconds: float) -> int:
        """How many steps are to come, all of which draft nothing, before a look is due again.

        Args:
            seconds: that each of them takes.
        """
        if self.exploring or self._plain_left > 0:
            return 0
        saved_after = (_AHEAD * self._price - self._saved) / (_SPENT * seconds)
        return int(max(0, min(_MOST_QUIET, max(_EXPLORE - 1 - self._since, saved_after))))

    def passed(self, n: int, seconds: float) -> None:
        """Count so many quiet steps, that took so long together."""
        self._since += n
        self._until_plain = max(1, self._until_plain - n)
        self._until_unwanted = _UNWANTED[1]
        self._saved += _SPENT * seconds

    def took(self, seconds: float, price: float, promised: float = 0.0) -> None:
        """Count a step.

        Args:
            price: seconds of it that a look at drafts cost; 0 where it was none.
            promised: seconds that it was expected to gain over plain steps, once its draft was known.
        """
        self._promised += promised
        self._saved += _SPENT * seconds - price
        self._price += price
        if not self.begins:
            # what was gained long ago does not keep a look going that has begun to lose
            self._going = max(self._going + price, -seconds)
