"""What Tab makes of a line that is being typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from entmtp_local.chat.commands import _file_and_rest
from entmtp_local.chat.editing import PATHS, _Completer


def completed(line: str) -> list[str]:
    """The line with each of the completions."""
    found = _Completer(lambda _: PATHS, lambda _: None).get_completions(Document(line), CompleteEvent())
    return [line[: len(line) + each.start_position] + each.text for each in found]


@pytest.mark.parametrize("name", ["my notes.txt", 'so "called" notes.txt', "it's mine.txt", "notes.txt", "one \\ two.txt"])
def test_a_file_that_is_completed_can_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    (line,) = completed(f"/read {tmp_path}/{name[:2]}")
    assert _file_and_rest(f"{line} What is it?".removeprefix("/read ")) == (tmp_path / name, "What is it?")
    assert ("'" in line or '"' in line) == (" " in name)


def test_folders_with_blanks_go_on(tmp_path: Path) -> None:
    (tmp_path / "my folder").mkdir()
    (tmp_path / "my folder" / "notes.txt").write_text("x")
    (line,) = completed(f"/read {tmp_path}/my")
    assert line == f'/read "{tmp_path}/my folder'
    assert completed(f"{line}/n") == [f'{line}/notes.txt"']
    assert completed(f"/read '{tmp_path}/my folder/n") == [f"/read '{tmp_path}/my folder/notes.txt'"]
