"""Measures a model through the engine: entropy along its own texts, what its head would have drafted at each of their positions,
and how surprised it is by held-out text.

The figures are of the texts that the session gives; judging them is quality.py's part, showing them card.py's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.bench.draft_log import AcceptanceCounts, ChainRun, DraftLog
from entmtp_local.bench.repetition import Loop, find_loop
from entmtp_local.bench.workloads import Prompt
from entmtp_local.calibration.prompts import prompt_tokens
from entmtp_local.chat.model_template import template_of
from entmtp_local.engine import generate
from entmtp_local.errors import UsageError
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.sampler import Sampler
from entmtp_local.native.session import Session
from entmtp_local.speculative.entropy import row_entropy
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from scripts.reference.engine_rows import Engine
from scripts.reference.math_problems import lead
from scripts.reference.quality import PARSES, Question, given_answer, has_stray_marks, python_share
from scripts.reference.widen_check import read_texts

DEPTH, WIDTH = 6, 4
N_DRAFTED = DEPTH * WIDTH
N_CTX_HELDOUT = 512
# Rows of logits of a pass over held-out text: at 248K tokens a row takes 2 MB, in double precision.
_N_ROWS = 64
# Enough for the longest worked solution, which is that of a product of two-digit numbers.
N_SOLUTION = 400
# The answer, or a new problem begun without one.
_SOLUTION_ENDS = re.compile(rb"^(Answer|Problem):.*\n", re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Text:
    """What a model wrote after one prompt."""

    prompt: Prompt
    text: str
    finish_reason: str  # "stop", "length", "context"
    entropies: npt.NDArray[np.float64]  # (n,) nats, of the rows that the tokens were chosen from
    log: DraftLog
    has_control_tokens: bool  # other than the one that ended it

    @property
    def loop(self) -> Loop | None:
        return find_loop(self.log.tokens.tolist())


class Writer:
    """Continues prompts one plain token at a time and drafts a comb at every position.

    Args:
        session: opened for drafts of DEPTH and N_DRAFTED nodes, with a context larger by N_DRAFTED than n_ctx.
        n_ctx: tokens that prompt and text may have together.
    """

    def __init__(self, session: Session, info: ModelInfo, n_ctx: int) -> None:
        self.session = session
        self._n_ctx = n_ctx
        self._template = template_of(info, session)
        self.shape = self._comb()

    def _comb(self) -> TreeShape | None:
        depth = min(DEPTH, self.session.limits.max_depth)
        if depth == 0:
            return None
        return TreeShape.comb(depth, WIDTH if self.session.drafts_trees else 1)

    @property
    def depth(self) -> int:
        return self.shape.max_depth if self.shape else 0

    @property
    def width(self) -> int:
        return (self.shape.n_nodes - 1) // self.depth if self.shape else 0

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """As `entmtp-local run` and `chat` read it."""
        return prompt_tokens(self.session, self._template, prompt)

    def write(self, prompt: Prompt, sampler: Sampler, n: int) -> Text:
        """Continue a prompt by up to n tokens.

        Raises: UsageError where the prompt leaves no room for a token.
        """
        session, shape = self.session, self.shape
        ids = self.prompt_tokens(prompt)
        if not 0 < len(ids) < self._n_ctx:
            raise UsageError(f"prompt {prompt.id} has {len(ids)} tokens, the context {self._n_ctx}: leave it out, or give -c.")
        sampler.reset()
        sampler.prime(ids)
        session.prefill(ids, lambda: False)
        entropies: list[float] = []
        tokens: list[int] = []
        combs: list[tuple[int, ...]] = []

        def choose(row: int) -> int:
            logits = session.logits(row)
            entropies.append(row_entropy(logits))
            tokens.append(sampler.sample_logits(logits))
            return tokens[-1]

        pending = choose(-1)
        finish = self._finish(tokens, n)
        if finish is None:
            session.start(pending)
        while finish is None:
            if shape is not None:
                combs.append(session.draft(shape).tokens[1:])
            root = DraftTree(ROOT_ONLY, (pending,))
            session.verify(root)
            pending = choose(0)
            session.commit(root, (0,))
            finish = self._finish(tokens, n)
            session.follow(root, (0,), None if finish else pending)
        ended = finish == "stop"
        visible = tokens[:-1] if ended else tokens
        return Text(
            prompt,
            _decoded(session, visible),
            finish,
            np.array(entropies),
            DraftLog(
                np.array(tokens, dtype=np.int32),
                np.array(combs, dtype=np.int32).reshape(len(combs), self.depth, self.width),
                ended,
            ),
            any(not session.piece(token) and bool(session.piece(token, special=True)) for token in visible),
        )

    def _finish(self, tokens: Sequence[int], n: int) -> str | None:
        if self.session.is_eog(tokens[-1]):
            return "stop"
        if len(tokens) >= n:
            return "length"
        # as in the generation loop: the pending token has no place
        return "context" if self.session.n_past >= self._n_ctx else None

    def solve(self, question: Question, n_tokens: int) -> bool:
        """Whether the greedy solution of a problem gives the right answer within so many tokens."""
        session = self.session
        ids = session.tokenize(lead(question.text), add_special=True, parse_special=True)
        n = min(n_tokens, self._n_ctx - len(ids))
        with session.new_sampler(SamplingOptions(temp=0.0, seed=0)) as sampler:
            generation = generate(session, ids, policy=OFF, sampler=sampler, max_tokens=n)
            data = b""
            for step in generation:
                data += b"".join(map(session.piece, step.tokens))
                if _SOLUTION_ENDS.search(data):
                    break
        return given_answer(data.decode("utf-8", errors="replace")) == question.answer


def sampling(temp: float, seed: int) -> SamplingOptions:
    """Plain temperature sampling: every token keeps its chance."""
    return SamplingOptions(temp=temp, top_k=0, top_p=1.0, min_p=0.0, seed=seed)


def _decoded(session: Session, tokens: Sequence[int]) -> str:
    return b"".join(session.piece(token) for token in tokens).decode("utf-8", errors="replace")


# -- figures of a set of texts


def summary(texts: Sequence[Text], depth: int, width: int) -> dict[str, Any]:
    """Everything that is stated of one workload at one temperature.

    Args:
        depth, width: of the combs, 0 where nothing was drafted.
    """
    values = np.concatenate([text.entropies for text in texts])
    quartiles = np.percentile(values, [25, 50, 75])
    loops = [text.loop for text in texts]
    begins = [loop.start for loop in loops if loop is not None]
    found: dict[str, Any] = {
        "n_prompts": len(texts),
        "n_tokens": len(values),
        "finish_reasons": {reason: sum(t.finish_reason == reason for t in texts) for reason in ("stop", "length", "context")},
        "entropy": {"mean": float(values.mean()), "quartiles": [float(q) for q in quartiles]},
        "looped": {
            "share": len(begins) / len(texts),
            "median_start": float(np.median(begins)) if begins else None,
        },
    }
    if depth:
        counts = AcceptanceCounts(depth, width)
        chains = [ChainRun(length) for length in range(1, depth + 1)]
        for text in texts:
            counts.add(text.log)
            for chain in chains:
                chain.add(text.log)
        found["acceptance"] = {
            "conditional": counts.conditional(),
            "hits": counts.hits.tolist(),
            "reached": counts.reached.tolist(),
            "chains": {
                f"chain:{chain.length}": {
                    "tokens_per_step": chain.tokens_per_step,
                    "n_steps": chain.n_steps,
                    "accepted_per_depth": chain.accepted_per_depth,
                }
                for chain in chains
            },
        }
    return found | {key: value for key, value in _quality(texts).items() if value}


def _quality(texts: Sequence[Text]) -> dict[str, Any]:
    python = [
        (share, text)
        for text in texts
        if text.prompt.kind == "code" and text.prompt.text is not None
        for share in [python_share(text.prompt.text, text.text, finished=text.finish_reason == "stop")]
        if share is not None
    ]
    answered = [text for text in texts if text.prompt.answer is not None]
    dialogues = [text for text in texts if text.prompt.messages is not None]
    found: dict[str, Any] = {"code": None, "arithmetic": None, "dialogue": None}
    if python:
        parsed = [text for share, text in python if share >= PARSES]
        found["code"] = {
            "n": len(python),
            "parses": len(parsed) / len(python),
            "parses_without_loop": sum(text.loop is None for text in parsed) / len(python),
            "mean_share_of_lines": float(np.mean([share for share, _ in python])),
        }
    if answered:
        right = sum(given_answer(text.text) == text.prompt.answer for text in answered)
        found["arithmetic"] = {"n": len(answered), "right": right / len(answered)}
    if dialogues:
        stopped = [text.finish_reason == "stop" for text in dialogues]
        filled = [bool(text.text.strip()) for text in dialogues]
        clean = [not text.has_control_tokens and not has_stray_marks(text.text) for text in dialogues]
        good = [all(each) for each in zip(stopped, filled, clean, strict=True)]
        found["dialogue"] = {
            "n": len(dialogues),
            "good": sum(good) / len(dialogues),
            "ends": sum(stopped) / len(dialogues),
            "not_empty": sum(filled) / len(dialogues),
            "no_stray_marks": sum(clean) / len(dialogues),
        }
    return found


# -- arithmetic by topic


def arithmetic(writer: Writer, questions: Iterator[Question], n_tokens: int, say: Say) -> dict[str, Any]:
    """Greedy answers to problems of every topic, one problem a prompt."""
    topics: dict[str, list[bool]] = {}
    for question in questions:
        topics.setdefault(question.topic, []).append(writer.solve(question, n_tokens))
        say(f"arithmetic: {sum(map(len, topics.values()))} problems")
    results = [right for each in topics.values() for right in each]
    return {
        "n": len(results),
        "right": sum(results) / len(results),
        "topics": {name: {"n": len(each), "right": sum(each) / len(each)} for name, each in topics.items()},
    }


# -- held-out text


def heldout_files(path: Path) -> dict[str, Path]:
    """Kinds of held-out text and their files: a folder's files by name, or a single file.

    Raises: UsageError where there is nothing.
    """
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in (".jsonl", ".txt", ".md", ".py")}
        if not files:
            raise UsageError(f"{path} holds no text (files ending in .jsonl, .txt, .md, .py).")
        return files
    if not path.is_file():
        raise UsageError(f"there is no held-out text at {path}; give --heldout a folder or a file.")
    return {path.stem: path}


def surprise(model: Path, files: dict[str, Path], n_threads: int | None, n_documents: int | None, say: Say) -> dict[str, Any]:
    """Perplexity of each kind of held-out text.

    Each document's first 512 tokens on an empty context; its very first token is given, not predicted, unless the model begins
    every text with a token of its own. exp(mean over all predicted tokens of a kind).
    """
    found: dict[str, Any] = {}
    with Engine(model, n_ctx=N_CTX_HELDOUT, mtp=False, n_batch=_N_ROWS, n_threads=n_threads) as engine:
        for kind, file in files.items():
            losses: list[npt.NDArray[np.float64]] = []
            n_bytes = 0
            texts = read_texts([file])[:n_documents]
            for i, text in enumerate(texts, 1):
                tokens = (engine.begins_with() + engine.tokenize(text))[:N_CTX_HELDOUT]
                losses.append(engine.losses(tokens))
                n_bytes += engine.n_bytes(tokens[1:])
                say(f"held-out {kind}: {i} of {len(texts)} documents")
            nats = np.concatenate(losses)
            if not len(nats):
                raise UsageError(f"{file} is too short to measure anything on.")
            found[kind] = {
                "n_documents": len(texts),
                "n_tokens": len(nats),
                "n_bytes": n_bytes,
                "perplexity": float(np.exp(nats.mean())),
                "nats_per_token": float(nats.mean()),
                "nats_per_byte": float(nats.sum() / n_bytes),
                "sha256": _sha256(file),
            }
    return found


# -- the file


def describe_file(info: ModelInfo) -> dict[str, Any]:
    """What a card states of the file itself; of a split model the checksum is that of its first part."""
    return {
        "name": info.path.name,
        "sha256": _sha256(info.path),
        "size_bytes": info.size_bytes,
        "n_parts": info.n_parts,
        "n_parameters": info.n_parameters,
        "type": info.quantisation,
        "architecture": info.arch,
        "n_layer": info.n_layer,
        "n_layer_nextn": info.n_layer_nextn,
        "n_embd": info.n_embd,
        "n_vocab": info.n_vocab,
        "n_ctx_train": info.n_ctx_train,
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
