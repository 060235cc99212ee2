"""What a calibration or a replay found, as one page: HTML with its figures inside, which needs nothing else and no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from entmtp_local.calibration.figures import (
    MOST_REPLAYED,
    N_BINS,
    Logged,
    accepted_by_entropy,
    chains,
    forecast,
    logged_tasks,
    mean_entropy,
    prefixes,
    reliability,
    share_interval,
    thresholds,
    traced,
)
from entmtp_local.calibration.fit import hull
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.files import replace_file
from entmtp_local.plots import WIDE, Plot, around, number, page, text
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.entmtp import RunningSignal
from entmtp_local.speculative.profile import ALL, Profile, TaskFit

_SHOWN = 400  # positions of a text that are drawn
_FEW = 30  # nodes of a bin below which its share says little
_FLOOR = 1e-4  # nats; less is drawn there, as log_entropy takes it

# Verified nodes, the root included, that share a colour: up to so many.
_SIZE_CLASSES = ((1, "1 node"), (3, "2 to 3"), (6, "4 to 6"), (9, "7 to 9"), (math.inf, "10 and more"))


def write_report(path: Path, profile: Profile, log: WideLog | None, *, costs_of: str | None = None) -> None:
    """Write the page; an existing file is replaced when all is written.

    Args:
        log: of the texts that the profile was fitted to; without it, what only texts can show is left out.
        costs_of: of a replay, the name of the costs that it used; None for a calibration.
    """
    logged = logged_tasks(profile, log)
    # what all tasks together are drawn for is the text of one of them
    single = [each for each in logged if each.name != ALL] or logged
    if not profile.tasks:
        missing = "The profile has no tasks: nothing was fitted to texts."
    elif log is None:
        missing = "There is no log of texts beside the profile."
    else:
        missing = "The log has no drafts in texts of the profile's tasks."
    sections = (
        ("about", f"What was {'calibrated' if costs_of is None else 'replayed'}", _about(profile, log, logged, costs_of)),
        ("costs", "What passes cost", _costs(profile.costs)),
        ("acceptance", "What is accepted", _acceptance(profile, logged)),
        ("reliability", "Whether stated chances hold", _each(_reliability, logged)),
        ("hull", "Trees that are worth their time", _each(lambda each: _pareto(each, profile.costs), logged)),
        ("trace", "Entropy along a text", _each(lambda each: _trace(each, profile), single)),
        ("policies", "Policies", _forecast(logged, profile) + _measured(profile)),
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{content or f"<p>{missing}</p>"}\n</section>\n'
        for name, title, content in sections
    )
    with replace_file(path) as file:
        file.write(page("Calibration" if costs_of is None else "Replay", f"<nav>{links}</nav>", body).encode())


def _each(draw: Callable[[Logged], str], logged: Sequence[Logged]) -> str:
    return "".join(f"<h3>{text(each.name)}</h3>\n{draw(each)}" for each in logged)


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>\n'


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first column names the row."""
    lines = (f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f'<div class="wide"><table class="{name}"><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>\n'
    )


def _about(profile: Profile, log: WideLog | None, logged: Sequence[Logged], costs_of: str | None) -> str:
    key, made = profile.key, {} if log is None else log.about
    facts: list[tuple[str, str]] = []
    if key is not None:
        facts.append(("model", _named(made if made.get("model") == key.model else {}, key.model)))
        if key.mtp_model:
            facts.append(("MTP head", _named({"file": made.get("mtp_file")}, key.mtp_model)))
        *build, backend = key.engine.split(" ")
        facts += [("device", text(key.device)), ("engine", _named({"name": backend}, " ".join(build)))]
        facts.append(("threads", text(key.n_threads)))
        facts.append(("layers on the GPU", "all" if key.n_gpu_layers is None else text(key.n_gpu_layers)))
        vocab = {None: "follows the text", 0: "whole"}.get(key.draft_vocab, key.draft_vocab)
        facts.append(("draft vocabulary", text(vocab)))
    if profile.head is not None:
        facts.append(("drafts read", text(profile.head.rows)))
    if log is not None and (key is None or made.get("model") != key.model):
        facts.append(("texts of", _named(made, made.get("model", "not noted"))))
        if "device" in made:
            facts.append(("logged on", text(made["device"])))
    if log is not None:
        facts.append(("temperature", text(made.get("temp", "not noted"))))
    if costs_of is None:
        facts += [("date", text(profile.created or "not noted")), ("calibration", "quick" if profile.quick else "full")]
    else:
        facts.append(("costs", text(costs_of)))
    found = "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>\n"
    if costs_of is not None:
        found += "<p>Policies were run over logged texts with a table of costs: everything below is a forecast.</p>\n"
    elif key is None:
        found += "<p>The profile names no model and no device: its costs were not measured here.</p>\n"
    if not profile.tasks:
        return found
    known = {each.name: each for each in logged}
    rows = []
    for name, fit in profile.tasks.items():
        entropy = best = "–"
        if name in known:
            entropy = number(mean_entropy(known[name]))
            points = chains(known[name], profile.costs)
            if points:
                fastest = max(points, key=lambda point: point.per_second)
                best = f"{number(fastest.per_step)} <small>chain:{fastest.size - 1}</small>"
        rows.append((text(name), f"{fit.n_positions:,}", f"{fit.n_texts:,}", entropy, best))
    return found + _table("tasks", ("task", "positions", "texts", "mean entropy, nats", "tokens a step, fastest chain"), rows)


def _named(names: Mapping[str, object], fingerprint: object) -> str:
    """What people call a thing, and smaller what tells it from all others; that alone where it has no name."""
    known = ", ".join(text(names[name]) for name in ("name", "file") if names.get(name))
    return f"{known} <small>{text(fingerprint)}</small>" if known and fingerprint else known or text(fingerprint)


def _costs(costs: CostTable) -> str:
    sizes = sorted(costs.verify)
    ms = [1e3 * costs.verify[size] for size in sizes]
    relative = [value / size / ms[0] for size, value in zip(sizes, ms, strict=True)]
    ticks, x = _node_ticks(sizes), (0.5, sizes[-1] + 0.5)
    stairs = Plot("A verification", "nodes, the root included", "ms", x, around(ms, zero=True), x_ticks=ticks)
    label = "ms per node, relative to one node"
    each = Plot("Each node of it", "nodes, the root included", label, x, around([1.0, *relative], zero=True), x_ticks=ticks)
    each.name("measured", "s0", "line")
    each.name("if further nodes were free", "s5", "thin dashed")
    each.line([(n, 1 / n) for n in range(1, sizes[-1] + 1)], "s5", "thin dashed")
    for plot, values, unit in ((stairs, ms, "ms"), (each, relative, "of one node alone, each")):
        plot.line(list(zip(sizes, values, strict=True)), "s0")
        for size, value in zip(sizes, values, strict=True):
            plot.dot(size, value, "s0", f"{size} nodes: {number(value)} {unit}")
    notes = [f"Source: {text(costs.source)}. Sizes between the dots are taken to lie on the lines."]
    if costs.level:
        notes.append(f"A draft takes {number(1e3 * costs.draft_fixed)} ms beside its levels.")
    else:
        notes.append("Nothing can be drafted, so a draft has no cost.")
    if costs.step:
        notes.append(f"A step takes {number(1e3 * costs.step)} ms beside draft and verification.")
    if costs.per_token:
        notes.append(f"Each 1,000 tokens of context add {number(1e6 * costs.per_token)} ms to a verification.")
    figures = [stairs.figure(), each.figure(), *([_draft_costs(costs, costs.level)] if costs.level else [])]
    return f"<p>{' '.join(notes)}</p>\n" + _grid(figures)


def _draft_costs(costs: CostTable, level: Mapping[int, float]) -> str:
    # lines of more widths than there are colours would say nothing
    widths = sorted(level)[:5]
    lines = {width: [0.0, *(1e3 * (costs.draft_fixed + n * level[width]) for n in range(1, 9))] for width in widths}
    y = around(map(max, lines.values()), zero=True)
    plot = Plot("A draft", "levels", "ms", (0.0, 8.3), y, x_ticks=[(n, str(n)) for n in range(9)])
    for i, (width, values) in enumerate(lines.items()):
        plot.name("one node continued a level" if width == 1 else f"{width} nodes", f"s{i}", "line")
        plot.line(list(enumerate(values)), f"s{i}")
        for n, value in enumerate(values):
            plot.dot(n, value, f"s{i}", f"{n} levels: {number(value)} ms")
    return plot.figure()


def _node_ticks(sizes: Sequence[int]) -> list[tuple[float, str]]:
    """Names of sizes, as many as there is room for, the largest always."""
    room = sizes[-1] / 14
    kept: list[int] = []
    for size in sizes[:-1]:
        if (not kept or size - kept[-1] >= room) and sizes[-1] - size >= room:
            kept.append(size)
    return [(size, str(size)) for size in (*kept, sizes[-1])]


def _acceptance(profile: Profile, logged: Sequence[Logged]) -> str:
    if not profile.tasks:
        return ""
    found = (
        "<p>By depth and rank: the share of positions where the head's candidate of that rank was the text's own token, among "
        "those where all best-ranked candidates above were. Ranks that were not logged at a depth have no part in its bar.</p>\n"
    )
    found += _grid(_by_rank(name, fit) for name, fit in profile.tasks.items() if any(fit.by_rank))
    if logged:
        found += (
            "<p>By entropy: the share of best-ranked candidates right below the root that were accepted, in bins of equal counts "
            "by the entropy of the distribution that the pending token was chosen from. Thin lines: 95 % intervals.</p>\n"
        )
        found += _grid(map(_by_entropy, logged))
    return found


def _by_rank(name: str, fit: TaskFit) -> str:
    depths = range(1, len(fit.by_rank) + 1)
    x = (0.4, len(depths) + 0.6)
    plot = Plot(f"{name}: by depth and rank", "depth", "share accepted", x, (0.0, 1.0), x_ticks=[(d, str(d)) for d in depths])
    for rank in range(max(map(len, fit.by_rank))):
        plot.name(f"rank {rank}", f"s{rank}")
    for depth, shares in zip(depths, fit.by_rank, strict=True):
        below = 0.0
        for rank, share in enumerate(shares):
            words = f"depth {depth}, rank {rank}: {number(share)}"
            plot.bar((depth - 0.36, depth + 0.36), (below, below + share), f"s{rank}", words)
            below += share
    return plot.figure()


def _by_entropy(each: Logged) -> str:
    found, edges = accepted_by_entropy(each), each.fit.entropy_edges
    # below the bars, between each two of them, the entropy that separates them
    ticks = [(i, _short(math.exp(edge))) for i, edge in enumerate(edges, 1)]
    x = (0.0, float(len(found)))
    plot = Plot(f"{each.name}: by entropy", "entropy, nats", "share accepted", x, (0.0, 1.0), x_ticks=ticks)
    for i, (hits, n) in enumerate(found):
        if n:
            low, high = share_interval(hits, n)
            words = f"{hits:,} of {n:,}: {number(hits / n)} (95 %: {number(low)} to {number(high)})"
            plot.bar((i + 0.12, i + 0.88), (0.0, hits / n), "s0", words)
            plot.line([(i + 0.5, low), (i + 0.5, high)], "ink", "thin")
    return plot.figure()


def _short(value: float) -> str:
    """An entropy in as few characters as there is room for below a bar."""
    return number(value, 2 if value >= 0.01 else 1) if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _reliability(each: Logged) -> str:
    found = reliability(each)
    if found is None:
        n = len(each.positions.texts)
        return f"<p>{n} text{'s are' if n > 1 else ' is'} too few to fit to some of them and judge by the others.</p>\n"
    plot = Plot("Stated and observed", "stated chance", "share accepted", (0.0, 1.0), (0.0, 1.0), height=300)
    most = max(b.n for bins in found.bins.values() for b in bins)
    counts = Plot("Nodes by stated chance", "stated chance", "nodes", (0.0, 1.0), (0.8, 1.5 * most + 1), height=300, log_y=True)
    plot.line([(0.0, 0.0), (1.0, 1.0)], "s5", "thin dashed")
    for i, (name, bins) in enumerate(found.bins.items()):
        plot.name(name, f"s{i}")
        counts.name(name, f"s{i}")
        plot.line([(b.stated, b.observed) for b in bins if b.n >= _FEW], f"s{i}")
        for at, b in enumerate(bins):
            if b.n:
                words = f"{name}: {number(b.stated)} stated, {number(b.observed)} accepted, {b.n:,} nodes"
                plot.dot(b.stated, b.observed, f"s{i}", words, 4, "mark" if b.n >= _FEW else "hollow")
                left = (at + 0.1 + 0.4 * i) / N_BINS
                counts.bar((left, left + 0.4 / N_BINS), (0.8, b.n), f"s{i}", words)
    errors = "; ".join(
        f"{name} {number(all_nodes)} ({number(best)} among best-ranked candidates)"
        for name, (all_nodes, best) in found.errors.items()
    )
    head = ["stated", *(f"{text(name)}: {what}" for name in found.bins for what in ("nodes", "mean", "accepted"))]
    rows = []
    for at in range(N_BINS):
        row = [f"{at / N_BINS:.1f} to {(at + 1) / N_BINS:.1f}"]
        for bins in found.bins.values():
            b = bins[at]
            row += [f"{b.n:,}", *(number(value) if b.n else "–" for value in (b.stated, b.observed))]
        rows.append(row)
    return (
        f"<p>Fitted to {found.n_fitted} texts here and judged on the {found.n_judged} others, {found.n_nodes:,} nodes. Expected "
        f"calibration error: {text(errors)}.</p>\n"
        + _grid([plot.figure(f"Hollow: fewer than {_FEW} nodes."), counts.figure()])
        + f"<details><summary>The bins</summary>{_table('reliability', head, rows)}</details>\n"
    )


def _pareto(each: Logged, costs: CostTable) -> str:
    on_hull = prefixes(each, each.fit.hydra, costs, hull(each.positions, each.fit.hydra, costs))
    # dots of several kinds often lie on one another: each is smaller than the one below it
    ways = {
        "chains": (chains(each, costs), "ring", 4.4),
        "medusa": (prefixes(each, each.fit.medusa, costs), "mark", 3.3),
        "hydra": (prefixes(each, each.fit.hydra, costs), "mark", 2.0),
    }
    points = [point for found, _, _ in ways.values() for point in found] + on_hull
    plain = 1 / (costs.verify_seconds(1) + costs.step)
    x = around(1e3 * point.seconds for point in points)
    steps = Plot("Tokens a step", "ms a step", "tokens a step", x, around(point.per_step for point in points))
    rates = Plot("Tokens a second", "ms a step", "tokens a second", x, around([plain, *(point.per_second for point in points)]))
    steps.line([(1e3 * point.seconds, point.per_step) for point in on_hull], "ink", "thin")
    rates.rule(plain, "s5", f"plain decoding: {number(plain)} tokens a second")
    fastest = []
    for i, (way, (found, kind, radius)) in enumerate(ways.items()):
        steps.name(way, f"s{i}", kind)
        rates.name(way, f"s{i}", kind)
        for point in found:
            words = (
                f"{way}, {point.size} nodes: {number(point.per_step)} tokens a step of {number(1e3 * point.seconds)} ms, "
                f"{number(point.per_second)} a second"
            )
            steps.dot(1e3 * point.seconds, point.per_step, f"s{i}", words, radius, kind)
            rates.dot(1e3 * point.seconds, point.per_second, f"s{i}", words, radius, kind)
        if found:
            best = max(found, key=lambda point: point.per_second)
            fastest.append(f"{way} {number(best.per_second)} with {best.size} nodes")
    steps.name("hull of hydra, with its nodes", "ink", "line")
    rates.name("plain decoding", "s5", "thin dashed")
    labelled = -math.inf
    for point in on_hull:
        at = 1e3 * point.seconds
        words = f"on the hull: {point.size} nodes"
        steps.dot(at, point.per_step, "ink", words, 7.0, "ring", f' data-hull="{point.size}"')
        if steps.x(at) - labelled >= 16:
            labelled = steps.x(at)
            steps.label(at, point.per_step, str(point.size), up=10)
    return _grid(
        [
            steps.figure(
                "Circled: of the sizes that calibration tries, those that no mixture of others beats. Roots count as nodes."
            ),
            rates.figure(f"Fastest: {', '.join(fastest)}." if fastest else ""),
        ]
    )


def _trace(each: Logged, profile: Profile) -> str:
    shown, steps = traced(each, profile)
    end = min(_SHOWN, len(shown.tokens) - 1)
    steps = [(position, size) for position, size in steps if position < end]
    nats = [max(_FLOOR, float(value)) for value in shown.entropies[:end]]
    signal = RunningSignal("running")
    running = [(float(position), math.exp(signal.before(nats[position]))) for position, _ in steps]
    edges = thresholds(each.fit.sets.get("running"))
    values = [*nats, *(value for _, value in running), *(edge for edge, _, _ in edges)]
    y = (max(_FLOOR, 0.7 * min(values)), 1.4 * max(values))
    title = f"{len(shown.tokens):,} tokens" + (f", of which {end} are shown" if end < len(shown.tokens) - 1 else "")
    plot = Plot(title, "position, tokens", "entropy, nats", (-2.0, end + 1.0), y, log_y=True, width=WIDE, height=300)
    plot.line(list(enumerate(nats)), "faint", "thin")
    for edge, low, high in edges:
        plot.rule(edge, "s5", f"entmtp: {low} nodes below {number(edge)} nats, {high} above")
    plot.line(running, "ink")
    for position, size in steps:
        kind = next(i for i, (most, _) in enumerate(_SIZE_CLASSES) if size <= most)
        words = f"position {position}: {number(nats[position])} nats, {size} node{'s' * (size > 1)} verified"
        plot.dot(position, nats[position], f"q{kind}", words, 2.6 + 0.5 * kind)
    for kind, (_, name) in enumerate(_SIZE_CLASSES):
        plot.name(name, f"q{kind}")
    plot.name("running entropy of the steps", "ink", "line")
    plot.name("every position", "faint", "line")
    caption = "Dots: steps of throughput in a replay, by the nodes that it verified; it has seen other texts of the task before. "
    if edges:
        plot.name("thresholds of entmtp", "s5", "thin dashed")
        first, size, _ = edges[0]
        above = (f"{high} above {number(edge)}" for edge, _, high in edges)
        caption += f"Trees of entmtp by running entropy: {size} nodes below {number(first)} nats, {', '.join(above)}."
    else:
        caption += "entmtp takes the same tree whatever the running entropy is."
    return plot.figure(caption, wide=True)


def _forecast(logged: Sequence[Logged], profile: Profile) -> str:
    if not logged:
        return ""
    found = forecast(logged, profile)
    best = [max(round(row[i][0], 2) for row in found.rows.values()) for i in range(len(logged))]
    rows = []
    for name, row in found.rows.items():
        cells = [text(name)]
        for (ratio, per_step), highest in zip(row, best, strict=True):
            words = f"<b>{ratio:.2f}</b>" if round(ratio, 2) == highest else f"{ratio:.2f}"
            cells.append(f"{words} <small>{per_step:.2f}</small>")
        rows.append(cells)
    notes = [
        "Tokens a second relative to plain decoding and, smaller, tokens a step, replayed with the table of costs. The texts are "
        f"those that the profile was fitted to, up to {MOST_REPLAYED:,} positions a column, which flatters what was fitted. "
        "The token that ends a text is not counted."
    ]
    if found.left_out:
        notes.append(f"On a log of so few levels, or of chains, there is no {', '.join(found.left_out)}.")
    if found.n_uncovered:
        notes.append(f"{found.n_uncovered:,} drafted nodes are not in the log and counted as wrong.")
    table = _table("forecast", ["policy", *(text(each.name) for each in logged)], rows)
    return f"<h3>Forecast from the log, not measured</h3>\n<p>{' '.join(notes)}</p>\n{table}"


# Figures of a measured row that are shown, where it has them.
_MEASURED = {
    "policy": "policy",
    "task": "task",
    "temp": "temperature",
    "ratio": "relative to plain",
    "tokens_per_step": "tokens a step",
    "tokens_per_second": "tokens a second",
    "n_tokens": "tokens",
}


def _measured(profile: Profile) -> str:
    rows = profile.measured
    known = [key for key in _MEASURED if any(row.get(key) is not None for row in rows)]
    if not known:
        return ""
    table = _table("measured", [_MEASURED[key] for key in known], ([_cell(row.get(key)) for key in known] for row in rows))
    note = "Decoded with the model on the device."
    doubtful = [task for task in profile.tasks if profile.measured_of(task) and not profile.reliable_of(task)]
    if doubtful:
        note += (
            f" Not used: {text(', '.join(doubtful))}, where drafts gained more than the tokens of their steps allow, so that "
            "something else ran beside plain decoding."
        )
    return f"<h3>Measured</h3>\n<p>{note}</p>\n{table}"


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else text(value)
    return number(value) if abs(value) >= 1000 or value != value else f"{value:.4g}"
