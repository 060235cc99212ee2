"""Training rows from a corpus folder: tokenized once, packed end to end, kinds mixed by weight.

Knows nothing of models. The rows follow from the seed and the position alone, so a run that goes on from a saved position sees
what it would have seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scripts.reference.tokenizer import END_OF_TEXT

KINDS = ("code", "math", "chat", "prose")
_BATCH = 256  # documents given to the tokenizer at a time
# Shortest and longest, in tokens, of what a repeating row is made from: true text, then a segment of it over and over.
_PREFIX = (16, 128)
_SEGMENT = (2, 64)


@dataclass(frozen=True, slots=True)
class Tokens:
    """All documents of one kind, one after the other, each ending in <|endoftext|>."""

    ids: NDArray[np.uint16]
    ends: NDArray[np.int64]  # where each document ends


@dataclass(frozen=True, slots=True)
class Repetitions:
    """Rows that begin as text and then repeat a segment of it to their end, as a model does that is caught in a loop."""

    ids: NDArray[np.int64]  # (n_rows, n_tokens + 1)
    begins: NDArray[np.int64]  # where the segment stands for the first time, as part of the text; (n_rows,)
    lengths: NDArray[np.int64]  # of the segments; (n_rows,)


def _documents(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                yield document["kind"], document["text"]


def _encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    end: int = tokenizer.token_to_id(END_OF_TEXT)
    rows: list[NDArray[np.uint16]] = []
    for begin in range(0, len(texts), _BATCH):
        for encoding in tokenizer.encode_batch(texts[begin : begin + _BATCH], add_special_tokens=False):
            rows.append(np.array([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(rows), np.cumsum([len(row) for row in rows])


def load_tokens(folder: Path, tokenizer: Tokenizer, cache: Path) -> dict[str, Tokens]:
    """Tokens of each kind of a folder of JSON-lines files; what has been tokenized before is read from the cache.

    Args:
        folder: files of {"text", "kind"}, one document a line
        cache: folder for the arrays; they are named by what they were made from
    Raises: ValueError when the folder holds no documents.
    """
    if tokenizer.get_vocab_size() > 1 << 16:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} ids; at most {1 << 16} are supported.")
    mark = hashlib.sha256(tokenizer.to_str().encode())
    for path in sorted(folder.glob("*.jsonl")):
        mark.update(path.name.encode())
        mark.update(hashlib.sha256(path.read_bytes()).digest())
    name = f"{folder.name}-{mark.hexdigest()[:16]}"
    path = cache / f"{name}.npz"
    if not path.is_file():
        texts: dict[str, list[str]] = {}
        for kind, text in _documents(folder):
            texts.setdefault(kind, []).append(text)
        if not texts:
            raise ValueError(f"there are no documents in {folder}; write them with scripts/build_corpus.py.")
        arrays: dict[str, Any] = {}
        for kind, some in texts.items():
            arrays[f"{kind}.ids"], arrays[f"{kind}.ends"] = _encode(tokenizer, some)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{name}.partial.npz")
        np.savez(partial, **arrays)
        partial.replace(path)
    with np.load(path) as arrays_:
        kinds = sorted({key.split(".")[0] for key in arrays_.files})
        return {kind: Tokens(arrays_[f"{kind}.ids"], arrays_[f"{kind}.ends"]) for kind in kinds}


class Stream:
    """One kind's documents in a new order each epoch, as an endless run of tokens."""

    def __init__(self, tokens: Tokens, seed: tuple[int, ...]) -> None:
        self._tokens, self._seed = tokens, seed
        self.epoch, self.cursor = 0, 0
        self._order = self._shuffled(0)

    def _shuffled(self, epoch: int) -> NDArray[np.uint16]:
        tokens = self._tokens
        begins = np.concatenate([[0], tokens.ends[:-1]])
        order = np.random.default_rng([*self._seed, epoch]).permutation(len(begins))
        return np.concatenate([tokens.ids[begins[i] : tokens.ends[i]] for i in order])

    def seek(self, epoch: int, cursor: int) -> None:
        self.epoch, self.cursor = epoch, cursor
        self._order = self._shuffled(epoch)

    def take(self, n: int) -> NDArray[np.int64]:
        """The next n tokens and the one after them, which the next call begins with."""
        parts, missing = [], n + 1
        while missing > 0:
            part = self._order[self.cursor : self.cursor + missing]
            parts.append(part)
            missing -= len(part)
            self.cursor += len(part)
            if missing > 0:
                self.seek(self.epoch + 1, 0)
        self.cursor -= 1
        return np.concatenate(parts).astype(np.int64)


class Mixture:
    """Rows of text, each from one kind, the kinds drawn by weight."""

    def __init__(self, tokens: Mapping[str, Tokens], weights: Mapping[str, float], seed: int) -> None:
        self.kinds = sorted(tokens)
        total = sum(weights.get(kind, 0.0) for kind in self.kinds)
        if total <= 0:
            raise ValueError(f"none of the kinds {', '.join(self.kinds)} has a weight.")
        self._shares = [weights.get(kind, 0.0) / total for kind in self.kinds]
        self._streams = {kind: Stream(tokens[kind], (seed, i)) for i, kind in enumerate(self.kinds)}
        self._rng = np.random.default_rng([seed, 10**6])

    def rows(self, n_rows: int, n_tokens: int) -> NDArray[np.int64]:
        """(n_rows, n_tokens + 1) ids: inputs, and targets one further on."""
        # one draw shifts evenly spaced points: each batch has its shares as nearly as its rows allow, which quietens the loss
        points = (np.arange(n_rows) + self._rng.random()) / n_rows
        kinds = np.searchsorted(np.cumsum(self._shares)[:-1], points, side="right")
        return np.stack([self._streams[self.kinds[kind]].take(n_tokens) for kind in kinds])

    def split_repeating(self, rows: NDArray[np.int64], n_repeating: int) -> tuple[NDArray[np.int64], Repetitions]:
        """Make some of the rows repeat themselves; give the others and those.

        Args:
            rows: (n_rows, n_tokens + 1) ids
            n_repeating: how many of them, drawn at random: rows come sorted by kind
        """
        chosen = np.sort(self._rng.choice(len(rows), size=n_repeating, replace=False))
        n_ids = rows.shape[1]

        def longest(bounds: tuple[int, int]) -> int:
            # at most a quarter of the row: the segment then comes at least three times
            return max(bounds[0], min(bounds[1], n_ids // 4))

        begins = self._rng.integers(_PREFIX[0], longest(_PREFIX), size=n_repeating, endpoint=True)
        # by the logarithm: loops of a few tokens are as frequent as loops of whole lines
        lengths = np.exp(self._rng.uniform(np.log(_SEGMENT[0]), np.log(longest(_SEGMENT) + 1), size=n_repeating)).astype(np.int64)
        at = np.arange(n_ids)
        first, length = begins[:, None], lengths[:, None]
        source = np.where(at < first, at, first + (at - first) % length)
        ids = np.take_along_axis(rows[chosen], source, axis=1)
        return np.delete(rows, chosen, axis=0), Repetitions(ids, begins, lengths)

    def draft_starts(self, n_tokens: int, n_starts: int, n_depths: int) -> NDArray[np.int64]:
        """Ascending positions where drafts start, so that all depths have targets."""
        n = n_tokens - n_depths + 1
        return np.sort(self._rng.choice(n, size=min(n, n_starts), replace=False))

    def position(self) -> dict[str, Any]:
        """What `restore` needs to go on from here, as JSON values."""
        streams = {kind: [stream.epoch, stream.cursor] for kind, stream in self._streams.items()}
        return {"rng": self._rng.bit_generator.state, "streams": streams}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Raises: ValueError when the position was saved for other kinds."""
        if sorted(position["streams"]) != self.kinds:
            raise ValueError(f"the saved position is for {sorted(position['streams'])}, the corpus holds {self.kinds}.")
        self._rng.bit_generator.state = position["rng"]
        for kind, (epoch, cursor) in position["streams"].items():
            self._streams[kind].seek(epoch, cursor)

    def epochs(self) -> dict[str, float]:
        """How often each kind has been seen."""
        return {kind: round(s.epoch + s.cursor / len(s._order), 3) for kind, s in self._streams.items()}


def heldout_rows(tokens: Tokens, n_rows: int, n_tokens: int) -> NDArray[np.int64]:
    """Rows spread evenly over the text, (n_rows, n_tokens + 1); fewer when there is less text."""
    n_rows = max(1, min(n_rows, (len(tokens.ids) - 1) // n_tokens))
    if len(tokens.ids) <= n_tokens:
        raise ValueError(f"held-out text of {len(tokens.ids)} tokens is too short for a row of {n_tokens}.")
    begins = np.linspace(0, len(tokens.ids) - n_tokens - 1, n_rows).astype(np.int64)
    return np.stack([tokens.ids[b : b + n_tokens + 1].astype(np.int64) for b in begins])
