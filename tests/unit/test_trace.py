"""Traces: how tokens came, the file, the page that is drawn from it."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from screen import Screen

from entmtp_local.chat.trace import AnswerTrace, TokenTrace, as_json, read_trace, tokens_of, write_trace
from entmtp_local.chat.trace_page import _rows, trace_page
from entmtp_local.chat.trace_view import TraceView
from entmtp_local.cli.main import main
from entmtp_local.engine import Step, StepSeconds
from entmtp_local.errors import TranscriptError
from entmtp_local.speculative.tree import DraftTree, TreeShape

SECONDS = StepSeconds(0.001, 0.002, 0.003, 0.0, 0.0)
SHAPE = TreeShape.from_parents([-1, 0, 0, 1, 1, 2, 4])
WORDS = {
    10: b"<root>",
    11: b"one",
    12: b" two",
    13: b"three",
    14: b"vier\n",
    15: b"five",
    16: "é".encode()[:1],
    20: b"end",
}


def step(path: tuple[int, ...], copied: frozenset[int] = frozenset()) -> Step:
    tree = DraftTree(SHAPE, (10, 11, 12, 13, 14, 15, 16), copied=copied)
    tokens = (*(tree.tokens[node] for node in path[1:]), 20)
    return Step(tokens, tree, path, SECONDS, tuple(0.5 * i for i in range(len(tokens))))


def piece(token: int) -> bytes:
    return WORDS[token]


def content() -> dict[str, Any]:
    answers = [AnswerTrace("What <is> this?", "tree", (step((0, 1, 4)), step((0, 2), frozenset({2})), step((0,))))]
    return as_json(answers, "m.gguf", piece)


def test_how_tokens_came() -> None:
    found = [(each.text, each.how, each.depth, each.entropy) for each in tokens_of(step((0, 1, 4)), piece)]
    assert found == [("one", "spine", 1, 0.0), ("vier\n", "sibling", 2, 0.5), ("end", "root", 0, 1.0)]
    assert [each.how for each in tokens_of(step((0, 2), frozenset({2})), piece)] == ["copied", "root"]
    assert [each.how for each in tokens_of(step((0,)), piece)] == ["root"]


def test_a_trace_comes_back_as_it_was(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", content())
    found = read_trace(tmp_path / "t.json")
    assert found == content()
    first = found["answers"][0]["steps"][0]
    assert first["parents"] == [-1, 0, 0, 1, 1, 2, 4] and first["path"] == [0, 1, 4] and first["ms"] == 6.0
    assert first["nodes"][6] == "\N{REPLACEMENT CHARACTER}"


class Tags(HTMLParser):
    """Counts elements, and that they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.n: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.n[tag] = self.n.get(tag, 0) + 1
        if tag not in ("meta", "br", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.n[tag] = self.n.get(tag, 0) + 1


def test_the_page_shows_each_token_and_each_tree(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", content())
    result = CliRunner().invoke(main, ["info", "--trace", str(tmp_path / "t.json"), "--html", str(tmp_path / "t.html")])
    assert (result.exit_code, result.output) == (0, "")
    html = (tmp_path / "t.html").read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.n["svg"] == 3 and tags.n["rect"] == 21 and tags.n["path"] == 18
    assert "What &lt;is&gt; this?" in html and "<root>" not in html and "<script" not in html
    assert 'title="sibling, depth 2, 0.50 nats"' in html and "vier⏎<br></span>" in html
    assert len(re.findall('class="edge taken"', html)) == 3
    assert html.count("copied from the text before") == 2, "in the key and among the figures"


def test_the_page_of_nothing_and_of_plain_decoding() -> None:
    empty = {**content(), "answers": []}
    assert "0 answers" in trace_page(empty)
    plain = content()
    plain["answers"][0]["steps"] = [
        {"tokens": [{"id": 1, "text": "x", "how": "root", "depth": 0, "entropy": None}], "parents": [-1], "nodes": ["x"]}
        | {"path": [0], "copied": [], "ms": 1.0}
    ]
    assert "<svg" not in trace_page(plain) and "mean entropy" not in trace_page(plain)


def test_nodes_of_a_tree_do_not_lie_on_each_other() -> None:
    draw = random.Random(2)
    for _ in range(50):
        parents = [-1, *sorted(draw.randrange(i) for i in range(1, 12))]
        depths = [0] * len(parents)
        for node in range(1, len(parents)):
            parents[node] = min(parents[node], node - 1)
            depths[node] = depths[parents[node]] + 1
        places = list(zip(depths, _rows(parents), strict=True))
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("arguments", [["--trace", "t"], ["--html", "t"]])
def test_trace_and_html_go_together(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["info", *arguments])
    assert result.exit_code == 2 and "go together" in result.output


def test_what_is_no_trace_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(TranscriptError, match="cannot be read"):
        read_trace(path)
    whole = content()
    damaged: list[Any] = [None, [], {}, 5, "x", {"format": "entmtp-trace", "version": 1}, {**whole, "version": 2}]

    def changed(*places: Any) -> Any:
        found = copy.deepcopy(whole)
        at: Any = found
        for place in places[:-2]:
            at = at[place]
        at[places[-2]] = places[-1]
        return found

    first = ("answers", 0, "steps", 0)
    for places in (
        ("model", None), ("answers", 0, "question", 5), (*first, "parents", []), (*first, "parents", [-1, 5, 0, 1, 1, 2, 4]),
        (*first, "path", [99]), (*first, "copied", ["x"]), (*first, "ms", "fast"), (*first, "nodes", ["x"]),
        (*first, "tokens", 0, "how", "magic"), (*first, "tokens", 0, "entropy", "low"), (*first, "tokens", 0, "depth", None),
        (*first, "ms", 10**400), (*first, "tokens", 0, "entropy", math.nan), (*first, "path", []), (*first, "path", [1]),
    ):  # fmt: skip
        damaged.append(changed(*places))
    for case in damaged:
        path.write_text(json.dumps(case))
        with pytest.raises(TranscriptError) as error:
            read_trace(path)
        assert "\n" not in str(error.value)
    draw = random.Random(4)
    text = json.dumps(whole).encode()
    for _ in range(300):
        flipped = bytearray(text)
        flipped[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(flipped) if draw.random() < 0.7 else text[: draw.randrange(len(text))])
        try:
            assert trace_page(read_trace(path))
        except TranscriptError as error:
            assert "\n" not in str(error)


def test_tokens_are_drawn_in_rows_with_entropies_above(tmp_path: Path) -> None:
    screen = Screen(30, 12)
    view = TraceView(screen)  # type: ignore[arg-type]
    for i in range(12):
        view.add([TokenTrace(i, f"word{i}", "root", 0, 0.1 * i)])
        view.tick()
    view.add([TokenTrace(0, "\n", "spine", 1, 2.0), TokenTrace(0, "漢字", "copied", 1, 2.0)])
    view.finish()
    lines = screen.lines
    assert lines[:4] == ["0.0   0.1   0.2   0.3", "word0 word1 word2 word3", "0.4   0.5   0.6   0.7", "word4 word5 word6 word7"]
    assert lines[4].startswith("0.8   0.9   1.0    1.1") and lines[-4:-2] == ["2.0", "=漢字"] or "=漢字" in "".join(lines)
    assert all(len(line) < 30 for line in lines[:8])


def test_a_token_that_is_longer_than_the_window_is_cut() -> None:
    screen = Screen(12, 8)
    view = TraceView(screen)  # type: ignore[arg-type]
    for i in range(3):
        view.add([TokenTrace(i, " " * 30 if i else "漢字" * 10, "root", 0, 1.0)])
        view.tick()
    view.finish()
    assert screen.lines[:6] == ["1.0", "漢字漢…", "1.0", "·······…", "1.0", "·······…"]
