"""What counts as a loop and what does not."""

from __future__ import annotations

import inspect
import json
import random
import re
import textwrap

import pytest

from entmtp_local.bench.repetition import Loop, find_loop


def words(text: str) -> list[int]:
    """Each different word or sign gets a number, as a tokenizer would do it."""
    ids: dict[str, int] = {}
    return [ids.setdefault(piece, len(ids)) for piece in re.findall(r"\w+|\s+|[^\w\s]+", text)]


def test_random_text_does_not_loop() -> None:
    rng = random.Random(0)
    for n_words in (2, 20, 1000):
        assert find_loop([rng.randrange(n_words) for _ in range(2000)]) is None


def test_an_empty_text_and_a_short_one_do_not_loop() -> None:
    assert find_loop([]) is None
    assert find_loop([7] * 24) is None


@pytest.mark.parametrize("module", [json.decoder, textwrap, inspect])
def test_code_does_not_loop(module: object) -> None:
    tokens = words(inspect.getsource(module))  # type: ignore[arg-type]
    loops = [find_loop(tokens[i : i + 300]) for i in range(0, len(tokens) - 300, 300)]
    assert len(loops) > 5
    assert not any(loops)


@pytest.mark.parametrize(("period", "n_further"), [(1, 24), (7, 24), (12, 24), (13, 26), (60, 120), (64, 128)])
def test_a_loop_needs_three_copies_and_two_dozen_repeated_tokens(period: int, n_further: int) -> None:
    copy = list(range(period))
    text = (copy * 40)[: period + n_further]
    assert find_loop(text) == Loop(0, period)
    assert find_loop(text[:-1]) is None


def test_longer_periods_are_not_looked_for() -> None:
    assert find_loop(list(range(65)) * 10) is None
    assert find_loop(list(range(65)) * 10, max_period=65) == Loop(0, 65)


def test_a_loop_that_begins_late_is_found_where_it_begins() -> None:
    rng = random.Random(1)
    begin = [rng.randrange(100, 1000) for _ in range(211)]
    assert find_loop(begin + [1, 2, 3, 4, 5, 6, 7] * 6) == Loop(211, 7)


def test_text_after_the_loop_does_not_hide_it() -> None:
    assert find_loop([1, 2] * 20 + list(range(100, 300))) == Loop(0, 2)


def test_the_first_of_two_loops_counts() -> None:
    assert find_loop(list(range(50, 60)) + [1, 2, 3] * 12 + [9] * 60) == Loop(10, 3)


def test_almost_repeating_text_does_not_loop() -> None:
    rng = random.Random(2)
    copies = [[1, 2, 3, 4, 5, 6, 7, 8, 100 + rng.randrange(50)] for _ in range(30)]
    assert find_loop([token for copy in copies for token in copy]) is None


def test_counting_up_is_no_loop() -> None:
    assert find_loop(words("".join(f"{i}. The next item is number {i}.\n" for i in range(1, 60)))) is None
    # digit by digit too, as many vocabularies split numbers
    assert find_loop([ord(letter) for letter in "".join(f"{i}, " for i in range(1, 300))]) is None
