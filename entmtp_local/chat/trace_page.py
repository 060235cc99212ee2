"""A trace as a page: the text with each token shaded by entropy, and the tree that was verified at each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from entmtp_local.chat.trace import COPIED, ROOT, SIBLING, SPINE, read_trace
from entmtp_local.files import replace_file
from entmtp_local.plots import number, page, text

# Nats at which a token has its full shade: a choice among twenty that are equally likely.
_FULL = 3.0
_CLASSES = {ROOT: "faint", SPINE: "s2", SIBLING: "s1", COPIED: "s0"}
_NAMES = {
    ROOT: "the model's own, at the end of what was accepted",
    SPINE: "drafted as the best continuation",
    SIBLING: "drafted as another one",
    COPIED: "copied from the text before",
}
_STYLE = (
    "<style>.text{font:15px/2.1 ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap}"
    ".text span,.key{border-bottom:3px solid var(--c);padding:.1em 0}"
    ".steps{display:flex;flex-wrap:wrap;gap:.8rem}.steps figure{max-width:100%;overflow-x:auto}"
    ".steps svg{width:auto;max-width:none}.edge{stroke:var(--faint);stroke-width:1.2;fill:none}"
    ".taken{stroke:var(--s2);stroke-width:2.4}.node{fill:var(--page);stroke:var(--faint)}"
    ".node.hit{stroke:var(--s2);stroke-width:2}.node.copy{stroke-dasharray:3 2}.steps text.word{fill:var(--ink)}</style>"
)
# Of a step's tree.
_ROW, _COLUMN, _HEIGHT = 22, 96, 17
_MAX_WORD = 11  # characters of a token in a tree


def write_page(trace: Path, out: Path) -> None:
    """Draw a trace file.

    Raises: TranscriptError where it is none, OSError.
    """
    content = trace_page(read_trace(trace))
    with replace_file(out) as file:
        file.write(content.encode())


def trace_page(trace: Mapping[str, Any]) -> str:
    """Args: trace: what `read_trace` gave."""
    answers = trace["answers"]
    head = f"<p>{text(trace['model'])}, {len(answers)} {'answer' if len(answers) == 1 else 'answers'}</p>\n{_STYLE}\n{_key()}"
    return page("Trace", head, "".join(_answer(i, answer) for i, answer in enumerate(answers, start=1)))


def _key() -> str:
    shades = "".join(f'<span style="{_shade(nats)}"> {nats:g} </span> ' for nats in (0.0, 0.5, 1.0, 2.0, _FULL))
    kinds = "".join(f'<span class="key {_CLASSES[how]}">{name}</span> ' for how, name in _NAMES.items())
    return f'<p class="legend">Entropy behind a token, nats: {shades}</p><p class="legend">How it came: {kinds}</p>\n'


def _answer(i: int, answer: Mapping[str, Any]) -> str:
    steps = answer["steps"]
    tokens = [token for step in steps for token in step["tokens"]]
    spans = "".join(_token(token) for token in tokens)
    trees = "".join(_step(n, step) for n, step in enumerate(steps) if len(step["parents"]) > 1)
    plain = sum(len(step["parents"]) == 1 for step in steps)
    summary = f"What was verified at each step ({plain} of {len(steps)} drafted nothing)"
    drawn = f'<details open><summary>{summary}</summary><div class="steps">{trees}</div></details>\n' if trees else ""
    title = text(_one_line(answer["question"]))
    return f'<h2>{i}. {title}</h2>\n{_facts(answer, tokens)}<p class="text">{spans}</p>\n{drawn}'


def _facts(answer: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]]) -> str:
    known = [token["entropy"] for token in tokens if token["entropy"] is not None]
    kinds = Counter(token["how"] for token in tokens)
    rows = [("policy", answer["policy"]), ("tokens", len(tokens)), ("steps", len(answer["steps"]))]
    rows += [(_NAMES[how], kinds[how]) for how in _NAMES if kinds[how]]
    if known:
        rows.append(("mean entropy", f"{number(fmean(known))} nats"))
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows) + "</dl>\n"


def _token(token: Mapping[str, Any]) -> str:
    entropy = token["entropy"]
    about = token["how"] + (f", depth {token['depth']}" if token["depth"] else "")
    about += "" if entropy is None else f", {entropy:.2f} nats"
    shown = text(token["text"].replace("\n", "⏎").replace("\t", "⇥")) + "<br>" * token["text"].count("\n")
    style = "" if entropy is None else f' style="{_shade(entropy)}"'
    return f'<span class="{_CLASSES[token["how"]]}" title="{text(about)}"{style}>{shown}</span>'


def _shade(entropy: float) -> str:
    share = max(0.0, min(1.0, entropy / _FULL))
    return f"background:color-mix(in srgb,var(--q3) {55 * share:.0f}%,transparent)"


def _step(n: int, step: Mapping[str, Any]) -> str:
    """One tree, its depth from left to right; nodes of a level below each other, children beside their parents."""
    parents: list[int] = step["parents"]
    depths = [0] * len(parents)
    for node, parent in enumerate(parents[1:], start=1):
        depths[node] = depths[parent] + 1
    rows = _rows(parents)
    hit, copied = set(step["path"]), set(step["copied"])
    edges, nodes = [], []
    for node, parent in enumerate(parents):
        x, y = depths[node] * _COLUMN + 2, rows[node] * _ROW + 4
        word = text(step["nodes"][node].replace("\n", "⏎")[:_MAX_WORD])
        kind = "node" + " hit" * (node in hit) + " copy" * (node in copied)
        nodes.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{_COLUMN - 16}" height="{_HEIGHT}" rx="3"/>'
            f'<text class="word" x="{x + 5}" y="{y + 12.5}">{word}</text>'
        )
        if parent >= 0:
            x0, y0 = depths[parent] * _COLUMN + _COLUMN - 14, rows[parent] * _ROW + 4 + _HEIGHT / 2
            y1 = y + _HEIGHT / 2
            taken = " taken" if node in hit else ""
            edges.append(f'<path class="edge{taken}" d="M{x0} {y0}C{x0 + 8} {y0} {x - 8} {y1} {x} {y1}"/>')
    width, height = (max(depths) + 1) * _COLUMN, (max(rows) + 1) * _ROW + 4
    n_drafted, n_accepted = len(parents) - 1, len(step["path"]) - 1
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="tree of {n_drafted} drafted nodes">{"".join(edges)}{"".join(nodes)}</svg>'
        f"<figcaption>step {n}: {n_accepted} of {n_drafted} accepted, {number(step['ms'])} ms</figcaption></figure>"
    )


def _rows(parents: Sequence[int]) -> list[int]:
    """A row for each node: a first child beside its parent, each further one below all before it."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], start=1):
        children[parent].append(node)
    rows = [0] * len(parents)
    last, waiting = 0, [0]
    while waiting:
        node = waiting.pop()
        if node and node != children[parents[node]][0]:
            last += 1
            rows[node] = last
        elif node:
            rows[node] = rows[parents[node]]
        # the first child comes off the stack first, with all that is below it
        waiting += reversed(children[node])
    return rows


def _one_line(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= 80 else line[:79] + "…"
