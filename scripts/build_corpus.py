#!/usr/bin/env python3
"""Build the corpus that the reference models are trained on.

    .venv/bin/python scripts/build_corpus.py OUT [--seed N] [--megabytes N] [--source-tree DIR ...]

Reads what is on the machine under free licences: the standard library and the installed packages of the Python that runs
it, documentation of Rust, Node.js and CMake where installed, and given source trees. Generates dialogue and worked
arithmetic. OUT/manifest.json says what came from where. scripts/train_tokenizer.py OUT comes next.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.reference.corpus import build


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=90, help="about how much text, all kinds together (default: 90)")
    parser.add_argument(
        "--source-tree", type=Path, action="append", default=[], metavar="DIR", help="a folder with a LICENSE file; repeatable"
    )
    arguments = parser.parse_args(argv)
    if arguments.megabytes <= 0:
        parser.error(f"--megabytes must be positive, got {arguments.megabytes:g}.")
    try:
        build(
            arguments.out,
            seed=arguments.seed,
            megabytes=arguments.megabytes,
            trees=tuple(arguments.source_tree),
            say=lambda line: print(line, flush=True),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
