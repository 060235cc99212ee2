"""The patch series' own rules, on a small fake source."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_source import MESSAGE, FakeSource, commit_line, make_fake_source

from entmtp_local.errors import EngineError
from entmtp_local.native import series as series_module
from entmtp_local.native.series import check, export_series, lint_series, read_patch
from entmtp_local.native.source import prepare_patched_tree, scratch_folder, series


@pytest.fixture
def fake(tmp_path: Path) -> FakeSource:
    return make_fake_source(tmp_path)


def test_good_series_passes(fake: FakeSource) -> None:
    fake.write_patch("tree", 3)
    fake.write_patch("second", 20)
    check(fake.layout, fake.git, fake.reporter)
    patches = [read_patch(path) for path in series(fake.layout.patches)]
    assert [patch.subject for patch in patches] == ["engine : add the tree hook", "engine : add the second hook"]
    assert patches[0].changed == patches[0].upstream_files == {"src/llama.cpp"}


def test_empty_series_passes(fake: FakeSource) -> None:
    check(fake.layout, fake.git, fake.reporter)
    assert series(fake.layout.patches) == []


def test_edited_patch_is_found(fake: FakeSource) -> None:
    """A context line edited by hand still applies, with fuzz, and comes out different."""
    patch = fake.write_patch("tree", 3)
    patch.write_text(patch.read_text().replace("@@ -1,7 +1,7 @@", "@@ -2,7 +2,7 @@"))
    with pytest.raises(EngineError, match=f"{patch.name}: applied and exported again it is another file"):
        check(fake.layout, fake.git, fake.reporter)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("engine : add", "add", "is not `module : title`"),
        ("The {word} needs it.\n\nWhen unused: none.\n\n", "", "does not say why"),
        ("When unused: none.", "It is small.", "does not say the effect when unused"),
        ("\nTest: tests/native/test_{word}.py", "", "no trailer `Test:`"),
        ("Upstream-Files: src/llama.cpp\n", "", "no trailer `Upstream-Files:`"),
        ("src/llama.cpp\n", "none\n", "leaves out src/llama.cpp"),
        ("src/llama.cpp\n", "src/llama.cpp,\n src/other.cpp\n", "lists src/other.cpp, which it does not change"),
    ],
)
def test_broken_header_is_found(fake: FakeSource, monkeypatch: pytest.MonkeyPatch, old: str, new: str, problem: str) -> None:
    assert old in MESSAGE
    monkeypatch.setattr("fake_source.MESSAGE", MESSAGE.replace(old, new))
    fake.write_patch("tree", 3)
    problems = lint_series([read_patch(path) for path in series(fake.layout.patches)])
    assert [found for found in problems if problem in found] == problems[:1]


def test_files_of_the_series_itself_need_not_be_listed(fake: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = prepare_patched_tree(fake.layout, fake.upstream, fake.git, fake.reporter)
    for text in ("int first;\n", "int second;\n"):
        (tree / "src" / "new.cpp").write_text(text)
        fake.git.run(tree, "add", "src/new.cpp")
        message = MESSAGE.format(word="new").replace("src/llama.cpp", "none")
        fake.git.run(tree, "commit", "--quiet", f"--message={message}")
    with scratch_folder(fake.layout) as scratch:
        assert export_series(fake.git, tree, fake.layout.patches, scratch) == 2
    check(fake.layout, fake.git, fake.reporter)


def test_export_replaces_the_series_and_setup_sees_nothing_to_do(
    fake: FakeSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.write_patch("tree", 3)
    tree = prepare_patched_tree(fake.layout, fake.upstream, fake.git, fake.reporter)
    fake.git.run(tree, "reset", "--quiet", "--hard", "HEAD~1")
    commit_line(fake.git, tree, "other", 9)
    head = fake.git.run(tree, "rev-parse", "HEAD")
    monkeypatch.setattr(series_module, "find_layout", lambda: fake.layout)
    assert series_module.main(["export"]) == 0
    assert "1 patches written" in capsys.readouterr().out
    assert [path.name for path in series(fake.layout.patches)] == ["0001-engine-add-the-other-hook.patch"]
    prepare_patched_tree(fake.layout, fake.upstream, fake.git, fake.reporter)
    assert fake.git.run(tree, "rev-parse", "HEAD") == head


def test_export_refuses_uncommitted_work(fake: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = fake.write_patch("tree", 3)
    tree = prepare_patched_tree(fake.layout, fake.upstream, fake.git, fake.reporter)
    (tree / "src" / "other.cpp").write_text("int edited;\n")
    with scratch_folder(fake.layout) as scratch, pytest.raises(EngineError, match="not committed"):
        export_series(fake.git, tree, fake.layout.patches, scratch)
    assert series(fake.layout.patches) == [patch]
