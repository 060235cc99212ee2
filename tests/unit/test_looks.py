"""When looks are taken, and what they may cost.

| test | failure it catches |
|---|---|
| at rest | looks of a single step, each as dear as a first draft; one that ends although it pays |
| nothing new | looks at what is drafted anyway, whose steps the guard leaves out |
| price | looks that take more than their share of the time, the first one where nothing speaks for it included |
| from rest | a first look at drafts that promise nothing, as long as others; one that is taken in a short answer |
| another text | a look that lost and goes on where its next step is as dear as the first; one that gains, or may, and ends |
| plain steps | a look at drafts that goes on, uncharged, behind plain steps; one at what was measured for long, too soon |
"""

from __future__ import annotations

import pytest

from entmtp_local.speculative.looks import Looks


def begin(looks: Looks, at_rest: bool) -> None:
    while not looks.at_drafts(at_rest):
        looks.took(1.0, 0.0)
    assert looks.begins and looks.exploring


def test_at_rest_drafts_are_taken_in_a_row_and_for_as_long_as_they_pay() -> None:
    looks = Looks()
    begin(looks, True)
    # a first draft so dear that the others, which are faster than none, do not make up for it
    looks.took(1.0, 50.0)
    taken = 1
    while looks.at_drafts(True):
        assert not looks.begins
        looks.took(1.0, -0.3)
        taken += 1
        if taken > 9:
            looks.took(1.0, 5.0)
    assert taken == 10
    looks = Looks()
    begin(looks, False)
    assert not looks.at_drafts(False)


def from_rest(promised: float, n: int = 600) -> list[int]:
    """Steps of looks at drafts that take twice what plain steps do, by what each is expected to gain."""
    looks, steps = Looks(), []
    looks.begin_at_rest()
    for i in range(n):
        if looks.at_drafts(True):
            steps.append(i)
            looks.took(2.0, 1.0, promised)
        else:
            looks.took(1.0, 0.0)
    return steps


def test_the_first_look_from_rest_ends_where_its_drafts_promise_nothing() -> None:
    ends, goes_on = from_rest(-1.0, 4000), from_rest(0.5, 4000)
    # a single place in a text is not believed
    assert goes_on[:4] == [15, 16, 17, 18] and ends[:2] == [15, 16] and ends[2] > 18
    # what is spared is not spent on more looks, and those are as long as ever
    n = len(ends[2:])
    assert ends[2:] == pytest.approx(goes_on[4 : 4 + n], abs=4)
    assert n >= 8 and ends[2:6] == [ends[2] + i for i in range(4)]


def test_the_first_look_from_rest_goes_on_where_it_gains_more_than_was_promised() -> None:
    looks = Looks()
    looks.begin_at_rest()
    begin(looks, True)
    looks.took(1.0, 0.5, 0.1)
    for _ in range(10):
        assert looks.at_drafts(True)
        looks.took(1.0, -0.5, -0.2)


def test_behind_drafts_a_first_look_at_rest_is_whole() -> None:
    looks = Looks()
    begin(looks, True)
    for _ in range(3):
        looks.took(1.0, 0.5, -0.5)
        assert looks.at_drafts(True)


def test_what_a_look_gained_long_ago_does_not_keep_it_going() -> None:
    looks = Looks()
    begin(looks, True)
    looks.took(1.0, 0.0)
    for _ in range(500):
        assert looks.at_drafts(True)
        looks.took(1.0, -0.1)
    lost = 0.0
    while looks.at_drafts(True) and not looks.begins:
        looks.took(1.0, 0.25)
        lost += 0.25
    assert 1.0 <= lost <= 1.5


def test_in_another_text_only_a_look_that_gains_goes_on() -> None:
    for first, then, goes_on in ((50.0, -0.3, True), (0.0, 0.3, False), (0.0, None, False)):
        looks = Looks()
        begin(looks, True)
        looks.took(1.0, first)
        if then is not None:
            assert looks.at_drafts(True)
            looks.took(1.0, then)
        looks.another_text()
        assert (looks.at_drafts(True) and not looks.begins) == goes_on


@pytest.mark.parametrize(("promised", "goes_on"), [(3.5, True), (0.5, False), (-1.0, False)])
def test_a_look_that_a_text_ended_goes_on_where_its_drafts_promise_more_than_it_took(promised: float, goes_on: bool) -> None:
    """Behind a rest that was nearly as long as the text, whose first draft fed the head."""
    looks = Looks()
    begin(looks, True)
    looks.took(6.0, 0.6, promised)
    looks.another_text()
    assert (looks.at_drafts(True) and not looks.begins) == goes_on


def test_what_only_promises_does_not_go_on_from_text_to_text() -> None:
    looks, n_looks = Looks(), 0
    for _ in range(200):
        looks.another_text()
        for _ in range(5):
            drafts = looks.at_drafts(True)
            n_looks += drafts
            looks.took(6.0 if drafts else 1.0, 5.0 if drafts else 0.0, 30.0 if drafts else 0.0)
    assert 2 <= n_looks <= 8


def test_there_is_no_look_where_nothing_is_new() -> None:
    looks = Looks()
    for _ in range(200):
        assert not looks.at_drafts(False, wanted=False)
        looks.took(1.0, 0.0)
    assert looks.at_drafts(False), "it is due as soon as there is"
    looks.took(1.0, 0.1)
    assert not looks.at_drafts(False, wanted=False) and not looks.exploring


def test_looks_take_their_share_and_no_more() -> None:
    looks, spent, seconds = Looks(), 0.0, 0.0
    for _ in range(20_000):
        price = 0.5 if looks.at_drafts(True) else 0.0
        looks.took(1.0 + price, price)
        spent, seconds = spent + price, seconds + 1.0 + price
    assert 0 < spent < 0.006 * seconds


def test_a_first_look_that_nothing_speaks_for_is_saved_for() -> None:
    looks = Looks()
    looks.wait(0.5)
    n = 0
    while not looks.at_drafts(True):
        # rests do not pass over it
        assert looks.quiet(1.0) <= 201 - n
        looks.took(1.0, 0.0)
        n += 1
    # four steps of half a second, half of which half a per cent of the time makes up for
    assert 198 <= n <= 202


def test_a_look_that_is_due_is_not_put_off() -> None:
    looks = Looks()
    begin(looks, True)
    looks.took(1.0, 0.1)
    while looks.at_drafts(True):
        looks.took(1.0, 0.01)
    # what may be spent has passed the price of the last look in a step that was no look
    looks.took(1000.0, 0.0)
    for _ in range(20):
        assert looks.quiet(1.0) >= 0
        looks.passed(1, 1.06)
    assert looks.quiet(1.0) == 0 and looks.at_drafts(True)


def test_plain_steps_end_a_look() -> None:
    looks = Looks()
    begin(looks, True)
    while not looks.at_plain_steps(True):
        pass
    assert not looks.exploring
    while looks.at_plain_steps(True):
        pass
    assert not looks.at_drafts(True) or looks.begins


@pytest.mark.parametrize(("known", "first"), [(False, 8), (True, 64)])
def test_what_was_measured_for_long_is_looked_at_later(known: bool, first: int) -> None:
    looks = Looks(n_unsettled=2, known=known)
    taken = [step for step in range(1, 250) if looks.at_plain_steps(True)]
    # two that tell nothing yet and two that do; then again as usual, whatever was known at first
    assert taken == [first + i for i in range(4)] + [first + 3 + 128 + i for i in range(4)]


def test_an_unlucky_look_does_not_put_the_next_one_off_for_as_long_as_two() -> None:
    """What it cost has to be made good, and half of that again saved."""
    looks = Looks()
    waits, since = [], 0
    for _ in range(800):
        explores = looks.at_drafts(at_rest=True)
        if explores and looks.begins:
            waits.append(since)
            since = 0
        since += 1
        looks.took(1.0, 0.25 if explores and len(waits) == 1 else 0.0)
    # four steps at a quarter of a second each, of which half a per cent of the time makes good 1.0 and then 0.5
    assert waits[0] == 11 and 280 <= waits[1] <= 300
