"""Which architectures load, draft and verify: one tiny model of each kind, plain decoding against every policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from model.conftest import near_ties

from entmtp_local.engine import Generation, generate
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative.copying import MAX_COPIED, CopyDrafter
from entmtp_local.speculative.cost import SIZES, CostTable
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Profile
from entmtp_local.speculative.sampling import SamplingOptions

PROMPT = [(11 * i) % 250 + 4 for i in range(30)]
POLICIES = ["chain:1", "chain:3", "chain:6", "tree:narrow", "tree:wide"]


@dataclass(frozen=True, slots=True)
class Expected:
    wide: str  # what tree:wide becomes
    reason: str  # why, a part of the sentence
    sidecar: str | None = None


TABLE = {
    "qwen35": Expected("tree:wide", ""),
    "qwen35moe": Expected("tree:wide", ""),
    "qwen3next": Expected("tree:wide", ""),
    "glm4moe": Expected("tree:wide", ""),
    "hy_v3": Expected("tree:wide", ""),
    "mimo2": Expected("tree:wide", ""),
    "step35": Expected("chain:3", "one depth each"),
    "gemma4": Expected("tree:wide", "", sidecar="gemma4-mtp"),
    "qwen35-sidecar": Expected("tree:wide", "", sidecar="qwen35-sidecar-mtp"),
    "deepseek2": Expected("tree:wide", ""),
    "nemotron_h_moe": Expected("chain:5", "rolls back along a chain"),
    "bailingmoe3": Expected("chain:5", "rolls back along a chain"),
    "llama": Expected("off", "no MTP head"),
    "mamba2": Expected("off", "no MTP head"),
}


def run(tiny: Path, kind: str, policy: str, n: int, copies: CopyDrafter | None = None) -> tuple[Generation, list[str]]:
    chosen = parse_policy(policy)
    sidecar = TABLE[kind].sidecar
    options = SessionOptions(
        tiny / f"{kind}.gguf",
        mtp_path=tiny / f"{sidecar}.gguf" if sidecar else None,
        n_ctx=1024,
        max_depth=chosen.max_depth,
        max_nodes=chosen.max_nodes,
        max_copied=MAX_COPIED if copies else 0,
    )
    with Session.open(options) as session, session.new_sampler(SamplingOptions(temp=0)) as sampler:
        chosen = chosen.within(session.limits)
        if chosen.needs_profile:
            # nodes are so cheap that trees of all sizes are verified
            chosen.calibrated(Profile(CostTable({size: 1e-3 * (1 + 0.02 * size) for size in SIZES})))
        generation = generate(session, PROMPT, policy=chosen, sampler=sampler, max_tokens=n, copies=copies)
        for _ in generation:
            pass
        return generation, session.notices


@pytest.mark.parametrize("kind", TABLE)
def test_every_policy_gives_the_models_own_text(tiny: Path, kind: str) -> None:
    expected = TABLE[kind]
    # past the sliding windows (32 tokens) and past the first 256 cells
    plain, notices = run(tiny, kind, "off", 400)
    assert notices == []
    for policy in POLICIES:
        found, notices = run(tiny, kind, policy, 400)
        difference = near_ties(tiny / f"{kind}.gguf", PROMPT, plain.tokens, found.tokens)
        if difference:
            print(f"{kind}, {policy}: {difference}")
        if policy == "tree:wide":
            assert found.policy.name == expected.wide
        if found.policy.name == policy:
            assert notices == []
        else:
            assert len(notices) == 1 and expected.reason in notices[0]
        if expected.wide == "off":
            assert found.stats.n_nodes == 0
        else:
            assert found.stats.n_steps < 380, "drafts are accepted"
            assert (found.stats.sibling_hits > 0) == found.policy.name.startswith("tree")


@pytest.mark.parametrize("kind", [kind for kind, expected in TABLE.items() if expected.wide != "off"])
def test_what_pays_for_itself_gives_the_models_own_text(tiny: Path, kind: str) -> None:
    plain, _ = run(tiny, kind, "off", 300)
    found, _ = run(tiny, kind, "throughput", 300)
    difference = near_ties(tiny / f"{kind}.gguf", PROMPT, plain.tokens, found.tokens)
    if difference:
        print(f"{kind}: {difference}")
    assert found.policy.name == "throughput"
    assert found.stats.n_nodes > 0
    assert 0 < found.stats.n_steps < 300


@pytest.mark.parametrize("kind", [kind for kind, expected in TABLE.items() if expected.wide != "off"])
def test_copied_text_is_verified_on_every_memory(tiny: Path, kind: str) -> None:
    """Random models repeat themselves, so that there is something to copy."""
    plain, _ = run(tiny, kind, "off", 400)
    found, notices = run(tiny, kind, "chain:3", 400, CopyDrafter())
    assert notices == []
    difference = near_ties(tiny / f"{kind}.gguf", PROMPT, plain.tokens, found.tokens)
    if difference:
        print(f"{kind}: {difference}")
    assert 0 < found.stats.copied_hits <= found.stats.n_copied
    assert found.stats.n_steps < 400 / 1.5
