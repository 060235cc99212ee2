"""Strict and typical acceptance on the shipped model, through the engine and through the command."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model.conftest import cli

from entmtp_local.engine import Step, generate
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.verify import STRICT, AcceptanceRule, Typical

PROMPTS = ["def main", "The sum of 14 and 25 is", "Once upon a time", "user: How are you?\nassistant:"]
N = 120
TEMP = 0.8

# Passes of different widths round differently: logits by less than 0.01 on this model, so that a probability at this temperature
# and the threshold together move by less.
SLACK = math.exp(-4 * 0.01 / TEMP)


@pytest.fixture(scope="module")
def session(shipped: Path) -> Iterator[Session]:
    with Session.open(SessionOptions(shipped, n_ctx=512, max_depth=3, max_nodes=3)) as session:
        yield session


def steps_of(session: Session, prompt: list[int], rule: AcceptanceRule, seed: int) -> list[Step]:
    with session.new_sampler(SamplingOptions(temp=TEMP, seed=seed)) as sampler:
        return list(generate(session, prompt, policy=parse_policy("chain:3"), rule=rule, sampler=sampler, max_tokens=N))


def test_typical_acceptance_takes_more_and_only_what_is_typical(session: Session) -> None:
    per_step: dict[str, float] = {}
    n_unchosen = 0
    for rule in (STRICT, Typical(TEMP)):
        emitted = n_steps = 0
        for seed, prompt in enumerate(PROMPTS):
            ids = session.tokenize(prompt, add_special=True, parse_special=True)
            first, *steps = steps_of(session, ids, rule, seed)
            emitted += sum(len(step.tokens) for step in steps)
            n_steps += len(steps)
            if rule is STRICT:
                continue
            text = [*ids, *first.tokens]
            for step in steps:
                for i, node in enumerate(step.accepted):
                    # plain decoding of the same text, one token at a time
                    session.prefill(text + list(step.tokens[:i]), lambda: False)
                    z = session.logits(-1).astype(np.float64) / TEMP
                    p = np.exp(z - z.max())
                    p /= p.sum()
                    entropy = -float((p[p > 0] * np.log(p[p > 0])).sum())
                    token = step.tree.tokens[node]
                    assert token == step.tokens[i]
                    assert p[token] > SLACK * min(0.09, 0.3 * math.exp(-entropy))
                    n_unchosen += int(p.argmax()) != token
                text += step.tokens
        per_step[rule.name] = emitted / n_steps
    print(f"tokens per step: {per_step}; accepted drafts that are not the most probable token: {n_unchosen}")
    assert per_step["typical"] >= per_step["strict"]


def test_at_temperature_0_the_text_is_that_of_strict_acceptance(shipped: Path) -> None:
    arguments = ("run", str(shipped), "-p", "def main", "--temp", "0", "--policy", "chain:3", "--json", "-n", "60")
    strict, typical = cli(*arguments).json, cli(*arguments, "--acceptance", "typical").json
    assert typical["tokens"] == strict["tokens"]
    assert typical["acceptance"] == strict["acceptance"] == "strict"


@pytest.mark.parametrize("policy", ["chain:3", "tree:wide", "throughput"])
def test_the_command_says_what_typical_acceptance_is(shipped: Path, policy: str) -> None:
    arguments = ("run", str(shipped), "-p", "def main", "--temp", "0.8", "--seed", "1", "--json", "-n", "80")
    ran = cli(*arguments, "--policy", policy, "--acceptance", "typical")
    assert ran.code == 0
    assert ran.err.splitlines()[0].startswith("typical acceptance: the output distribution is changed")
    told = ran.json
    assert (told["acceptance"], told["lossless"], told["policy"]) == ("typical", False, policy)
    assert told["n_generated"] == len(told["tokens"]) > 0 and told["finish_reason"] in ("length", "stop")
    # throughput may find that nothing pays on this machine
    assert sum(told["accepted_per_depth"]) > 0 or policy == "throughput"
