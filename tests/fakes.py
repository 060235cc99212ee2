"""A session without a model: it answers from a script, drafts correctly, and remembers what it was asked.

It has what chat and the commands use of `native.session.Session`, and satisfies `SpeculativeEngine`, so that the real
generation loop runs on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from entmtp_local.cli import forecast, info, options
from entmtp_local.errors import ContextFullError
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.session import SessionOptions
from entmtp_local.native.state_file import State
from entmtp_local.speculative.cost import SIZES, CostTable
from entmtp_local.speculative.draft_vocab import PassCost
from entmtp_local.speculative.profile import Key, Profile
from entmtp_local.speculative.protocol import Limits
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import DraftTree, TreeShape

# Ids below 256 are bytes.
SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257, "<|bos|>": 258}
WORDS = {"hello": 300, " there": 301, "<think>": 302, "</think>": 303}
EOG = SPECIAL["<|im_end|>"]
N_VOCAB = 304

_TEXTS = {token: text for text, token in (SPECIAL | WORDS).items()}


def encode(text: str, *, parse_special: bool = True) -> list[int]:
    """The fake vocabulary's canonical tokens: the longest known piece first, bytes for the rest."""
    known = (SPECIAL if parse_special else {}) | WORDS
    pattern = "|".join(re.escape(piece) for piece in sorted(known, key=len, reverse=True))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text):
        ids += [known[part]] if part in known else list(part.encode("utf-8", errors="replace"))
    return ids


def stopped(shape: TreeShape, logp: Sequence[float], least: float) -> TreeShape:
    """The levels of a tree that an engine drafts: behind the first one that continues no path likely enough, there is none."""
    paths, depth = [0.0], 1
    for node in range(1, shape.n_nodes):
        paths.append(paths[shape.parents[node]] + float(logp[node]))
    while depth < shape.max_depth and any(
        shape.depths[node] == depth and shape.children[node] and paths[node] >= least for node in range(shape.n_nodes)
    ):
        depth += 1
    return shape.upto(depth)


class FakeSampler:
    """Counts what is asked of it; the script chooses the tokens."""

    greedy = False
    n_best = 0

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self.seed = options.seed
        self.closed = False
        self.taken: list[int] = []

    def sample(self, ctx: object, row: int) -> int:
        raise AssertionError("the fake session chooses by itself")

    def take(self, token: int) -> None:
        self.taken.append(token)

    def biased(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return row

    def prime(self, tokens: Sequence[int]) -> None: ...

    def reset(self) -> None: ...

    def __enter__(self) -> FakeSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


class FakeSession:
    """Answers each prompt with the next entry of a script.

    Args:
        answers: texts, or token ids where the split matters; an answer ends with <|im_end|> by itself.
        n_ctx: tokens of context.
        add_bos: the vocabulary wants <|bos|> at the beginning of a text.
        on_token: called before each token with the number of the answer's tokens that are committed.
        notices: as of a real session.
    """

    n_vocab = n_draft_vocab = N_VOCAB
    device = "fake device"
    needs_checkpoints = False
    n_state_bytes = 1000

    def __init__(
        self,
        answers: Sequence[str | Sequence[int]],
        *,
        n_ctx: int = 1000,
        add_bos: bool = False,
        on_token: Callable[[int], None] | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        self._answers = [encode(answer) if isinstance(answer, str) else list(answer) for answer in answers]
        self._n_ctx = n_ctx
        self._add_bos = add_bos
        self._on_token = on_token
        self.notices = list(notices)
        self.engine_info = {"source_sha256": "aa", "patches_sha256": "bb", "backend": "cpu"}
        self.samplers: list[FakeSampler] = []
        self.prompts: list[list[int]] = []
        self.prefilled: list[list[int]] = []  # of each prompt, what was not there already
        self.closed = False
        self._tokens: list[int] = []
        self._answer: list[int] | None = None
        self._n_emitted = 0
        self._tree: DraftTree | None = None
        self.checkpoints: list[int] = []
        self.draft_vocabs: list[int | None] = []
        self.loaded: list[State] = []

    # -- what chat and the commands use

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def n_past(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        return list(self._tokens)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        bos = [SPECIAL["<|bos|>"]] if add_special and self._add_bos else []
        return bos + encode(text, parse_special=parse_special)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token < 256:
            return bytes([token])
        text = _TEXTS[token]
        return b"" if text in SPECIAL and not special else text.encode()

    def edge_texts(self) -> tuple[str, str]:
        return "", "<|im_end|>"

    def is_eog(self, token: int) -> bool:
        return token == EOG

    def set_draft_vocab(self, size: int | None) -> int:
        self.draft_vocabs.append(size)
        return self.n_vocab

    def checkpoint(self) -> bool:
        self.checkpoints.append(self.n_past)
        return True

    def read_ahead(self, prompt: Sequence[int], n: int, stop: Callable[[], bool]) -> int:
        n_computed = self.prefill(prompt[:n], stop)
        self.checkpoint()
        return n_computed

    def state_bytes(self) -> tuple[int, int]:
        return self.n_state_bytes, self.n_state_bytes

    def state(self) -> State | None:
        return State(tuple(self._tokens), b"target of the fake", b"mtp")

    def load_state(self, state: State) -> None:
        self.loaded.append(state)
        self._tokens = list(state.tokens)

    def entropy(self, row: int) -> float:
        return 0.5 + row

    def new_sampler(self, options: SamplingOptions) -> FakeSampler:
        self.samplers.append(FakeSampler(options))
        return self.samplers[-1]

    # -- SpeculativeEngine

    limits = Limits(trees=True, max_depth=8, max_nodes=16, reason="")

    def prefill(self, prompt: Sequence[int], stop: Callable[[], bool]) -> int:
        if len(prompt) >= self._n_ctx:
            raise ContextFullError(f"the prompt has {len(prompt)} tokens, the context holds {self._n_ctx}.")
        if stop():
            return 0
        common = 0
        while common < min(len(prompt) - 1, len(self._tokens)) and prompt[common] == self._tokens[common]:
            common += 1
        self.prompts.append(list(prompt))
        self.prefilled.append(list(prompt[common:]))
        self._tokens = list(prompt)
        self._answer = None
        self._n_emitted = 0
        return len(self.prefilled[-1])

    def chooser(self, sampler: object) -> Callable[[int], int]:
        return self._choose

    def rows(self, sampler: object) -> Callable[[int], npt.NDArray[np.float32]]:
        return self._row

    def _row(self, row: int) -> npt.NDArray[np.float32]:
        """The script's token is nearly certain."""
        logits = np.zeros(N_VOCAB, dtype=np.float32)
        logits[self._next(row)] = 20
        return logits

    def _choose(self, row: int) -> int:
        if self._on_token is not None:
            self._on_token(self._n_emitted)
        return self._next(row)

    def _next(self, row: int) -> int:
        if self._answer is None:
            self._answer = [*self._answers.pop(0), EOG]
        depth = 0 if row < 0 or self._tree is None else self._tree.shape.depths[row] + 1
        return self._answer[self._n_emitted + depth]

    def start(self, pending: int) -> None: ...

    def draft(self, shape: TreeShape, least: float = -math.inf) -> DraftTree:
        """The right token for every best-ranked node, a wrong one for its siblings."""
        assert self._answer is not None
        answer = [*self._answer[self._n_emitted :], *[0] * shape.n_nodes]
        tokens = [answer[depth] if rank == 0 else 255 for depth, rank in zip(shape.depths, shape.ranks, strict=True)]
        return DraftTree(shape, tuple(tokens))

    turn = 0

    def discard(self) -> None:
        self._tree = None

    def verify(self, tree: DraftTree) -> None:
        self._tree = tree

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        self._tokens += [tree.tokens[node] for node in path]
        self._n_emitted += len(path)
        self._tree = None

    def follow(self, tree: DraftTree, path: Sequence[int], pending: int | None) -> None: ...


# What profiles of the fake session hold for.
KEY = Key("ab" * 32, None, "source patches cpu", "fake device", 4, None, None, None)


def model_info(**values: Any) -> ModelInfo:
    """What `read_model` gives for a small model with an MTP head."""
    defaults: dict[str, Any] = {
        "path": Path("fake.gguf"),
        "arch": "qwen35",
        "name": "Fake",
        "n_layer": 8,
        "n_layer_nextn": 1,
        "n_embd": 256,
        "n_embd_h": 256,
        "n_vocab": N_VOCAB,
        "n_ctx_train": 2048,
        "quantisation": "F16",
        "size_bytes": 25 * 1024**2,
        "n_tensors": 100,
        "n_parameters": 13_000_000,
        "n_parts": 1,
        "has_mtp": True,
        "is_sidecar": False,
        "head_kind": "single",
        "memory_kind": "hybrid",
        "window_layers": (),
        "n_head_kv": (),
        "key_lengths": (),
        "chat_template": None,
        "sampling": {},
        "kv_bytes_per_token": 3072,
        "state_bytes": 800_000,
        "n_window": 0,
        "node_bytes": 14_000,
        "pass_bytes": PassCost(20_000_000, 2_000_000, 512.0),
    }
    return ModelInfo(**(defaults | values))


def install(monkeypatch: pytest.MonkeyPatch, session: FakeSession, about: ModelInfo | None = None) -> list[SessionOptions]:
    """Make the commands open a fake session instead of a model, on a machine without a GPU.

    Returns: a list that receives the options each command opened it with.
    """
    opened: list[SessionOptions] = []

    class Opener:
        @staticmethod
        def open(options: SessionOptions, stop: Callable[[], bool]) -> FakeSession:
            opened.append(options)
            return session

    llama = SimpleNamespace(llama_supports_gpu_offload=lambda: False)
    native_library = SimpleNamespace(
        load=lambda: llama,
        engine_info=lambda: session.engine_info,
        device_name=lambda: session.device,
        is_built=lambda: True,
        gpus=list,
    )
    # its file is none that could be fingerprinted
    monkeypatch.setattr(forecast, "key_for", lambda *_: KEY)
    monkeypatch.setattr(forecast, "library", native_library)
    monkeypatch.setattr(options, "Session", Opener)
    monkeypatch.setattr(options, "warm_up", lambda *_: None)
    # a device on which more nodes cost next to nothing
    costs = CostTable({size: 1.0 + 0.001 * size for size in SIZES})
    monkeypatch.setattr(options, "profile_for", lambda *_: Profile(costs))
    for module in (options, info):
        monkeypatch.setattr(module, "read_model", lambda path, role="main": about or model_info(path=path))
        monkeypatch.setattr(module, "library", native_library)
    return opened
