"""The session: what it keeps of a prompt, and that both contexts stay in step whatever happens."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.conftest import other_back_end

from entmtp_local.engine import Generation, generate
from entmtp_local.errors import ContextFullError, EngineError, ModelFileError
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.native.timing import pass_seconds, warm_up
from entmtp_local.speculative import draft_vocab
from entmtp_local.speculative.draft_vocab import DraftHead, PassCost
from entmtp_local.speculative.policy import drafted_by, parse_policy, sizes_of
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape
from scripts.make_tiny_models import STOP, STOP_LEAD, make_tokenizer

GREEDY = SamplingOptions(temp=0)
KINDS = ["glm4moe", "mimo2", "qwen35", "step35", "gemma4"]
PROMPT = [(11 * i) % 250 + 4 for i in range(40)]
# Rows computed in passes of different widths.
ATOL = 0.03


def open_session(tiny: Path, kind: str, policy: str, **options: Any) -> Session:
    chosen = parse_policy(policy)
    sidecar = tiny / f"{kind}-mtp.gguf"
    return Session.open(
        SessionOptions(
            tiny / f"{kind}.gguf",
            mtp_path=sidecar if sidecar.exists() and kind == "gemma4" else None,
            max_depth=chosen.max_depth,
            max_nodes=chosen.max_nodes,
            **({"n_ctx": 1024, "n_threads": 2} | options),
        )
    )


def run(session: Session, prompt: Sequence[int], policy: str, max_tokens: int) -> tuple[Generation, list[tuple[int, ...]]]:
    """Generate greedily; also the drafted tokens of each step."""
    with session.new_sampler(GREEDY) as sampler:
        generation = generate(session, prompt, policy=parse_policy(policy), sampler=sampler, max_tokens=max_tokens)
        drafts = [step.tree.tokens for step in generation]
    return generation, drafts


def prompt_row(session: Session, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
    session.prefill(prompt, lambda: False)
    row = session._llama.llama_get_logits_ith(session.ctx, -1)
    return np.array(np.ctypeslib.as_array(row, shape=(session.n_vocab,)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_turn_drafts_as_a_fresh_session_does(tiny: Path, kind: str) -> None:
    """Whatever ended the first turn, the drafter has seen every committed token with its hidden row."""
    for first_tokens in (1, 2, 13):
        with open_session(tiny, kind, "chain:3") as session:
            first, _ = run(session, PROMPT, "chain:3", first_tokens)
            before = session.n_past
            whole = [*PROMPT, *first.tokens, 77, 78, 79]
            second, drafts = run(session, whole, "chain:3", 30)
            assert second.stats.n_prefilled == len(whole) - before
        with open_session(tiny, kind, "chain:3") as fresh:
            expected, expected_drafts = run(fresh, whole, "chain:3", 30)
        assert second.tokens == expected.tokens
        assert drafts == expected_drafts


def test_a_session_may_begin_with_a_draft_of_nothing(tiny: Path) -> None:
    with open_session(tiny, "qwen35", "chain:3") as session:
        session.prefill(PROMPT, lambda: False)
        session.start(PROMPT[0])
        drafted = session.draft(ROOT_ONLY)
        assert (drafted.shape, drafted.tokens) == (ROOT_ONLY, (PROMPT[0],))


def test_a_draft_tells_which_of_its_tokens_end_the_text(tiny: Path) -> None:
    tokenizer = make_tokenizer()
    lead, stop, end = (tokenizer.id(token) for token in (STOP_LEAD, STOP, "<|im_end|>"))
    with open_session(tiny, "qwen35", "chain:3") as session:
        for _ in range(2):
            session.clear()
            session.prefill(PROMPT, lambda: False)
            session.start(lead)
            drafted = session.draft(TreeShape.chain(3))
            assert drafted.tokens[:3] == (lead, stop, end) and drafted.ends == (2,)
        session.clear()
        session.prefill(PROMPT, lambda: False)
        session.start(lead)
        assert session.draft(TreeShape.chain(1)).ends == ()


SHIPPED = Path(__file__).resolve().parents[2] / "models" / "reference-11m.gguf"


@pytest.mark.parametrize("policy", ["chain:3", "tree:wide"])
def test_a_smaller_draft_vocabulary_changes_drafts_and_no_text(policy: str) -> None:
    chosen = parse_policy(policy)
    options = SessionOptions(SHIPPED, n_ctx=1024, max_depth=chosen.max_depth, max_nodes=chosen.max_nodes, draft_vocab=0)
    with Session.open(options) as session:
        prompt = session.tokenize("def main(path: str) -> None:\n", add_special=True, parse_special=True)
        whole, _ = run(session, prompt, policy, 60)
        for size in (64, 1000, 4096):
            session.clear()
            n = session.set_draft_vocab(size)
            limit = -(-size // 64) * 64
            assert limit <= n < limit + 1000
            small, drafts = run(session, prompt, policy, 60)
            drafted = {token for tokens in drafts for token in tokens[1:]}
            assert drafted and all(token < limit or token >= session.n_vocab - (n - limit) for token in drafted)
            # the widths of passes are the same, but not the tokens beside each other in them
            assert small.tokens == whole.tokens
            if size == 64:
                assert small.stats.tokens_per_step < 0.7 * whole.stats.tokens_per_step
        session.clear()
        assert session.set_draft_vocab(None) == session.n_vocab
        assert run(session, prompt, policy, 60)[0].tokens == whole.tokens


@pytest.mark.parametrize(("wanted", "used"), [(None, None), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0")])
def test_drafts_read_a_smaller_copy_of_the_head_and_the_text_stays(wanted: str | None, used: str | None) -> None:
    """The shipped model's head has 16 bits a weight, and too few rows to be copied unasked."""
    options = SessionOptions(SHIPPED, n_ctx=512, max_depth=3, max_nodes=3, draft_head_type=wanted)
    with Session.open(replace(options, draft_head_type="same")) as session:
        prompt = session.tokenize("def main(path: str) -> None:\n", add_special=True, parse_special=True)
        expected, _ = run(session, prompt, "chain:3", 60)
    with Session.open(options) as session:
        assert session.draft_head_type == used
        found, _ = run(session, prompt, "chain:3", 60)
        assert found.tokens == expected.tokens
        assert found.stats.tokens_per_step > 0.9 * expected.stats.tokens_per_step
        assert not session.notices


def test_drafts_read_what_calibration_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_vocab, "_WORTH_CUTTING", 1024)
    with Session.open(SessionOptions(SHIPPED, n_ctx=512, max_depth=3, max_nodes=3)) as session:
        assert session.draft_vocab_sizes == [1024, 2048, 4096]
        prompt = session.tokenize("def main(path: str) -> None:\n", add_special=True, parse_special=True)
        expected, _ = run(session, prompt, "chain:3", 60)
        assert session.read_draft_head("Q8_0") and session.draft_head_type == "Q8_0"
        assert not session.read_draft_head("F32") and session.draft_head_type == "Q8_0", "no smaller"
        head = DraftHead("Q4_0", 2048, PassCost(0.02, 1e-3, 1e-7), {})
        session.adopt_draft_head(head)
        assert session.draft_head_type == "Q4_0" and 2048 <= session.n_draft_vocab < 4096
        # rows that calibration did not read take what the target's bytes take, and making copies was timed
        beyond = session._draft_vocab._beyond
        assert beyond.row == pytest.approx(0.02 * session.draft_cost.row / session.draft_cost.target)
        assert 0 < beyond.copy < 1e-4
        session.clear()
        assert run(session, prompt, "chain:3", 60)[0].tokens == expected.tokens
        session.set_draft_vocab(4096)
        session.adopt_draft_head(head)
        assert session.n_draft_vocab >= 4096, "a number that was given stays"
        session.set_draft_vocab(None)
        with session.steady_draft_vocab():
            assert 2048 <= session.n_draft_vocab < 4096
        assert session.read_draft_head("same") and session.draft_head_type is None


def test_a_copy_that_would_be_no_smaller_is_said_to_be_none(tiny: Path, tmp_path: Path) -> None:
    with open_session(tiny, "glm4moe", "chain:3", draft_head_type="Q8_0") as session:
        assert session.draft_head_type is None
        assert any("it cannot be had in Q8_0" in notice for notice in session.notices)


def test_sizes_that_are_none_leave_the_vocabulary_whole(tiny: Path) -> None:
    with Session.open(SessionOptions(SHIPPED, n_ctx=512, max_depth=3, max_nodes=3, draft_vocab=0)) as session:
        for size in (-64, session.n_vocab, 2**31 - 1, 2**33 + 64):
            assert session.set_draft_vocab(64) < session.n_vocab
            assert session.set_draft_vocab(size) == session.n_draft_vocab == session.n_vocab
    for kind, policy in (("qwen35", "off"), ("llama", "chain:3")):
        with open_session(tiny, kind, policy) as session:
            assert session.set_draft_vocab(64) == session.set_draft_vocab(None) == session.n_vocab


@pytest.mark.parametrize("kind", ["qwen35", "nemotron_h_moe", "bailingmoe3"])
def test_no_pass_is_measured_in_an_empty_session(tiny: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It sets up the recurrent states, whether or not the engine keeps those of before a pass that is not committed."""
    with open_session(tiny, kind, "chain:3") as session:
        verify, seen = session.verify, []

        def noted(tree: DraftTree) -> None:
            seen.append(session.n_past)
            verify(tree)

        monkeypatch.setattr(session, "verify", noted)
        found, (draft,) = pass_seconds(session, (1, 2, 4), [TreeShape.chain(3)], limit=60.0)
        assert sorted(found) == [1, 2, 4] and draft > 0 and session.n_past == 0
        assert len(seen) > 18 and min(seen) > 0
        seen.clear()
        warm_up(session, (1, 2, 4), limit=60.0)
        assert seen and seen[0] == 1


def test_costs_of_verification(tiny: Path) -> None:
    with open_session(tiny, "qwen35", "chain:7") as session:
        session.prefill(PROMPT, lambda: False)
        shapes = [TreeShape.chain(1), TreeShape.chain(5)]
        found, drafts = pass_seconds(session, (1, 2, 3, 4, 6, 8, 12), shapes, limit=60.0)
        assert sorted(found) == [1, 2, 3, 4, 6, 8], "12 nodes do not fit"
        assert all(seconds > 0 for seconds in (*found.values(), *drafts)) and len(drafts) == 2
        assert session.n_past == 0
        # a machine on which passes take long is not kept waiting
        found, drafts = pass_seconds(session, (1, 2, 3, 4, 6, 8), shapes, limit=0.0)
        assert sorted(found) == [1, 4] and all(seconds > 0 for seconds in drafts)
        assert pass_seconds(session, (1, 2), shapes, stop=lambda: True) == ({}, [0.0, 0.0])
        polls = count()
        found, drafts = pass_seconds(session, (1, 2), shapes, stop=lambda: next(polls) > 5)
        assert sorted(found) == [1, 2] and drafts[0] > 0 and drafts[1] == 0.0, "stopped between the first two drafts"
        begin = perf_counter()
        pass_seconds(session, (1,), at_least=0.3)
        assert perf_counter() - begin >= 0.3
        session.prefill(PROMPT, lambda: False)
        assert sorted(pass_seconds(session, (1, 2), keep=True)[0]) == [1, 2] and session.n_past == len(PROMPT)
        assert len(run(session, PROMPT, "chain:7", 20)[0].tokens) == 20


@pytest.mark.parametrize(("kind", "most"), [("nemotron_h_moe", 9), ("bailingmoe3", 9), ("step35", 4), ("glm4moe", 16)])
def test_no_chain_is_measured_that_cannot_be_rolled_back(tiny: Path, kind: str, most: int) -> None:
    with open_session(tiny, kind, "entmtp") as session:
        found, _ = pass_seconds(session, (1, 2, 4, 9, 10, 16), limit=60.0)
        assert max(found) == most
        assert len(run(session, PROMPT, "chain:3", 20)[0].tokens) == 20


def test_the_largest_trees_fit_beside_copies(tiny: Path) -> None:
    with open_session(tiny, "qwen35", "chain:255", max_copied=15) as session:
        generation, _ = run(session, PROMPT, "chain:255", 40)
        assert generation.policy.name == "chain:255"
        assert len(generation.tokens) == 40


@pytest.mark.parametrize("kind", ["glm4moe", "gemma4"])
def test_where_a_part_of_the_vocabulary_cannot_be_had_all_of_it_is_used(tiny: Path, kind: str) -> None:
    with open_session(tiny, kind, "chain:3", draft_vocab=128) as session:
        assert any("whole vocabulary" in notice for notice in session.notices)
        assert session.set_draft_vocab(128) == session.n_vocab
    with open_session(tiny, kind, "chain:3") as session:
        assert session.notices == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_after_an_interrupted_one_drafts_as_a_fresh_session_does(tiny: Path, kind: str) -> None:
    """An interrupted answer leaves a pending token with the drafter that the next prompt does not contain."""
    with open_session(tiny, kind, "chain:3") as session, session.new_sampler(GREEDY) as sampler:
        interrupted = generate(session, PROMPT, policy=parse_policy("chain:3"), sampler=sampler, max_tokens=100)
        steps = iter(interrupted)
        for _ in range(4):
            next(steps)
        whole = [*session.tokens, 77, 78, 79]
        second, drafts = run(session, whole, "chain:3", 30)
        assert second.stats.n_prefilled == 3
    with open_session(tiny, kind, "chain:3") as fresh:
        expected, expected_drafts = run(fresh, whole, "chain:3", 30)
    assert second.tokens == expected.tokens
    assert drafts == expected_drafts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", ["shorter", "changed", "same", "other"])
def test_an_edited_prompt_is_computed_right(tiny: Path, kind: str, edit: str) -> None:
    with open_session(tiny, kind, "chain:3") as session:
        first, _ = run(session, PROMPT, "chain:3", 12)
        prompt = {
            "shorter": PROMPT[:25],
            "changed": [*PROMPT[:20], 200, *PROMPT[21:]],
            "same": PROMPT,
            "other": PROMPT[::-1],
        }[edit]
        second, drafts = run(session, prompt, "chain:3", 30)
        assert session.tokens == [*prompt, *second.tokens[:-1]]
    with open_session(tiny, kind, "chain:3") as fresh:
        expected, expected_drafts = run(fresh, prompt, "chain:3", 30)
    assert second.tokens == expected.tokens
    assert drafts == expected_drafts


def test_attention_models_rewind_instead_of_starting_over(tiny: Path) -> None:
    with open_session(tiny, "glm4moe", "chain:2") as session:
        run(session, PROMPT, "chain:2", 12)
        edited = [*PROMPT[:30], 200, 201]
        again, _ = run(session, edited, "chain:2", 5)
        assert again.stats.n_prefilled == 3  # the new two, and the one before them for its hidden row
    with open_session(tiny, "glm4moe", "off") as session:
        run(session, PROMPT, "off", 12)
        again, _ = run(session, edited, "off", 5)
        assert again.stats.n_prefilled == 2


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_a_context_smaller_than_the_chain(tiny: Path, kind: str) -> None:
    with open_session(tiny, kind, "chain:60", n_ctx=50) as session:
        generation, _ = run(session, PROMPT, "chain:60", 1000)
        assert (generation.finish_reason, session.n_past) == ("context", 50)


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_long_prompts_in_several_passes(tiny: Path, kind: str) -> None:
    prompt = [(7 * i) % 250 + 4 for i in range(700)]
    with open_session(tiny, kind, "chain:3") as whole, open_session(tiny, kind, "chain:3") as parts:
        expected, expected_drafts = run(whole, prompt, "chain:3", 20)
        for n, computed in ((511, 511), (513, 2), (514, 1)):
            assert parts.prefill(prompt[:n], lambda: False) == computed
        found, drafts = run(parts, prompt, "chain:3", 20)
    assert found.tokens == expected.tokens
    assert drafts == expected_drafts


def test_stopping_between_the_passes_of_a_prompt(tiny: Path) -> None:
    prompt = [(7 * i) % 250 + 4 for i in range(700)]
    polls = iter([False, True])
    with open_session(tiny, "qwen35", "chain:3") as session:
        assert session.prefill(prompt, lambda: next(polls)) == 512
        assert session.n_past == 512
        row = prompt_row(session, prompt)
    with open_session(tiny, "qwen35", "chain:3") as fresh:
        np.testing.assert_allclose(row, prompt_row(fresh, prompt), atol=ATOL)


def test_a_prompt_that_does_not_fit_changes_nothing(tiny: Path) -> None:
    with open_session(tiny, "glm4moe", "chain:2", n_ctx=100) as session:
        run(session, PROMPT, "chain:2", 5)
        before = session.tokens
        with pytest.raises(ContextFullError, match=r"prompt has 100 tokens, the context holds 100 .*larger -c"):
            session.prefill([5] * 100, lambda: False)
        assert session.tokens == before
        with pytest.raises(EngineError, match="no tokens"):
            session.prefill([], lambda: False)


@pytest.mark.parametrize("policy", ["off", "chain:3", "tree:wide"])
def test_a_context_is_filled_and_then_says_so(tiny: Path, policy: str) -> None:
    with open_session(tiny, "glm4moe", policy, n_ctx=256) as session:
        generation, _ = run(session, PROMPT, policy, 1000)
        assert generation.finish_reason == "context"
        assert session.n_past == 256
        assert len(generation.tokens) == 256 - len(PROMPT) + 1


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_after_a_failed_pass_the_session_is_empty_but_works(tiny: Path, kind: str) -> None:
    with open_session(tiny, kind, "chain:3") as session:
        expected, _ = run(session, PROMPT, "chain:3", 20)
        session.clear()
        callback = session._llama.ggml_abort_callback(lambda _: True)
        generation = generate(session, PROMPT, policy=parse_policy("chain:3"), sampler=session.new_sampler(GREEDY), max_tokens=20)
        steps = iter(generation)
        next(steps)
        next(steps)
        session._llama.llama_set_abort_callback(session.ctx, callback, ctypes.c_void_p(0))
        with pytest.raises(EngineError, match=r"decoding a tree of 4 nodes failed .*; the context was emptied, try again\."):
            next(steps)
        session._llama.llama_set_abort_callback(session.ctx, ctypes.cast(None, type(callback)), ctypes.c_void_p(0))
        assert session.n_past == 0
        again, _ = run(session, PROMPT, "chain:3", 20)
        assert again.tokens == expected.tokens


def test_a_model_without_a_head_decodes_plainly_and_says_so(tiny: Path) -> None:
    with open_session(tiny, "llama", "chain:3") as session:
        assert session.notices == ["decoding plainly: this model has no MTP head."]
        assert session.limits.max_depth == 0
        generation, _ = run(session, PROMPT, "chain:3", 20)
        assert generation.policy.name == "off"
        assert len(generation.tokens) == 20


def test_recurrent_models_decode_plainly(tiny: Path) -> None:
    with open_session(tiny, "mamba2", "chain:3") as session:
        assert len(session.notices) == 1
        generation, _ = run(session, PROMPT, "chain:3", 20)
        assert len(generation.tokens) == 20


def test_a_file_that_llama_cpp_refuses(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelFileError, match=r"no\.gguf"):
        Session.open(SessionOptions(path))


def test_a_closed_session_refuses_everything(tiny: Path) -> None:
    session = open_session(tiny, "glm4moe", "chain:1")
    sampler = session.new_sampler(GREEDY)
    begun = iter(generate(session, PROMPT, policy=parse_policy("chain:1"), sampler=sampler, max_tokens=9))
    next(begun)
    sampler.close()
    session.close()
    session.close()
    for call in (
        lambda: session.tokenize("a", add_special=False, parse_special=False),
        lambda: session.piece(5),
        lambda: next(begun),
        lambda: session.prefill(PROMPT, lambda: False),
    ):
        with pytest.raises(EngineError, match="session is closed"):
            call()


@pytest.mark.parametrize("kind", ["glm4moe", "qwen35"])
def test_a_discarded_tree(tiny: Path, kind: str) -> None:
    """A sampler may fail between verification and commit; the next prompt must not meet the tree."""
    with open_session(tiny, kind, "chain:3") as session:
        expected, _ = run(session, PROMPT, "chain:3", 20)
        session.clear()
        session.prefill(PROMPT, lambda: False)
        session.start(expected.tokens[0])
        session.verify(session.draft(parse_policy("chain:3").plan(None)))  # type: ignore[arg-type]
        session.discard()
        again, _ = run(session, [*PROMPT, *expected.tokens[:5]], "chain:3", 15)
        assert again.tokens == expected.tokens[5:]


@pytest.mark.parametrize("kind", [*KINDS, "hy_v3"])
def test_a_back_end_that_knows_no_trees_verifies_chains(tiny: Path, kind: str) -> None:
    with open_session(tiny, kind, "chain:3", n_gpu_layers=0) as session:
        expected, expected_drafts = run(session, PROMPT, "chain:3", 40)
    with other_back_end(), open_session(tiny, kind, "chain:3", best_on_device=True) as session:
        found, drafts = run(session, PROMPT, "chain:3", 40)
        assert not session.limits.trees
    assert found.tokens == expected.tokens
    assert drafts == expected_drafts
    with other_back_end(), open_session(tiny, kind, "tree:narrow") as session:
        assert len(session.notices) == 1
        assert session.notices[0].startswith("drafting chains instead of trees: ")


def test_loading_can_be_stopped(tiny: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot load"):
        Session.open(SessionOptions(tiny / "glm4moe.gguf"), stop=lambda: True)


def test_a_path_that_is_not_utf8(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.gguf")
    path.write_bytes((tiny / "llama.gguf").read_bytes())
    with Session.open(SessionOptions(path)) as session:
        assert session.n_vocab > 0


@pytest.mark.parametrize("on_device", [False, True])
def test_entropy_of_a_row(tiny: Path, on_device: bool) -> None:
    options = SessionOptions(tiny / "qwen35.gguf", n_ctx=256, max_depth=3, max_nodes=3, best_on_device=on_device)
    with Session.open(options) as session, session.new_sampler(SamplingOptions(temp=0)) as sampler:
        session.prefill([1, 2, 3, 4], lambda: False)
        session.chooser(sampler)
        for row in (-1, 0, 2):
            if row == 0:
                session.start(5)
                session.verify(session.draft(TreeShape.chain(3)))
            logits = session.logits(row).astype(np.float64)
            p = np.exp(logits - logits.max())
            p /= p.sum()
            assert session.entropy(row) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-4)


def test_warming_up_leaves_nothing_behind(tiny: Path) -> None:
    with open_session(tiny, "qwen35", "chain:3") as session:
        expected, drafts = run(session, PROMPT, "chain:3", 30)
        n_past = session.n_past
        warm_up(session, (1, 2, 4))
        assert session.n_past == n_past > 0
        session.clear()
        warm_up(session, (1, 2, 4, 64), TreeShape.chain(3))
        assert session.n_past == 0
        found, again = run(session, PROMPT, "chain:3", 30)
        assert found.tokens == expected.tokens
        assert again == drafts
        session.clear()
        warm_up(session, (1, 2, 4), limit=0.0)
        assert run(session, PROMPT, "chain:3", 30)[0].tokens == expected.tokens


@pytest.mark.parametrize(("sizes", "is_warm"), [((1, 2, 3, 4), True), ((1, 4), True), ((), False)])
def test_warming_up_builds_the_graphs_of_drafts(sizes: Sequence[int], is_warm: bool) -> None:
    """Of each number of tokens that may have been accepted before a draft, and of one behind a prompt."""
    shape = TreeShape.chain(3)
    with Session.open(SessionOptions(SHIPPED, n_ctx=512, n_threads=2, max_depth=3, max_nodes=3)) as session:

        def reused() -> int:
            """Graphs that a draft did not have to build."""
            before = session._llama.llama_perf_context(session._ctx_mtp).n_reused
            session.draft(shape)
            return int(session._llama.llama_perf_context(session._ctx_mtp).n_reused - before)

        warm_up(session, sizes, shape, limit=60.0)
        session.prefill(PROMPT, lambda: False)
        session.start(5)
        found = [reused()]
        for n in range(1, 5):
            tree = DraftTree(TreeShape.chain(n - 1), tuple(range(7, 7 + n)))
            session.verify(tree)
            session.commit(tree, range(n))
            session.follow(tree, range(n), 9)
            found.append(reused())
        # without it the draft behind the prompt builds the graph that one behind nothing accepted needs
        assert found == ([1, 1, 1, 1, 1] if is_warm else [0, 1, 0, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_warming_up_changes_no_draft(tiny: Path, kind: str) -> None:
    with open_session(tiny, kind, "throughput") as session:
        expected, drafts = run(session, PROMPT, "chain:3", 20)
        session.clear()
        policy = parse_policy("throughput").within(session.limits)
        warm_up(session, sizes_of(policy), drafted_by(policy), limit=60.0)
        found, again = run(session, PROMPT, "chain:3", 20)
        assert found.tokens == expected.tokens
        assert again == drafts


@pytest.mark.parametrize("n_ctx", [1, 2, 5, 30, 64])
def test_warming_up_where_there_is_little_room(n_ctx: int) -> None:
    for policy in map(parse_policy, ("chain:3", "chain:30", "tree:wide", "throughput", "entmtp")):
        options = SessionOptions(SHIPPED, n_ctx=n_ctx, n_threads=2, max_depth=policy.max_depth, max_nodes=policy.max_nodes)
        with Session.open(options) as session:
            warm_up(session, sizes_of(policy), drafted_by(policy))
            assert session.n_past == 0


def test_measuring_costs_says_nothing_of_the_text() -> None:
    with Session.open(SessionOptions(SHIPPED, n_ctx=512, max_depth=3, max_nodes=3)) as session:
        chooser = session._draft_vocab
        with session.steady_draft_vocab():
            assert session._draft_vocab is None
            session.prefill([0] * 64, lambda: False)
        assert session._draft_vocab is chooser
        assert chooser is None or chooser._seen == 0
