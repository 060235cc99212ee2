"""The engine build on a small fake source and a fake CMake: stamps, picking up, and every sentence a failure ends in."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_source import FILES, FakeSource, commit_line, make_fake_source

from entmtp_local.errors import EngineError
from entmtp_local.native import build, source
from entmtp_local.native.build import BuildOptions, Toolchain
from entmtp_local.native.source import Git, Layout, find_layout
from entmtp_local.native.stages import Finished, Reporter, read_json, write_json

FAKE_CMAKE = """#!/bin/sh
echo "$*" >> "$FAKE_CMAKE_CALLS"
if [ "$1" = "--build" ]; then
    [ -z "$FAKE_CMAKE_FAILURE" ] || { echo "$FAKE_CMAKE_FAILURE"; exit 1; }
    mkdir -p "$2/bin" && touch "$2/bin/libllama.so" "$2/bin/libllama.dylib" "$2/bin/llama-server"
fi
"""


@pytest.fixture
def fake(tmp_path: Path) -> FakeSource:
    folder = tmp_path / "a folder"
    folder.mkdir()
    return make_fake_source(folder)


@pytest.fixture
def calls(fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CMake that only notes its arguments; returns the file it notes them in."""
    cmake = tmp_path / "cmake"
    cmake.write_text(FAKE_CMAKE)
    cmake.chmod(0o755)
    noted = tmp_path / "calls"
    noted.touch()
    monkeypatch.setenv("FAKE_CMAKE_CALLS", str(noted))
    monkeypatch.setenv("FAKE_CMAKE_FAILURE", "")
    toolchain = Toolchain(str(cmake), "Ninja", "ninja", "compiler 1", ("-DFOR_THIS_COMPILER=1",))
    monkeypatch.setattr(build, "find_toolchain", lambda layout, reporter: toolchain)
    monkeypatch.setattr(build, "_bindings_version", lambda upstream: upstream.version)
    return noted


def run_build(fake: FakeSource, options: BuildOptions | None = None) -> Path:
    return build.build(options or BuildOptions(backend="cpu"), fake.layout, fake.reporter)


def kinds(calls: Path) -> list[str]:
    """The fake CMake's runs since the last look, as "configure FOLDER" and "build FOLDER TARGETS"."""
    lines = calls.read_text().splitlines()
    calls.write_text("")
    found = []
    for line in lines:
        if line.startswith("--build"):
            found.append(f"build {line.split(' --parallel')[0].rsplit('/', 1)[1]} {line.split('--target ')[1]}")
        else:
            found.append(f"configure {line.split(' -G ')[0].rsplit('/', 1)[1]}")
    return found


# Stamps


def test_second_run_does_nothing(fake: FakeSource, calls: Path) -> None:
    assert run_build(fake) == fake.layout.root / "engine" / "bin"
    assert kinds(calls) == ["configure engine", "build engine llama"]
    fake.output.truncate(0)
    run_build(fake)
    assert kinds(calls) == []
    assert "..." not in fake.output.getvalue()


def test_engine_record_names_its_sources(fake: FakeSource, calls: Path) -> None:
    patch = fake.write_patch("tree", 3)
    run_build(fake, BuildOptions(backend="cpu", cmake_args=("-DX=Y",)))
    record = json.loads((fake.layout.root / "engine" / "engine.json").read_text())
    assert record["source_sha256"] == fake.upstream.sha256
    assert record["patches_sha256"] == hashlib.sha256(patch.read_bytes()).hexdigest()
    assert record["backend"] == "cpu"
    assert record["cmake_args"][-1] == "-DX=Y"
    assert "-DFOR_THIS_COMPILER=1" in record["cmake_args"]
    assert record["library_dir"] == str(fake.layout.root / "engine" / "bin")
    assert record["modified"] is False


def test_changed_arguments_configure_again_without_the_old_cache(fake: FakeSource, calls: Path) -> None:
    run_build(fake)
    kinds(calls)
    cache = fake.layout.root / "engine" / "CMakeCache.txt"
    cache.write_text("X:BOOL=Y")
    run_build(fake, BuildOptions(backend="cpu", cmake_args=("-DX=Z",)))
    assert kinds(calls) == ["configure engine", "build engine llama"]
    assert not cache.exists()


def test_changed_series_builds_without_configuring(fake: FakeSource, calls: Path) -> None:
    run_build(fake)
    kinds(calls)
    fake.write_patch("tree", 3)
    run_build(fake)
    assert kinds(calls) == ["build engine llama"]


def test_another_compiler_starts_from_nothing(fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_build(fake)
    kinds(calls)
    left = fake.layout.root / "engine" / "old.o"
    left.touch()
    toolchain = build.find_toolchain(fake.layout, fake.reporter)
    newer = Toolchain(toolchain.cmake, toolchain.generator, toolchain.build_tool, "compiler 2")
    monkeypatch.setattr(build, "find_toolchain", lambda layout, reporter: newer)
    run_build(fake)
    assert kinds(calls) == ["configure engine", "build engine llama"]
    assert not left.exists()


def test_interrupted_build_is_picked_up(fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CMAKE_FAILURE", "ninja: build stopped: interrupted by user.")
    with pytest.raises(EngineError):
        run_build(fake)
    assert build.engine_record(fake.layout) is None
    kinds(calls)
    monkeypatch.setenv("FAKE_CMAKE_FAILURE", "")
    run_build(fake)
    assert kinds(calls) == ["build engine llama"]


def test_failed_rebuild_leaves_no_record_of_the_old_engine(
    fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_build(fake)
    fake.write_patch("tree", 3)
    monkeypatch.setenv("FAKE_CMAKE_FAILURE", "error: no")
    with pytest.raises(EngineError):
        run_build(fake)
    assert build.engine_record(fake.layout) is None


def test_tests_and_stock_have_stamps_of_their_own(fake: FakeSource, calls: Path) -> None:
    everything = BuildOptions(backend="cpu", with_tests=True, with_stock=True)
    run_build(fake)
    kinds(calls)
    run_build(fake, everything)
    tests = " ".join(build.UPSTREAM_TESTS)
    expected = ["configure engine", f"build engine {tests}", "configure stock", "build stock llama llama-server"]
    assert kinds(calls) == expected
    run_build(fake, everything)
    run_build(fake, BuildOptions(backend="cpu", with_tests=True))
    run_build(fake)
    assert kinds(calls) == []
    fake.write_patch("tree", 3)
    run_build(fake, everything)
    assert kinds(calls) == ["build engine llama", f"build engine {tests}"]


def test_tests_need_the_stock_library_but_not_its_server(fake: FakeSource, calls: Path) -> None:
    run_build(fake, BuildOptions(backend="cpu", with_tests=True))
    assert "build stock llama" in kinds(calls)
    run_build(fake, BuildOptions(backend="cpu", with_stock=True))
    assert kinds(calls)[-1] == "build stock llama llama-server"


def test_uncommitted_work_is_compiled_and_said(fake: FakeSource, calls: Path) -> None:
    run_build(fake)
    kinds(calls)
    (fake.layout.patched_tree / "src" / "llama.cpp").write_text("int edited;\n")
    for _ in range(2):
        run_build(fake)
        assert kinds(calls) == ["build engine llama"]
        assert (build.engine_record(fake.layout) or {})["modified"] is True


def test_stamp_is_whole_or_absent(tmp_path: Path) -> None:
    stamp = tmp_path / "stamp.json"
    stamp.write_text('{"cut off": ')
    assert read_json(stamp) is None
    write_json(stamp, {"a": 1})
    assert read_json(stamp) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["stamp.json"]


# The patched tree


def prepare(fake: FakeSource) -> Path:
    return source.prepare_patched_tree(fake.layout, fake.upstream, fake.git, fake.reporter)


def test_tree_holds_the_sdists_files_and_the_series(fake: FakeSource) -> None:
    fake.write_patch("tree", 3)
    tree = prepare(fake)
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert files == FILES.keys() - {".git"}
    assert "int tree;" in (tree / "src" / "llama.cpp").read_text()
    assert fake.git.run(tree, "log", "--format=%s").splitlines() == ["engine : add the tree hook", "base"]


def test_commit_ids_do_not_depend_on_time_or_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = set()
    patch = b""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fake = make_fake_source(tmp_path / name)
        if patch:
            (fake.layout.patches / "0001-engine-add-the-tree-hook.patch").write_bytes(patch)
        else:
            patch = fake.write_patch("tree", 3).read_bytes()
        heads.add(fake.git.run(prepare(fake), "rev-parse", "HEAD"))
        monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody else")
    assert len(heads) == 1


def test_series_change_touches_only_changed_files(fake: FakeSource) -> None:
    fake.write_patch("tree", 3)
    tree = prepare(fake)
    old = 1_500_000_000
    for path in tree.rglob("*.*"):
        if ".git" not in path.parts:
            os.utime(path, (old, old))
    fake.write_patch("second", 20)
    prepare(fake)
    touched = [path.name for path in tree.rglob("*.*") if ".git" not in path.parts and path.stat().st_mtime != old]
    assert touched == ["llama.cpp"]
    assert "int second;" in (tree / "src" / "llama.cpp").read_text()


@pytest.mark.parametrize("is_committed", [False, True])
def test_series_change_does_not_lose_work_in_the_tree(fake: FakeSource, is_committed: bool) -> None:
    tree = prepare(fake)
    if is_committed:
        commit_line(fake.git, tree, "mine", 7)
    else:
        (tree / "src" / "llama.cpp").write_text("int mine;\n")
    fake.write_patch("tree", 3)
    with pytest.raises(EngineError, match=r"scripts/patches\.sh export"):
        prepare(fake)
    assert "int mine;" in (tree / "src" / "llama.cpp").read_text()


def test_patch_that_does_not_apply_is_named_and_the_tree_stays(fake: FakeSource) -> None:
    patch = fake.write_patch("tree", 3)
    tree = prepare(fake)
    before = fake.git.run(tree, "rev-parse", "HEAD")
    patch.write_text(patch.read_text().replace("-int line_3;", "-int line_33;"))
    with pytest.raises(EngineError, match=rf"{patch.name} does not apply .*`git checkout patches`"):
        prepare(fake)
    assert fake.git.run(tree, "rev-parse", "HEAD") == before
    assert not fake.git.run(tree, "status", "--porcelain")


def test_git_settings_of_the_caller_do_not_reach_us(fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook exports GIT_DIR, and following it would write into the project's own repository."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "project")], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "project" / ".git"))
    git = Git("again")
    source.prepare_base(fake.layout, fake.upstream, git, fake.reporter)
    count = ["git", "--git-dir", str(tmp_path / "project" / ".git"), "count-objects"]
    assert subprocess.run(count, capture_output=True, text=True, check=True).stdout.startswith("0 objects")
    assert git.run(fake.layout.base_repository, "rev-list", "--count", "HEAD").strip() == "1"


# Fetching


def test_wrong_hash_says_what_was_expected_and_got_and_keeps_the_file(fake: FakeSource) -> None:
    sdist = fake.layout.download / fake.upstream.sdist
    sdist.write_bytes(b"something else")
    with pytest.raises(EngineError) as raised:
        source.fetch_sdist(fake.layout, fake.upstream, fake.reporter)
    got = hashlib.sha256(b"something else").hexdigest()
    message = str(raised.value)
    assert f"expected sha256 {fake.upstream.sha256}, got {got}; delete '{sdist}' and run `scripts/setup` again." in message
    assert sdist.read_bytes() == b"something else"


def fail_pip(fake: FakeSource, monkeypatch: pytest.MonkeyPatch, output: str) -> str:
    """Fetch with a pip that prints `output` and fails; returns the sentence."""
    log = fake.layout.root / "pip.log"
    log.write_text(output)
    monkeypatch.setattr(source, "run_pip", lambda *arguments: Finished(1, log))
    sdist = fake.layout.download / fake.upstream.sdist
    sdist.unlink()
    with pytest.raises(EngineError) as raised:
        source.fetch_sdist(fake.layout, fake.upstream, fake.reporter)
    assert not sdist.exists()
    return str(raised.value)


def test_wrong_hash_found_by_pip(fake: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    message = fail_pip(fake, monkeypatch, f"ERROR: THESE PACKAGES DO NOT MATCH\n  Expected sha256 x\n  Got        {'e' * 64}\n")
    assert f"expected sha256 {fake.upstream.sha256}, got {'e' * 64}; check pip's index settings" in message


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("NewConnectionError: [Errno 101] Network is unreachable", "because the package index cannot be reached: check"),
        ("ERROR: No matching distribution\nERROR: Could not find a version that", "the package index cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "because the disc is full: free some space"),
        ("ERROR: something new", r"failed (ERROR: something new): see"),
    ],
)
def test_failed_fetch_says_why(fake: FakeSource, monkeypatch: pytest.MonkeyPatch, output: str, sentence: str) -> None:
    message = fail_pip(fake, monkeypatch, output)
    assert sentence in message
    assert "`scripts/setup` again" in message


def test_missing_pip_is_said(fake: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="-m ensurepip"):
        source.run_pip(["download"], "download", fake.reporter, "scripts/setup")


def test_upstream_without_a_key(fake: FakeSource) -> None:
    (fake.layout.patches / "UPSTREAM").write_text("package=x\nversion=1\n")
    with pytest.raises(EngineError, match="no line `sha256="):
        source.read_upstream(fake.layout.patches)


def test_series_hash_is_that_of_the_files_in_order(tmp_path: Path) -> None:
    for name, content in (("0002-b.patch", b"b"), ("0001-a.patch", b"a"), ("notes.patch", b"n"), ("README.md", b"r")):
        (tmp_path / name).write_bytes(content)
    assert [path.name for path in source.series(tmp_path)] == ["0001-a.patch", "0002-b.patch"]
    assert source.patches_sha256(tmp_path) == hashlib.sha256(b"ab").hexdigest()


# Missing tools and failing compilers


def path_of(tmp_path: Path, *programs: str) -> str:
    """A PATH that has only these programs, each printing version 9.9 and doing nothing."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for program in programs:
        (folder / program).write_text("#!/bin/sh\necho version 9.9\n")
        (folder / program).chmod(stat.S_IRWXU)
    return str(folder)


def test_no_compiler(fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", path_of(tmp_path, "cmake", "ninja"))
    with pytest.raises(EngineError, match=r"No C\+\+ compiler was found: .*apt install build-essential"):
        build.find_toolchain(fake.layout, fake.reporter)


@pytest.mark.parametrize(
    ("macros", "expected"),
    [
        ({"__GNUC__": 12, "__AMX_TILE__": 1}, ("-DCMAKE_CXX_FLAGS_INIT=-fno-dse",)),
        ({"__GNUC__": 14, "__AMX_TILE__": 1}, ()),
        ({"__GNUC__": 4, "__AMX_TILE__": 1, "__clang__": 1}, ()),
        ({"__GNUC__": 12}, ()),
        ({}, ()),
    ],
)
def test_gcc_that_loses_the_configuration_of_tiles(
    fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macros: dict[str, int], expected: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", path_of(tmp_path, "c++", "cmake", "ninja"))
    lines = "".join(f"echo '#define {name} {value}'\n" for name, value in macros.items())
    (tmp_path / "bin" / "c++").write_text(f"#!/bin/sh\n{lines}")
    assert build.find_toolchain(fake.layout, fake.reporter).cmake_args == expected


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path_of(tmp_path))
    with pytest.raises(EngineError, match="git was not found.*apt install git"):
        Git("scripts/setup")


@pytest.mark.parametrize("system_cmake", [None, "3.10"])
def test_missing_or_old_cmake_is_installed(
    fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_cmake: str | None
) -> None:
    """The installed one is used although it is not on PATH."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", path_of(tmp_path, "c++", "make"))
    if system_cmake:
        cmake = tmp_path / "bin" / "cmake"
        cmake.write_text(f"#!/bin/sh\necho cmake version {system_cmake}.1\n")
        cmake.chmod(0o755)
    environment = tmp_path / "environment"
    environment.mkdir()
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(environment))

    def fake_pip(arguments: list[str], log: str, reporter: Reporter, rerun: str) -> Finished:
        assert arguments == ["install", "--upgrade", "cmake"]
        (environment / "cmake").write_text("#!/bin/sh\n")
        (environment / "cmake").chmod(0o755)
        return Finished(0, tmp_path)

    monkeypatch.setattr(build, "run_pip", fake_pip)
    found = build.find_toolchain(fake.layout, fake.reporter)
    assert found.cmake == str(environment / "cmake")
    assert found.generator == "Unix Makefiles"


def test_ninja_is_preferred_to_make(fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", path_of(tmp_path, "c++", "cmake", "make", "ninja"))
    assert build.find_toolchain(fake.layout, fake.reporter).generator == "Ninja"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("a.cpp:3:5: error: expected ';'", r"Building the engine failed (a.cpp:3:5: error: expected ';'): see"),
        ("CMake Error at CMakeLists.txt:3 (message):\n  no such thing", "failed (no such thing): see"),
        ("as: No space left on device", "because the disc is full: free some space"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "for want of memory: run `scripts/setup --jobs 1`"),
    ],
)
def test_failed_compilation_says_why(
    fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch, output: str, sentence: str
) -> None:
    monkeypatch.setenv("FAKE_CMAKE_FAILURE", output)
    with pytest.raises(EngineError) as raised:
        run_build(fake)
    assert sentence in str(raised.value)
    assert output in (fake.layout.log / "build-engine.log").read_text()


def test_full_disc_is_said(fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(build, "write_json", full)
    with pytest.raises(EngineError, match="is full: free some space, then run `scripts/setup` again"):
        run_build(fake)


# Back ends


def test_cuda_needs_nvcc(fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name, path=None: None)
    with pytest.raises(EngineError, match="nvcc was not found.*scripts/setup --cpu"):
        build.choose_backend(BuildOptions(backend="cuda"), fake.layout)


def test_cuda_needs_a_gpu_or_its_name(fake: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "nvcc")
    monkeypatch.setattr(build, "_has_gpu", lambda: False)
    with pytest.raises(EngineError, match="CMAKE_CUDA_ARCHITECTURES"):
        build.choose_backend(BuildOptions(backend="cuda"), fake.layout)
    named = BuildOptions(backend="cuda", cmake_args=("-DCMAKE_CUDA_ARCHITECTURES=89",))
    assert build.choose_backend(named, fake.layout) == ("cuda", ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_COMPILER=nvcc"))


@pytest.mark.parametrize(("has_gpu", "expected"), [(False, "cpu"), (True, "cuda")])
def test_cuda_is_chosen_where_it_can_run(fake: FakeSource, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, expected: str) -> None:
    monkeypatch.setenv("CUDACXX", "nvcc")
    monkeypatch.setattr(build, "_has_gpu", lambda: has_gpu)
    assert build.choose_backend(BuildOptions(), fake.layout)[0] == expected


def test_gpu_counts_only_when_the_driver_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path_of(tmp_path, "nvidia-smi"))
    assert not build._has_gpu()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0: card\n")
    assert build._has_gpu()


# Finding the engine


def test_checkout_without_engine_names_the_command(fake: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_layout", lambda: fake.layout)
    with pytest.raises(EngineError, match="is not built: run `scripts/setup`"):
        build.ensure_engine()


def test_engine_is_found_until_the_series_changes(fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_layout", lambda: fake.layout)
    run_build(fake)
    kinds(calls)
    assert build.ensure_engine() == fake.layout.root / "engine" / "bin"
    fake.write_patch("tree", 3)
    with pytest.raises(EngineError, match="another series"):
        build.ensure_engine()
    assert kinds(calls) == []


def test_installed_package_builds_at_first_use(fake: FakeSource, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root=fake.layout.root, patches=fake.layout.patches, is_checkout=False)
    monkeypatch.setattr(build, "find_layout", lambda: layout)
    monkeypatch.setattr(build, "choose_backend", lambda options, layout: ("cpu", ()))
    for _ in range(2):
        assert build.library_file(build.ensure_engine()).is_file()
    assert kinds(calls) == ["configure engine", "build engine llama"]


def test_layout_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENTMTP_LOCAL_BUILD_DIR", raising=False)
    repository = Path(__file__).parents[2]
    assert find_layout().root == repository / "build"
    assert find_layout().patches == repository / "patches"
    monkeypatch.setenv("ENTMTP_LOCAL_BUILD_DIR", str(tmp_path))
    assert find_layout().root == tmp_path
    assert find_layout(tmp_path / "x").root == tmp_path / "x"


def test_layout_of_an_installed_package(fake: FakeSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "entmtp_local"
    fake.layout.patches.rename(package.mkdir(parents=True) or package / "_patches")
    monkeypatch.delenv("ENTMTP_LOCAL_BUILD_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "_PACKAGE", package)
    monkeypatch.setattr(source.sys, "platform", "linux")
    layout = find_layout()
    assert not layout.is_checkout
    assert layout.root.parent == tmp_path / "cache" / "entmtp-local"
    assert layout.root.name.startswith("engine-1.2-")


# The command


def test_cmake_arguments_may_start_with_a_dash() -> None:
    parsed = build.parse_arguments(["--cmake-arg", "-DX=Y", "--cmake-arg=-DZ=1", "--jobs", "3", "--cpu"])
    assert parsed.cmake_arg == ["-DX=Y", "-DZ=1"]
    assert (parsed.jobs, parsed.backend) == (3, "cpu")


def test_failure_is_one_sentence_and_status_1(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": path_of(tmp_path), "ENTMTP_LOCAL_BUILD_DIR": str(tmp_path / "build")}
    command = [sys.executable, "-m", "entmtp_local.native.build"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: git was not found")
    assert "Traceback" not in done.stderr


def test_two_builds_wait_for_each_other(fake: FakeSource, calls: Path) -> None:
    fake.layout.lock.parent.mkdir(parents=True, exist_ok=True)
    with fake.layout.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("4711\n")
        held.flush()
        thread = threading.Thread(target=run_build, args=(fake,))
        thread.start()
        thread.join(timeout=1)
        assert thread.is_alive()
        assert "Waiting for another build to end (process 4711)" in fake.output.getvalue()
        assert kinds(calls) == []
    thread.join(timeout=60)
    assert kinds(calls) == ["configure engine", "build engine llama"]


def test_lock_outlives_a_killed_build_as_long_as_its_compiler(tmp_path: Path) -> None:
    """Two compilers must not write into one folder."""
    lock, started = tmp_path / "lock", tmp_path / "started"
    program = (
        "import sys; from pathlib import Path; from entmtp_local.native.stages import Reporter\n"
        f"reporter = Reporter(Path({str(tmp_path)!r}))\n"
        f"with reporter.locked(Path({str(lock)!r})):\n"
        f"    reporter.run(['sh', '-c', 'echo $$ > {started}.partial; mv {started}.partial {started}; exec sleep 60'], 'x')\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    compiler = int(started.read_text())
    killed.kill()
    killed.wait()
    with lock.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(compiler, signal.SIGKILL)
        fcntl.flock(file, fcntl.LOCK_EX)  # returns once the compiler is gone
