#!/usr/bin/env python3
"""Collect loops that a model falls into, for training against them.

    python scripts/write_loops.py MODEL.gguf CORPUS OUT.npz [--minutes 2]

Continues training documents of a corpus greedily, through the engine, and keeps those continuations that repeat themselves.
`scripts/train_reference_model.py CORPUS RUN --resume --minutes M --loops OUT.npz` then goes on with a penalty on just these.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from entmtp_local.bench.repetition import find_loop
from entmtp_local.engine import generate
from entmtp_local.errors import EntMTPError
from entmtp_local.native.session import Session, SessionOptions, physical_cores
from entmtp_local.speculative.policy import OFF
from entmtp_local.speculative.sampling import SamplingOptions
from scripts.reference.data import Loops
from scripts.reference.prompts import training_prompts

N_TOKENS = 240  # of a continuation
N_CTX = 1024


def collect(session: Session, prompts: Sequence[str], minutes: float) -> list[tuple[list[int], int, int]]:
    """(ids, where the first copy starts, period) of every loop met before the time is over."""
    found: list[tuple[list[int], int, int]] = []
    end = monotonic() + 60 * minutes
    with session.new_sampler(SamplingOptions(temp=0.0)) as sampler:
        for n_read, prompt in enumerate(prompts, 1):
            ids = session.tokenize(prompt, add_special=True, parse_special=False)
            session.clear()
            generation = generate(session, ids, policy=OFF, sampler=sampler, max_tokens=N_TOKENS)
            for n_steps, _ in enumerate(generation):
                # a loop goes on, there is no need to see it again and again
                if n_steps % 40 == 39 and find_loop(generation.tokens):
                    break
            loop = find_loop(generation.tokens)
            if loop:
                found.append(([*ids, *generation.tokens], len(ids) + loop.start, loop.period))
            if monotonic() > end:
                break
            if n_read % 50 == 0:
                print(f"{len(found)} of {n_read} continuations loop", file=sys.stderr, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect loops that a model falls into.")
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=physical_cores())
    args = parser.parse_args(argv)
    try:
        prompts = training_prompts(args.corpus, args.seed)
        with Session.open(SessionOptions(args.model, n_ctx=N_CTX, n_threads=args.threads)) as session:
            found = collect(session, prompts, args.minutes)
    except (EntMTPError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Loops.write(args.out, found)
    print(f"{len(found)} loops written to {args.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
