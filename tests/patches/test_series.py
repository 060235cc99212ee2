"""The series on the real source: it applies, comes out byte for byte the same, and the built tree is what it says."""

from __future__ import annotations

from pathlib import Path

from entmtp_local.native.series import differences, lint_series, read_patch
from entmtp_local.native.source import (
    Git,
    Layout,
    Upstream,
    file_sha256,
    make_base_repository,
    series,
    unpack_source,
)


def test_series_applies_to_the_sdist_and_comes_out_the_same(layout: Layout, upstream: Upstream, git: Git, tmp_path: Path) -> None:
    """From the downloaded file itself, so that nothing an earlier build left behind can help."""
    sdist = layout.download / upstream.sdist
    assert sdist.is_file(), "the pinned source is not there: run scripts/setup"
    assert file_sha256(sdist) == upstream.sha256
    unpack_source(sdist, upstream.source, tmp_path / "source")
    make_base_repository(git, tmp_path / "source", tmp_path / "base.git")
    tree = tmp_path / "llama.cpp"
    git.run(tmp_path, "clone", "--quiet", "--template=", str(tmp_path / "base.git"), str(tree))
    assert differences(git, tree, layout.patches, tmp_path) == []
    applied = git.run(tree, "rev-list", "--count", "HEAD")
    assert int(applied) == 1 + len(series(layout.patches))
    same = git.run(tree, "rev-parse", "HEAD^{tree}")
    assert git.run(layout.patched_tree, "rev-parse", "HEAD^{tree}") == same, "build/src/llama.cpp is not the series' tree"


def test_headers_follow_the_rules(layout: Layout) -> None:
    assert lint_series([read_patch(path) for path in series(layout.patches)]) == []


def test_pin_names_the_source_that_was_unpacked(layout: Layout, upstream: Upstream) -> None:
    """The llama.cpp version in UPSTREAM is a note for people, so nothing else would find it out of date."""
    text = (layout.patched_tree / "CMakeLists.txt").read_text(encoding="utf-8")
    for part, value in zip(("MAJOR", "MINOR", "PATCH"), upstream.llama_cpp_version.split("."), strict=True):
        assert f"set(LLAMA_VERSION_{part} {value})" in text
