"""A session's state in a file: what its contexts hold of a conversation, so that it need not be computed again.

The engine trusts what it is given, so a file is read in full and compared with its checksum before the engine sees any of it.
Layout: magic, version (u32), length of the header (u32), header (JSON), the parts one after another, BLAKE2b of all before.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entmtp_local.errors import StateError
from entmtp_local.files import open_file, replace_file

VERSION = 1
_MAGIC = b"EntMTPst"
_PREFIX = struct.Struct("<8sII")
_DIGEST = 32
_MAX_HEADER = 1 << 26  # a million tokens have 8 MB


@dataclass(frozen=True, slots=True)
class State:
    """What a session holds.

    Args:
        tokens: the committed tokens.
        target: state of the target context.
        mtp: state of the MTP context; empty where it has none of its own.
        checkpoints: (tokens before it, state) pairs.
    """

    tokens: tuple[int, ...]
    target: Any
    mtp: Any
    checkpoints: tuple[tuple[int, Any], ...] = ()

    @property
    def n_bytes(self) -> int:
        return len(self.target) + len(self.mtp) + sum(len(data) for _, data in self.checkpoints)


def save_state(path: Path, state: State, identity: Mapping[str, str]) -> None:
    """Write a file that is there whole or not at all.

    Args:
        identity: of the model, the engine's build and all else that the state holds for.
    Raises: OSError.
    """
    parts = [state.target, state.mtp, *(data for _, data in state.checkpoints)]
    header = json.dumps(
        {
            "identity": dict(identity),
            "tokens": list(state.tokens),
            "sizes": [len(part) for part in parts],
            "checkpoints": [n_past for n_past, _ in state.checkpoints],
        }
    ).encode()
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with replace_file(path, private=True) as file:
        for part in (_PREFIX.pack(_MAGIC, VERSION, len(header)), header, *parts):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def load_state(path: Path, identity: Mapping[str, str]) -> State:
    """Read a file.

    Raises: StateError, in one sentence, where it is missing, damaged, or of another model, build or version.
    """
    try:
        with open_file(path) as file:
            data = memoryview(file.read())
    except OSError as error:
        raise StateError(f"the saved state {path} cannot be read ({error.strerror or error}).") from None
    except MemoryError:
        raise StateError(f"there is no memory to read the saved state {path}.") from None
    damaged = StateError(f"the saved state {path} is damaged.")
    if len(data) < _PREFIX.size + _DIGEST:
        raise damaged
    magic, version, n_header = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise damaged
    if version != VERSION:
        raise StateError(f"the saved state {path} has version {version}, and this program reads version {VERSION}.")
    if hashlib.blake2b(data[:-_DIGEST], digest_size=_DIGEST).digest() != bytes(data[-_DIGEST:]):
        raise damaged
    try:
        header = json.loads(bytes(data[_PREFIX.size : _PREFIX.size + n_header]))
        if header["identity"] != dict(identity):
            raise StateError(f"the saved state {path} is of {_difference(header['identity'], identity)}.")
        tokens = tuple(_numbers(header["tokens"]))
        sizes, places = list(_numbers(header["sizes"])), list(_numbers(header["checkpoints"]))
        if len(sizes) != 2 + len(places) or sum(sizes) != len(data) - _PREFIX.size - n_header - _DIGEST:
            raise damaged
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged from None
    parts, at = [], _PREFIX.size + n_header
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return State(tokens, parts[0], parts[1], tuple(zip(places, parts[2:], strict=True)))


def _numbers(values: Any) -> Iterator[int]:
    for value in values:
        if type(value) is not int or value < 0:
            raise ValueError("not a list of numbers")
        yield value


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    names = {"model": "another model file", "mtp_model": "another file of its MTP head", "engine": "another build of the engine"}
    for key in (*ours, *theirs):
        if theirs.get(key) != ours.get(key):
            return names.get(key, "a session that was opened in another way")
    return "another session"
