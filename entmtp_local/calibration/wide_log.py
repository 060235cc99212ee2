"""What the draft head proposes at every position of generated texts: a wide tree at each, beside the target's entropy there.

A decoding run drafts only where its own steps happen to begin. Here a text advances one token at a time, so that whatever steps a
policy would take, what it would have been told is in the log. The file's format is in docs/FORMATS.md.
"""

from __future__ import annotations

import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import UsageError
from entmtp_local.files import open_file, reason, replace_file
from entmtp_local.speculative.entmtp import SIGNALS
from entmtp_local.speculative.profile import ALL
from entmtp_local.speculative.tree import TreeShape

FORMAT, VERSION = "entmtp-local wide log", 1
Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LoggedText:
    """One generated text and the trees drafted along it.

    Args:
        task: what kind of text it is.
        n_prompt: tokens before it.
        tokens: (n,) i32, everything generated, a token that ends the generation included.
        ended: whether the last token is one that ends the generation.
        entropies: (n,) f32, nats, of the target's distributions that the tokens were chosen from.
        drafts: (n - 1, n_nodes) i32; row i was drafted with tokens[i] pending, which is its column 0.
        logp: (n - 1, n_nodes) f32, the head's log-probability of each node given its parent.
        head_entropies: (n - 1, n_nodes) f32, nats, of the head's distribution below each node; NaN at leaves.
    """

    task: str
    n_prompt: int
    tokens: Int32Array
    ended: bool
    entropies: Float32Array
    drafts: Int32Array
    logp: Float32Array
    head_entropies: Float32Array


# What NumPy and the readers below it raise for files that are none or damaged.
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, OverflowError, RecursionError, MemoryError,
    NotImplementedError, RuntimeError, SyntaxError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
_ROUNDING = 1e-3
_MOST_PROMPT = 1 << 24  # tokens
_ARRAYS = ("tokens", "entropies", "drafts", "logp", "head_entropies")


@dataclass(slots=True)
class WideLog:
    """Logged texts of one model at one temperature.

    Args:
        shape: of the trees.
        about: what the texts were made with, JSON: at least "model" and "temp".
        known_ends: tokens that end texts of the model, beside those of these texts.
    """

    shape: TreeShape
    about: dict[str, Any]
    texts: list[LoggedText] = field(default_factory=list)
    known_ends: frozenset[int] = frozenset()

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text, as far as these texts tell."""
        return self.known_ends.union(int(text.tokens[-1]) for text in self.texts if text.ended)

    @property
    def n_positions(self) -> int:
        return sum(len(text.drafts) for text in self.texts)

    def of_task(self, task: str) -> WideLog:
        return WideLog(self.shape, self.about, [text for text in self.texts if text.task == task], self.ends)

    @property
    def tasks(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(text.task for text in self.texts))

    def save(self, path: Path) -> None:
        """Write the log; an existing file is replaced when all is written."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "about": self.about,
            "parents": list(self.shape.parents),
            "ranks": list(self.shape.ranks),
            "texts": [{"task": t.task, "n_prompt": t.n_prompt, "ended": t.ended} for t in self.texts],
        }
        arrays = {f"{name}_{i}": getattr(text, name) for i, text in enumerate(self.texts) for name in _ARRAYS}
        with replace_file(path) as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)

    @staticmethod
    def load(path: Path) -> WideLog:
        """Raises: UsageError when there is no such file, or when it is not a log of this version."""
        try:
            with open_file(path) as file, np.load(file, allow_pickle=False) as content:
                header = json.loads(str(content["header"]))
                if header.get("format") != FORMAT or header.get("version") != VERSION:
                    raise UsageError(
                        f"{path} is not a wide log of version {VERSION}; write one with entmtp-local calibrate --log FILE.npz."
                    )
                shape = TreeShape.from_parents(header["parents"], header["ranks"])
                texts = [
                    _checked(
                        LoggedText(
                            _name(each["task"]),
                            int(each["n_prompt"]),
                            ended=bool(each["ended"]),
                            **{name: content[f"{name}_{i}"] for name in _ARRAYS},
                        ),
                        shape,
                    )
                    for i, each in enumerate(header["texts"])
                ]
                return WideLog(shape, dict(header["about"]), texts)
        except FileNotFoundError:
            raise UsageError(f"there is no log {path}; write one with entmtp-local calibrate --log FILE.npz.") from None
        except _DAMAGED as error:
            raise UsageError(
                f"{path} is not a wide log, or a damaged one ({reason(error)}); "
                f"write one with entmtp-local calibrate --log FILE.npz."
            ) from None


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a task whose name is no text")
    return value


def _checked(text: LoggedText, shape: TreeShape) -> LoggedText:
    n, wide = len(text.tokens), (max(0, len(text.tokens) - 1), shape.n_nodes)
    sizes: Sequence[tuple[Any, Any]] = (
        (text.tokens.shape, (n,)),
        (text.entropies.shape, (n,)),
        (text.drafts.shape, wide),
        (text.logp.shape, wide),
        (text.head_entropies.shape, wide),
    )
    if n == 0 or any(found != expected for found, expected in sizes):
        raise ValueError("arrays of other sizes than their text")
    if any(array.dtype != np.int32 for array in (text.tokens, text.drafts)) or text.tokens.min() < 0:
        raise ValueError("tokens that are no numbers")
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in (text.entropies, text.logp)):
        raise ValueError("entropies or probabilities that are none")
    if text.head_entropies.dtype != np.float32 or not 0 <= text.n_prompt < _MOST_PROMPT:
        raise ValueError("entropies that are none, or a prompt")
    # rounding may take an entropy or a probability a little beyond its bounds
    inner = text.head_entropies[:, [bool(children) for children in shape.children]]
    if not np.isfinite(inner).all() or min(text.entropies.min(), inner.min(initial=0)) < -_ROUNDING:
        raise ValueError("entropies that are none")
    text.logp[:, 0] = 0.0  # the root's means nothing
    if text.logp.max(initial=0) > _ROUNDING:
        raise ValueError("probabilities above 1")
    if text.task in (ALL, "", *SIGNALS):
        raise ValueError("a task without a name, or one that stands for something else")
    return text
