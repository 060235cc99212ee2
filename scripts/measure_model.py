#!/usr/bin/env python3
"""Measure what a model's card states: entropy, acceptance of its drafts, loops, quality and perplexity of held-out text.

    .venv/bin/python scripts/measure_model.py [MODEL] --json FILE
    .venv/bin/python scripts/measure_model.py MODEL --workload code prompts.jsonl --temp 0.8 --heldout notes/

Prints Markdown tables. The texts are generated one plain token at a time; at each, the head drafts six tokens deep and four
wide, and the drafts are compared with the text afterwards, so every figure of acceptance covers every position.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.bench import workloads  # noqa: E402
from entmtp_local.cli.models import find_model  # noqa: E402
from entmtp_local.cli.options import default_n_ctx  # noqa: E402
from entmtp_local.errors import EntMTPError, UsageError  # noqa: E402
from entmtp_local.native.cores import physical_cores  # noqa: E402
from entmtp_local.native.model_file import check_pair, read_model  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions  # noqa: E402
from scripts.reference import card, measurement  # noqa: E402
from scripts.reference.corpus import SHIPPED_HELDOUT  # noqa: E402
from scripts.reference.measurement import DEPTH, N_DRAFTED, N_SOLUTION, Text, Writer  # noqa: E402
from scripts.reference.quality import held_out_questions  # noqa: E402

N_PER_TOPIC = 10
QUICK = {"prompts": 2, "n": 48, "per_topic": 1, "documents": 4}


class Progress:
    """One line on standard error that is written over, or a line every half minute where it is no terminal."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, text: str) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if now - self._shown < (0.2 if terminal else 30):
            return
        self._shown = now
        print(f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", help="a .gguf file; without it the shipped model")
    options.add_argument("--mtp-model", type=Path, metavar="FILE", help="a file with the MTP head, where the model's has none")
    options.add_argument(
        "--workload",
        nargs="+",
        default=list(workloads.NAMES),
        metavar="NAME_OR_FILE",
        help='code, math, chat, prose, or files of prompts: lines of JSON with "prompt", or a .txt with a prompt a line',
    )
    options.add_argument("--heldout", type=Path, default=SHIPPED_HELDOUT, metavar="FOLDER_OR_FILE")
    options.add_argument("--prompts", type=int, metavar="N", help="the first N prompts of each workload; default: all")
    options.add_argument("-n", type=int, default=300, help="most tokens of a text; default: 300")
    options.add_argument("--temp", type=float, nargs="+", default=[0.0, 0.8], metavar="T", help="default: 0 and 0.8")
    options.add_argument("--seed", type=int, default=1, help="prompt i is sampled with seed + i; default: 1")
    options.add_argument("-c", "--ctx", type=int, metavar="N", help="tokens of context; default: as `entmtp-local run`")
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--quick", action="store_true", help="a few short texts, to see that it works")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options.add_argument("--texts", type=Path, metavar="FILE", help="write the generated texts there, lines of JSON")
    options.add_argument(
        "--card",
        type=Path,
        nargs="?",
        const=Path("-"),
        metavar="FILE",
        help=f"replace what stands between {card.BEGIN} and {card.END} there; without FILE, print these marks too",
    )
    return options


def label(workload: str) -> str:
    return workload if workload in workloads.NAMES else Path(workload).stem


def unusual(options: argparse.Namespace) -> list[str]:
    """Options that change figures, where they are not the defaults."""
    found = ["--quick"] if options.quick else []
    for action in parser()._actions:
        value = getattr(options, action.dest, None)
        if action.dest in ("workload", "heldout", "prompts", "n", "temp", "seed", "ctx", "mtp_model") and value != action.default:
            found += [action.option_strings[-1], *map(str, value if isinstance(value, list) else [value])]
    return found


def measure(options: argparse.Namespace, say: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All figures, and the texts they were measured on."""
    model = find_model(options.model, options.mtp_model)
    path = model.path
    info = read_model(path)
    if model.mtp_path is not None:
        check_pair(info, read_model(model.mtp_path, role="mtp"))
    counts = [options.n, options.threads, *([] if options.prompts is None else [options.prompts])]
    if min(counts) < 1 or options.seed < 0 or min(options.temp) < 0:
        raise UsageError("-n, --prompts and --threads are 1 or more, --seed and --temp 0 or more.")
    n_prompts, n, per_topic, n_documents, n_solution = options.prompts, options.n, N_PER_TOPIC, None, N_SOLUTION
    if options.quick:
        n_prompts, n = min(n_prompts or 2, QUICK["prompts"]), min(n, QUICK["n"])
        per_topic, n_documents, n_solution = QUICK["per_topic"], QUICK["documents"], n
    prompts = {label(name): workloads.load(name)[:n_prompts] for name in options.workload}
    if len(prompts) < len(options.workload):
        raise UsageError("two workloads have the same name: rename one of the files.")
    if len(set(options.temp)) < len(options.temp):
        raise UsageError("a temperature is given twice.")
    files = measurement.heldout_files(options.heldout)
    n_ctx = options.ctx or default_n_ctx(info)

    command = ["scripts/measure_model.py", path.name, *unusual(options)]
    measured: dict[str, Any] = {
        "format": 1,
        "command": f"`{' '.join(command)}`",
        "model": measurement.describe_file(info),
        "n": n,
        "n_ctx": n_ctx,
        "seed": options.seed,
        "temperatures": options.temp,
        "workloads": {},
    }
    texts: list[dict[str, Any]] = []
    # The combs of the last position reach beyond the text: their cells are added to the context, not taken from it.
    session_options = SessionOptions(
        path, model.mtp_path, n_ctx + N_DRAFTED + 1, options.threads, max_depth=DEPTH, max_nodes=N_DRAFTED
    )
    with Session.open(session_options) as session:
        measured |= {"engine": session.engine_info, "device": session.device}
        writer = Writer(session, info, n_ctx)
        for name, chosen in prompts.items():
            measured["workloads"][name] = {}
            for temp in options.temp:
                written: list[Text] = []
                for i, prompt in enumerate(chosen):
                    say(f"{name}, temperature {temp:g}: {i + 1} of {len(chosen)} prompts")
                    with session.new_sampler(measurement.sampling(temp, options.seed + i)) as sampler:
                        written.append(writer.write(prompt, sampler, n))
                measured["workloads"][name][f"{temp:g}"] = measurement.summary(written, writer.depth, writer.width)
                texts += [as_line(text, name, temp) for text in written]
        if "math" in prompts:
            measured["arithmetic"] = measurement.arithmetic(writer, held_out_questions(per_topic), n_solution, say)
    measured["heldout"] = measurement.surprise(path, files, options.threads, n_documents, say)
    say.end()
    return measured, texts


def as_line(text: Text, workload: str, temp: float) -> dict[str, Any]:
    loop = text.loop
    return {
        "workload": workload,
        "temperature": temp,
        "id": text.prompt.id,
        "text": text.text,
        "finish_reason": text.finish_reason,
        "loop": None if loop is None else {"start": loop.start, "period": loop.period},
        "entropy": float(text.entropies.mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    say = Progress()
    to_card = options.card is not None and str(options.card) != "-"
    try:
        if to_card:
            card.check(options.card)
        for path in (options.json, options.texts):
            if path:  # minutes of measuring are not lost to a missing folder
                path.parent.mkdir(parents=True, exist_ok=True)
        measured, texts = measure(options, say)
        if options.json:
            options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        if options.texts:
            lines = (json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
            options.texts.write_text("".join(lines), encoding="utf-8")
        if to_card:
            card.replace(options.card, measured)
    except (EntMTPError, OSError) as error:
        say.end()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say.end()
        return 130
    print(card.section(measured) if options.card is not None and not to_card else card.markdown(measured), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
