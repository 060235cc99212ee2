"""docs/POLICIES.md: its policy decodes with the shipped model, by the lines that it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_decodes_with_its_policy() -> None:
    page = (ROOT / "docs" / "POLICIES.md").read_text(encoding="utf-8")
    policy, use = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(policy, names)
    assert "model.gguf" in use
    exec(use.replace("model.gguf", str(ROOT / "models" / "reference-11m.gguf")), names)
    generation = names["generation"]
    assert generation.policy is names["policy"], "the session verifies all that it drafts"
    assert generation.finish_reason in ("length", "stop")
    assert generation.stats.n_nodes > 0 and sum(generation.stats.accepted_per_depth) > 0
