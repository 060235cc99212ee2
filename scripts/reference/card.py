"""Writes what was measured of a model as Markdown tables, and puts them into a model card. Knows only the measured figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from entmtp_local.errors import UsageError
from scripts.reference.quality import PARSES

BEGIN = "<!-- measured: begin -->"
END = "<!-- measured: end -->"

Measured = dict[str, Any]


def markdown(measured: Measured) -> str:
    """All tables, ended by a newline."""
    parts = [_file(measured)]
    if measured.get("heldout"):
        parts.append(_heldout(measured))
    rows = [(name, float(temp), figures) for name, temps in measured["workloads"].items() for temp, figures in temps.items()]
    if rows:
        parts += [_texts(rows, measured), *_quality(rows)]
    if measured.get("arithmetic"):
        parts.append(_arithmetic(measured["arithmetic"]))
    if any("acceptance" in figures for _, _, figures in rows):
        parts += [_chains(rows), *_acceptance(rows)]
    return "\n\n".join(parts) + "\n"


def section(measured: Measured) -> str:
    """The tables between the marks that `replace` looks for."""
    return f"{BEGIN}\n\n{markdown(measured)}\n{END}\n"


def check(path: Path) -> None:
    """Refuse a card that has no place for the tables, before anything is measured for it.

    Raises: UsageError naming the marks.
    """
    _split(path)


def replace(path: Path, measured: Measured) -> None:
    """Put the tables between a card's marks.

    Raises: UsageError where the marks are missing.
    """
    before, after = _split(path)
    path.write_text(before + section(measured).rstrip("\n") + after, encoding="utf-8")


def _split(path: Path) -> tuple[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the card {path}: {error}.") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(f"{path} has no place for the figures: it needs the lines {BEGIN} and {END} once each, in this order.")
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]


# -- tables


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        # The first column is words, the others mostly figures.
        rest = [cell.rjust(width) if figures else cell.ljust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *rest])} |"

    end = ":" if figures else "-"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + end for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _label(name: str, temp: float) -> str:
    return f"{name}, {temp:g}"


def _file(measured: Measured) -> str:
    model = measured["model"]
    rows = [
        ("file", f"`{model['name']}`"),
        ("sha256" + (f" of the first of {model['n_parts']} parts" if model["n_parts"] > 1 else ""), f"`{model['sha256']}`"),
        ("size", f"{model['size_bytes']:,} bytes"),
        ("parameters", f"{model['n_parameters']:,}"),
        ("type", model["type"]),
        (
            "architecture",
            f"{model['architecture']}: {model['n_layer']} layers and {model['n_layer_nextn']} MTP, width {model['n_embd']}, "
            f"vocabulary {model['n_vocab']:,}, trained context {model['n_ctx_train']:,}",
        ),
    ]
    return _table(("measured by", measured["command"]), rows, figures=False)


def _heldout(measured: Measured) -> str:
    rows = [
        (
            kind,
            f"{figures['perplexity']:.2f}",
            f"{figures['nats_per_token']:.3f}",
            f"{figures['nats_per_byte']:.3f}",
            f"{figures['n_documents']:,}",
            f"{figures['n_tokens']:,}",
        )
        for kind, figures in measured["heldout"].items()
    ]
    table = _table(("held-out text", "perplexity", "nats per token", "nats per byte", "documents", "tokens"), rows)
    return f"{table}\n\nEach document's first 512 tokens on an empty context; its first token is given."


def _texts(rows: Sequence[tuple[str, float, Measured]], measured: Measured) -> str:
    cells = []
    for name, temp, figures in rows:
        low, middle, high = figures["entropy"]["quartiles"]
        start = figures["looped"]["median_start"]
        cells.append(
            (
                _label(name, temp),
                f"{figures['n_prompts']}",
                f"{figures['n_tokens']:,}",
                f"{figures['entropy']['mean']:.3f}",
                f"{low:.3f} / {middle:.3f} / {high:.3f}",
                _percent(figures["looped"]["share"]),
                "" if start is None else f"{start:.0f}",
                _percent(figures["finish_reasons"]["stop"] / figures["n_prompts"]),
            )
        )
    head = ("workload, temperature", "prompts", "tokens", "entropy", "quartiles", "looped", "from token", "ended by itself")
    return (
        f"{_table(head, cells)}\n\nUp to {measured['n']} tokens a prompt, context {measured['n_ctx']}. Entropy, in nats, is that "
        "of the model's own distribution at every token of its text, whatever the temperature. Looped: some 1 to 64 tokens come "
        "at least three times in a row (`entmtp_local/bench/repetition.py`), from the given token on in the median."
    )


def _quality(rows: Sequence[tuple[str, float, Measured]]) -> Iterator[str]:
    code = [(name, temp, figures["code"]) for name, temp, figures in rows if "code" in figures]
    if code:
        cells = [
            (
                _label(n, t),
                f"{c['n']}",
                _percent(c["parses"]),
                _percent(c["parses_without_loop"]),
                _percent(c["mean_share_of_lines"]),
            )
            for n, t, c in code
        ]
        head = ("Python, temperature", "completions", "parse", "parse, do not loop", "lines that parse, mean")
        yield (
            f"{_table(head, cells)}\n\nA completion parses where the longest prefix in whole lines that parses after the prompt "
            f"has at least {PARSES:.0%} of its lines; the line that the limit cut is dropped, blocks may be open at the end."
        )
    arithmetic = [
        (_label(n, t), f"{f['arithmetic']['n']}", _percent(f["arithmetic"]["right"])) for n, t, f in rows if "arithmetic" in f
    ]
    if arithmetic:
        yield _table(("arithmetic, temperature", "problems", "right"), arithmetic)
    dialogue = [(name, temp, figures["dialogue"]) for name, temp, figures in rows if "dialogue" in figures]
    if dialogue:
        lines = [
            (
                _label(n, t),
                f"{d['n']}",
                _percent(d["good"]),
                _percent(d["ends"]),
                _percent(d["not_empty"]),
                _percent(d["no_stray_marks"]),
            )
            for n, t, d in dialogue
        ]
        yield _table(
            ("dialogue, temperature", "answers", "well-formed", "end by themselves", "not empty", "no stray marks"), lines
        )


def _arithmetic(figures: Measured) -> str:
    cells = [(name, f"{each['n']}", _percent(each["right"])) for name, each in figures["topics"].items()]
    cells.append(("all", f"{figures['n']}", _percent(figures["right"])))
    return f"{_table(('held-out problems', 'asked', 'right'), cells)}\n\nGreedy, one problem a prompt, final answers only."


def _chains(rows: Sequence[tuple[str, float, Measured]]) -> str:
    lengths = list(rows[0][2]["acceptance"]["chains"])
    cells = [
        (_label(name, temp), *(f"{figures['acceptance']['chains'][length]['tokens_per_step']:.2f}" for length in lengths))
        for name, temp, figures in rows
    ]
    return f"{_table(('tokens per step', *(f'`{length}`' for length in lengths)), cells)}\n\nThe bonus token is counted."


def _acceptance(rows: Sequence[tuple[str, float, Measured]]) -> Iterator[str]:
    for temp in dict.fromkeys(temp for _, temp, _ in rows):
        cells = []
        for name, _, figures in [row for row in rows if row[1] == temp]:
            acceptance = figures["acceptance"]
            for depth, (values, n) in enumerate(zip(acceptance["conditional"], acceptance["reached"], strict=True), 1):
                cells.append((f"{name}, depth {depth}", f"{n:,}", *map(_percent, values)))
        width = len(cells[0]) - 2
        head = (f"accepted, temperature {temp:g}", "drafts", *(f"rank {rank}" for rank in range(1, width + 1)))
        yield _table(head, cells)
    yield (
        "The head's candidate of that rank is the text's next token, where its best guesses were right at every depth above; "
        "`drafts` counts these places, of all positions of the texts."
    )
