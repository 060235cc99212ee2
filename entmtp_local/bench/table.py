"""Results as lines for a terminal of 80 columns, and progress with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

WIDTH = 80
_NAME = 24
_LEGEND = (
    "ratio: over the base, which is the fastest stock arm or else plain decoding; interval: 95 %; /step: tokens a pass; loops: "
    "texts that loop, which no figure above counts; text: agreement with plain decoding, where ties are tokens whose logits are "
    "as good as equal."
)


def table(content: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """All tables of a record.

    Args:
        content: of the record.
        found: its results.
    """
    notes = _Notes()
    models = content["models"]
    several = len(models) > 1
    for block in found["blocks"]:
        title = f"{block['workload']}, temperature {block['temp']:g}"
        yield ""
        yield _cut(f"{models[block['model']]['label']}: {title}" if several else title, WIDTH)
        yield f"{'':{_NAME}} tokens/s  ratio     interval  /step  loops  text"
        for arm, row in block["arms"].items():
            yield _row(arm, row, block["base"], notes)
        if block["base"] is None:
            notes.add("no ratios: there is no stock arm whose text can be trusted")
        yield from _loops(block)
    for summary in found["summary"]:
        yield ""
        label = f"{models[summary['model']]['label']}: " if several else ""
        yield _cut(f"{label}all workloads, temperature {summary['temp']:g} (geometric means)", WIDTH)
        yield f"{'':{_NAME}} tokens/s  ratio     interval  worst workload"
        for arm, row in summary["arms"].items():
            if row["invalid"]:
                continue
            worst = f"{row['worst']:.2f}" if row["worst"] else "-"
            yield f"{_cut(arm, _NAME):{_NAME}} {_figure(row['tokens_per_second'], 8)} {_ratio(row['ratio'], notes)}  {worst:>14s}"
        one = summary["best_single_stock"]
        if one is not None:
            yield _cut(f"one stock setting for all workloads: {one['arm']}, {one['tokens_per_second']:.1f} tokens/s", WIDTH)
    yield from _resources(found, notes)
    if several:
        yield from _models(found)
    if found["blocks"]:
        yield ""
        yield from _wrapped(_LEGEND)
        yield from notes.lines


class _Notes:
    """Footnotes, each once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._seen: set[str] = set()

    def add(self, text: str) -> None:
        if text not in self._seen:
            self._seen.add(text)
            self.lines.extend(_wrapped(text))


def _row(arm: str, row: Mapping[str, Any], base: str | None, notes: _Notes) -> str:
    name = f"{_cut(arm, _NAME):{_NAME}}"
    if row["invalid"]:
        notes.add(f"{arm} is not counted: {row['invalid']}.")
        return f"{name}  invalid, see below"
    speed = row.get("tokens_per_second", {}).get("median")
    steps = _figure(row.get("tokens_per_step"), 6, 2)
    loops = f"{row['loops']['n']}/{row['loops']['of']}"
    ratio = f"{'base':>6s} {'':12s}" if arm == base else _ratio(row.get("ratio"), notes)
    return f"{name} {_figure(speed, 8)} {ratio} {steps} {loops:>6s}  {_truth(row['truth'])}"


def _ratio(ratio: Mapping[str, Any] | None, notes: _Notes) -> str:
    """19 columns; one that should not be relied on says so."""
    if ratio is None:
        return f"{'-':>6s} {'':12s}"
    mark = "?" if ratio["doubts"] else " "
    for doubt in ratio["doubts"]:
        notes.add(f"? not to be relied on: {doubt}.")
    interval = "" if ratio["low"] is None else f"{ratio['low']:.2f}..{ratio['high']:.2f}"
    return f"{ratio['value']:5.2f}{mark} {interval:>12s}"


def _truth(truth: Mapping[str, Any]) -> str:
    if not truth["compared"]:
        return "-"
    if truth["same"] == truth["compared"]:
        return "same"
    return f"{truth['near_ties']} ties" + (f", {truth['unjudged']} ?" if truth["unjudged"] else "")


def _loops(block: Mapping[str, Any]) -> Iterator[str]:
    """Ratios of texts that loop, which every way of drafting predicts well."""
    some = [
        (arm, row["ratio_of_loops"]) for arm, row in block["arms"].items() if row.get("ratio_of_loops") and arm != block["base"]
    ]
    if some:
        line = "texts that loop, apart: " + ", ".join(f"{arm} {ratio['value']:.2f}" for arm, ratio in some)
        yield from _wrapped(line)


def _resources(found: Mapping[str, Any], notes: _Notes) -> Iterator[str]:
    rows: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for block in found["blocks"]:
        for arm, row in block["arms"].items():
            if row.get("first_token_seconds") is not None:
                rows.setdefault((block["model"], arm), []).append(row)
    if not rows:
        return
    yield ""
    yield f"{'':{_NAME}} MiB main  MiB GPU  prompt tokens/s  ms to first token"
    labels = {model["model"]: model["label"] for model in found["models"]}
    if len({len(some) for some in rows.values()}) > 1:
        notes.add("prompt tokens/s and ms to first token are over the workloads that an arm ran, which are not all for each.")
    last = None
    for (model, arm), some in rows.items():
        if len(labels) > 1 and model != last:
            yield _cut(str(labels[model]), WIDTH)
        last = model
        main, device = (_most(some, name) for name in ("resident_bytes", "device_bytes"))
        rates = [row["prefill_tokens_per_second"] for row in some if row["prefill_tokens_per_second"]]
        first = sorted(row["first_token_seconds"] for row in some)[len(some) // 2]
        rate = sum(rates) / len(rates) if rates else None
        yield (
            f"{_cut(arm, _NAME):{_NAME}} {_figure(main, 8, 0)} {_figure(device, 8, 0)} {_figure(rate, 16, 0)} "
            f"{_figure(1e3 * first, 18)}"
        )


def _most(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return max(known) / 1024**2 if known else None


def _models(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'':28s} {'type':8s} {'MiB':>6s}  accepted at depth 1 2 3  fastest"
    for model in found["models"]:
        accepted = " ".join(f"{share:.2f}" for share in model["acceptance"][:3])
        fastest = ", ".join(f"{each['arm']} {each['tokens_per_second']:.0f}" for each in model["fastest"])
        line = (
            f"{_cut(model['label'], 28):28s} {model['quantisation'][:8]:8s} {model['size_bytes'] / 1024**2:6.0f}  {accepted:23s}"
        )
        if len(line) + 1 + len(fastest) <= WIDTH:
            yield f"{line} {fastest}"
        else:
            yield line.rstrip()
            yield _cut(f"    fastest: {fastest}", WIDTH)
    measured = sorted({model["acceptance_of"] for model in found["models"] if model["acceptance_of"]})
    if measured:
        yield f"accepted: share of the steps of {', '.join(measured)}; fastest: tokens/s by temperature."


def _figure(value: float | None, width: int, n_decimals: int = 1) -> str:
    return f"{'-':>{width}s}" if value is None else f"{value:{width}.{n_decimals}f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    yield line


# -- progress


class Progress:
    """One line on a terminal that is written over; a line for each tenth elsewhere.

    Args:
        out: standard error.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._begin: tuple[float, int] | None = None
        self._total = 0
        self._told = -1
        self._width = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = self._clock()
        if self._begin is None or total != self._total:
            # another stage; what an earlier run did was not timed
            self._begin, self._total, self._told = (now, done), total, -1
        begin, first = self._begin
        left = f", {duration((now - begin) / (done - first) * (total - done))} left" if total > done > first else ""
        line = f"{done} of {total}{left}: {what}"
        if self._out.isatty():
            line = _cut(line, WIDTH - 1)
            self._out.write("\r" + line + " " * (self._width - len(line)))
            self._width = len(line)
        elif (10 * done) // max(1, total) > self._told:
            self._told = (10 * done) // max(1, total)
            self._out.write(line + "\n")
        self._out.flush()

    def clear(self) -> None:
        """Leave the line empty, for what is printed next."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._out.flush()
            self._width = 0


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min or 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
