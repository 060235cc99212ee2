"""The prompts that speed and acceptance are measured on: code, math, chat and prose, or a file of the user's own.

A file has one JSON object a line: {"id", "kind", "prompt", "source"}. The prompt is text to be continued as it stands, or a
list of {"role", "content"} messages for the model's chat template; arithmetic has a "topic" and its right "answer" too. In a
file named *.txt each line is a prompt. Knows neither models nor tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from entmtp_local.errors import UsageError
from entmtp_local.files import open_file, reason

NAMES = ("code", "math", "chat", "prose")
_MOST_BYTES = 64 << 20
ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a workload.

    Args:
        id: unique in its file.
        kind: one of NAMES for the shipped files; a user's file may name its own.
        text: text to continue, None where `messages` are given.
        messages: a conversation that ends with the user's message, None where `text` is given.
        source: where it comes from.
        topic: what kind of problem it is, "" where that is not said.
        answer: the right final answer, None where there is none to be right.
    """

    id: str
    kind: str
    text: str | None
    messages: tuple[Message, ...] | None
    source: str
    topic: str = ""
    answer: str | None = None


def load(name: str | Path) -> list[Prompt]:
    """Read a shipped workload or a file of prompts.

    Args:
        name: one of NAMES, or the path of a JSON Lines file or of a text file with one prompt a line.
    Returns: the prompts in the file's order, at least one.
    Raises: UsageError for an unknown name, or naming the line of the file that is not a prompt.
    """
    if name in NAMES:
        text, label = files(__name__).joinpath(f"{name}.jsonl").read_text(encoding="utf-8"), f"{name}.jsonl"
    else:
        path = Path(name)
        label = str(path)
        try:
            with open_file(path) as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise UsageError(f"{label} is not a file of prompts: it is larger than {_MOST_BYTES >> 20} MiB.")
            text = content.decode("utf-8-sig")
        except FileNotFoundError:
            raise UsageError(
                f"There is no workload {name}, and no such file: name one of {', '.join(NAMES)}, or a file with one JSON prompt "
                "a line."
            ) from None
        except OSError as error:
            raise UsageError(f"{label} cannot be read as a file of prompts: {reason(error)}.") from None
        except UnicodeDecodeError:
            raise UsageError(f"{label} is not a file of prompts: it is not UTF-8 text.") from None
    if name not in NAMES and Path(name).suffix == ".txt":
        lines = [line for line in text.splitlines() if line.strip()]
        text = "\n".join(json.dumps({"prompt": line}) for line in lines)
    prompts = list(_parse(text, label))
    if not prompts:
        wanted = "a prompt a line" if Path(label).suffix == ".txt" else "one JSON object a line, with a prompt field"
        raise UsageError(f"{label} holds no prompts: it needs {wanted}.")
    return prompts


def _parse(text: str, label: str) -> Iterator[Prompt]:
    seen: set[str] = set()
    # Not splitlines(): a prompt may hold U+2028, which JSON leaves as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(
                f'{label} line {number} is not JSON: give one object a line, such as {{"prompt": "text"}}.'
            ) from None
        if not isinstance(entry, dict) or "prompt" not in entry:
            raise UsageError(f'{label} line {number} has no prompt: give one object a line, such as {{"prompt": "text"}}.')
        identity = str(entry.get("id", f"line-{number}"))
        if identity in seen:
            raise UsageError(f"{label} line {number} uses the id {identity} a second time: ids are unique.")
        seen.add(identity)
        prompt = entry["prompt"]
        kind, source = str(entry.get("kind", "own")), str(entry.get("source", label))
        if isinstance(prompt, str) and prompt:
            topic, answer = str(entry.get("topic", "")), entry.get("answer")
            yield Prompt(identity, kind, prompt, None, source, topic, None if answer is None else str(answer))
        elif isinstance(prompt, list) and prompt:
            yield Prompt(identity, kind, None, _messages(prompt, f"{label} line {number}"), source)
        else:
            raise UsageError(f"{label} line {number} has a prompt that is neither text nor a list of messages.")


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and value in ROLES


def _messages(entries: list[Any], where: str) -> tuple[Message, ...]:
    for entry in entries:
        if not isinstance(entry, dict) or not _is_role(entry.get("role")) or not isinstance(entry.get("content"), str):
            raise UsageError(f"{where} has a message without role and content: the role is one of {', '.join(sorted(ROLES))}.")
    if entries[-1]["role"] != "user":
        raise UsageError(f"{where} ends with a message of the {entries[-1]['role']}: the last one is the user's, to be answered.")
    return tuple(Message(entry["role"], entry["content"]) for entry in entries)
