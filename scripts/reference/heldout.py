"""Chooses the sample of held-out text that perplexity is measured on, small enough to be shipped.

Does not know which model reads it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from entmtp_local.bench import workloads
from scripts.reference.prompts import WRITTEN

MAX_CHARACTERS = 2_000
N_BYTES = 45_000  # of text, a kind

# Addresses of hosts say nothing about a model, and some readers take a file that names a package index for a mirror's list.
_HOST = re.compile(r"://|\bwww\.|\b(?:[a-z0-9-]+\.)+(?:org|com|io|net|dev|co|edu|gov|eu|de|uk)\b|npmjs|pypi", re.IGNORECASE)


def _shown_by_workloads() -> tuple[frozenset[str], tuple[str, ...]]:
    """Files that workload prompts begin, and what they ask."""
    sources: set[str] = set()
    asked: set[str] = set()
    for name in workloads.NAMES:
        for prompt in workloads.load(name):
            sources.add(prompt.source)
            asked.update(message.content for message in prompt.messages or () if message.role == "user")
            asked.update(re.findall(r"^Problem: (.*)$", prompt.text or "", re.MULTILINE))
    return frozenset(sources - {WRITTEN}), tuple(sorted(asked))


def _in_turn(documents: list[dict[str, Any]], rng: Random) -> Iterator[dict[str, Any]]:
    """Documents of all packages in turn, so that a small sample shows many."""
    packages: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for document in documents:
        packages[document["source"].split(": ")[0]].append(document)
    names = sorted(packages)
    rng.shuffle(names)
    for name in names:
        rng.shuffle(packages[name])
    while packages:
        for name in [name for name in names if name in packages]:
            yield packages[name].pop()
            if not packages[name]:
                del packages[name]


def write_heldout(corpus: Path, out: Path, seed: int) -> dict[str, int]:
    """Write code, math, chat and prose .jsonl: about N_BYTES of text each, documents cut at MAX_CHARACTERS.

    Documents that a workload's prompt begins or asks from are left out, and those that name hosts.

    Args:
        corpus: a folder that build_corpus.py wrote.
        out: the folder to write to, made where it does not exist.
        seed: of the corpus.
    Returns: bytes of text by kind.
    Raises: ValueError where the held-out text is too small.
    """
    sources, asked = _shown_by_workloads()
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for kind in workloads.NAMES:
        text = (corpus / "heldout" / f"{kind}.jsonl").read_text(encoding="utf-8")
        documents = [json.loads(line) for line in text.split("\n") if line]
        chosen: list[dict[str, str]] = []
        size = 0
        for document in _in_turn(documents, Random(f"{seed}/heldout/{kind}")):
            cut = document["text"][:MAX_CHARACTERS]
            if len(cut) < 80 or document["source"] in sources or _HOST.search(cut) or any(each in cut for each in asked):
                continue
            chosen.append(
                {
                    "id": f"{kind}-{len(chosen) + 1:03d}",
                    "kind": kind,
                    "text": cut,
                    "source": document["source"],
                    "licence": document["licence"],
                }
            )
            size += len(cut.encode())
            if size >= N_BYTES:
                break
        if size < N_BYTES:
            raise ValueError(f"The held-out {kind} of {corpus} gives {size} bytes, {N_BYTES} are wanted: build a larger corpus.")
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in chosen]
        (out / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
        sizes[kind] = size
    return sizes
