"""The shipped prompts, and files of the user's own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from entmtp_local.bench import workloads
from entmtp_local.errors import UsageError


@pytest.mark.parametrize("name", workloads.NAMES)
def test_a_shipped_workload_has_at_least_forty_different_prompts(name: str) -> None:
    prompts = workloads.load(name)
    assert len(prompts) >= 40
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({(prompt.text, prompt.messages) for prompt in prompts}) == len(prompts)
    assert {prompt.kind for prompt in prompts} == {name}
    assert all(prompt.source for prompt in prompts)


@pytest.mark.parametrize("name", workloads.NAMES)
def test_chat_prompts_are_conversations_and_the_others_are_text(name: str) -> None:
    for prompt in workloads.load(name):
        if name == "chat":
            assert prompt.text is None
            assert prompt.messages is not None
            assert prompt.messages[-1].role == "user"
        else:
            assert prompt.messages is None
            assert prompt.text is not None
            assert 20 <= len(prompt.text) <= 2_000
            assert "<|" not in prompt.text


def test_math_prompts_leave_the_last_solution_open() -> None:
    for prompt in workloads.load("math"):
        assert re.search(r"(^|\n\n)Problem: [^\n]+\nSolution:\n$", prompt.text or "")


def test_code_prompts_end_with_a_line_and_prose_prompts_within_a_sentence() -> None:
    assert all((prompt.text or "").endswith("\n") for prompt in workloads.load("code"))
    assert all(re.search(r"\S$", prompt.text or "") for prompt in workloads.load("prose"))


def test_an_own_file_needs_only_prompts(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"prompt": "Once\u2028upon"},
        {"id": "b", "kind": "talk", "prompt": [{"role": "user", "content": "Hi"}], "source": "me"},
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", encoding="utf-8")
    first, second = workloads.load(path)
    assert (first.id, first.kind, first.text, first.messages) == ("line-1", "own", "Once\u2028upon", None)
    assert (second.id, second.kind, second.text, second.source) == ("b", "talk", None, "me")
    assert second.messages == (workloads.Message("user", "Hi"),)
    assert workloads.load(str(path)) == [first, second]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ("not json", "line 1 is not JSON"),
        ('{"text": "x"}', "line 1 has no prompt"),
        ('["x"]', "line 1 has no prompt"),
        ('{"prompt": ""}', "neither text nor a list"),
        ('{"prompt": 3}', "neither text nor a list"),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "without role and content"),
        (
            '{"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
            "ends with a message of the assistant",
        ),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"prompt": "x", "id": ' + "1" * 6000 + "}", "line 1 is not JSON"),
        ('{"prompt": [{"role": ["user"], "content": "x"}]}', "without role and content"),
        ('{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}', "uses the id 1 a second time"),
    ],
)
def test_a_file_that_is_not_prompts_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        workloads.load(path)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="There is no workload poems, and no such file: name one of code, math, chat, prose"):
        workloads.load("poems")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        workloads.load(path)


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Once upon\n\n  a time \n", encoding="utf-8")
    assert [(prompt.id, prompt.text) for prompt in workloads.load(path)] == [("line-1", "Once upon"), ("line-2", "  a time ")]
    path.write_text("\n")
    with pytest.raises(UsageError, match="holds no prompts: it needs a prompt a line"):
        workloads.load(path)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    """Editors of Windows write one."""
    for name, content in (("a.jsonl", '{"prompt": "Once"}\n'), ("a.txt", "Once\n")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert [prompt.text for prompt in workloads.load(tmp_path / name)] == ["Once"]


def test_what_is_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device has no end, and a pipe is waited for."""
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (Path("/dev/zero"), tmp_path / "pipe.txt", tmp_path):
        with pytest.raises(UsageError, match="no regular file"):
            workloads.load(path)
    (tmp_path / "long.txt").write_text("too long")
    monkeypatch.setattr(workloads, "_MOST_BYTES", 4)
    with pytest.raises(UsageError, match="larger than"):
        workloads.load(tmp_path / "long.txt")


def test_answers_are_kept() -> None:
    assert all(prompt.answer and prompt.topic for prompt in workloads.load("math"))
    assert all(prompt.answer is None for prompt in workloads.load("code"))
