#!/usr/bin/env python3
"""Writes README's table of results from docs/results/bench-*.json, or checks that it says what they say.

.venv/bin/python scripts/results_table.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.bench import workloads  # noqa: E402
from entmtp_local.bench.record import Record  # noqa: E402
from entmtp_local.bench.results import results  # noqa: E402
from entmtp_local.errors import UsageError  # noqa: E402
from scripts.reference.script import run  # noqa: E402

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# The defaults, and the same with the full draft head.
SHOWN = ("throughput", "throughput@full", "entmtp", "chain:3")
_WIDENED = " widened to "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail where README says something else")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    text = options.readme.read_text(encoding="utf-8")
    wanted = with_table(text, options.readme, published(options.results))
    if text == wanted:
        return
    if options.check:
        raise UsageError(
            f"the table of results in {options.readme.name} is not that of docs/results; run scripts/results_table.py."
        )
    options.readme.write_text(wanted, encoding="utf-8")


def published(folder: Path) -> list[tuple[str, Record]]:
    """All benchmarks, by the name of their files.

    Raises: UsageError where one is damaged or was interrupted.
    """
    found = [(path.name, Record.read(path)) for path in sorted(folder.glob("bench-*.json"))]
    for name, record in found:
        if not record.content["complete"]:
            raise UsageError(f"{name} was interrupted; finish it with --resume before it is published.")
    return found


def with_table(text: str, path: Path, records: Sequence[tuple[str, Record]]) -> str:
    """README's text with the table between its marks.

    Raises: UsageError where the marks are missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(f"{path} has no place for the table of results: it needs the lines {BEGIN} and {END}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = list(table(records))
    body = "\n\n" + "\n".join(lines) + "\n\n" if lines else "\n"
    return f"{before}{BEGIN}{body}{END}{after}"


def table(records: Sequence[tuple[str, Record]]) -> Iterator[str]:
    """A row for each device, model, temperature and arm; nothing where nothing is published."""
    rows = [row for name, record in records for row in _rows(name, record.content, results(record))]
    if not rows:
        return
    yield (
        "Ratios over the fastest stock arm of each workload, geometric mean over workloads; in brackets the 95 % interval. "
        "`?`: too few or too noisy pairs."
    )
    yield ""
    yield "| device | model | answers | temperature | policy | over stock | worst workload | measured |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from rows
    if any("*" in row for row in rows):
        yield ""
        yield (
            "\\* the reference model written into the shape of a larger one: its speed is that of the real shape, its acceptance "
            "that of the small model."
        )


def _rows(name: str, content: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    settings = content["settings"]
    answers = f"up to {settings['n_tokens']} tokens"
    if list(settings["workloads"]) != list(workloads.NAMES):
        answers += f" of {', '.join(settings['workloads'])}"
    for summary in found["summary"]:
        model = content["models"][summary["model"]]
        mark = "\\*" if _WIDENED in model["name"] else ""
        for arm in SHOWN:
            row = summary["arms"].get(arm)
            if row is None or row["invalid"] or row["ratio"] is None or not settings["stock"]:
                continue
            ratio = row["ratio"]
            doubt = "?" if ratio["doubts"] else ""
            interval = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
            yield (
                f"| {settings['device']} | {model['name']}{mark}, {model['quantisation']} | {answers} "
                f"| {summary['temp']:g} | `{arm}` | {ratio['value']:.2f}{doubt}{interval} | {row['worst']:.2f} "
                f"| [{content['created'][:10]}](docs/results/{name}) |"
            )


if __name__ == "__main__":
    run(main)
