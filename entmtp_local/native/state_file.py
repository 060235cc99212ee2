"""A session's state in a file: what its contexts hold of a conversation, so that it need not be computed again.

The engine trusts what it is given, so a file is read in full and compared with its checksum before the engine sees any of it.
Neither reading nor writing copies a part: states of long conversations have gigabytes.
Layout: magic, version (u32), length of the header (u32), header (JSON), the parts one after another, BLAKE2b of all before.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from entmtp_local.errors import StateError
from entmtp_local.files import open_file, replace_file

VERSION = 1
_MAGIC = b"EntMTPst"
_PREFIX = struct.Struct("<8sII")
_DIGEST = 32
_MAX_HEADER = 1 << 26  # a million tokens have 8 MB
_CHUNK = 1 << 26  # Ctrl-C waits for no more than this


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
            for chunk in _chunks(part):
                digest.update(chunk)
                file.write(chunk)
        file.write(digest.digest())


def load_state(path: Path, identity: Mapping[str, str]) -> State:
    """Read a file.

    Raises: StateError, in one sentence, where it is missing, damaged, or of another model, build or version.
    """
    try:
        with open_file(path) as file:
            return _read(file, path, identity)
    except OSError as error:
        raise StateError(f"the saved state {path} cannot be read ({error.strerror or error}).") from None
    except MemoryError:
        raise StateError(f"there is no memory to read the saved state {path}.") from None


def _read(file: IO[bytes], path: Path, identity: Mapping[str, str]) -> State:
    damaged = StateError(f"the saved state {path} is damaged.")
    digest = hashlib.blake2b(digest_size=_DIGEST)

    def take(n: int) -> Any:
        data = (ctypes.c_uint8 * n)()
        for chunk in _chunks(data):
            if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise damaged
            digest.update(chunk)
        return data

    n_left = os.fstat(file.fileno()).st_size - _PREFIX.size - _DIGEST
    if n_left < 0:
        raise damaged
    magic, version, n_header = _PREFIX.unpack(take(_PREFIX.size))
    if magic != _MAGIC:
        raise damaged
    if version != VERSION:
        raise StateError(f"the saved state {path} has version {version}, and this program reads version {VERSION}.")
    if n_header > min(n_left, _MAX_HEADER):
        raise damaged
    try:
        header = json.loads(bytes(take(n_header)))
        theirs = dict(header["identity"])
        tokens = tuple(_numbers(header["tokens"]))
        sizes, places = list(_numbers(header["sizes"])), list(_numbers(header["checkpoints"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged from None
    if len(sizes) != 2 + len(places) or sum(sizes) != n_left - n_header:
        raise damaged
    parts = [take(size) for size in sizes]
    if file.read() != digest.digest():
        raise damaged
    if theirs != dict(identity):
        raise StateError(f"the saved state {path} is of {_difference(theirs, identity)}.")
    return State(tokens, parts[0], parts[1], tuple(zip(places, parts[2:], strict=True)))


def _chunks(data: Any) -> Iterator[memoryview]:
    view = memoryview(data).cast("B")
    for at in range(0, len(view), _CHUNK):
        yield view[at : at + _CHUNK]


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
