"""The shipped model, and what counts as agreement with plain decoding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entmtp_local.native.session import Session, SessionOptions
from scripts.make_tiny_models import main as make_tiny_models

ROOT = Path(__file__).parents[2]

# Passes of different widths round differently, in stock too: where the two best logits lie closer than this, either token
# is the model's own. Measured differences between widths are below 0.01.
NEAR_TIE = 0.03


@pytest.fixture(scope="session", autouse=True)
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own: what is measured here is no user's profile."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "entmtp-local" / "profiles"


@pytest.fixture(scope="session")
def shipped() -> Path:
    return ROOT / "models" / "reference-11m.gguf"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_models(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def cli(*arguments: str | Path, **options: Any) -> Ran:
    """Run the command in a process of its own."""
    finished = subprocess.run(
        [sys.executable, "-m", "entmtp_local", *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT, **options
    )
    return Ran(finished.returncode, finished.stdout, finished.stderr)


def near_ties(model: Path, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int]) -> str | None:
    """Compare two greedy continuations.

    Returns: None when they are equal, else a sentence on their first difference, which is a near-tie of the target.
    Raises: AssertionError when the first difference is none.
    """
    at = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
    if at is None:
        assert len(plain) == len(other)
        return None
    with Session.open(SessionOptions(model, n_ctx=2048)) as session:
        session.prefill([*prompt, *plain[:at]], lambda: False)
        row = np.ctypeslib.as_array(session._llama.llama_get_logits_ith(session.ctx, -1), shape=(session.n_vocab,))
        gap = float(row.max() - row[other[at]])
    assert gap < NEAR_TIE, f"token {at} is {other[at]} instead of {plain[at]}, whose logit is larger by {gap:.4f}"
    return f"token {at}: {other[at]} instead of {plain[at]}, a near-tie (logits {gap:.4f} apart)"
