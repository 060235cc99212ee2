"""Chooses the shipped workloads' prompts from a corpus' held-out text.

Does not know how the prompts are used; that they are held out whatever a later corpus' seed is corpus.held_out's part.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from scripts.reference.corpus import held_out
from scripts.reference.dialogue import INTENTS, LONG_ANSWERS, UNSPLIT
from scripts.reference.math_problems import KINDS as PROBLEM_KINDS
from scripts.reference.math_problems import lead, topic
from scripts.reference.turns import Intent, Knowledge

N_PROMPTS = 48
WRITTEN = "written for this project"

Entry = dict[str, Any]


def _cut_code(text: str, rng: Random) -> str | None:
    """A document's first lines, up to somewhere inside a function's body."""
    lines = text.split("\n")
    wanted = rng.randrange(160, 600)
    size, inside = 0, False
    for i, line in enumerate(lines):
        inside = inside or re.match(r"\s*(async )?def ", line) is not None
        size += len(line) + 1
        following = lines[i + 1] if i + 1 < len(lines) else ""
        quotes = "\n".join(lines[: i + 1]).count('"""') % 2
        if size >= wanted and inside and not quotes and line.strip() and following.startswith("    ") and len(text) - size > 200:
            return "\n".join(lines[: i + 1]) + "\n"
        if size > 1_300:
            return None
    return None


def _cut_prose(text: str, rng: Random) -> str | None:
    """A document's first paragraphs, up to the middle of a sentence."""
    wanted = rng.randrange(200, 600)
    end = text.find(" ", wanted)
    if end < 0 or len(text) - end < 400 or text[:end].rsplit("\n", 1)[-1].startswith(("#", "-")) or text[:end].count(". ") < 1:
        return None
    # Where the next word belongs to the prompt's last paragraph, the space belongs to the next token.
    return text[:end]


def _from_documents(path: Path, kind: str, cut: Callable[[str, Random], str | None], seed: int) -> Iterator[Entry]:
    rng = Random(f"{seed}/prompts/{kind}")
    per_package: Counter[str] = Counter()
    seen: set[str] = set()
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        document = json.loads(line)
        package = document["source"].split(": ")[0]
        prompt = cut(document["text"], rng)
        if prompt is None or document["source"] in seen or per_package[package] >= 5:
            continue
        seen.add(document["source"])
        per_package[package] += 1
        yield {"prompt": prompt, "source": document["source"], "licence": document["licence"]}


def _math(seed: int) -> Iterator[Entry]:
    rng = Random(f"{seed}/prompts/math")

    def held(make: Callable[[Random], tuple[str, list[str], str]]) -> tuple[str, list[str], str]:
        while True:
            made = make(rng)
            if held_out(made[0], seed):
                return made

    makers = [maker for maker, _ in PROBLEM_KINDS]
    for i in range(N_PROMPTS):
        maker = makers[i % len(makers)]
        question, _, right = held(maker)
        before = ""
        if i % 3 == 2:
            asked, steps, answer = held(rng.choice(makers))
            before = lead(asked) + "\n".join(steps) + f"\nAnswer: {answer}\n\n"
        yield {"prompt": before + lead(question), "topic": topic(maker), "answer": right, "source": WRITTEN}


def _chat(known: Knowledge, seed: int) -> Iterator[Entry]:
    rng = Random(f"{seed}/prompts/chat")

    asked_before: set[str] = set()

    def held(intent: Intent) -> tuple[str, str]:
        for _ in range(400):
            turn = intent(rng, known)
            if held_out(turn[0], seed) and turn[0] not in asked_before:
                break
        # Otherwise the intent has a handful of questions, and the last one has to do.
        asked_before.add(turn[0])
        return turn

    short = [intent for intent, _ in INTENTS if intent not in (*UNSPLIT, *LONG_ANSWERS)]
    # Every second prompt asks for much, so that runs of a few hundred tokens have something to generate.
    asking = [rng.choice(LONG_ANSWERS) if i % 2 else short[i // 2 % len(short)] for i in range(N_PROMPTS)]
    for i, last in enumerate(asking):
        messages = []
        for intent in (rng.choice(short), last) if i % 4 == 0 else (last,):
            asked, answer = held(intent)
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield {"prompt": messages[:-1], "source": WRITTEN}


def write_workloads(corpus: Path, out: Path, known: Knowledge, seed: int) -> dict[str, int]:
    """Write code, math, chat and prose .jsonl.

    Args:
        corpus: a folder that build_corpus.py wrote with the same seed.
        out: the folder to write to.
        known: what held-out dialogues draw on.
        seed: of the corpus.
    Returns: prompts by workload.
    Raises: ValueError where the held-out text is too small.
    """
    entries = {
        "code": _from_documents(corpus / "heldout" / "code.jsonl", "code", _cut_code, seed),
        "math": _math(seed),
        "chat": _chat(known, seed),
        "prose": _from_documents(corpus / "heldout" / "prose.jsonl", "prose", _cut_prose, seed),
    }
    counts = {}
    for kind, chosen in entries.items():
        first = [entry for _, entry in zip(range(N_PROMPTS), chosen, strict=False)]
        if len(first) < N_PROMPTS:
            raise ValueError(
                f"The held-out {kind} of {corpus} gives {len(first)} prompts, {N_PROMPTS} are wanted: build a larger corpus."
            )
        lines = [
            json.dumps({"id": f"{kind}-{i:02d}", "kind": kind, **entry}, ensure_ascii=False) for i, entry in enumerate(first, 1)
        ]
        (out / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts[kind] = len(first)
    return counts
