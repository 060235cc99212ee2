#!/usr/bin/env python3
"""Train the reference models' tokenizer on a corpus.

    .venv/bin/python scripts/train_tokenizer.py CORPUS [--out FILE] [--ids N] [--seed N]

CORPUS is what scripts/build_corpus.py wrote. Writes CORPUS/tokenizer.json and prints how many tokens a byte of held-out text
takes, by kind. scripts/train_reference_model.py CORPUS RUN comes next.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.reference.tokenizer import balanced_sample, save, train_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("--out", type=Path, help="default: CORPUS/tokenizer.json")
    parser.add_argument("--ids", type=int, default=8_192, help="size of the vocabulary, a multiple of 64 (default: 8192)")
    parser.add_argument("--sample-megabytes", type=float, default=24)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    if not any((arguments.corpus / "train").glob("*.jsonl")):
        print(f"error: there is no corpus in {arguments.corpus}; write one with scripts/build_corpus.py.", file=sys.stderr)
        return 1
    try:
        tokenizer = train_tokenizer(
            balanced_sample(arguments.corpus, int(arguments.sample_megabytes * 1e6), arguments.seed), arguments.ids
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    save(tokenizer, arguments.out or arguments.corpus / "tokenizer.json")
    figures = {}
    for file in sorted((arguments.corpus / "heldout").glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        n_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        figures[file.stem] = round(n_tokens / max(1, sum(len(text.encode()) for text in texts)), 4)
    print(json.dumps({"ids": arguments.ids, "tokens_per_byte": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
