"""The engine's source: the pinned sdist, the llama.cpp inside it, and the tree with the patch series applied.

Does not know how the tree is compiled. Needs nothing but the standard library, pip and git, because it runs before
the package's dependencies are there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from entmtp_local.errors import EngineError
from entmtp_local.files import user_cache
from entmtp_local.native.stages import Finished, Reporter, read_json, write_json

_PACKAGE = Path(__file__).resolve().parents[1]
_BUILD_DIR_VARIABLE = "ENTMTP_LOCAL_BUILD_DIR"
_UPSTREAM_KEYS = ("package", "version", "sha256", "source", "llama_cpp_version", "llama_cpp_commit")
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution|Name or service not known"
    r"|Network is unreachable|Connection refused|ProxyError|Could not find a version"
)
_GOT_HASH = re.compile(r"Got\s+([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the build keeps what.

    Attributes:
        root: the build folder.
        patches: the folder of the series.
        is_checkout: False for an installed package, which builds at first use.
    """

    root: Path
    patches: Path
    is_checkout: bool

    @property
    def download(self) -> Path:
        return self.root / "download"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def base_repository(self) -> Path:
        """Bare repository of one commit, the unpatched source."""
        return self.root / "src" / "base.git"

    @property
    def patched_tree(self) -> Path:
        """Working tree of the source with the series applied; patches are written here."""
        return self.root / "src" / "llama.cpp"

    @property
    def stock_tree(self) -> Path:
        """Working tree of the unpatched source."""
        return self.root / "src" / "stock"

    @property
    def scratch(self) -> Path:
        """Trees that are thrown away."""
        return self.root / "tmp"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def rerun(self) -> str:
        """The command that runs the build again."""
        return "scripts/setup" if self.is_checkout else "python -m entmtp_local.native.build"


def find_layout(build_dir: Path | None = None) -> Layout:
    """Find the series and the build folder of this checkout or installed package.

    Args:
        build_dir: build folder to use; by default the one named by ENTMTP_LOCAL_BUILD_DIR, then `build/` of the checkout,
            then a folder of the user's cache that is named after the pinned source and the series.
    """
    checkout = _PACKAGE.parent
    is_checkout = (checkout / "patches" / "UPSTREAM").is_file() and (checkout / "pyproject.toml").is_file()
    patches = checkout / "patches" if is_checkout else _PACKAGE / "_patches"
    named = os.environ.get(_BUILD_DIR_VARIABLE)
    if build_dir is not None:
        root = build_dir
    elif named:
        root = Path(named)
    elif is_checkout:
        root = checkout / "build"
    else:
        upstream = read_upstream(patches)
        key = hashlib.sha256((upstream.sha256 + patches_sha256(patches)).encode()).hexdigest()
        root = user_cache() / "entmtp-local" / f"engine-{upstream.version}-{key[:12]}"
    return Layout(root=root.expanduser().absolute(), patches=patches, is_checkout=is_checkout)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The pinned source, as `patches/UPSTREAM` names it."""

    package: str
    version: str
    sha256: str
    source: str
    llama_cpp_version: str
    llama_cpp_commit: str

    @property
    def sdist(self) -> str:
        """File name of the sdist."""
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"


def read_upstream(patches: Path) -> Upstream:
    """Read `UPSTREAM` of a series.

    Raises:
        EngineError: the file is missing or lacks a key.
    """
    path = patches / "UPSTREAM"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EngineError(
            f"The file that names the pinned source, {path}, cannot be read ({error.strerror}): "
            "restore it with `git checkout patches/UPSTREAM`, or install the package again."
        ) from error
    pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    missing = [key for key in _UPSTREAM_KEYS if not values.get(key)]
    if missing:
        raise EngineError(f"{path} has no line `{missing[0]}=...`: restore it with `git checkout patches/UPSTREAM`.")
    return Upstream(**{key: values[key] for key in _UPSTREAM_KEYS})


def series(patches: Path) -> list[Path]:
    """The patch files in the order in which they apply."""
    return sorted(patches.glob("[0-9][0-9][0-9][0-9]-*.patch"))


def patches_sha256(patches: Path) -> str:
    """Hash of the series: that of `cat patches/*.patch`."""
    digest = hashlib.sha256()
    for path in series(patches):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# Fetching


def run_pip(arguments: list[str], log: str, reporter: Reporter, rerun: str) -> Finished:
    """Run this interpreter's pip.

    Raises:
        EngineError: this interpreter has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise EngineError(
            f"This Python has no pip, which fetches the engine's source: run `{sys.executable} -m ensurepip`, "
            f"then `{rerun}` again."
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return reporter.run(command, log=log)


def pip_failure(finished: Finished, what: str, rerun: str) -> EngineError:
    """The sentence for a pip that failed."""
    output = finished.output()
    if "No space left on device" in output:
        return EngineError(f"{what} failed because the disc is full: free some space, then run `{rerun}` again.")
    if _NO_NETWORK.search(output):
        return EngineError(
            f"{what} failed because the package index cannot be reached: check the network, or pip's proxy and index "
            f"settings (`{sys.executable} -m pip config list`), then run `{rerun}` again; log: {finished.log}."
        )
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR:")]
    reason = f" ({errors[0]})" if errors else ""
    return EngineError(f"{what} failed{reason}: see {finished.log}, then run `{rerun}` again.")


def fetch_sdist(layout: Layout, upstream: Upstream, reporter: Reporter) -> Path:
    """Download the pinned sdist unless it is there, and check its hash.

    Raises:
        EngineError: no network, or the file is not the pinned one.
    """
    path = layout.download / upstream.sdist
    if not path.is_file():
        with reporter.stage(f"Fetching {upstream.package} {upstream.version}"):
            _download(path, upstream, layout, reporter)
    got = file_sha256(path)
    if got != upstream.sha256:
        raise _wrong_hash(upstream, got, f"delete {shlex.quote(str(path))} and run `{layout.rerun}` again", str(path))
    return path


def _download(path: Path, upstream: Upstream, layout: Layout, reporter: Reporter) -> None:
    partial = layout.download / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # In a requirements file the hash is checked by pip too, before it runs the sdist's own build back end for metadata.
    wanted = partial / "requirements.txt"
    wanted.write_text(f"{upstream.package}=={upstream.version} --hash=sha256:{upstream.sha256}\n", encoding="utf-8")
    arguments = ["download", "--no-deps", "--no-binary", upstream.package, "--require-hashes"]
    finished = run_pip([*arguments, "--requirement", str(wanted), "--dest", str(partial)], "download", reporter, layout.rerun)
    if finished.returncode != 0:
        if got := _GOT_HASH.search(finished.output()):
            remedy = f"check pip's index settings (`{sys.executable} -m pip config list`) and run `{layout.rerun}` again"
            raise _wrong_hash(upstream, got[1], remedy, "the package index")
        raise pip_failure(finished, f"Fetching {upstream.package} {upstream.version}", layout.rerun)
    fetched = list(partial.glob("*.tar.gz"))
    if len(fetched) != 1:
        raise EngineError(
            f"pip fetched {len(fetched)} source archives of {upstream.package} {upstream.version} where 1 was expected: "
            f"see {finished.log}, then run `{layout.rerun}` again."
        )
    fetched[0].replace(path)
    shutil.rmtree(partial)


def _wrong_hash(upstream: Upstream, got: str, remedy: str, where: str) -> EngineError:
    return EngineError(
        f"The source of {upstream.package} {upstream.version} from {where} is not the pinned one: expected sha256 "
        f"{upstream.sha256}, got {got}; {remedy}."
    )


def unpack_source(sdist: Path, source: str, destination: Path) -> None:
    """Unpack one folder of an sdist.

    Args:
        sdist: the archive.
        source: path of the folder inside the archive's top folder.
        destination: folder that gets its files; must not exist.
    """
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            inner = member.name.partition("/")[2]
            if not inner.startswith(f"{source}/"):
                continue
            member.name = inner[len(source) + 1 :]
            # The submodule's .git file points into a repository that is not there, and git would follow it.
            if member.name.split("/")[0] == ".git":
                continue
            if hasattr(tarfile, "data_filter"):
                archive.extract(member, destination, filter="data")
            else:
                archive.extract(member, destination)
    if not destination.is_dir():
        raise EngineError(f"{sdist} holds no folder {source}: correct `source=` in patches/UPSTREAM.")


# Git


class Git:
    """Runs git the same way on every machine: no user's or system's settings, no identity of theirs.

    Raises:
        EngineError: git is not installed (when made), or a command failed (when run).
    """

    def __init__(self, rerun: str) -> None:
        if shutil.which("git") is None:
            raise EngineError(
                "git was not found, which applies the patches: install it (Debian, Ubuntu: `sudo apt install git`; "
                f"Fedora: `sudo dnf install git`; macOS: `xcode-select --install`), then run `{rerun}` again."
            )
        # A hook that calls us exports GIT_DIR and GIT_INDEX_FILE of the project's own repository.
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        self._environment |= {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }

    def try_run(
        self, repository: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run git in `repository` and return what it said, whatever its exit status."""
        command = ["git", "-c", "core.autocrlf=false", "-c", "gc.auto=0", "-c", "advice.detachedHead=false"]
        return subprocess.run(
            [*command, "-c", "user.name=entmtp-local", "-c", "user.email=entmtp-local@localhost", *arguments],
            cwd=repository,
            env={**self._environment, **(env or {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )

    def run(self, repository: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run git in `repository` and return its standard output."""
        done = self.try_run(repository, *arguments, env=env)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise EngineError(f"`git {arguments[0]}` failed in {repository}: {said[-1] if said else 'no message'}.")
        return done.stdout


def make_base_repository(git: Git, unpacked: Path, repository: Path) -> None:
    """Make a bare repository whose one commit is the unpacked source; its id depends on the source alone."""
    git.run(unpacked, "init", "--quiet", "--bare", "--template=", str(repository))
    place = {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(unpacked)}
    # --force: upstream's .gitignore covers files that the sdist carries.
    git.run(unpacked, "add", "--all", "--force", env=place)
    dates = {"GIT_AUTHOR_DATE": "2000-01-01T00:00:00+0000", "GIT_COMMITTER_DATE": "2000-01-01T00:00:00+0000"}
    git.run(unpacked, "commit", "--quiet", "--no-verify", "--message=base", env={**place, **dates})
    git.run(unpacked, "repack", "-a", "-d", "-q", env=place)


def base_commit(git: Git, tree: Path) -> str:
    """The commit of the unpatched source, which is the first of the tree's history."""
    return git.run(tree, "rev-list", "--max-parents=0", "HEAD").split()[-1]


def apply_series(git: Git, tree: Path, patches: list[Path], rerun: str) -> None:
    """Apply patch files to a clean tree, one commit a patch; commit ids depend on the source and the files alone.

    Raises:
        EngineError: a patch does not apply; the tree is left as it was before.
    """
    for patch in patches:
        arguments = ("am", "-3", "--quiet", "--keep-cr", "--committer-date-is-author-date", str(patch.absolute()))
        done = git.try_run(tree, *arguments)
        if done.returncode != 0:
            git.try_run(tree, "am", "--abort")
            said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "fatal:"))]
            raise EngineError(
                f"The patch {patch.name} does not apply to the pinned source ({said[0] if said else 'git am failed'}): "
                f"restore it with `git checkout patches`, or bring the series up to date with `scripts/patches.sh "
                f"rebase` (patches/README.md), then run `{rerun}` again."
            )


def is_modified(git: Git, tree: Path) -> bool:
    """Whether the tree holds changes that are not committed."""
    return bool(git.run(tree, "status", "--porcelain").strip())


# Trees


def prepare_base(layout: Layout, upstream: Upstream, git: Git, reporter: Reporter) -> None:
    """Make `layout.base_repository` for the pinned source unless it is there."""
    stamp = layout.base_repository.with_suffix(".json")
    if read_json(stamp) == {"source_sha256": upstream.sha256}:
        return
    sdist = fetch_sdist(layout, upstream, reporter)
    stamp.unlink(missing_ok=True)
    with reporter.stage("Unpacking llama.cpp"), scratch_folder(layout) as scratch:
        unpack_source(sdist, upstream.source, scratch / "source")
        make_base_repository(git, scratch / "source", scratch / "base.git")
        shutil.rmtree(layout.base_repository, ignore_errors=True)
        layout.base_repository.parent.mkdir(parents=True, exist_ok=True)
        (scratch / "base.git").replace(layout.base_repository)
    write_json(stamp, {"source_sha256": upstream.sha256})


@contextmanager
def scratch_folder(layout: Layout) -> Iterator[Path]:
    """A folder of this process's own under the build folder, removed at the end."""
    folder = layout.scratch / str(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clone_base(git: Git, layout: Layout, tree: Path) -> None:
    """Make a throw-away working tree of the unpatched source."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    git.run(layout.root, "clone", "--quiet", "--shared", "--template=", str(layout.base_repository), str(tree))


def prepare_stock_tree(layout: Layout, upstream: Upstream, git: Git, reporter: Reporter) -> Path:
    """Make the tree of the unpatched source unless it is there."""
    prepare_base(layout, upstream, git, reporter)
    stamp = layout.stock_tree.with_name("stock.json")
    if read_json(stamp) != {"source_sha256": upstream.sha256}:
        stamp.unlink(missing_ok=True)
        shutil.rmtree(layout.stock_tree, ignore_errors=True)
        clone_base(git, layout, layout.stock_tree)
        write_json(stamp, {"source_sha256": upstream.sha256})
    return layout.stock_tree


def patched_stamp(layout: Layout) -> Path:
    return layout.patched_tree.with_name("llama.cpp.json")


def stamp_patched_tree(layout: Layout, upstream: Upstream, git: Git) -> None:
    """Record that the patched tree's commits are the series."""
    head = git.run(layout.patched_tree, "rev-parse", "HEAD").strip()
    state = {"source_sha256": upstream.sha256, "patches_sha256": patches_sha256(layout.patches), "head": head}
    write_json(patched_stamp(layout), state)


def prepare_patched_tree(layout: Layout, upstream: Upstream, git: Git, reporter: Reporter) -> Path:
    """Make the tree with the series applied, or bring it up to date, touching only files that change.

    Raises:
        EngineError: the tree holds work that the series does not, or a patch does not apply.
    """
    tree = layout.patched_tree
    state = read_json(patched_stamp(layout))
    wanted = {"source_sha256": upstream.sha256, "patches_sha256": patches_sha256(layout.patches)}
    if state is not None and wanted.items() <= state.items() and (tree / ".git").is_dir():
        return tree
    prepare_base(layout, upstream, git, reporter)
    is_kept = state is not None and (tree / ".git").is_dir()
    if is_kept and state is not None:
        _refuse_to_lose_work(git, tree, str(state.get("head")), layout.rerun)
    patches = series(layout.patches)
    title = f"Applying {len(patches)} patches"
    with reporter.stage(title), scratch_folder(layout) as scratch:
        fresh = scratch / "llama.cpp"
        clone_base(git, layout, fresh)
        apply_series(git, fresh, patches, layout.rerun)
        # From here to the new stamp the tree is between two states; without a stamp the next run makes it anew.
        patched_stamp(layout).unlink(missing_ok=True)
        if is_kept:
            # git rewrites only the files that differ, so the compiler sees only those as new.
            git.run(tree, "fetch", "--quiet", str(fresh), "HEAD")
            git.run(tree, "checkout", "--quiet", "-B", "patched", "FETCH_HEAD")
        else:
            shutil.rmtree(tree, ignore_errors=True)
            git.run(fresh, "checkout", "--quiet", "-B", "patched")
            # Complete on its own: the base repository is replaced when the pinned source changes.
            git.run(fresh, "repack", "-a", "-d", "-q")
            (fresh / ".git" / "objects" / "info" / "alternates").unlink(missing_ok=True)
            fresh.replace(tree)
        stamp_patched_tree(layout, upstream, git)
    return tree


def _refuse_to_lose_work(git: Git, tree: Path, stamped_head: str, rerun: str) -> None:
    head = git.run(tree, "rev-parse", "HEAD").strip()
    if head == stamped_head and not is_modified(git, tree):
        return
    raise EngineError(
        f"The series in patches/ has changed, and {tree} holds work that is not in it: commit it there and write it to "
        f"the series with `scripts/patches.sh export`, or delete that folder, then run `{rerun}` again."
    )
