"""Sampled text: speculation must not change the distribution, even where drafts are bad; typical acceptance alone may."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entmtp_local.engine import Step, generate
from entmtp_local.native import library
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import DraftTree, TreeShape
from entmtp_local.speculative.verify import Typical

# Rows computed in passes of different widths differ by less.
ATOL = 0.03

PROMPT = [(11 * i) % 250 + 4 for i in range(12)]


def open_session(tiny: Path, kind: str, policy: str, **values: Any) -> Session:
    chosen = parse_policy(policy)
    options = SessionOptions(tiny / f"{kind}.gguf", n_ctx=512, n_threads=2)
    return Session.open(replace(options, max_depth=chosen.max_depth, max_nodes=chosen.max_nodes, **values))


def sample(session: Session, policy: str, options: SamplingOptions, n: int) -> list[int]:
    with session.new_sampler(options) as sampler:
        generation = generate(session, PROMPT, policy=parse_policy(policy), sampler=sampler, max_tokens=n)
        for _ in generation:
            pass
    return generation.tokens


def rounding_explains(session: Session, options: SamplingOptions, prefix: Sequence[int], token: int) -> bool:
    """Whether a row within rounding of the plain one makes the seeded sampler choose the token after the prefix."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        with session.new_sampler(options) as sampler:
            for _ in generate(session, PROMPT, policy=parse_policy("off"), sampler=sampler, max_tokens=len(prefix)):
                pass
            session.prefill([*PROMPT, *prefix], lambda: False)
            row = np.ctypeslib.as_array(session._llama.llama_get_logits_ith(session.ctx, -1), shape=(session.n_vocab,))
            noise = rng.uniform(-ATOL, ATOL, len(row)).astype(np.float32)
            if sampler.sample_logits(row + noise) == token:
                return True
    return False


@pytest.mark.parametrize(
    ("kind", "policy"), [("glm4moe", "chain:4"), ("glm4moe", "tree:wide"), ("qwen35", "chain:4"), ("mimo2", "tree:narrow")]
)
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temp=0.8, seed=3),
        SamplingOptions(temp=1.2, top_k=20, top_p=0.9, min_p=0.02, seed=4),
        SamplingOptions(temp=0.9, repeat_penalty=1.3, presence_penalty=0.5, repeat_last_n=32, seed=5),
        SamplingOptions(temp=0.0, repeat_penalty=1.4, repeat_last_n=64, seed=6),
    ],
    ids=["temp", "truncated", "penalties", "greedy-penalties"],
)
def test_a_seed_gives_the_same_text_whatever_was_drafted(tiny: Path, kind: str, policy: str, options: SamplingOptions) -> None:
    """One sampler call per emitted token, on the target's own rows: only rounding between widths could tell them apart."""
    with open_session(tiny, kind, "off") as session:
        plain = sample(session, "off", options, 120)
    with open_session(tiny, kind, policy) as session:
        found = sample(session, policy, options, 120)
    if found != plain:
        at = next(i for i, (one, other) in enumerate(zip(found, plain, strict=True)) if one != other)
        with open_session(tiny, kind, "off") as session:
            assert rounding_explains(session, options, plain[:at], found[at]), f"token {at}: {found[at]} instead of {plain[at]}"


def chi_square(observed: Counter[int], probabilities: Sequence[float], n: int) -> float:
    """The upper tail probability of Pearson's statistic, cells with an expectation under 5 put together."""
    cells, rest, rest_expected = [], 0, 0.0
    for token, p in enumerate(probabilities):
        if p * n >= 5:
            cells.append((observed[token], p * n))
        else:
            rest += observed[token]
            rest_expected += p * n
    if rest_expected > 0:
        cells.append((rest, rest_expected))
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    df = len(cells) - 1
    # Wilson and Hilferty's normal approximation
    z = ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("bad_drafts", [False, True], ids=["drafted", "bad-drafts"])
@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_the_second_token_has_the_targets_distribution(
    tiny: Path, kind: str, bad_drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens sampled at a drafted node, over many seeds, against the exact distribution of that row."""
    n = 1500
    temp = 1.5
    with open_session(tiny, kind, "off") as session:
        session.prefill(PROMPT, lambda: False)
        row = np.array(np.ctypeslib.as_array(session._llama.llama_get_logits_ith(session.ctx, -1), shape=(session.n_vocab,)))
        first = int(row.argmax())
        session.prefill([*PROMPT, first], lambda: False)
        row = np.array(np.ctypeslib.as_array(session._llama.llama_get_logits_ith(session.ctx, -1), shape=(session.n_vocab,)))
    weights = np.exp((row - row.max()) / temp)
    probabilities = weights / weights.sum()

    with open_session(tiny, kind, "chain:2") as session:
        session.prefill([*PROMPT], lambda: False)
        draft: Callable[[TreeShape], DraftTree] = session.draft
        if bad_drafts:
            worst = int(row.argmin())
            draft = lambda shape: DraftTree(shape, (first, worst, worst))  # noqa: E731
        session.start(first)
        tree = draft(parse_policy("chain:2").plan(None))  # type: ignore[arg-type]
        session.verify(tree)
        observed: Counter[int] = Counter()
        for seed in range(n):
            with session.new_sampler(SamplingOptions(temp=temp, top_k=0, top_p=1.0, min_p=0.0, seed=seed)) as sampler:
                observed[sampler.sample(session.ctx, 0)] += 1
    p_value = chi_square(observed, probabilities.tolist(), n)
    assert p_value > 1e-4, f"p = {p_value:.2g}"
    shifted = Counter({(token + 1) % len(row): count for token, count in observed.items()})
    assert chi_square(shifted, probabilities.tolist(), n) < 1e-4, "the test tells distributions apart"


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe"])
@pytest.mark.parametrize(
    "values", [{}, {"top_k": 1}, {"top_k": 64, "top_p": 1.0, "min_p": 0.0, "temp": 1.5}, {"top_k": 5, "top_p": 0.6, "min_p": 0.2}]
)
def test_the_best_tokens_of_a_row_give_what_the_whole_row_gives(tiny: Path, kind: str, values: dict[str, float]) -> None:
    options = SamplingOptions(seed=9, **{"temp": 0.9, **values})  # type: ignore[arg-type]
    with open_session(tiny, kind, "off") as session, session.new_sampler(options) as short, session.new_sampler(options) as whole:
        for n in range(1, 60):
            session.prefill([(7 * i) % 250 + 4 for i in range(n)], lambda: False)
            row = session.logits(-1)
            # of one row, from one state of the random numbers
            assert short.sample(session.ctx, -1) == whole.sample_logits(row)
        assert short.n_best > 0


@pytest.mark.parametrize(
    "values", [{"top_k": 0}, {"top_k": 65}, {"repeat_penalty": 1.2}, {"logit_bias": ((5, 1.0),)}, {"grammar": "root ::= [a-z]+"}]
)
def test_whole_rows_are_taken_where_the_best_tokens_do_not_tell(tiny: Path, values: dict[str, object]) -> None:
    with open_session(tiny, "glm4moe", "off") as session, session.new_sampler(SamplingOptions(**values)) as sampler:  # type: ignore[arg-type]
        assert sampler.n_best == 0


# -- the best tokens of rows, found where the rows are computed: what a GPU does, here on the CPU


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("glm4moe", "tree:wide"),
        ("mimo2", "tree:narrow"),
        ("qwen35", "tree:wide"),
        ("qwen3next", "tree:narrow"),
        ("step35", "chain:3"),
        ("nemotron_h_moe", "chain:3"),
        ("llama", "off"),
    ],
)
def test_where_the_best_tokens_are_found_changes_no_text(tiny: Path, kind: str, policy: str) -> None:
    """Each sampler with the graphs of the others there."""
    samplers = [
        SamplingOptions(temp=0.0),
        SamplingOptions(temp=0.9, seed=7),
        SamplingOptions(temp=1.5, top_k=64, top_p=1.0, min_p=0.0, seed=8),
        SamplingOptions(temp=0.9, repeat_penalty=1.3, seed=9),
        SamplingOptions(temp=0.0),
    ]
    texts = []
    for on_device in (False, True):
        with open_session(tiny, kind, policy, best_on_device=on_device) as session:
            texts.append([sample(session, policy, options, 40) for options in samplers])
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][-1] != texts[0][1]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("values", [{"temp": 0.0}, {"temp": 0.9, "seed": 3}, {"temp": 0.9, "seed": 3, "top_k": 0}])
@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_rows_are_read_only_where_they_are_needed(tiny: Path, kind: str, values: dict[str, Any], on_device: bool) -> None:
    """The rows, which a CPU leaves where they are, are replaced after the pass: who reads them sees other tokens."""
    options = SamplingOptions(**values)
    with (
        open_session(tiny, kind, "tree:narrow", n_gpu_layers=0, best_on_device=on_device) as session,
        session.new_sampler(options) as sampler,
        session.new_sampler(options) as twin,
    ):
        choose = session.chooser(sampler)
        session.prefill(PROMPT, lambda: False)
        session.start(int(session.logits(-1).argmax()))
        session.verify(session.draft(parse_policy("tree:narrow").plan(None)))  # type: ignore[arg-type]
        row = session.logits(0)
        other = np.roll(row, 5)
        held = session._llama.llama_get_logits_ith(session.ctx, 0)
        np.ctypeslib.as_array(held, shape=(session.n_vocab,))[:] = other
        assert choose(0) == twin.sample_logits(row if on_device and sampler.n_best else other)


@pytest.mark.parametrize(
    ("gpu", "layers", "on_device"), [(False, None, False), (True, None, True), (True, 3, True), (True, 0, False)]
)
def test_best_tokens_are_found_on_the_device_where_rows_are_computed_on_a_gpu(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, layers: int | None, on_device: bool
) -> None:
    monkeypatch.setattr(library.load(), "llama_supports_gpu_offload", lambda: gpu)
    with Session.open(SessionOptions(tiny / "llama.gguf", n_ctx=512, n_threads=2, n_gpu_layers=layers)) as session:
        assert session._best_on_device is on_device


# -- typical acceptance, which is allowed to change the distribution


def typical_steps(session: Session, policy: str, options: SamplingOptions) -> list[Step]:
    rule = Typical(options.temp)
    with session.new_sampler(options) as sampler:
        steps = list(generate(session, PROMPT, policy=parse_policy(policy), rule=rule, sampler=sampler, max_tokens=150))
    assert session.tokens == [*PROMPT, *(token for step in steps for token in step.tokens)][:-1]
    return steps


@pytest.mark.parametrize(
    ("kind", "policy"), [("glm4moe", "chain:4"), ("glm4moe", "tree:wide"), ("qwen35", "tree:wide"), ("mimo2", "tree:narrow")]
)
def test_drafted_tokens_of_a_typical_text_are_typical_of_the_models_own_rows(tiny: Path, kind: str, policy: str) -> None:
    """The criterion in double precision, at every drafted token that was accepted, from rows of plain decoding."""
    temp = 0.3
    with open_session(tiny, kind, policy) as session:
        steps = typical_steps(session, policy, SamplingOptions(temp=temp, seed=3))
    text, n_accepted = list(PROMPT), 0
    with open_session(tiny, kind, "off") as session:
        for step in steps:
            for node, token in zip(step.accepted, step.tokens, strict=False):
                assert token == step.tree.tokens[node]
                session.prefill(text, lambda: False)
                z = session.logits(-1).astype(np.float64) / temp
                p = np.exp(z - z.max())
                p /= p.sum()
                entropy = -float((p[p > 0] * np.log(p[p > 0])).sum())
                # rounding changes a probability by this factor at most, and the threshold by about as much
                slack = math.exp(-4 * ATOL / temp)
                assert p[token] > slack * min(0.09, 0.3 * math.exp(-entropy)), f"token {len(text)}"
                text.append(token)
                n_accepted += 1
            text += step.tokens[len(step.accepted) :]
    assert n_accepted > 10


def test_a_forbidden_token_is_not_typical(tiny: Path) -> None:
    options = SamplingOptions(temp=0.3, seed=3)
    with open_session(tiny, "glm4moe", "chain:4") as session:
        steps = typical_steps(session, "chain:4", options)
        forbidden = next(step.tree.tokens[node] for step in steps for node in step.accepted)
        steps = typical_steps(session, "chain:4", replace(options, logit_bias=((forbidden, -math.inf),)))
    assert any(forbidden in step.tree.tokens[1:] for step in steps), "it is drafted all the same"
    assert all(forbidden not in step.tokens for step in steps)


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_rows_for_typical_acceptance_are_fetched_where_the_best_tokens_are_found_elsewhere(tiny: Path, kind: str) -> None:
    texts = []
    for on_device in (False, True):
        with open_session(tiny, kind, "tree:narrow", best_on_device=on_device) as session:
            texts.append([step.tokens for step in typical_steps(session, "tree:narrow", SamplingOptions(temp=0.3, seed=3))])
    assert texts[0] == texts[1]
