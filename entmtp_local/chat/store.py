"""Conversations in the user's data folder: transcripts as JSON, the answer under way as a journal, the model's state beside them.

A transcript is replaced as a whole after every answer. While an answer is streamed it is appended to a journal, so that what a
killed process had shown is found at the next start. A conversation is one process's at a time: two would write over each other's
answers. It knows nothing of models; what is in a conversation is `conversation.py`'s.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from entmtp_local.errors import TranscriptError, UsageError
from entmtp_local.files import open_file, replace_file, user_data

VERSION = 1
_FORMAT = "entmtp-chat"
_NAME = re.compile(r"\w[\w.-]{0,63}")
# Of a file's name, less what stands before and after it while it is written.
_MAX_NAME_BYTES = 200
#: What to do about a conversation that cannot be read.
ELSEWHERE = "move it elsewhere, and entmtp-local chat --continue goes on with the one before."
_TITLE = 60  # characters of the first question that a list shows
_STATES_BYTES = 8 << 30  # of the disc, for the states of all conversations
# Of the conversations used last: a state of a long one has hundreds of megabytes, and a transcript is enough to compute it again.
_N_STATES = 5
# No state takes as long to write, so that what has not got its name by then never will.
_STALE_SECONDS = 3600


@dataclass(slots=True)
class Transcript:
    """One conversation as it is kept.

    Args:
        name: its file's, without the ending.
        content: what `Conversation.as_json` gave.
        model: what its ids belong to: fingerprint, and path for people to read.
        created, updated: seconds since 1970.
        cut: the last answer is what a process had shown when it was killed.
    """

    name: str
    content: dict[str, Any]
    model: dict[str, str]
    created: float = field(default_factory=time.time)
    updated: float = 0.0
    cut: bool = False

    @property
    def n_turns(self) -> int:
        return len(self.content["messages"]) // 2

    @property
    def title(self) -> str:
        """The beginning of the first question."""
        messages = self.content["messages"]
        text = " ".join(str(messages[0]["content"]).split()) if messages else "(nothing yet)"
        return text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"


class Store:
    """The folder of conversations.

    Args:
        folder: where; made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def default() -> Store:
        return Store(user_data() / "entmtp-local" / "chats")

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def state_path(self, name: str) -> Path:
        """Where the model's state of a conversation is kept."""
        return self.folder / f"{name}.state"

    def save(self, transcript: Transcript) -> None:
        """Raises: OSError."""
        self.make()
        transcript.updated = time.time()
        content = {
            "format": _FORMAT,
            "version": VERSION,
            "created": transcript.created,
            "updated": transcript.updated,
            "model": transcript.model,
            "conversation": transcript.content,
        }
        with replace_file(self.path(transcript.name), private=True) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", errors="replace"))
        self.drop_journal(transcript.name)

    def delete(self, name: str) -> None:
        """Raises: OSError."""
        for path in (self.path(name), self.state_path(name), self._journal_path(name)):
            path.unlink(missing_ok=True)

    def make(self) -> None:
        """Raises: OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def claim(self, name: str) -> Claim:
        """Make a conversation this process's own.

        Raises: UsageError where it is another's, OSError.
        """
        self.make()
        lock = FileLock(self.folder / f".{name}.lock", mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"the conversation {name} is open in another chat: leave that one first, or start a new one with "
                "entmtp-local chat, or /clear in a chat."
            ) from None
        return Claim(lock)

    def load(self, name: str) -> Transcript:
        """Raises: UsageError where there is none of that name, TranscriptError where it is damaged or from a later version."""
        path = self.path(check_name(name))
        try:
            with open_file(path) as file:
                content = json.loads(file.read())
        except FileNotFoundError:
            if (found := self._recovered(Transcript(name, _empty(), {}))).n_turns:
                return found
            raise UsageError(f"there is no conversation {name}; /sessions lists them.") from None
        except OSError as error:
            raise TranscriptError(f"the conversation {path} cannot be read ({error.strerror or error}); {ELSEWHERE}") from None
        except (ValueError, RecursionError):
            raise TranscriptError(f"the conversation {path} is damaged: it is not JSON; {ELSEWHERE}") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise TranscriptError(f"{path} is not a conversation that this program wrote; {ELSEWHERE}")
        if content.get("version") != VERSION:
            raise TranscriptError(
                f"the conversation {path} has version {content.get('version')}, and this program reads version {VERSION}; "
                "update entmtp-local to go on with it."
            )
        conversation, model = content.get("conversation"), content.get("model")
        created, updated = content.get("created"), content.get("updated")
        if (
            not isinstance(conversation, dict)
            or not isinstance(conversation.get("messages"), list)
            or not all(isinstance(each, dict) and "content" in each for each in conversation["messages"])
            or not isinstance(model, dict)
            or not isinstance(created, (int, float))
            or not isinstance(updated, (int, float))
        ):
            raise TranscriptError(f"the conversation {path} is damaged: parts of it are missing; {ELSEWHERE}")
        return self._recovered(Transcript(name, conversation, model, created, updated))

    def names(self) -> list[str]:
        """Of all conversations, those used last first."""
        found: dict[str, float] = {}
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*.part")):
            try:
                if _NAME.fullmatch(path.stem):
                    found[path.stem] = max(found.get(path.stem, 0.0), path.stat().st_mtime)
            except OSError:
                continue
        return sorted(found, key=lambda name: (-found[name], name))

    def forget_old_states(self) -> None:
        """Delete the model states of conversations that have not been used lately."""
        for path in self.folder.glob("*.state"):
            if path.stem not in self._names_with_states():
                path.unlink(missing_ok=True)
        # of processes that were killed while they wrote one
        for path in self.folder.glob(".*.state.*"):
            if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink(missing_ok=True)

    def _names_with_states(self) -> list[str]:
        """Of the conversations whose states stay: those used last, of which the last one always does."""
        found: list[str] = []
        n_left = _STATES_BYTES
        for name in self.names()[:_N_STATES]:
            path = self.state_path(name)
            n_bytes = path.stat().st_size if path.exists() else 0
            if n_bytes and (not found or n_bytes <= n_left):
                n_left -= n_bytes
                found.append(name)
        return found

    def _journal_path(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def journal(self, name: str, question: str, n_messages: int) -> Journal:
        """Begin to note an answer.

        Args:
            n_messages: of the conversation before it; it takes the place of those that the transcript has beyond them.
        Raises: OSError.
        """
        self.make()
        return Journal(self._journal_path(name), question, n_messages)

    def drop_journal(self, name: str) -> None:
        """What it noted is in the transcript, or was never answered. Raises: OSError."""
        self._journal_path(name).unlink(missing_ok=True)

    def _recovered(self, transcript: Transcript) -> Transcript:
        """With the answer that was under way when the process ended."""
        try:
            with open_file(self._journal_path(transcript.name)) as file:
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return transcript
        question, n_messages, answer = None, len(transcript.content["messages"]), []
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                break  # the process was killed in the middle of this line
            if not isinstance(entry, dict):
                break
            if isinstance(entry.get("question"), str):
                question = entry["question"]
                if type(entry.get("n_messages")) is int:
                    n_messages = max(0, entry["n_messages"] // 2 * 2)
            if isinstance(entry.get("text"), str):
                answer.append(entry["text"])
        if question is not None:
            pair = [{"role": "user", "content": question}, {"role": "assistant", "content": "".join(answer)}]
            transcript.content["messages"] = [*transcript.content["messages"][:n_messages], *pair]
            transcript.cut = True
        return transcript


class Claim:
    """A conversation that is this process's own, until it drops it or ends in whatever way."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def drop(self) -> None:
        # whoever has opened the file meanwhile sees that it has no name any more, and opens another one
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()


class Journal:
    """The answer under way, appended to a file: no process that is killed loses what it has shown."""

    def __init__(self, path: Path, question: str, n_messages: int = 0) -> None:
        self._path = path
        path.unlink(missing_ok=True)  # also what is no file, which would be waited for
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file: IO[bytes] | None = os.fdopen(file, "wb", buffering=0)
        self._write({"question": question, "n_messages": n_messages})

    def add(self, text: str) -> None:
        self._write({"text": text})

    def _write(self, entry: Mapping[str, str | int]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
        except OSError:
            # a full disc: the conversation goes on, and what can be kept of it is told when the transcript is saved
            self.close()
            with suppress(OSError):
                if not self._path.stat().st_size:
                    self._path.unlink()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def check_name(name: str) -> str:
    """Raises: UsageError where it cannot be a conversation's."""
    if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME_BYTES:
        raise UsageError(f"{name!r} cannot be a conversation's name: letters, digits, '.', '_' and '-', at most 64 of them.")
    return name


def questions(n: int) -> str:
    return f"{n} question" + "s" * (n != 1)


def new_name() -> str:
    """A name that sorts by time."""
    return f"{datetime.now():%Y-%m-%d-%H%M%S}-{secrets.token_hex(2)}"


def _empty() -> dict[str, Any]:
    return {"system": None, "thinking": None, "messages": [], "n_dropped": 0, "text": "", "ids": [], "marks": []}
