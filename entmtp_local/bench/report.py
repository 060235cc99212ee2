"""A benchmark as one page to look at: figures by workload, and the tables of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entmtp_local.bench.table import table
from entmtp_local.files import replace_file
from entmtp_local.plots import WIDTH, Plot, around, number, page, text

_PARTS = ("verify", "draft", "commit", "accept", "schedule")
_N_SERIES = 6
# of an arm in a figure that has them side by side
_COLUMN = 100


def write_report(path: Path, content: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write the page; an existing file is replaced when all is written.

    Args:
        content: of the record.
        found: its results.
    """
    with replace_file(path) as file:
        file.write(document(content, found).encode())


def document(content: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The page as text."""
    settings, models = content["settings"], content["models"]
    about = (
        f"{', '.join(model['label'] for model in models)}. {settings['device']}, threads: {settings['n_threads']}; tokens of an "
        f"answer: up to {settings['n_tokens']}; prompts of a workload: up to {settings['n_prompts']}; rounds: "
        f"{settings['n_rounds']}; {content['created']}."
    )
    head = f"<p>{text(about)}</p>"
    if not content["complete"]:
        head += "<p><b>The benchmark was interrupted: these are the rounds that were finished.</b></p>"
    body = "".join(_block(block, models[block["model"]]["label"]) for block in found["blocks"])
    # the tables say more than figures do; a line each, so that they keep their columns
    tables = "\n".join(map(text, table(content, found)))
    return page("Benchmark", head, f"{body}<h2>All figures</h2>\n<pre>{tables}</pre>\n")


def _block(block: Mapping[str, Any], label: str) -> str:
    rows = {arm: row for arm, row in block["arms"].items() if not row["invalid"]}
    parts = [f"<h2>{text(label)}: {text(block['workload'])}, temperature {block['temp']:g}</h2>\n"]
    for arm, row in block["arms"].items():
        if row["invalid"]:
            parts.append(f"<p>{text(arm)} is not counted: {text(row['invalid'])}.</p>")
    return "".join([*parts, '<div class="figures">', *_figures(block, rows), "</div>\n"])


def _figures(block: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    ratios = {arm: row["ratio"] for arm, row in rows.items() if row.get("ratio") and arm != block["base"]}
    if ratios:
        yield ratio_figure(ratios, block["base"])
    parts = {arm: row["ms_per_step"] for arm, row in rows.items() if row.get("ms_per_step")}
    if parts:
        yield parts_figure(parts)
    depths = {arm: row["accepted_per_depth"] for arm, row in rows.items() if row.get("accepted_per_depth")}
    if depths:
        series = {arm: [(d, share) for d, share in enumerate(shares, 1)] for arm, shares in depths.items()}
        yield lines_figure(series, "Steps that accept a token at each depth", "depth", "share of steps")
    pace = {arm: row["pace"] for arm, row in rows.items() if len(row.get("pace", ())) > 1}
    if pace:
        caption = "Of this runtime; servers tell the time of whole answers only."
        yield lines_figure(pace, "Speed along the text", "tokens of the answer", "tokens/s", caption)


def ratio_figure(ratios: Mapping[str, Mapping[str, Any]], base: str) -> str:
    """A mark and its interval for each arm, and a line at 1."""
    values = [ratio[end] for ratio in ratios.values() for end in ("value", "low", "high") if ratio[end]]
    plot = _columns(f"Speed over {base}", "ratio of tokens/s", list(ratios), around([*values, 1.0]))
    plot.rule(1.0, "ink", f"as fast as {base}")
    for i, (arm, ratio) in enumerate(ratios.items()):
        if ratio["low"] is not None:
            plot.line([(i, ratio["low"]), (i, ratio["high"])], "s0")
        doubt = "?" if ratio["doubts"] else ""
        plot.dot(i, ratio["value"], "s0", f"{arm}: {ratio['value']:.3f} {'; '.join(ratio['doubts'])}")
        plot.label(i + 0.08, ratio["value"], f"{ratio['value']:.2f}{doubt}", up=-4, anchor="start")
    return plot.figure("The lines are 95 % intervals; ? marks what is not to be relied on.", wide=len(ratios) > 5)


def parts_figure(parts: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each arm, its parts one on another."""
    totals = [sum(each.values()) for each in parts.values()]
    plot = _columns("Where a step's time goes", "ms a step", list(parts), around(totals, zero=True))
    for i, part in enumerate(_PARTS):
        plot.name(part, f"s{i}")
    for i, (arm, each) in enumerate(parts.items()):
        at = 0.0
        for k, part in enumerate(_PARTS):
            ms = each.get(part, 0.0)
            plot.bar((i - 0.3, i + 0.3), (at, at + ms), f"s{k}", f"{arm}: {part} {number(ms)} ms")
            at += ms
    return plot.figure(wide=len(parts) > 5)


def lines_figure(
    series: Mapping[str, Sequence[Sequence[float]]], title: str, x_label: str, y_label: str, caption: str = ""
) -> str:
    """A line for each arm, from 0 upwards."""
    points = [point for each in series.values() for point in each]
    steps = sorted({point[0] for point in points})
    ticks = [(x, f"{x:g}") for x in steps] if len(steps) <= 8 else None
    plot = Plot(title, x_label, y_label, around(x for x, _ in points), around((y for _, y in points), zero=True), x_ticks=ticks)
    for i, (arm, each) in enumerate(series.items()):
        # there are more arms than colours
        colour, kind = f"s{i % _N_SERIES}", "line" if i < _N_SERIES else "line dashed"
        plot.name(arm, colour, kind)
        plot.line([(x, y) for x, y in each], colour, kind)
        for x, y in each:
            plot.dot(x, y, colour, f"{arm}: {number(y)}", 2)
    return plot.figure(caption)


def _columns(title: str, y_label: str, arms: Sequence[str], y: tuple[float, float]) -> Plot:
    """A figure in which each arm has a column."""
    width = max(WIDTH, _COLUMN * len(arms))
    ticks = [(float(i), arm if len(arm) <= 16 else arm[:15] + "\N{HORIZONTAL ELLIPSIS}") for i, arm in enumerate(arms)]
    return Plot(title, "arm", y_label, (-0.5, len(arms) - 0.5), y, x_ticks=ticks, width=width)
