"""What a step of an answer becomes, and how far a prompt has been read; the script that measures both runs."""

from __future__ import annotations

import json
import sys

import pytest
from screen import Screen

from entmtp_local.chat.progress import ReadingProgress
from entmtp_local.chat.settings import Settings
from entmtp_local.chat.show import Show
from entmtp_local.chat.stream import TextStream
from entmtp_local.engine import Step, StepSeconds
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree
from entmtp_local.speculative.verify import STRICT
from scripts import bench_streaming


class Bytes:
    def piece(self, token: int, *, special: bool) -> bytes:
        return bytes([token])


@pytest.mark.parametrize(
    ("hides", "markdown", "wanted"),
    [
        (False, True, ["hm", "", "é done"]),
        (True, True, ["é done"]),
        (False, False, ["<think>hm</think>é **done**"]),
        (True, False, ["é **done**"]),
    ],
)
def test_reasoning_is_shown_apart_as_it_is_or_not_at_all(hides: bool, markdown: bool, wanted: list[str]) -> None:
    settings = Settings(OFF, STRICT, SamplingOptions(), "strict", hides_thinking=hides, markdown=markdown)
    screen = Screen(40, 10)
    show = Show(screen, settings, Bytes(), inside=False, journal=None)  # type: ignore[arg-type]
    text = TextStream()
    for token in "<think>hm</think>é **done**".encode():
        show.step(Step((token,), DraftTree(ROOT_ONLY, (token,)), (0,), StepSeconds(0.0, 0.0, 0.0, 0.0, 0.0)), text)
    show.finish(text)
    assert screen.lines == wanted and text.text == "<think>hm</think>é **done**"


def test_a_bar_appears_only_where_reading_takes_long() -> None:
    shown: list[str] = []
    now = 0.0

    class Status:
        def status(self, line: str) -> None:
            shown.append(line)

    progress = ReadingProgress(Status(), clock=lambda: now)  # type: ignore[arg-type]
    progress.show(512, 4096)
    assert shown == []
    now = 1.0
    progress.show(1024, 4096)
    assert shown == ["reading [######..................] 1024 of 4096 tokens"]
    progress.end()
    progress.show(2048, 4096)
    assert shown[1:] == [""], "taken away, and not shown again"


def test_the_script_that_measures_streaming(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bench_streaming, "TEXTS", {"mixed": "Some **bold** text.\n\n- one\n- two\n"})
    monkeypatch.setattr(sys, "argv", ["bench_streaming.py", "--characters", "3"])
    bench_streaming.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["runs"]) == {"plain mixed", "markdown mixed"} and report["rate"] == 200
    assert all(run["n_tokens"] == 11 and run["share"] > 0 for run in report["runs"].values())
