#!/usr/bin/env python3
"""Train a reference model on a corpus folder.

    .venv/bin/python scripts/train_reference_model.py CORPUS OUT [--size small|large|tiny] [--minutes 120] [--resume]

CORPUS is what scripts/build_corpus.py wrote; its tokenizer.json is used, or trained first where there is none. OUT gets
tokenizer.json, log.jsonl, checkpoint.pt and, at the end, model.gguf. Ctrl-C saves; --resume goes on. Needs the train extra:
.venv/bin/pip install '.[train]'.

small is the shipped model's size (11 million parameters, two hours of two cores), large has some 50 million and wants a GPU, tiny
learns in a minute and is for tests. Fields for --set and what they mean are in TrainingOptions (scripts/reference/training.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

# threads that spin for long while they wait take the processor from whatever else runs, those that never spin wake up late
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=("small", "large", "tiny"), default="small")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--minutes", type=float, help="of training altogether; the rate falls to zero by then; default: 120, large 60"
    )
    parser.add_argument("--steps", type=int, default=0, help="a budget of steps instead of minutes: reproducible")
    parser.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")
    parser.add_argument("--export-every", type=float, default=0.0, metavar="MINUTES", help="write OUT/model.gguf on the way too")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", help="cpu or cuda; default: a GPU where there is one")
    parser.add_argument("--no-compile", action="store_true", help="slower, but needs no C++ compiler")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another field of TrainingOptions")
    args = parser.parse_args(argv)
    try:
        import torch

        from scripts.reference.training import OPTIONS, TrainingOptions, train
    except ModuleNotFoundError as error:
        print(
            f"error: training needs PyTorch and the tokenizers package ({error}): run .venv/bin/pip install '.[train]'.",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(args.threads)
    values: dict[str, Any] = {"size": args.size, "seed": args.seed, "steps": args.steps} | OPTIONS[args.size]
    if args.minutes is not None:
        values["minutes"] = args.minutes
    if args.no_compile or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        values["compiled"] = False
    for setting in args.set:
        key, _, text = setting.partition("=")
        if key not in TrainingOptions.__dataclass_fields__ or key in ("part_weights", "kind_weights"):
            parser.error(f"--set {key}: no such number among the training options")
        kind = type(getattr(TrainingOptions(), key))
        values[key] = text == "True" if kind is bool else kind(text)

    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        trainer = train(
            args.corpus,
            args.out,
            TrainingOptions(**values),
            resume=args.resume,
            stop=lambda _: interrupted,
            device=args.device,
            export_every=args.export_every,
        )
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if interrupted:
        print(f"\nsaved at step {trainer.step}; go on with --resume.", file=sys.stderr)
        return 130
    print(f"\nwrote {args.out / 'model.gguf'} after {trainer.step} steps.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
