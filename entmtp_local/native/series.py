"""Work on the patch series: apply, export, check, rebase (`scripts/patches.sh`).

Patches are never edited by hand: they are commits of the patched tree, written out. Does not know how the tree is
compiled.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from entmtp_local.errors import EngineError
from entmtp_local.native.source import (
    Git,
    Layout,
    Upstream,
    apply_series,
    base_commit,
    clone_base,
    file_sha256,
    find_layout,
    is_modified,
    make_base_repository,
    patches_sha256,
    pip_failure,
    prepare_base,
    prepare_patched_tree,
    read_upstream,
    run_pip,
    scratch_folder,
    series,
    stamp_patched_tree,
    unpack_source,
)
from entmtp_local.native.stages import Reporter

_FORMAT_PATCH = (
    "format-patch",
    "--zero-commit",
    "--no-signature",
    "--no-numbered",
    "--full-index",
    "--no-renames",
    "--quiet",
)
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./+-]* : \S.*")
_TRAILER = re.compile(r"([A-Z][A-Za-z-]+): ?(.*)")
_CHANGED_FILE = re.compile(r"^diff --git a/(\S+) b/\S+$", re.MULTILINE)
_ADDED_FILE = re.compile(r"^diff --git a/(\S+) b/\S+\nnew file mode ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PatchFile:
    """What a patch file says of itself.

    Attributes:
        subject: first line of the message, without "[PATCH]".
        body: the message below it, without the trailers.
        trailers: values by name, lower case.
        changed: paths the diff touches.
        added: those of them that the patch creates.
    """

    path: Path
    subject: str
    body: str
    trailers: dict[str, str]
    changed: frozenset[str]
    added: frozenset[str]

    @property
    def upstream_files(self) -> frozenset[str]:
        """The paths of the `Upstream-Files:` trailer; empty for "none"."""
        listed = re.split(r"[,\s]+", self.trailers.get("upstream-files", ""))
        return frozenset(path for path in listed if path and path != "none")


def read_patch(path: Path) -> PatchFile:
    """Read a patch file as `git format-patch` writes it."""
    head, _, rest = path.read_text(encoding="utf-8").partition("\n\n")
    message = re.split(r"^---$", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()
    unfolded = re.sub(r"\n[ \t]+", " ", head)
    subject = next((line[9:] for line in unfolded.splitlines() if line.startswith("Subject: ")), "")
    body, _, last = message.rpartition("\n\n")
    trailers: dict[str, str] = {}
    name = ""
    for line in last.splitlines():
        if found := _TRAILER.fullmatch(line):
            name = found[1].lower()
            trailers[name] = f"{trailers[name]} {found[2]}" if name in trailers else found[2].strip()
        elif name and line[:1].isspace():
            trailers[name] += f" {line.strip()}"
        else:
            body, trailers = message, {}
            break
    diff = rest[len(message) :]
    return PatchFile(
        path=path,
        subject=subject.removeprefix("[PATCH]").strip(),
        body=body.strip(),
        trailers=trailers,
        changed=frozenset(_CHANGED_FILE.findall(diff)),
        added=frozenset(_ADDED_FILE.findall(diff)),
    )


def lint_series(patches: Sequence[PatchFile]) -> list[str]:
    """Hold the patches' headers against the rules of patches/README.md.

    Returns: one sentence for each rule that a patch breaks.
    """
    problems = []
    added: frozenset[str] = frozenset()
    for number, patch in enumerate(patches, start=1):
        name = patch.path.name
        added |= patch.added
        if not name.startswith(f"{number:04d}-"):
            problems.append(f"{name}: its number should be {number:04d}")
        if not _SUBJECT.fullmatch(patch.subject):
            problems.append(f"{name}: the subject {patch.subject!r} is not `module : title`")
        if not patch.body:
            problems.append(f"{name}: the message does not say why")
        if "when unused" not in patch.body.lower():
            problems.append(f"{name}: the message does not say the effect when unused (`When unused: none.`)")
        if not patch.trailers.get("test"):
            problems.append(f"{name}: there is no trailer `Test:` naming the test that fails without it")
        if "upstream-files" not in patch.trailers:
            problems.append(f"{name}: there is no trailer `Upstream-Files:` (`none` where no upstream file changes)")
            continue
        if unlisted := patch.changed - added - patch.upstream_files:
            problems.append(f"{name}: `Upstream-Files:` leaves out {', '.join(sorted(unlisted))}")
        if untouched := patch.upstream_files - patch.changed:
            problems.append(f"{name}: `Upstream-Files:` lists {', '.join(sorted(untouched))}, which it does not change")
    return problems


def export_series(git: Git, tree: Path, patches: Path, scratch: Path) -> int:
    """Write a tree's commits to the series' folder, replacing the patches there.

    Args:
        tree: working tree whose first commit is the unpatched source.
        patches: the series' folder.
        scratch: folder for the new files until they are complete.
    Returns: the number of patches.
    Raises:
        EngineError: the tree holds changes that are not committed.
    """
    if is_modified(git, tree):
        raise EngineError(
            f"{tree} holds changes that are not committed: commit them there (`git -C {shlex.quote(str(tree))} commit`), "
            "then run `scripts/patches.sh export` again."
        )
    fresh = _format(git, tree, scratch / "export")
    for old in series(patches):
        if old.name not in fresh:
            old.unlink()
    for name, content in fresh.items():
        path = patches / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    return len(fresh)


def _format(git: Git, tree: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    git.run(tree, *_FORMAT_PATCH, "--output-directory", str(folder), f"{base_commit(git, tree)}..HEAD")
    return {path.name: path.read_bytes() for path in series(folder)}


def differences(git: Git, tree: Path, patches: Path, scratch: Path) -> list[str]:
    """Apply the series to a clean tree and hold what comes out against the files.

    Args:
        tree: clean working tree of the unpatched source; gets the series' commits.
        patches: the series' folder.
        scratch: folder for what comes out.
    Returns: the names of the patch files that differ, are missing or are too many.
    """
    apply_series(git, tree, series(patches), "scripts/patches.sh check")
    fresh = _format(git, tree, scratch / "export")
    written = {path.name: path.read_bytes() for path in series(patches)}
    return sorted(name for name in fresh.keys() | written.keys() if fresh.get(name) != written.get(name))


def check(layout: Layout, git: Git, reporter: Reporter) -> None:
    """Check that the series applies, comes out byte for byte the same and follows the header rules.

    Raises:
        EngineError: it does not; the message lists every problem.
    """
    problems = lint_series([read_patch(path) for path in series(layout.patches)])
    with reporter.locked(layout.lock):
        prepare_base(layout, read_upstream(layout.patches), git, reporter)
        with scratch_folder(layout) as scratch:
            clone_base(git, layout, scratch / "llama.cpp")
            changed = differences(git, scratch / "llama.cpp", layout.patches, scratch)
    problems += [f"{name}: applied and exported again it is another file; run `scripts/patches.sh export`" for name in changed]
    if problems:
        raise EngineError("The patch series breaks its rules:\n  " + "\n  ".join(problems))


def rebase(layout: Layout, git: Git, reporter: Reporter, version: str) -> None:
    """Apply the series to another version of the pinned package, and write both if it applies.

    Raises:
        EngineError: a patch conflicts; the message says where to resolve it and how to go on.
    """
    old = read_upstream(layout.patches)
    with reporter.locked(layout.lock):
        prepare_base(layout, old, git, reporter)
        work = layout.root / "rebase"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        sdist = _fetch_version(layout, old, version, work, reporter)
        tree = work / "llama.cpp"
        with reporter.stage("Unpacking llama.cpp"):
            unpack_source(sdist, old.source, work / "source")
            make_base_repository(git, work / "source", work / "base.git")
            shutil.rmtree(work / "source")
            git.run(work, "clone", "--quiet", "--template=", str(work / "base.git"), str(tree))
            # The three-way merge of `git am -3` starts from the files that the patches were made for.
            git.run(tree, "fetch", "--quiet", str(layout.base_repository), "HEAD")
        new_upstream = work / "UPSTREAM"
        new_upstream.write_text(_upstream_text(layout, old, version, file_sha256(sdist)), encoding="utf-8")
        finish = f"cp {shlex.quote(str(new_upstream))} patches/UPSTREAM && scripts/patches.sh export {shlex.quote(str(tree))}"
        patches = [str(path.absolute()) for path in series(layout.patches)]
        done = git.try_run(tree, "am", "-3", "--keep-cr", "--committer-date-is-author-date", *patches) if patches else None
        if done is not None and done.returncode != 0:
            raise EngineError(
                f"A patch conflicts with {old.package} {version}: resolve it in {tree} (`git status`, `git add`, "
                f"`git am --continue`, until all are applied), then run `{finish}`."
            )
        shutil.copyfile(new_upstream, layout.patches / "UPSTREAM")
        with scratch_folder(layout) as scratch:
            n_patches = export_series(git, tree, layout.patches, scratch)
    reporter.note(
        f"{n_patches} patches now apply to {old.package} {version}. Before committing: compare the sha256 in "
        "patches/UPSTREAM with the one that the package index shows, fill in the two llama_cpp lines, and run scripts/test."
    )


def _fetch_version(layout: Layout, old: Upstream, version: str, work: Path, reporter: Reporter) -> Path:
    what = f"Fetching {old.package} {version}"
    arguments = ["download", "--no-deps", "--no-binary", old.package, f"{old.package}=={version}", "--dest", str(work)]
    with reporter.stage(what):
        finished = run_pip(arguments, "rebase", reporter, layout.rerun)
        if finished.returncode != 0:
            raise pip_failure(finished, what, f"scripts/patches.sh rebase {version}")
    return next(work.glob("*.tar.gz"))


def _upstream_text(layout: Layout, old: Upstream, version: str, sha256: str) -> str:
    text = (layout.patches / "UPSTREAM").read_text(encoding="utf-8")
    changes = {"version": version, "sha256": sha256, "llama_cpp_version": "unknown", "llama_cpp_commit": "unknown"}
    for key, value in changes.items():
        text = re.sub(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="scripts/patches.sh", description="Work on the patch series.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("apply", help="make the tree with the series applied")
    commands.add_parser("check", help="check that the series applies, comes out the same, and follows the rules")
    export = commands.add_parser("export", help="write a tree's commits to patches/")
    export.add_argument("tree", nargs="?", type=Path, help="working tree (default: the one that apply makes)")
    to_version = commands.add_parser("rebase", help="bring the series to another version of the pinned source")
    to_version.add_argument("version", help="version of llama-cpp-python")
    parsed = parser.parse_args(arguments)
    try:
        layout = find_layout()
        layout.root.mkdir(parents=True, exist_ok=True)
        git = Git("scripts/setup")
        reporter = Reporter(layout.log)
        if parsed.command == "apply":
            with reporter.locked(layout.lock):
                tree = prepare_patched_tree(layout, read_upstream(layout.patches), git, reporter)
            print(f"{len(series(layout.patches))} patches applied (series {patches_sha256(layout.patches)[:12]}): {tree}")
        elif parsed.command == "export":
            _export(layout, git, reporter, parsed.tree)
        elif parsed.command == "check":
            check(layout, git, reporter)
            print(f"{len(series(layout.patches))} patches apply, come out the same and follow the rules")
        else:
            rebase(layout, git, reporter, parsed.version)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _export(layout: Layout, git: Git, reporter: Reporter, tree: Path | None) -> None:
    source = layout.patched_tree if tree is None else tree.absolute()
    if not (source / ".git").exists():
        raise EngineError(f"There is no git tree at {source}: make it with `scripts/patches.sh apply`.")
    with reporter.locked(layout.lock), scratch_folder(layout) as scratch:
        n_patches = export_series(git, source, layout.patches, scratch)
        if source == layout.patched_tree:
            stamp_patched_tree(layout, read_upstream(layout.patches), git)
    print(f"{n_patches} patches written to {layout.patches}")


if __name__ == "__main__":
    sys.exit(main())
