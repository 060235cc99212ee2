"""docs/POLICIES.md: the policy that it shows does what it says, and decodes the model's own text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entmtp_local.speculative.protocol import Evidence, Limits
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import DraftTree, TreeShape
from tests.unit.test_engine import RandomEngine, plain, run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "POLICIES.md"


@pytest.fixture(scope="module")
def one_more() -> Any:
    code, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["OneMore"]


def test_it_drafts_what_the_page_says(one_more: Any) -> None:
    policy = one_more(4)
    assert [policy.plan(Evidence(10, n)).max_depth for n in range(5)] == [1, 2, 3, 4, 4]
    logp = np.log([1.0, 0.9, 0.5, 0.2, 0.9]).astype(np.float32)
    assert policy.select(DraftTree(TreeShape.chain(4), (1, 2, 3, 4, 5), logp)).tokens == (1, 2, 3)
    assert policy.within(Limits(trees=False, max_depth=2, max_nodes=9, reason="")).max_depth == 2
    assert policy.within(Limits(trees=False, max_depth=0, max_nodes=0, reason="")) is OFF


@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_the_models_own(one_more: Any, seed: int) -> None:
    engine = RandomEngine(seed)
    generation, steps = run(engine, one_more(), 60)
    assert generation.tokens == plain(RandomEngine(seed), 60)[: len(generation.tokens)]
    assert len({step.tree.shape.n_nodes for step in steps}) > 2


def test_what_the_page_refers_to_is_there() -> None:
    links = re.findall(r"\]\((\.\./[^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) >= 8
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
