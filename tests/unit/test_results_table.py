"""README's table says what the published results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_fakes import FakeArm, begin, plan, subject

from entmtp_local.bench.record import Record
from entmtp_local.bench.rounds import measure, plain_texts
from entmtp_local.errors import UsageError
from scripts.results_table import BEGIN, END, published, with_table

README = f"# Title\n\n{BEGIN}\n{END}\n\nrest\n"


def publish(folder: Path, name: str, *, complete: bool = True) -> None:
    a_plan = plan(n_rounds=5)
    arms = [FakeArm("throughput", speed=150.0), FakeArm("off"), FakeArm("stock plain", "stock")]
    content = begin(a_plan).content
    content["models"][0] |= {"name": "EntMTP reference 11M, widened to 0.8B"}
    content["settings"]["stock"] = "version: 1"
    record = Record(folder / name, {**content, "complete": complete})
    about = subject(arms, a_plan=a_plan)
    plain_texts(record, about, a_plan)
    measure(record, a_plan, [about], lambda *_: None)
    record.save()


def test_a_table_is_written_once_and_then_agrees(tmp_path: Path) -> None:
    publish(tmp_path, "bench-some.json")
    (tmp_path / "other.json").write_text("[]")
    text = with_table(README, tmp_path, published(tmp_path))
    (row,) = [line for line in text.splitlines() if line.startswith("| a device")]
    assert "`throughput` | 1.50 (1.50 to 1.50) | 1.50" in row and "(docs/results/bench-some.json)" in row
    assert "| up to 40 tokens of code, prose |" in row, "what is not all four workloads is named"
    assert "widened to 0.8B\\*" in row and "acceptance that of the small model" in text.replace("\n", " ")
    assert with_table(text, tmp_path, published(tmp_path)) == text
    assert text.startswith("# Title\n") and text.endswith("\nrest\n")


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert with_table(README, tmp_path, published(tmp_path)) == README


def test_what_cannot_be_published_is_said(tmp_path: Path) -> None:
    publish(tmp_path, "bench-some.json", complete=False)
    with pytest.raises(UsageError, match="was interrupted"):
        published(tmp_path)
    with pytest.raises(UsageError, match="has no place"):
        with_table("nothing", tmp_path, [])


def test_a_file_has_a_line_for_each_visit(tmp_path: Path) -> None:
    publish(tmp_path, "bench-some.json")
    text = (tmp_path / "bench-some.json").read_text()
    assert json.loads(text)["format"] == "entmtp-local bench"
    assert sum(line.startswith('  {"round"') for line in text.splitlines()) == 5 * 2 * 3
