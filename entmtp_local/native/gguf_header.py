"""Read the header of a GGUF file: metadata and the list of tensors, never the weights.

The `gguf` package reads headers too, but it maps the file, builds one array per vocabulary entry (seconds for 248K
tokens) and trusts every length it finds. This reader takes a fraction of a second and believes nothing: a length is
checked against the file before it is used. It does not know what the keys mean; that is `model_file`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from entmtp_local.errors import ModelFileError

Scalar: TypeAlias = "int | float | bool | str"
Value: TypeAlias = "Scalar | tuple[Scalar, ...]"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Limits far above every real file; what exceeds them is damage. Strings are the only values read one by one.
MAX_KEY_BYTES = 1 << 16
MAX_STRING_ARRAY = 1 << 22
MAX_KEPT_ARRAY = 1 << 12
MAX_KEPT_STRING = 1 << 24
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
MAX_DIMS = 4
_FIRST_READ = 16 << 20
_MAX_HEADER = 512 << 20
_INT64_MAX = (1 << 63) - 1

TOKENS_KEY = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class TensorType:
    """A ggml tensor type: a block of `block` elements takes `n_bytes` bytes."""

    name: str
    block: int
    n_bytes: int


# Source: enum ggml_type and the block structs of the pinned ggml.
TENSOR_TYPES: Mapping[int, TensorType] = {
    type_id: TensorType(name, block, n_bytes)
    for type_id, name, block, n_bytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
        (42, "Q2_0", 64, 18),
    )
}

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    type_id: struct.Struct("<" + code)
    for type_id, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its shape in ggml order (fastest first), its type, and where its data lies in the data section."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a GGUF file says about itself.

    metadata leaves out arrays of more than MAX_KEPT_ARRAY entries and the vocabulary; array_lengths has all arrays.
    n_distinct_tokens counts the vocabulary as libllama does, which ends the process when two tokens are equal.
    """

    path: Path
    size_bytes: int
    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    n_distinct_tokens: int
    tensors: Mapping[str, TensorInfo]


class _Short(Exception):
    """The buffer ends before the header does."""


class _Bad(Exception):
    """The header contradicts itself; the message completes "is damaged: ..."."""


class _Cursor:
    """Reads little-endian values from a buffer, never past its end."""

    __slots__ = ("buffer", "limit", "pos")

    def __init__(self, buffer: bytes, limit: int) -> None:
        self.buffer = buffer
        self.limit = limit  # bytes in the file: a length beyond it is damage, not a short buffer
        self.pos = 0

    def take(self, n: int) -> int:
        """Step over n bytes and return where they begin."""
        start = self.pos
        if start + n > self.limit:
            raise _Bad(f"it ends at byte {self.limit:,} in the middle of its header, where {n:,} bytes should follow")
        if start + n > len(self.buffer):
            raise _Short
        self.pos = start + n
        return start

    def scalar(self, code: struct.Struct) -> Scalar:
        value: Scalar = code.unpack_from(self.buffer, self.take(code.size))[0]
        return value

    def u32(self) -> int:
        value: int = _U32.unpack_from(self.buffer, self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self.buffer, self.take(8))[0]
        return value

    def raw_string(self) -> bytes:
        n = self.u64()
        start = self.take(n)
        return self.buffer[start : start + n]


def read_header(path: Path) -> GGUFHeader:
    """Read and check one GGUF header.

    Args:
        path: the file; of a split model, one part.
    Returns: metadata and tensors, every tensor lying inside the file.
    Raises: ModelFileError naming the file and what is wrong with it.
    """
    size = _size_of_readable_file(path)
    n_read = min(size, _FIRST_READ)
    while True:
        try:
            with path.open("rb") as file:
                buffer = file.read(n_read)
        except OSError as error:
            raise ModelFileError(f"cannot read model file {path}: {error.strerror or error}.") from error
        if len(buffer) < n_read:
            size = n_read = len(buffer)  # the file shrank since its size was taken
        _check_start(path, buffer, size)
        try:
            return _parse(path, _Cursor(buffer, size), size)
        except _Short:
            if n_read >= _MAX_HEADER:
                raise ModelFileError(
                    f"model file {path} is damaged: its header takes more than {_MAX_HEADER >> 20} MiB; download it again."
                ) from None
            n_read = min(size, n_read * 4)
        except _Bad as error:
            raise ModelFileError(f"model file {path} is damaged: {error}; download it again.") from error


def _size_of_readable_file(path: Path) -> int:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a directory; give the path of a .gguf file in it.")
        if not path.exists():
            raise ModelFileError(
                f"model file {path} does not exist; check the path, or fetch a model: entmtp-local pull OWNER/NAME."
            )
        if not path.is_file():
            raise ModelFileError(f"{path} is not a regular file; give the path of a .gguf file.")
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelFileError(f"cannot look at model file {path}: {reason}.") from error
    if not os.access(path, os.R_OK):
        raise ModelFileError(f"no permission to read model file {path}; run 'chmod u+r' on it or use another account.")
    if size == 0:
        raise ModelFileError(f"model file {path} is empty; download it again.")
    return size


def _check_start(path: Path, buffer: bytes, size: int) -> None:
    magic = buffer[:4]
    if magic != MAGIC:
        shown = magic.decode("latin-1") if magic.isalnum() else magic.hex(" ")
        raise ModelFileError(
            f"{path} is not a GGUF file: it begins with '{shown}' instead of 'GGUF'; give a .gguf model, or convert "
            "the original with llama.cpp's convert_hf_to_gguf.py."
        )
    if size < 24:
        raise ModelFileError(f"model file {path} is damaged: it has {size} bytes, less than a GGUF header; download it again.")
    version: int = _U32.unpack_from(buffer, 4)[0]
    if version & 0xFFFF == 0:
        raise ModelFileError(
            f"model file {path} is big-endian (version field {version:#x}); convert it with gguf-convert-endian."
        )
    if version not in VERSIONS:
        raise ModelFileError(
            f"model file {path} has GGUF version {version}, versions {VERSIONS[0]} to {VERSIONS[-1]} are supported; "
            "download a newer conversion of the model."
        )


def _parse(path: Path, cursor: _Cursor, size: int) -> GGUFHeader:
    cursor.take(8)
    n_tensors, n_kv = cursor.u64(), cursor.u64()
    # an entry of either table takes at least 13 bytes
    for count, what in ((n_tensors, "tensors"), (n_kv, "metadata entries")):
        if count > size // 13:
            raise _Bad(f"it announces {count:,} {what}, more than {size:,} bytes can hold")

    metadata: dict[str, Value] = {}
    array_lengths: dict[str, int] = {}
    n_distinct_tokens = 0
    seen: set[str] = set()
    for _ in range(n_kv):
        key = _read_key(cursor)
        if key in seen:
            raise _Bad(f"metadata key '{key}' occurs twice")
        seen.add(key)
        type_id = cursor.u32()
        if type_id != _ARRAY:
            value = _read_scalar(cursor, key, type_id)
            if value is not None:
                metadata[key] = value
            continue
        item_type, n = cursor.u32(), cursor.u64()
        array_lengths[key] = n
        if item_type == _STRING:
            n_distinct, strings = _read_strings(cursor, key, n)
            if key == TOKENS_KEY:
                n_distinct_tokens = n_distinct
            elif strings is not None:
                metadata[key] = strings
        else:
            numbers = _read_numbers(cursor, key, item_type, n)
            if numbers is not None:
                metadata[key] = numbers

    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 31:
        raise _Bad(f"its alignment is {alignment!r}, a power of two is needed")
    tensors = _read_tensors(cursor, n_tensors)
    data_offset = -(-cursor.pos // alignment) * alignment
    _check_extent(tensors, data_offset, alignment, size)
    return GGUFHeader(path, size, metadata, array_lengths, n_distinct_tokens, tensors)


def _read_key(cursor: _Cursor) -> str:
    n = cursor.u64()
    if not 0 < n <= MAX_KEY_BYTES:
        raise _Bad(f"a metadata key of {n:,} bytes at byte {cursor.pos - 8:,}")
    start = cursor.take(n)
    try:
        return cursor.buffer[start : start + n].decode("utf-8")
    except UnicodeDecodeError:
        raise _Bad(f"a metadata key that is not UTF-8 at byte {start:,}") from None


def _read_scalar(cursor: _Cursor, key: str, type_id: int) -> Scalar | None:
    if type_id == _STRING:
        raw = cursor.raw_string()
        return raw.decode("utf-8", errors="replace") if len(raw) <= MAX_KEPT_STRING else None
    if type_id not in _SCALARS:
        raise _Bad(f"metadata key '{key}' has the unknown type {type_id}")
    return cursor.scalar(_SCALARS[type_id])


def _read_strings(cursor: _Cursor, key: str, n: int) -> tuple[int, tuple[str, ...] | None]:
    """Step over n strings; return how many differ (for the vocabulary) and the strings where they are few."""
    if n > MAX_STRING_ARRAY:
        raise _Bad(f"metadata key '{key}' announces {n:,} strings")
    buffer, end, pos = cursor.buffer, len(cursor.buffer), cursor.pos
    keep = n <= MAX_KEPT_ARRAY or key == TOKENS_KEY
    strings: list[bytes] = []
    unpack = _U64.unpack_from
    for _ in range(n):
        # inlined `raw_string`: half a million strings are common, and a method call each would take most of the time
        if pos + 8 > end:
            cursor.pos = pos
            cursor.take(8)
        length = unpack(buffer, pos)[0]
        pos += 8
        if pos + length > end:
            cursor.pos = pos
            cursor.take(length)
        if keep:
            strings.append(buffer[pos : pos + length])
        pos += length
    cursor.pos = pos
    if key == TOKENS_KEY:
        # libllama takes tokens as C strings and renames empty ones, so these never collide
        whole = [s.split(b"\0", 1)[0] if b"\0" in s else s for s in strings]
        return len(set(whole) - {b""}) + whole.count(b""), None
    if not keep:
        return 0, None
    return 0, tuple(s.decode("utf-8", errors="replace") for s in strings)


def _read_numbers(cursor: _Cursor, key: str, type_id: int, n: int) -> tuple[Scalar, ...] | None:
    code = _SCALARS.get(type_id)
    if code is None:
        raise _Bad(f"metadata key '{key}' is an array of the unknown type {type_id}")
    start = cursor.take(n * code.size)
    if n > MAX_KEPT_ARRAY:
        return None
    return struct.unpack_from(f"<{n}{code.format[1:]}", cursor.buffer, start)


def _read_tensors(cursor: _Cursor, n_tensors: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for index in range(n_tensors):
        n = cursor.u64()
        if n > MAX_NAME_BYTES:
            raise _Bad(f"tensor {index} has a name of {n:,} bytes, at most {MAX_NAME_BYTES} are allowed")
        start = cursor.take(n)
        name = cursor.buffer[start : start + n].decode("utf-8", errors="replace")
        if name in tensors:
            raise _Bad(f"tensor '{name}' occurs twice")
        n_dims = cursor.u32()
        if n_dims > MAX_DIMS:
            raise _Bad(f"tensor '{name}' has {n_dims} dimensions, at most {MAX_DIMS} are allowed")
        shape = tuple(cursor.u64() for _ in range(n_dims))
        type_id, offset = cursor.u32(), cursor.u64()
        if type_id not in TENSOR_TYPES:
            raise _Bad(f"tensor '{name}' has the unknown type {type_id}")
        tensors[name] = TensorInfo(
            name, shape, TENSOR_TYPES[type_id].name, offset, _tensor_bytes(name, shape, TENSOR_TYPES[type_id])
        )
    return tensors


def _tensor_bytes(name: str, shape: tuple[int, ...], kind: TensorType) -> int:
    n_elements = 1
    for dim in shape:
        if not 0 < dim <= _INT64_MAX:
            raise _Bad(f"tensor '{name}' has the shape {shape}")
        n_elements *= dim
    row = shape[0] if shape else 1
    if row % kind.block:
        raise _Bad(f"tensor '{name}' has rows of {row} elements, {kind.name} needs a multiple of {kind.block}")
    return n_elements // kind.block * kind.n_bytes


def _check_extent(tensors: Mapping[str, TensorInfo], data_offset: int, alignment: int, size: int) -> None:
    expected = 0  # libllama wants the data back to back, in the order of the table
    for tensor in tensors.values():
        if data_offset + tensor.offset + tensor.n_bytes > size:
            raise _Bad(
                f"it has {size:,} bytes, but tensor '{tensor.name}' ends at byte "
                f"{data_offset + tensor.offset + tensor.n_bytes:,}, so the download is incomplete"
            )
        if tensor.offset != expected:
            raise _Bad(f"tensor '{tensor.name}' lies at offset {tensor.offset:,}, {expected:,} is expected")
        expected += -(-tensor.n_bytes // alignment) * alignment
