"""A pinned source of three small files, with what the build needs around it, in place of the real 77 MB."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from entmtp_local.native.source import Git, Layout, Upstream, clone_base, file_sha256, prepare_base, read_upstream
from entmtp_local.native.stages import Reporter

FILES = {
    "CMakeLists.txt": "project(fake)\n",
    "src/llama.cpp": "".join(f"int line_{i};\n" for i in range(40)),
    "src/other.cpp": "int other;\n",
    "build-info.txt": "matched by upstream's own .gitignore\n",
    ".gitignore": "/build*\n",
    ".git": "gitdir: ../../.git/modules/vendor/llama.cpp\n",
}

MESSAGE = """engine : add the {word} hook

The {word} needs it.

When unused: none.

Upstream-Files: src/llama.cpp
Test: tests/native/test_{word}.py
"""


@dataclass(frozen=True, slots=True)
class FakeSource:
    """A build folder and a series for the fake source."""

    layout: Layout
    git: Git
    reporter: Reporter
    output: io.StringIO

    @property
    def upstream(self) -> Upstream:
        return read_upstream(self.layout.patches)

    def write_patch(self, word: str, line: int) -> Path:
        """Add a patch that changes one line of src/llama.cpp, by committing and exporting it."""
        from entmtp_local.native.series import export_series
        from entmtp_local.native.source import apply_series, scratch_folder, series

        prepare_base(self.layout, self.upstream, self.git, self.reporter)
        with scratch_folder(self.layout) as scratch:
            tree = scratch / "llama.cpp"
            clone_base(self.git, self.layout, tree)
            apply_series(self.git, tree, series(self.layout.patches), "again")
            commit_line(self.git, tree, word, line)
            export_series(self.git, tree, self.layout.patches, scratch)
        return series(self.layout.patches)[-1]


def commit_line(git: Git, tree: Path, word: str, line: int) -> None:
    """Change one line of src/llama.cpp and commit it with a message that follows the rules."""
    source = tree / "src" / "llama.cpp"
    source.write_text(source.read_text().replace(f"int line_{line};", f"int {word};"))
    git.run(tree, "commit", "--quiet", "--all", f"--message={MESSAGE.format(word=word)}")


def make_fake_source(folder: Path) -> FakeSource:
    """Write the sdist where a download would have put it, and a series of no patches."""
    layout = Layout(root=folder / "build", patches=folder / "patches", is_checkout=True)
    layout.download.mkdir(parents=True)
    layout.patches.mkdir()
    sdist = layout.download / "fake_bindings-1.2.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name, text in [*FILES.items(), ("../setup.py", "raise SystemExit\n")]:
            path = f"fake_bindings-1.2/{name[3:]}" if name.startswith("../") else f"fake_bindings-1.2/vendor/fake/{name}"
            member = tarfile.TarInfo(path)
            member.size = len(text)
            member.mtime = 1_000_000_000
            archive.addfile(member, io.BytesIO(text.encode()))
    lines = {
        "package": "fake-bindings",
        "version": "1.2",
        "sha256": file_sha256(sdist),
        "source": "vendor/fake",
        "llama_cpp_version": "0.1",
        "llama_cpp_commit": "0123456789abcdef",
    }
    text = "# comment\n" + "".join(f"{key}={value}\n" for key, value in lines.items())
    (layout.patches / "UPSTREAM").write_text(text)
    output = io.StringIO()
    return FakeSource(layout, Git("scripts/setup"), Reporter(layout.log, output), output)
