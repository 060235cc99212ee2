#!/usr/bin/env python3
"""Choose the shipped workloads' prompts and the shipped held-out sample from a corpus' held-out text.

    .venv/bin/python scripts/make_workloads.py CORPUS [--out DIR]
    .venv/bin/python scripts/make_workloads.py CORPUS --heldout [DIR]

The first rewrites entmtp_local/bench/workloads/*.jsonl, the second models/heldout/*.jsonl, which shows none of the workloads'
documents. Figures measured on other text are not comparable, so this is run when the workloads or the sample are to change,
never as part of a build.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.reference import facts
from scripts.reference.corpus import SHIPPED_HELDOUT, Document, held_out, knowledge
from scripts.reference.heldout import write_heldout
from scripts.reference.prompts import write_workloads

SHIPPED = Path(__file__).resolve().parent.parent / "entmtp_local" / "bench" / "workloads"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Choose the shipped workloads' prompts from a corpus' held-out text.")
    parser.add_argument(
        "--heldout",
        type=Path,
        nargs="?",
        const=SHIPPED_HELDOUT,
        metavar="DIR",
        help="choose the held-out sample instead, the workloads being as they are",
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    arguments = parser.parse_args(argv)
    try:
        seed = int(json.loads((arguments.corpus / "manifest.json").read_text(encoding="utf-8"))["seed"])
        if arguments.heldout is not None:
            print(json.dumps(write_heldout(arguments.corpus, arguments.heldout, seed)))
            return 0
        texts = {
            kind: [
                Document(**json.loads(line))
                for line in (arguments.corpus / "heldout" / f"{kind}.jsonl").read_text(encoding="utf-8").split("\n")
                if line
            ]
            for kind in ("code", "prose")
        }
        known = knowledge(texts["code"], texts["prose"], [each for each in facts.definitions() if held_out(each.name, seed)])
        print(json.dumps(write_workloads(arguments.corpus, arguments.out, known, seed)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
