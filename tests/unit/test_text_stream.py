"""Text from token bytes: whole characters, stop texts, and nothing that a terminal would obey."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from entmtp_local.chat.stream import TextStream, dimmed, figures, stats_line, without_control
from entmtp_local.engine import Stats
from entmtp_local.speculative.verify import Typical


def feed(stream: TextStream, *pieces: bytes) -> list[str]:
    return [stream.feed(piece) for piece in pieces]


def test_characters_appear_when_they_are_complete() -> None:
    stream = TextStream()
    assert feed(stream, b"a\xf0", b"\x9f\x98", b"\x80b", b"\xc3") == ["a", "", "\N{GRINNING FACE}b", ""]
    assert stream.text == "a\N{GRINNING FACE}b"
    assert stream.finish() == ""


def test_invalid_bytes_become_a_replacement_character() -> None:
    assert feed(TextStream(), b"\xff", b"a") == ["\ufffd", "a"]


def test_a_stop_text_is_held_back_and_cut() -> None:
    stream = TextStream(["\nUser:"])
    assert feed(stream, b"Hi\n", b"Use", b"ful\nUs", b"er: more", b"x") == ["Hi", "", "\nUseful", "", ""]
    assert stream.stopped and stream.text == "Hi\nUseful"
    assert stream.finish() == ""


def test_what_was_held_back_in_vain_is_given_at_the_end() -> None:
    stream = TextStream(["\nUser:"])
    assert feed(stream, b"Hi\nUs") == ["Hi"]
    assert stream.finish() == "\nUs"
    assert not stream.stopped


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert without_control("a\x1b[31mb\tc\nd\r\x07\x9b\x7fé") == "a[31mb\tc\ndé"


@pytest.mark.parametrize(
    ("is_terminal", "environment", "wanted"),
    [
        (True, {}, "\x1b[2mx\x1b[0m"),
        (True, {"NO_COLOR": "1"}, "x"),
        (True, {"NO_COLOR": ""}, "\x1b[2mx\x1b[0m"),
        (True, {"TERM": "dumb"}, "x"),
        (False, {}, "x"),
    ],
)
def test_dimming(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, environment: dict[str, str], wanted: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    assert dimmed("x", stream) == wanted


def test_the_line_of_figures() -> None:
    stats = Stats(n_prompt=3, n_generated=11, n_steps=4, n_nodes=12, n_plain_steps=1, accepted_per_depth=[4, 2])
    line = "11 tokens, 5.0 t/s, 2.50 tokens/step, 50 % accepted, 3.0 nodes/step, 25 % plain steps"
    stats.seconds["decode"] = 2.0
    assert stats_line(stats, plain_step=0.25) == figures(stats) == f"[{line}]"
    assert figures(stats, plain_step=0.25) == f"[{line}, 1.25x plain]"
    assert stats_line(replace(stats, n_steps=32), plain_step=0.25).endswith(", 1.25x plain]")
    assert stats_line(stats, Typical(0.8)) == (f"[{line}, typical acceptance: not the model's own distribution]")
    stats.n_nodes = 0
    assert stats_line(stats) == "[11 tokens, 5.0 t/s]"
