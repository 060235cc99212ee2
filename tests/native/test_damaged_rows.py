"""Rows that hold no numbers: an error that says so, or a token of the model's, never what sorting them happens to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native.conftest import other_back_end

from entmtp_local.engine import generate
from entmtp_local.errors import EngineError
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import DraftTree
from scripts.make_tiny_models import TinyModel, make_model, write_model

PROMPT = [(11 * i) % 250 + 4 for i in range(20)]
SOME = slice(20, 90)  # printable ASCII, which the tiny models' text is made of

GREEDY = SamplingOptions(temp=0.0)
TOP_40 = SamplingOptions(temp=0.9, seed=1)
WHOLE = SamplingOptions(temp=0.9, seed=1, top_k=0)
PENALISED = SamplingOptions(temp=0.9, seed=1, repeat_penalty=1.2)
SAMPLERS = {"greedy": GREEDY, "top-40": TOP_40, "whole": WHOLE, "penalised": PENALISED}

POLICY = "tree:narrow"
Damage = Callable[[TinyModel], None]


def open_session(path: Path, policy: str, **values: Any) -> Session:
    chosen = parse_policy(policy)
    options = SessionOptions(path, n_ctx=512, n_threads=2, max_depth=chosen.max_depth, max_nodes=chosen.max_nodes)
    return Session.open(replace(options, **values))


def text(path: Path, options: SamplingOptions, policy: str = POLICY, *, on_device: bool = False) -> list[int]:
    with open_session(path, policy, best_on_device=on_device) as session:
        return answer(session, options, policy)


def answer(session: Session, options: SamplingOptions, policy: str = POLICY) -> list[int]:
    with session.new_sampler(options) as sampler:
        generation = generate(session, PROMPT, policy=parse_policy(policy), sampler=sampler, max_tokens=30)
        for _ in generation:
            pass
    return generation.tokens


def spoil(tensor: str, where: Any, value: float) -> Damage:
    def damage(model: TinyModel) -> None:
        (name,) = (name for name in model.tensors if f".{name}".endswith(f".{tensor}"))
        model.tensors[name][where] = value

    return damage


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[str, Damage], Path]:
    def write(kind: str, damage: Damage) -> Path:
        model = make_model(kind)
        damage(model)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        write_model(model, path)
        return path

    return write


Write = Callable[[str, Damage], Path]
# feature 0 of the hidden rows is positive, and the other weights are finite: the logits become the value's sign times infinity
ALL_NAN = spoil("output_norm.weight", slice(None), np.nan)
SOME_NAN = spoil("output.weight", (SOME, slice(None)), np.nan)
ALL_LOWEST = spoil("output.weight", (slice(None), 0), -np.inf)
SOME_LOWEST = spoil("output.weight", (SOME, 0), -np.inf)
ONE_HIGHEST = spoil("output.weight", (100, 0), np.inf)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_rows_without_any_number(damaged: Write, kind: str, sampler: str, on_device: bool) -> None:
    for damage in (ALL_NAN, ALL_LOWEST):
        path = damaged(kind, damage)
        for policy in ("off", POLICY):
            with pytest.raises(EngineError, match="computed NaN or infinity"):
                text(path, SAMPLERS[sampler], policy, on_device=on_device)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_rows_with_some_nan(damaged: Write, kind: str, on_device: bool) -> None:
    """Where the best tokens are looked for, NaN is none of them; samplers that take a whole row refuse it."""
    nan, lowest = damaged(kind, SOME_NAN), damaged(kind, SOME_LOWEST)
    for options in (GREEDY, TOP_40):
        tokens = text(nan, options, on_device=on_device)
        assert tokens == text(lowest, options)
        assert not any(token in range(SOME.start, SOME.stop) for token in tokens)
    for options in (WHOLE, PENALISED):
        with pytest.raises(EngineError, match="computed NaN or infinity"):
            text(nan, options, on_device=on_device)
        tokens = text(lowest, options, on_device=on_device)
        assert len(tokens) == 30 and not any(token in range(SOME.start, SOME.stop) for token in tokens)


@pytest.mark.parametrize("on_device", [False, True])
def test_rows_with_infinity(damaged: Write, on_device: bool) -> None:
    path = damaged("glm4moe", ONE_HIGHEST)
    assert set(text(path, GREEDY, on_device=on_device)) == {100}, "it is the arg-max"
    for options in (TOP_40, WHOLE, PENALISED):
        with pytest.raises(EngineError, match="computed NaN or infinity"):
            text(path, options, on_device=on_device)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_a_tree_without_numbers_is_discarded(tiny: Path, kind: str, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session goes on with the next prompt."""
    options = SAMPLERS[sampler]
    # the rows of a CPU are those that are read
    with open_session(tiny / f"{kind}.gguf", POLICY, n_gpu_layers=0) as session:
        expected = answer(session, options)
        session.clear()
        verify = session.verify

        def without_numbers(tree: DraftTree) -> None:
            verify(tree)
            if session.n_past > len(PROMPT) + 5:
                for node in range(len(tree.tokens)):
                    held = session._llama.llama_get_logits_ith(session.ctx, node)
                    np.ctypeslib.as_array(held, shape=(session.n_vocab,))[:] = np.nan

        with monkeypatch.context() as patch, pytest.raises(EngineError, match="computed NaN or infinity"):
            patch.setattr(session, "verify", without_numbers)
            answer(session, options)
        assert session.tokens[: len(PROMPT)] == PROMPT
        session.clear()
        assert answer(session, options) == expected


@pytest.mark.parametrize("policy", ["chain:3", "tree:wide", "throughput"])
@pytest.mark.parametrize("kind", ["glm4moe", "qwen35", "mimo2"])
def test_a_head_without_numbers_changes_no_text(tiny: Path, damaged: Write, kind: str, policy: str) -> None:
    """Its drafts are not accepted. Where the host reads its rows, it is an error."""
    path = damaged(kind, spoil("shared_head_norm.weight", slice(None), np.nan))
    assert text(path, GREEDY, policy) == text(tiny / f"{kind}.gguf", GREEDY, "off")
    with other_back_end(), pytest.raises(EngineError, match=r"decoding a draft failed .*; the context was emptied"):
        text(path, GREEDY, policy)
