"""Builds the engine: llama.cpp of the pinned source with the patch series, and its Python bindings.

    python -m entmtp_local.native.build [--cuda | --cpu] [--with-stock] [--with-tests] [--jobs N]
                                        [--build-dir DIR] [--cmake-arg -DX=Y ...] [--verbose]

Every step leaves a stamp when it is complete, so a second run does only what is missing. Needs nothing but the
standard library, because it runs before the package's dependencies are there.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from entmtp_local.errors import EngineError
from entmtp_local.native.source import (
    Git,
    Layout,
    Upstream,
    fetch_sdist,
    find_layout,
    is_modified,
    patches_sha256,
    pip_failure,
    prepare_patched_tree,
    prepare_stock_tree,
    read_upstream,
    run_pip,
)
from entmtp_local.native.stages import Finished, Reporter, read_json, write_json

Backend = Literal["cpu", "cuda"]

UPSTREAM_TESTS = (
    "test-llama-archs",
    "test-recurrent-state-rollback",
    "test-batch-alloc",
    "test-backend-ops",
    "test-backend-sampler",
    "test-sampling",
)

# 3.24 is the first that knows CMAKE_CUDA_ARCHITECTURES=native; without it every card's kernels are compiled.
_CMAKE_MINIMUM = (3, 24)
_ENGINE_TARGETS = ("llama",)
_STOCK_LIBRARY = ("llama",)
_STOCK_SERVER = ("llama", "llama-server")
_COMMON_ARGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
_ENGINE_PARTS = ("-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_TOOLS=OFF")
_TEST_PARTS = ("-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TESTS=ON", "-DLLAMA_BUILD_TOOLS=OFF")
_STOCK_PARTS = ("-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_TOOLS=ON")
_COMPILER_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAARCHS")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build.

    Attributes:
        backend: "cpu", "cuda", or None for CUDA where both a compiler for it and a GPU are found.
        with_stock: build the server of the unpatched source too, into `stock/` of the build folder.
        with_tests: build the pinned source's own tests, from the patched tree, and the library of the unpatched source.
        n_jobs: compilations at a time; None for one a core.
        cmake_args: further arguments for CMake, each `-DX=Y`.
    """

    backend: Backend | None = None
    with_stock: bool = False
    with_tests: bool = False
    n_jobs: int | None = None
    cmake_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The programs that compile the engine.

    Attributes:
        cmake: path of CMake.
        generator: CMake's name of the build tool.
        build_tool: path of the build tool.
        identity: changes when object files made earlier can no longer be trusted.
        cmake_args: what the compiler needs to be told, each `-DX=Y`.
    """

    cmake: str
    generator: str
    build_tool: str
    identity: str
    cmake_args: tuple[str, ...] = ()


# The engine as the runtime finds it


def engine_record(layout: Layout) -> dict[str, Any] | None:
    """What `engine.json` says of the engine that is built; None when none is.

    Keys: source_sha256, patches_sha256, backend, cmake_args, library_dir (absolute path), modified (the tree that was
    compiled differed from the series), toolchain.
    """
    return read_json(layout.root / "engine" / "engine.json")


def library_file(folder: Path) -> Path:
    """The shared library in a library folder."""
    return folder / ("libllama.dylib" if sys.platform == "darwin" else "libllama.so")


def ensure_engine() -> Path:
    """Find the folder of the patched libllama; in an installed package, build it at first use.

    Raises:
        EngineError: a checkout has no engine or one of another series, or the build failed.
    """
    layout = find_layout()
    upstream = read_upstream(layout.patches)
    record = engine_record(layout)
    wanted = {
        "source_sha256": upstream.sha256,
        "patches_sha256": patches_sha256(layout.patches),
        "processor": _processor(),
    }
    if record is not None and wanted.items() <= record.items():
        folder = Path(record["library_dir"])
        if library_file(folder).is_file() and _bindings_version(upstream) == upstream.version:
            return folder
    if layout.is_checkout:
        state = "is not built" if record is None else "was built from another series, processor or place"
        raise EngineError(f"The engine in {layout.root} {state}: run `{layout.rerun}`.")
    reporter = Reporter(layout.log)
    reporter.note(f"Building the engine in {layout.root}, once; this takes a few minutes.")
    return build(BuildOptions(), layout, reporter)


# The build


def build(options: BuildOptions, layout: Layout, reporter: Reporter) -> Path:
    """Bring the engine up to date.

    Returns: the folder of the patched libllama.
    Raises:
        EngineError: a step failed; the message says which and what mends it.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        with reporter.locked(layout.lock):
            return _build_locked(options, layout, reporter)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EngineError(f"The disc of {layout.root} is full: free some space, then run `{layout.rerun}` again.") from error
        raise EngineError(
            f"The build cannot use {error.filename or layout.root} ({error.strerror or error}): correct that, then run "
            f"`{layout.rerun}` again."
        ) from error


def _build_locked(options: BuildOptions, layout: Layout, reporter: Reporter) -> Path:
    upstream = read_upstream(layout.patches)
    git = Git(layout.rerun)
    tools = find_toolchain(layout, reporter)
    backend, cuda_args = choose_backend(options, layout)
    tree = prepare_patched_tree(layout, upstream, git, reporter)
    version_args = ("-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={upstream.llama_cpp_commit[:9]}")
    args = (*_COMMON_ARGS, *tools.cmake_args, *version_args, *cuda_args, *options.cmake_args)
    engine = layout.root / "engine"
    record: dict[str, Any] = {
        "source_sha256": upstream.sha256,
        "patches_sha256": patches_sha256(layout.patches),
        "backend": backend,
        "cmake_args": list(args),
        "library_dir": str(engine / "bin"),
        "modified": is_modified(git, tree) or _has_unexported_commits(git, layout),
        "toolchain": tools.identity,
        "processor": _processor(),
    }
    compiler = _Compiler(layout, upstream, tools, reporter, _n_jobs(options))
    is_built = engine_record(layout) == record and library_file(engine / "bin").is_file() and not record["modified"]
    if not is_built:
        (engine / "engine.json").unlink(missing_ok=True)
        parts = _TEST_PARTS if options.with_tests else _ENGINE_PARTS
        compiler.make(tree, engine, (*args, *parts), _ENGINE_TARGETS, "the engine")
        write_json(engine / "engine.json", record)
    are_tests_built = is_built and read_json(engine / "tests.json") == record
    if options.with_tests and not are_tests_built:
        (engine / "tests.json").unlink(missing_ok=True)
        compiler.make(tree, engine, (*args, *_TEST_PARTS), UPSTREAM_TESTS, "the pinned source's tests")
        write_json(engine / "tests.json", record)
    _install_bindings(layout, upstream, reporter)
    if options.with_stock or options.with_tests:
        # the engine can be used meanwhile, and where this fails
        targets = _STOCK_SERVER if options.with_stock else _STOCK_LIBRARY
        _build_stock(layout, upstream, git, reporter, compiler, record, targets)
    reporter.note(f"Engine ready ({backend}): {engine / 'bin'}")
    return engine / "bin"


def _build_stock(
    layout: Layout,
    upstream: Upstream,
    git: Git,
    reporter: Reporter,
    compiler: _Compiler,
    record: dict[str, Any],
    targets: Sequence[str],
) -> None:
    """Build targets of the unpatched source with the engine's flags: to compare speeds, and to compare logits bit by bit."""
    stock = layout.root / "stock"
    wanted = {key: record[key] for key in ("source_sha256", "backend", "cmake_args", "toolchain", "processor")}
    built = read_json(stock / "stock.json") or {}
    have = built.pop("targets", [])
    if built == wanted and set(targets) <= set(have) and library_file(stock / "bin").is_file():
        return
    tree = prepare_stock_tree(layout, upstream, git, reporter)
    (stock / "stock.json").unlink(missing_ok=True)
    compiler.make(tree, stock, (*record["cmake_args"], *_STOCK_PARTS), targets, "stock llama.cpp")
    write_json(stock / "stock.json", {**wanted, "targets": list(targets)})


def _has_unexported_commits(git: Git, layout: Layout) -> bool:
    state = read_json(layout.patched_tree.with_name("llama.cpp.json")) or {}
    return git.run(layout.patched_tree, "rev-parse", "HEAD").strip() != state.get("head")


def _n_jobs(options: BuildOptions) -> int:
    if options.n_jobs is not None:
        return options.n_jobs
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class _Compiler:
    """Configures and builds source trees with one set of tools."""

    layout: Layout
    upstream: Upstream
    tools: Toolchain
    reporter: Reporter
    n_jobs: int

    def make(self, tree: Path, folder: Path, args: Sequence[str], targets: Sequence[str], what: str) -> None:
        """Build targets of a source tree in a build folder."""
        name = folder.name
        trusted = {
            "source": str(tree),
            "source_sha256": self.upstream.sha256,
            "toolchain": self.tools.identity,
            "processor": _processor(),
        }
        stamp = folder / "configured.json"
        configured = read_json(stamp) or {}
        if configured.get("trusted") != trusted and folder.is_dir():
            # Neither Ninja nor Make sees that -march=native or the compiler behind a path means something else now.
            shutil.rmtree(folder)
        if configured != {"trusted": trusted, "args": list(args)}:
            with self.reporter.stage(f"Configuring {what}"):
                # An argument that is no longer given would live on in the cache.
                (folder / "CMakeCache.txt").unlink(missing_ok=True)
                stamp.unlink(missing_ok=True)
                folder.mkdir(parents=True, exist_ok=True)
                tool = f"-DCMAKE_MAKE_PROGRAM={self.tools.build_tool}"
                command = [self.tools.cmake, "-S", str(tree), "-B", str(folder), "-G", self.tools.generator, tool, *args]
                finished = self.reporter.run(command, log=f"configure-{name}")
                if finished.returncode != 0:
                    raise self._failure(finished, f"Configuring {what}")
            write_json(stamp, {"trusted": trusted, "args": list(args)})
        with self.reporter.stage(f"Building {what} with {self.n_jobs} jobs"):
            command = [self.tools.cmake, "--build", str(folder), "--parallel", str(self.n_jobs), "--target", *targets]
            finished = self.reporter.run(command, log=f"build-{name}")
            if finished.returncode != 0:
                raise self._failure(finished, f"Building {what}")

    def _failure(self, finished: Finished, what: str) -> EngineError:
        output = finished.output()
        rerun = self.layout.rerun
        if "No space left on device" in output:
            return EngineError(f"{what} failed because the disc is full: free some space, then run `{rerun}` again.")
        if re.search(r"Killed signal|fatal error: Killed|cc1plus.*Killed", output):
            return EngineError(f"{what} failed for want of memory: run `{rerun} --jobs 1`.")
        # Below a line "CMake Error at FILE:LINE (message):" stands the reason.
        found = re.search(r"^CMake Error.*:\n\s*(\S.*)$|^.*(?:\berror|Error): .*$", output, re.MULTILINE)
        reason = f" ({(found[1] or found[0]).strip()[:200]})" if found else ""
        return EngineError(f"{what} failed{reason}: see {finished.log}, mend that, then run `{rerun}` again.")


# Tools


def find_toolchain(layout: Layout, reporter: Reporter) -> Toolchain:
    """Find the compiler, CMake and a build tool; CMake and Ninja are installed from PyPI where they are missing.

    Raises:
        EngineError: there is no C++ compiler, or CMake can be neither found nor installed.
    """
    compiler = os.environ.get("CXX") or _first_tool("c++", "g++", "clang++")
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise EngineError(
            f"{'No C++ compiler' if compiler is None else f'The C++ compiler {compiler} (from CXX)'} was found: install "
            "one (Debian, Ubuntu: `sudo apt install build-essential`; Fedora: `sudo dnf install gcc-c++ make`; macOS: "
            f"`xcode-select --install`), then run `{layout.rerun}` again."
        )
    cmake = _tool("cmake")
    if cmake is None or _cmake_version(cmake) < _CMAKE_MINIMUM:
        cmake = _install_tool("cmake", layout, reporter)
    generator, build_tool = "Ninja", _tool("ninja")
    if build_tool is None:
        generator, build_tool = "Unix Makefiles", _tool("make")
    if build_tool is None:
        generator, build_tool = "Ninja", _install_tool("ninja", layout, reporter)
    variables = [f"{name}={os.environ[name]}" for name in _COMPILER_VARIABLES if name in os.environ]
    facts = [_first_line(compiler.split()[0], "--version"), generator, platform.machine(), *variables]
    return Toolchain(cmake, generator, build_tool, "; ".join(facts), _tile_args(compiler))


def _tile_args(compiler: str) -> tuple[str, ...]:
    """What keeps GCC before version 14 from losing the configuration of AMX's tiles.

    To it, `_tile_loadconfig` reads eight of 64 bytes; it drops the stores to the others, and llama.cpp's first product of
    several columns ends in a segmentation fault.

    Source: GCC's bug 114098.
    """
    command = [*compiler.split(), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    macros = dict(re.findall(r"^#define (\w+) (.*)$", done.stdout, re.MULTILINE))
    is_affected = "__AMX_TILE__" in macros and "__clang__" not in macros and int(macros["__GNUC__"]) < 14
    return ("-DCMAKE_CXX_FLAGS_INIT=-fno-dse",) if is_affected else ()


def _first_tool(*names: str) -> str | None:
    return next((name for name in names if shutil.which(name)), None)


def _tool(name: str) -> str | None:
    # pip puts programs beside the interpreter, which is not on PATH unless the environment is activated.
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return (done.stdout.splitlines() or [""])[0].strip()


def _cmake_version(cmake: str) -> tuple[int, int]:
    found = re.search(r"(\d+)\.(\d+)", _first_line(cmake, "--version"))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _install_tool(name: str, layout: Layout, reporter: Reporter) -> str:
    what = f"Installing {name} into this Python environment"
    with reporter.stage(what):
        finished = run_pip(["install", "--upgrade", name], f"install-{name}", reporter, layout.rerun)
        if finished.returncode != 0:
            raise pip_failure(finished, what, layout.rerun)
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise EngineError(
            f"{name} was installed with pip but is not in {sysconfig.get_path('scripts')}: install it with the system's "
            f"package manager (Debian, Ubuntu: `sudo apt install {name}`), then run `{layout.rerun}` again."
        )
    return path


def _processor() -> str:
    """Changes when code compiled for this processor may not run, or not run best, on it."""
    description = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        described = ("model name", "flags", "Features", "CPU part")
        description += "\n".join(sorted({line for line in lines if line.startswith(described)}))
    return hashlib.sha256(description.encode()).hexdigest()[:12]


def choose_backend(options: BuildOptions, layout: Layout) -> tuple[Backend, tuple[str, ...]]:
    """Decide between CPU and CUDA.

    Returns: the back end and its arguments for CMake.
    Raises:
        EngineError: CUDA was asked for and cannot be built.
    """
    if options.backend == "cpu":
        return "cpu", ("-DGGML_CUDA=OFF",)
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    has_gpu = _has_gpu()
    if options.backend is None and (nvcc is None or not has_gpu):
        return "cpu", ("-DGGML_CUDA=OFF",)
    if nvcc is None:
        raise EngineError(
            "--cuda needs the CUDA toolkit, and nvcc was not found: install the toolkit from NVIDIA or your "
            f"distribution and put its bin folder on PATH, or run `{layout.rerun} --cpu`."
        )
    names_architectures = any(argument.startswith("-DCMAKE_CUDA_ARCHITECTURES") for argument in options.cmake_args)
    if not has_gpu and not names_architectures:
        raise EngineError(
            "--cuda was given and no GPU answers `nvidia-smi -L`, so the kind of GPU to compile for is not known: "
            f"name it, as in `{layout.rerun} --cuda --cmake-arg -DCMAKE_CUDA_ARCHITECTURES=89`."
        )
    return "cuda", ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}")


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and "GPU" in done.stdout


# The bindings


def _bindings_version(upstream: Upstream) -> str | None:
    try:
        return importlib.metadata.version(upstream.package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install_bindings(layout: Layout, upstream: Upstream, reporter: Reporter) -> None:
    if _bindings_version(upstream) == upstream.version:
        return
    sdist = fetch_sdist(layout, upstream, reporter)
    what = f"Installing the bindings of {upstream.package} {upstream.version}"
    with reporter.stage(what):
        # Without its own copy of llama.cpp: LLAMA_CPP_LIB_PATH leads the bindings to the patched libraries.
        settings = [f"--config-settings=cmake.define.{name}_BUILD=OFF" for name in ("LLAMA", "LLAVA")]
        finished = run_pip(["install", "--no-deps", *settings, str(sdist)], "bindings", reporter, layout.rerun)
        if finished.returncode != 0:
            raise pip_failure(finished, what, layout.rerun)
    importlib.invalidate_caches()


# The command


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m entmtp_local.native.build", description="Fetch, patch and build the engine.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cuda", action="store_const", const="cuda", dest="backend", help="build for NVIDIA GPUs")
    which.add_argument("--cpu", action="store_const", const="cpu", dest="backend", help="build for the CPU only")
    parser.add_argument("--with-stock", action="store_true", help="build the unpatched llama-server too")
    parser.add_argument("--with-tests", action="store_true", help="build the pinned source's own tests too")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="compilations at a time (default: one a core)")
    parser.add_argument("--build-dir", type=Path, metavar="DIR", help="build folder (default: build/ of the checkout)")
    parser.add_argument(
        "--cmake-arg", action="append", default=[], metavar="-DX=Y", help="further CMake argument; may be repeated"
    )
    parser.add_argument("--verbose", action="store_true", help="print what the compiler and other programs print")
    return parser.parse_args(_join_cmake_args(sys.argv[1:] if arguments is None else arguments))


def _join_cmake_args(arguments: Sequence[str]) -> list[str]:
    # argparse takes "-DX=Y" after "--cmake-arg" for an option of its own unless the two are one word.
    joined: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        value = next(rest, None) if argument == "--cmake-arg" else None
        joined.append(argument if value is None else f"{argument}={value}")
    return joined


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parsed = parse_arguments(arguments)
    options = BuildOptions(parsed.backend, parsed.with_stock, parsed.with_tests, parsed.jobs, tuple(parsed.cmake_arg))
    rerun = "scripts/setup"
    try:
        layout = find_layout(parsed.build_dir)
        rerun = layout.rerun
        build(options, layout, Reporter(layout.log, sys.stdout, verbose=parsed.verbose))
    except EngineError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nInterrupted; `{rerun}` picks up from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
