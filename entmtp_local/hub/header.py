"""Whether a model's file announces an MTP head, by its first bytes: names do not tell, and a file is gigabytes long."""

from __future__ import annotations

import re
import struct
from pathlib import Path

#: Metadata of the architecture stand before the vocabulary, within this many bytes.
N_BYTES = 1 << 16

_UINT32 = 4
_KEY = re.compile(rb"[a-z0-9_-]+\.nextn_predict_layers")
_VOCABULARY = b"tokenizer.ggml.tokens"


def announces_head(start: bytes) -> bool | None:
    """What the first bytes of a GGUF file say of an MTP head; None where they do not say."""
    if start[:4] != b"GGUF":
        return None
    match = _KEY.search(start)
    if match is not None and len(start) >= match.end() + 8:
        kind, n = struct.unpack_from("<II", start, match.end())
        return n > 0 if kind == _UINT32 else None
    return False if _VOCABULARY in start else None


def file_announces_head(path: Path) -> bool | None:
    """The same of a file that is here."""
    with path.open("rb") as file:
        return announces_head(file.read(N_BYTES))
