"""How each token came: chosen at the root, along the spine of a draft, as a sibling, or as a copy; with the entropy behind it.

A trace file is JSON: format, version, model, and per answer its tokens and its steps. `trace_page.py` draws one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entmtp_local.engine import Step
from entmtp_local.errors import TranscriptError
from entmtp_local.files import open_file, replace_file

VERSION = 1
FORMAT = "entmtp-trace"
ROOT, SPINE, SIBLING, COPIED = "root", "spine", "sibling", "copied"
Piece = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One emitted token.

    Args:
        how: ROOT, the model's own at the end of an accepted path; SPINE, drafted as the best continuation;
            SIBLING, as another one; COPIED, found in the text.
        depth: of its node; 0 for ROOT.
        entropy: of the distribution it was chosen from, nats; NaN where it was not asked for.
    """

    token: int
    text: str
    how: str
    depth: int
    entropy: float


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """The steps of one answer."""

    question: str
    policy: str
    steps: tuple[Step, ...]


def tokens_of(step: Step, piece: Piece) -> list[TokenTrace]:
    """The tokens that a step emitted."""
    shape, found = step.tree.shape, []
    for i, token in enumerate(step.tokens):
        how, depth = ROOT, 0
        if i < len(step.accepted):
            node = step.accepted[i]
            depth = shape.depths[node]
            siblings = shape.children[shape.parents[node]]
            how = COPIED if node in step.tree.copied else SPINE if node == siblings[0] else SIBLING
        entropy = step.entropies[i] if i < len(step.entropies) else math.nan
        found.append(TokenTrace(token, piece(token).decode("utf-8", errors="replace"), how, depth, entropy))
    return found


def as_json(answers: Sequence[AnswerTrace], model: str, piece: Piece) -> dict[str, Any]:
    """The content of a trace file."""
    return {"format": FORMAT, "version": VERSION, "model": model, "answers": [_answer(each, piece) for each in answers]}


def _answer(answer: AnswerTrace, piece: Piece) -> dict[str, Any]:
    def text(token: int) -> str:
        return piece(token).decode("utf-8", errors="replace")

    steps: list[dict[str, Any]] = []
    for step in answer.steps:
        tokens = [
            {
                "id": each.token,
                "text": each.text,
                "how": each.how,
                "depth": each.depth,
                "entropy": None if math.isnan(each.entropy) else round(each.entropy, 4),
            }
            for each in tokens_of(step, piece)
        ]
        steps.append(
            {
                "tokens": tokens,
                "parents": list(step.tree.shape.parents),
                "nodes": [text(token) for token in step.tree.tokens],
                "path": list(step.path),
                "copied": sorted(step.tree.copied),
                "ms": round(1e3 * step.seconds.total, 3),
            }
        )
    return {"question": answer.question, "policy": answer.policy, "steps": steps}


def write_trace(path: Path, content: dict[str, Any]) -> None:
    """Raises: OSError."""
    with replace_file(path) as file:
        file.write(json.dumps(content).encode())


def read_trace(path: Path) -> dict[str, Any]:
    """Raises: TranscriptError, in one sentence, for what is no trace of this version."""
    try:
        with open_file(path) as file:
            content = json.loads(file.read())
    except OSError as error:
        raise TranscriptError(f"the trace {path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError):
        raise TranscriptError(f"{path} is not a trace: it is not JSON; entmtp-local chat --trace-file FILE writes one.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TranscriptError(f"{path} is not a trace; entmtp-local chat --trace-file FILE writes one.")
    if content.get("version") != VERSION:
        raise TranscriptError(f"the trace {path} has version {content.get('version')}, and this program reads version {VERSION}.")
    try:
        _check(content)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise TranscriptError(f"the trace {path} is damaged: parts of it are missing.") from None
    return content


def _check(content: dict[str, Any]) -> None:
    if not isinstance(content["model"], str):
        raise ValueError
    for answer in content["answers"]:
        if not isinstance(answer["question"], str) or not isinstance(answer["policy"], str):
            raise ValueError
        for step in answer["steps"]:
            n = len(step["parents"])
            if len(step["nodes"]) != n or n == 0 or not all(isinstance(text, str) for text in step["nodes"]):
                raise ValueError
            if step["parents"][0] != -1 or not all(type(p) is int and 0 <= p < i for i, p in enumerate(step["parents"]) if i):
                raise ValueError
            if not all(type(node) is int and 0 <= node < n for node in (*step["path"], *step["copied"])) or step["path"][0] != 0:
                raise ValueError
            if not _is_number(step["ms"]):
                raise ValueError
            for token in step["tokens"]:
                if not isinstance(token["text"], str) or token["how"] not in (ROOT, SPINE, SIBLING, COPIED):
                    raise ValueError
                if type(token["depth"]) is not int or not (token["entropy"] is None or _is_number(token["entropy"])):
                    raise ValueError


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
