"""Streaming onto a terminal: in whatever pieces a text comes, the screen ends up as if it had come at once."""

from __future__ import annotations

import io
import random
import re

import pytest
from screen import Screen

from entmtp_local.chat.blocks import Block, BlockSplitter
from entmtp_local.chat.code import code_rows
from entmtp_local.chat.markdown import Painter
from entmtp_local.chat.reasoning import ReasoningSplitter, opens_reasoning, without_reasoning
from entmtp_local.chat.tags import THINK, Tags, tags_of
from entmtp_local.chat.views import INTERVAL, MarkdownView, PlainView
from entmtp_local.chat.wrapping import columns_of, wrap

TEXT = """# Title

A **bold** word, `code`, a List<String> and a [link](https://example.org/a).
A second line of the same paragraph, which is long enough to go on behind the end of a row of a terminal.

- one
- two with *emphasis*
  - nested
- three

1. first

   ```python
   def f(x):
       return "x"  # a comment
   ```
2. second

```
plain   text


with empty lines that is, at last, longer than what fits into one row of a narrow terminal
```
| a | b |
|---|---|
| 1 | 2 |

> quoted

漢字の文章は二つの列を使います。そしてそれは長いので折り返されます。é̂ combined 👍🏽 done.

The end."""
CODES = re.compile(r"\x1b\[[\d;]*m")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stream(text: str, screen: Screen, *, longest: int, step: float = 0.005, seed: int = 1) -> Screen:
    """Show a text in pieces of random length, so many seconds apart."""
    clock, draw = Clock(), random.Random(seed)
    view = MarkdownView(screen, clock=clock)  # type: ignore[arg-type]
    at = 0
    while at < len(text):
        n = draw.randint(1, longest)
        view.feed(text[at : at + n])
        at += n
        view.tick()
        clock.now += step
    view.finish()
    return screen


@pytest.mark.parametrize("step", [0.0, 0.005, 5.0], ids=["hardly drawn", "as at 200 t/s", "drawn at every token"])
@pytest.mark.parametrize("columns", [80, 40])
def test_a_stream_ends_up_as_the_whole_text_does(columns: int, step: float) -> None:
    whole = stream(TEXT, Screen(columns), longest=len(TEXT)).lines
    for seed in range(4):
        assert stream(TEXT, Screen(columns), longest=9, step=step, seed=seed).lines == whole


def test_what_is_on_the_screen() -> None:
    lines = stream(TEXT, Screen(60), longest=5).lines
    assert lines[0] == "Title" and lines[1] == ""
    assert "A bold word, code, a List<String> and a link" in lines[2]
    assert " • one" in lines and "    • nested" in lines and " 1 first" in lines and " 2 second" in lines
    assert "   def f(x):" in lines and '       return "x"  # a comment' in lines
    at = lines.index("plain   text")
    assert lines[at + 1 : at + 3] == ["", ""] and lines[at + 3].startswith("with empty lines")
    assert "▌ quoted" in lines and lines[-1] == "The end."
    assert "**" not in "".join(lines) and "```" not in "".join(lines)


@pytest.mark.parametrize(("columns", "rows"), [(40, 8), (20, 6), (10, 5)])
def test_a_block_that_is_larger_than_the_screen_loses_nothing(columns: int, rows: int) -> None:
    code = "```\n" + "".join(f"line {i}\n\n" for i in range(40)) + "```\nafter\n"
    lines = stream(code, Screen(columns, rows), longest=7).lines
    assert [line for line in lines if line] == [*(f"line {i}" for i in range(40)), "after"]
    assert len(lines) == 81
    prose = " ".join(f"word{i}" for i in range(300))
    shown = " ".join(stream(prose, Screen(columns, rows), longest=7).lines).split()
    assert shown == prose.split()
    endless = "x" * 2000
    assert "".join(stream(endless, Screen(columns, rows), longest=7).lines) == endless


def test_what_stood_there_before_is_never_touched() -> None:
    screen = Screen(30, 8)
    screen.draw("before\n" * 20)
    lines = stream(TEXT, screen, longest=6).lines
    assert lines[:20] == ["before"] * 20 and lines[20] == "Title"


def test_writes_are_batched_and_in_one_piece() -> None:
    screen = Screen()
    seconds = 0.001 * len(TEXT)
    stream(TEXT, screen, longest=1, step=0.001)
    assert screen.n_writes <= seconds / INTERVAL + 2


def test_drawing_keeps_to_its_share_of_the_time() -> None:
    """With drawing at a second a time, what is not finished is not drawn but appended."""
    timer = Clock()

    def expensive() -> float:
        timer.now += 0.5
        return timer.now

    screen, clock = Screen(), Clock()
    view = MarkdownView(screen, clock=clock, timer=expensive)  # type: ignore[arg-type]
    for word in ("some **bold** words ", "and more ", "and `more` ") * 5:
        view.feed(word)
        view.tick()
        clock.now += 0.1
    assert "**bold**" in screen.lines[0], "appended as it is"
    view.finish()
    assert "**" not in "".join(screen.lines)


@pytest.mark.parametrize("columns", [25, 100])
def test_a_window_that_changes_its_size_costs_no_text(columns: int) -> None:
    screen, clock = Screen(50, 20), Clock()
    view = MarkdownView(screen, clock=clock)  # type: ignore[arg-type]
    for i, word in enumerate(TEXT.split(" ")):
        if i == 20:
            screen.resize(columns, 20)
        view.feed(word + " ")
        view.tick()
        clock.now += 0.05
    view.finish()
    shown = "".join(screen.lines).replace(" ", "")
    for wanted in ("Title", "nested", "combined", "Theend."):
        assert wanted in shown


def test_no_row_is_wider_than_the_window_and_colours_are_left_out_where_unwanted() -> None:
    for columns in (80, 40, 12):
        # more columns than it says: a row that is too long is not wrapped by the terminal
        screen = Screen(200, 300)
        screen.size = (columns, 300)
        stream(TEXT, screen, longest=4)
        assert max(columns_of(line) for line in screen.lines) < columns
        assert not re.search(r"\x1b\[(?:\d+;)*3\dm", screen.written)
    assert re.search(r"\x1b\[35m", stream(TEXT, Screen(colored=True), longest=4).written)


def test_a_models_control_characters_do_not_reach_the_terminal() -> None:
    screen = stream("a \x1b[31mred\x07 word\n\n```\n\x1b]0;title\x07\n```\n", Screen(), longest=3)
    assert "\x07" not in screen.written and "\x1b[31m" not in screen.written and "\x1b]" not in screen.written
    assert "[31mred" in screen.lines[0]


def test_reasoning_is_dimmed_or_counted_and_ends_before_the_answer() -> None:
    for shows in (True, False):
        screen, clock = Screen(30), Clock()
        view = MarkdownView(screen, shows_reasoning=shows, clock=clock)  # type: ignore[arg-type]
        for word in ("I have to think ", "about this for quite ", "a while."):
            view.reason(word)
            view.tick()
            clock.now += 1
        if not shows:
            assert screen.lines == ["(thinking, 45 characters)"]
        view.feed("\n\nIt is **so**.")
        view.finish()
        thoughts = ["I have to think about this for", "quite a while.", ""] if shows else []
        lines = screen.lines
        assert lines[-1] == "It is so." and " ".join(lines[:-1]).split() == " ".join(thoughts).split()
        assert ("\x1b[2m" in screen.written) and screen.cursor[0] == 0


def test_reasoning_without_an_answer_ends_the_line() -> None:
    screen = Screen(30)
    view = MarkdownView(screen)  # type: ignore[arg-type]
    view.reason("only this")
    view.finish()
    assert screen.lines == ["only this"] and screen.cursor == (0, 1)


def test_plain_text_ends_with_one_newline() -> None:
    for text in ("a", "a\n", ""):
        screen = Screen()
        view = PlainView(screen)  # type: ignore[arg-type]
        view.feed(text)
        view.tick()
        view.finish()
        assert screen.written == text.removesuffix("\n") + "\n"


def split(text: str, inside: bool = False, size: int = 1, tags: Tags = THINK) -> list[tuple[bool, str]]:
    splitter = ReasoningSplitter(tags, inside=inside)
    parts = [part for i in range(0, len(text), size) for part in splitter.feed(text[i : i + size])]
    joined: list[tuple[bool, str]] = []
    for kind, part in (*parts, *splitter.finish()):
        if joined and joined[-1][0] == kind:
            part = joined.pop()[1] + part
        joined.append((kind, part))
    return joined


@pytest.mark.parametrize("size", [1, 3, 100])
def test_reasoning_stands_at_the_beginning_only(size: int) -> None:
    assert split("<think>hm</think>yes", size=size) == [(True, "hm"), (False, "yes")]
    assert split("\n<think>hm", size=size) == [(True, "hm")]
    assert split("hm</think>yes", inside=True, size=size) == [(True, "hm"), (False, "yes")]
    assert split("no <think>tags</think> here", size=size) == [(False, "no <think>tags</think> here")]
    assert split("<thin", size=size) == [(False, "<thin")]
    assert split("a </thin b", inside=True, size=size) == [(True, "a </thin b")]
    # an answer that is introduced although nothing was thought
    assert split("\n</think>yes </think>", size=size) == [(False, "yes </think>")]
    assert split("<think></think>yes", size=size) == [(False, "yes")]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% set end = '</seed:think>' %}", "<seed:think>hm</seed:think>yes"),
        ("{{ '<think{}>'.format(':opensource') }}", "<think:opensource>hm</think:opensource>yes"),
        ("[THINK][/THINK]", "[THINK]hm[/THINK]yes"),
        ("{{ '<|channel>thought\\n<channel|>' }}", "<|channel>thought\nhm<channel|>yes"),
        ("<|channel|>final<|message|>", "<|channel|>analysis<|message|>hm<|channel|>final<|message|>yes"),
        ("<|begin|>assistant<|think|>", "<|think|>hm<|content|>yes"),
        ("{{ '<think>' }}", "<think>hm</think>yes"),
        ("no tags at all", "<think>hm</think>yes"),
    ],
)
def test_tags_of_other_models(template: str, text: str, size: int) -> None:
    tags = tags_of(template)
    assert split(text, size=size, tags=tags) == [(True, "hm"), (False, "yes")]
    assert split(text.removeprefix(tags.begin), inside=True, size=size, tags=tags) == [(True, "hm"), (False, "yes")]
    assert opens_reasoning(f"assistant{tags.begin}\n", tags) and not opens_reasoning(tags.begin + tags.end, tags)
    assert without_reasoning(text, tags, inside=False) == without_reasoning("hm" + tags.end + "yes", tags, inside=True) == "yes"


def test_blocks_are_given_as_they_end() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("One\ntwo") == [] and splitter.tail == Block("One\ntwo", 0, False)
    assert splitter.feed("\n\n") == [Block("One\ntwo", 0, False)] and splitter.tail is None
    assert splitter.feed("- a\n  - b\n- c\n") == [Block("- a\n  - b", 0, True)]
    assert splitter.feed("```py\nx\n\ny\n") == [Block("- c", 0, False)] and splitter.in_fence
    assert splitter.feed("```\n# H\n") == [Block("```py\nx\n\ny\n```", 0, False), Block("# H", 0, False)]
    assert splitter.feed("end") == [] and splitter.finish() == [Block("end", 0, False)]


def test_a_fence_ends_with_as_many_marks_as_it_began_with() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("````md\n```py\n```\n") == [] and splitter.in_fence
    (block,) = splitter.feed("````\n")
    assert block.code == ("```py\n```\n", "md")


def test_code_keeps_every_character() -> None:
    code = "\n\tdef f():\n        return '漢字' * 3   \n\n"
    for width in (80, 12, 3, 1):
        for language in ("python", "no such language", ""):
            rows = code_rows(code, language, width, colored=True)
            assert "".join(CODES.sub("", row) for row in rows) == code.replace("\n", "")
            assert all(columns_of(CODES.sub("", row)) <= max(width, 2) for row in rows)
    assert code_rows("", "python", 80, colored=True) == []


def test_rows_are_wrapped_at_blanks() -> None:
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert wrap("漢字漢字", 5) == ["漢字", "漢字"]
    assert wrap("a\n\nb", 5) == ["a", "", "b"]
    assert wrap("", 5) == [""]
    assert wrap("漢a字", 1) == ["漢", "a", "字"]
    joiners = "\u200d\u200d\N{WOMAN}"
    assert wrap(joiners, 1) == [joiners]


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (2, 2), (3, 1), (5, 2), (40, 3)])
def test_the_smallest_windows_end_an_answer_too(columns: int, rows: int) -> None:
    """A line that opens a fence and fills the window, characters that are wider than it."""
    text = "# 漢字\n\n- 漢 **b**\n\n" + "~~~" + "long" * 40 + "\ncode\nmore\n~~~\n| a | 漢 |\n|---|---|\n| b | c |\n\nend"
    screen, now = Screen(columns, rows), 0.0
    # drawing takes all the time there is: new text is appended as it is
    view = MarkdownView(screen, clock=lambda: now, timer=iter(range(10_000)).__next__)  # type: ignore[arg-type]
    for character in text:
        now += 1.0
        view.feed(character)
        view.tick()
        assert len(screen.written) < 1_000_000
    view.finish()
    assert screen.lines[-1].endswith("d")


def test_blocks_are_drawn_at_any_width() -> None:
    painter = Painter(colored=True)
    splitter = BlockSplitter()
    blocks = [*splitter.feed(TEXT), *splitter.finish()]
    assert len(blocks) > 12
    blocks.append(Block("漢字 **漢**字", 1, False))
    for width in (1, 2, 5, 39):
        for block in blocks:
            assert painter.rows(block, width)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_terminal_that_only_writes_has_whole_words(size: int) -> None:
    class Dumb:
        can_move, stdout, size = False, io.StringIO(), (20, 24)

        def write(self, text: str) -> None:
            self.stdout.write(text)

    terminal = Dumb()
    terminal.stdout = io.StringIO()
    terminal.stdout.isatty = lambda: True  # type: ignore[method-assign]
    text = f"Some words that go on behind the edge, and one of {'w' * 50} letters.\n\n  - 漢字の文章は二つの列を使います。 end"
    view = PlainView(terminal, clock=iter(range(1000)).__next__)  # type: ignore[arg-type]
    for at in range(0, len(text), size):
        view.feed(text[at : at + size])
        view.tick()
    view.finish()
    rows = [row.rstrip() for row in terminal.stdout.getvalue().splitlines()]
    assert rows[:3] == ["Some words that go", "on behind the edge,", "and one of"] and all(columns_of(row) <= 19 for row in rows)
    assert "".join("".join(rows).split()) == "".join(text.split()) and rows[-1].split()[-1] == "end"
