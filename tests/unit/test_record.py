"""What of a text is logged that repeats itself."""

from __future__ import annotations

from entmtp_local.calibration.record import n_before_copies

TEXT = list(range(100, 120))
COPY = [1, 2, 3, 4, 5]


def test_a_loop_has_one_copy() -> None:
    assert n_before_copies(TEXT + 8 * COPY) == len(TEXT + COPY)
    assert n_before_copies(TEXT + 8 * COPY + COPY[:2]) == len(TEXT + COPY)
    assert n_before_copies(40 * [7]) == 1


def test_a_text_that_goes_on_is_whole() -> None:
    for text in (TEXT, TEXT + 2 * COPY, TEXT + 30 * [7] + TEXT, TEXT + 8 * COPY + [0]):
        assert n_before_copies(text) == 0
