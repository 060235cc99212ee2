"""What is said of texts: Python that parses, right answers; and the tables that say it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from entmtp_local.bench import workloads
from entmtp_local.errors import UsageError
from entmtp_local.speculative.entropy import row_entropy as entropy
from scripts.reference import card, heldout, prompts, quality
from scripts.reference.corpus import SHIPPED_HELDOUT, held_out
from scripts.reference.quality import given_answer, python_share

PROMPT = "import os\n\n\ndef f(a):\n    if a:\n"


@pytest.mark.parametrize(
    ("completion", "finished", "share"),
    [
        ("        return 1\n    return 2\n", False, 1.0),
        ("        return 1\n    return (2 +", False, 1.0),  # the line that the limit cut is dropped
        ("        return 1\n    return (2 +", True, 0.5),  # the model itself left it like that
        ("        return 1\n    return f(\n        a,\n        b,\n", False, 0.25),
        ("        return 1\n    try:\n        g()\n        h()\n", False, 1.0),  # blocks may be open
        ("        return 1\n    try:\n        g()\n    except E:\n        try:\n            h()\n", False, 1.0),
        ("        return 1\n    for x in a:\n", False, 1.0),
        ("        return 1\n\n\nclass C:\n", False, 1.0),
        ("    return 1\n", False, 0.0),  # an expected indent is missing
        ("        return 1\n    this is no Python\n    return 2\n    return 3\n", False, 0.25),
        ("        return 1\n\n\n\n\n)\n", False, 0.5),  # blank lines do not count
        ("        return 1", False, 0.0),  # no whole line
        ("", True, 0.0),
        ("\n\n", False, 0.0),
        ("        return '\x00'\n", False, 0.0),
    ],
)
def test_the_share_of_a_completion_that_parses(completion: str, finished: bool, share: float) -> None:
    assert python_share(PROMPT, completion, finished=finished) == pytest.approx(share)


def test_a_completion_may_close_what_the_prompt_left_open() -> None:
    assert python_share("def f(\n    a,\n", "    b,\n):\n    return a\n", finished=False) == 1.0
    assert python_share("def f(\n    a,\n", "    b,\n    c,\n", finished=False) == 0.0
    assert python_share("def f():\n\ttry:\n\t\tx = 1\n", "\t\ty = 2\n", finished=False) == 1.0
    assert python_share("x = [1,", " 2]\ny = 3\n", finished=False) == 1.0


def test_prompts_that_are_not_python_do_not_count() -> None:
    assert python_share("fn main() {\n", "    let x = 1;\n", finished=False) is None
    assert python_share("Once upon a time", " there was.\n", finished=True) is None


def test_every_code_prompt_counts_and_no_other() -> None:
    for name in workloads.NAMES:
        for prompt in workloads.load(name):
            if prompt.text is not None:
                counts = python_share(prompt.text, "", finished=False) is not None
                assert counts == (name == "code"), prompt.id


def test_the_first_answer_counts() -> None:
    assert given_answer("2 + 2 = 4.\nAnswer: 2 + 2 = 4 \n\nProblem: x\nAnswer: 5\n") == "2 + 2 = 4"
    assert given_answer("Answer: 12") == "12"
    assert given_answer("The Answer: 12") is None


def test_the_math_workload_has_the_answers_of_its_generator() -> None:
    shipped = workloads.load("math")
    made = list(prompts._math(1))
    assert [(p.text, p.topic, p.answer) for p in shipped] == [(e["prompt"], e["topic"], e["answer"]) for e in made]


def test_held_out_questions_are_held_out_and_differ() -> None:
    questions = list(quality.held_out_questions(3))
    assert len({question.text for question in questions}) == len(questions)
    assert len({question.topic for question in questions}) == 22
    assert all(held_out(question.text, 1) for question in questions)
    assert questions == list(quality.held_out_questions(3))


def test_marks_of_a_template_are_seen() -> None:
    assert quality.has_stray_marks("Hello<|im_start|>user")
    assert not quality.has_stray_marks("a <| b |> c")


# -- entropy


def test_entropy() -> None:
    assert entropy(np.zeros(8, dtype=np.float32)) == pytest.approx(np.log(8))
    assert entropy(np.array([0.0, 0.0, -np.inf, -np.inf], dtype=np.float32)) == pytest.approx(np.log(2))
    assert entropy(np.array([1000.0, 0.0, 0.0], dtype=np.float32)) == pytest.approx(0.0)
    row = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 5
    p = np.exp(row.astype(np.float64))
    p /= p.sum()
    assert entropy(row) == pytest.approx(-(p * np.log(p)).sum())


# -- the shipped sample


@pytest.mark.parametrize("kind", workloads.NAMES)
def test_the_held_out_sample_is_small_and_names_no_hosts(kind: str) -> None:
    entries = [json.loads(line) for line in (SHIPPED_HELDOUT / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 40_000 <= sum(len(entry["text"].encode()) for entry in entries) <= 48_000
    assert len({entry["text"] for entry in entries}) == len(entries) >= 20
    assert all(entry["kind"] == kind and entry["source"] and entry["licence"] for entry in entries)
    assert not any(len(entry["text"]) > heldout.MAX_CHARACTERS or heldout._HOST.search(entry["text"]) for entry in entries)


def test_the_held_out_sample_shows_nothing_of_the_workloads() -> None:
    sources, asked = heldout._shown_by_workloads()
    assert len(sources) > 50 and len(asked) > 90
    for kind in workloads.NAMES:
        for line in (SHIPPED_HELDOUT / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            assert entry["source"] not in sources
            assert not any(question in entry["text"] for question in asked)
            if kind == "math":
                questions = re.findall(r"^Problem: (.*)$", entry["text"][: entry["text"].rfind("\n")], re.MULTILINE)
                assert all(held_out(question, 1) for question in questions)
            elif kind != "chat":
                assert held_out(entry["source"], 2), "held out whatever the seed"


# -- the card

MEASURED = {
    "command": "`scripts/measure_model.py m.gguf`",
    "n": 300,
    "n_ctx": 512,
    "model": {
        "name": "m.gguf",
        "sha256": "ab",
        "size_bytes": 1234,
        "n_parts": 1,
        "n_parameters": 13_000_000,
        "type": "F16",
        "architecture": "qwen35",
        "n_layer": 8,
        "n_layer_nextn": 1,
        "n_embd": 256,
        "n_vocab": 8192,
        "n_ctx_train": 512,
    },
    "workloads": {
        "mine": {
            "0": {
                "n_prompts": 1,
                "n_tokens": 4,
                "finish_reasons": {"stop": 1, "length": 0, "context": 0},
                "entropy": {"mean": 1.0, "quartiles": [0.5, 1.0, 1.5]},
                "looped": {"share": 0.0, "median_start": None},
            }
        }
    },
}


def test_the_card_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"# Models\n\n{card.BEGIN}\nold\n{card.END}\n\nThe end.\n")
    card.replace(path, MEASURED)
    once = path.read_text()
    assert once.startswith("# Models\n\n<!-- measured: begin -->\n\n| measured by")
    assert once.endswith("\n<!-- measured: end -->\n\nThe end.\n")
    assert "old" not in once and "| mine, 0 " in once and "13,000,000" in once
    card.replace(path, MEASURED)
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["", card.BEGIN, f"{card.END}\n{card.BEGIN}", f"{card.BEGIN}{card.BEGIN}{card.END}"])
def test_a_card_without_marks_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(UsageError, match="measured: begin"):
        card.replace(path, MEASURED)
    assert path.read_text() == text


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    for table in card.markdown(MEASURED).split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.strip().split("\n")}) == 1
