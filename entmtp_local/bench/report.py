"""A benchmark as one page that needs nothing else: tables, and figures drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from entmtp_local.bench.table import table
from entmtp_local.files import replace_file

_WIDTH = 640
_LEFT, _RIGHT = 170, 60
_ROW = 22
_PARTS = ("draft", "verify", "accept", "commit", "schedule")
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#e45756", "#72b7b2", "#eeca3b")

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}
pre{font-size:12px;overflow-x:auto}
svg{display:block;width:100%;height:auto;margin:.3rem 0 1.2rem}
svg text{font-size:12px;fill:currentColor}
.axis{stroke:currentColor;stroke-opacity:.25}
.one{stroke:currentColor;stroke-opacity:.7;stroke-dasharray:4 3}
h2{margin-top:2rem}
.key span{margin-right:1rem;white-space:nowrap}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
"""


def write_report(path: Path, content: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        content: of the record.
        found: its results.
    """
    with replace_file(path) as file:
        file.write(page(content, found).encode())


def page(content: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The page as text."""
    settings, models = content["settings"], content["models"]
    names = ", ".join(model["label"] for model in models)
    about = (
        f"{settings['device']}; {settings['n_threads']} threads; answers of {settings['n_tokens']} tokens; "
        f"{settings['n_prompts']} prompts a workload; {settings['n_rounds']} rounds; measured {content['created']}"
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(names)}: benchmark</title><style>{_STYLE}</style>",
        f"<h1>{_text(names)}</h1><p>{_text(about)}</p>",
    ]
    if not content["complete"]:
        parts.append("<p><b>The benchmark was interrupted; these are the rounds that were finished.</b></p>")
    for block in found["blocks"]:
        label = models[block["model"]]["label"]
        parts.append(f"<h2>{_text(label)}: {_text(block['workload'])}, temperature {block['temp']:g}</h2>")
        parts.extend(_block(block))
    parts.append("<h2>All figures</h2><pre>" + _text("\n".join(table(content, found)).strip()) + "</pre>")
    return "\n".join(parts)


def _block(block: Mapping[str, Any]) -> Iterator[str]:
    rows = {arm: row for arm, row in block["arms"].items() if not row["invalid"]}
    for arm, row in block["arms"].items():
        if row["invalid"]:
            yield f"<p>{_text(arm)} is not counted: {_text(row['invalid'])}.</p>"
    ratios = {arm: row["ratio"] for arm, row in rows.items() if row.get("ratio") and arm != block["base"]}
    if ratios:
        yield f"<h3>Speed over {_text(block['base'])}, with 95 % intervals</h3>"
        yield ratio_figure(ratios)
    parts = {arm: row["ms_per_step"] for arm, row in rows.items() if row.get("ms_per_step")}
    if parts:
        yield "<h3>Where a step's time goes, ms</h3>"
        yield _key(_PARTS)
        yield parts_figure(parts)
    depths = {arm: row["accepted_per_depth"] for arm, row in rows.items() if row.get("accepted_per_depth")}
    if depths:
        yield "<h3>Share of steps that accept a token at each depth</h3>"
        yield _key(depths)
        points = {arm: [(d + 1.0, share) for d, share in enumerate(shares)] for arm, shares in depths.items()}
        yield lines_figure(points, "depth")
    pace = {arm: [(n, speed) for n, speed in row["pace"]] for arm, row in rows.items() if len(row.get("pace", ())) > 1}
    if pace:
        yield "<h3>Tokens per second along the text</h3><p>Servers tell the time of whole answers only.</p>"
        yield _key(pace)
        yield lines_figure(pace, "tokens of the answer")


def ratio_figure(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    """A mark and its interval for each arm, and a line at 1."""
    values = [1.0]
    for ratio in ratios.values():
        values += [value for value in (ratio["value"], ratio["low"], ratio["high"]) if value is not None]
    low, high = min(values) * 0.95, max(values) * 1.05

    def x(value: float) -> float:
        # ratios of 2 and 1/2 are equally far from 1
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(value / low) / math.log(high / low)

    height = _ROW * len(ratios) + 10
    marks = [f"<line class=one x1={x(1):.1f} x2={x(1):.1f} y1=0 y2={height} />"]
    for i, (arm, ratio) in enumerate(ratios.items()):
        y = _ROW * i + 16
        doubtful = "?" if ratio["doubts"] else ""
        marks.append(_label(arm, y))
        if ratio["low"] is not None:
            ends = f"x1={x(ratio['low']):.1f} x2={x(ratio['high']):.1f} y1={y - 4} y2={y - 4}"
            marks.append(f"<line {ends} stroke={_COLOURS[0]} stroke-width=2 />")
        marks.append(f"<circle cx={x(ratio['value']):.1f} cy={y - 4} r=4 fill={_COLOURS[0]} />")
        marks.append(f"<text x={_WIDTH - _RIGHT + 8} y={y}>{ratio['value']:.2f}{doubtful}</text>")
    return _svg(marks, height)


def parts_figure(parts: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each arm, its parts one after another."""
    longest = max(sum(each.values()) for each in parts.values()) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    marks = []
    for i, (arm, each) in enumerate(parts.items()):
        y, at = _ROW * i + 16, float(_LEFT)
        marks.append(_label(arm, y))
        for part, colour in zip(_PARTS, _COLOURS, strict=False):
            ms = each.get(part, 0.0)
            width = scale * ms
            marks.append(
                f"<rect x={at:.1f} y={y - 12} width={width:.1f} height=15 fill={colour}><title>{part}: {ms:.3f} ms</title></rect>"
            )
            at += width
        marks.append(f"<text x={at + 6:.1f} y={y}>{sum(each.values()):.2f}</text>")
    return _svg(marks, _ROW * len(parts) + 10)


def lines_figure(series: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """A line for each arm, from 0 upwards."""
    height, left, bottom = 220, 46, 30
    points = [point for each in series.values() for point in each]
    right, top = max(x for x, _ in points), max(y for _, y in points) or 1.0
    begin = min(x for x, _ in points)
    width = max(right - begin, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - begin) / width * (_WIDTH - left - 20), (height - bottom) - y / top * (height - bottom - 14)

    marks = []
    for share in (0.0, 0.5, 1.0):
        y = place(begin, share * top)[1]
        marks.append(f"<line class=axis x1={left} x2={_WIDTH - 20} y1={y:.1f} y2={y:.1f} />")
        marks.append(f"<text x={left - 6} y={y + 4:.1f} text-anchor=end>{share * top:.3g}</text>")
    for x in (begin, right):
        marks.append(f"<text x={place(x, 0)[0]:.1f} y={height - 12} text-anchor=middle>{x:g}</text>")
    marks.append(f"<text x={_WIDTH / 2:.0f} y={height - 4} text-anchor=middle>{_text(label)}</text>")
    for colour, (arm, each) in zip(_colours(len(series)), series.items(), strict=True):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in each))
        marks.append(f"<polyline points='{path}' fill=none stroke={colour} stroke-width=2><title>{_text(arm)}</title></polyline>")
    return _svg(marks, height)


def _key(names: Iterable[str]) -> str:
    some = list(names)
    spans = (
        f"<span><i style='background:{c}'></i>{_text(name)}</span>" for c, name in zip(_colours(len(some)), some, strict=True)
    )
    return "<p class=key>" + "".join(spans) + "</p>"


def _colours(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def _label(arm: str, y: int) -> str:
    return f"<text x={_LEFT - 8} y={y} text-anchor=end>{_text(arm)}</text>"


def _svg(marks: Iterable[str], height: int) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {height}' role=img>" + "".join(marks) + "</svg>"


def _text(value: object) -> str:
    return escape(str(value))
