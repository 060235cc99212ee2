"""Finding and loading the patched llama.cpp.

The ctypes structs of llama-cpp-python and the library come from the same sdist, so both must be loaded together and before
anything else imports `llama_cpp`.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from entmtp_local.errors import EngineError
from entmtp_local.native.api import ABI, Api

# enum ggml_backend_dev_type
_DEVICE_TYPE_CPU = 0
_DEVICE_TYPE_GPU = 1
_DEVICE_TYPE_IGPU = 2

_REBUILD = "rebuild it with scripts/setup (or: python -m entmtp_local.native.build)"

# Of each end of a library: all of one for CPUs, which are some 10 MB together. One for GPUs may have hundreds of megabytes.
_HASHED_BYTES = 8 << 20

_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor that the engine can compute on.

    Args:
        name: as ggml describes it.
        free_bytes, total_bytes: of its memory; where it shares main memory, what it may use of that.
    """

    name: str
    free_bytes: int
    total_bytes: int


def library_file(directory: Path) -> Path:
    """The engine library inside a directory of libraries."""
    return directory / ("llama.dll" if sys.platform == "win32" else f"libllama.{_SUFFIX}")


def check_library(directory: Path) -> None:
    """Refuse a library that these bindings would misread.

    Raises: EngineError when the file is missing, does not load, is not patched, or has another ABI number.
    """
    path = library_file(directory)
    if not path.is_file():
        raise EngineError(f"there is no engine library at {path}; {_REBUILD}.")
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the engine library {path} does not load ({error}); {_REBUILD}.") from error
    try:
        abi_of = lib.llama_entmtp_abi
    except AttributeError:
        raise EngineError(f"{path} is a llama.cpp without the patches of this project; {_REBUILD}.") from None
    abi = int(abi_of())
    if abi != ABI:
        raise EngineError(f"{path} has the engine ABI {abi}, this version of entmtp-local needs {ABI}; {_REBUILD}.")


def engine_directory() -> Path:
    """Where the engine libraries are; builds them when they are not there yet.

    ENTMTP_LOCAL_ENGINE names a directory of libraries to use instead.

    Raises: EngineError when there is none, or when none can be built.
    """
    override = os.environ.get("ENTMTP_LOCAL_ENGINE")
    if override:
        if not library_file(Path(override)).is_file():
            raise EngineError(
                f"ENTMTP_LOCAL_ENGINE names {override}, where no engine library is; unset it, or name the folder of "
                f"{library_file(Path(override)).name}."
            )
        return Path(override)
    from entmtp_local.native.build import ensure_engine

    return ensure_engine()


def is_built() -> bool:
    """Whether `load` would find an engine without building one."""
    if os.environ.get("ENTMTP_LOCAL_ENGINE"):
        return True
    from entmtp_local.native.build import engine_record
    from entmtp_local.native.source import find_layout

    record = engine_record(find_layout())
    return record is not None and library_file(Path(record["library_dir"])).is_file()


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """The module `llama_cpp`, bound to the patched library.

    Raises: EngineError when the library or the bindings are missing or do not fit together.
    """
    directory = engine_directory().resolve()
    check_library(directory)
    loaded = sys.modules.get("llama_cpp")
    if loaded is not None and os.environ.get("LLAMA_CPP_LIB_PATH") != str(directory):
        raise EngineError(
            "llama_cpp was imported before entmtp_local and is bound to another library; import entmtp_local first."
        )
    os.environ["LLAMA_CPP_LIB_PATH"] = str(directory)
    try:
        return importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise EngineError(f"the llama-cpp-python bindings are not installed ({error}); run scripts/setup.") from error


@lru_cache(maxsize=1)
def api() -> Api:
    """The llama_entmtp_* functions of the loaded library.

    Raises: EngineError when one is missing.
    """
    lib = load().llama_cpp._lib
    try:
        return Api(lib)
    except AttributeError as error:
        raise EngineError(f"the engine library is older than this version of entmtp-local ({error}); {_REBUILD}.") from None


@lru_cache(maxsize=1)
def engine_info() -> dict[str, str]:
    """What the loaded engine was built from: source_sha256, patches_sha256, backend; where that is unknown, libraries_sha256."""
    load()
    return build_of(Path(os.environ["LLAMA_CPP_LIB_PATH"]))


def build_of(directory: Path) -> dict[str, str]:
    """As engine_info, of any directory of libraries."""
    names = ("source_sha256", "patches_sha256", "backend")
    for candidate in (directory / "engine.json", directory.parent / "engine.json"):
        if candidate.is_file():
            recorded = json.loads(candidate.read_text())
            return {name: str(recorded.get(name, "unknown")) for name in names}
    return {**dict.fromkeys(names, "unknown"), "libraries_sha256": _digest_of(directory)}


def _digest_of(directory: Path) -> str:
    """Of the engine's libraries, to tell builds apart of which nothing else is known."""
    digest = hashlib.sha256()
    # each once, whatever links there are to it
    for path in sorted({path.resolve() for path in (library_file(directory), *directory.glob(f"*ggml*.{_SUFFIX}"))}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            # sections and symbols of a larger one are listed at its end
            file.seek(max(file.tell(), size - _HASHED_BYTES))
            digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


# As llama.cpp lists them, the widest first.
_VECTOR_UNITS = {"AVX512_VNNI": "AVX-512 VNNI", "AVX512": "AVX-512", "AVX2": "AVX2", "SVE": "SVE", "NEON": "NEON"}


@lru_cache(maxsize=1)
def device_name() -> str:
    """The device that computes, as ggml describes it: the first GPU that the engine sees, else the CPU.

    Processors of one name differ in their vector units, and passes of several nodes take twice as long on some: the widest one
    that the engine was built for is part of the name.
    """
    llama = load()
    lib = llama.llama_cpp._lib
    by_type, describe = lib.ggml_backend_dev_by_type, lib.ggml_backend_dev_description
    by_type.restype, by_type.argtypes = ctypes.c_void_p, [ctypes.c_int]
    describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    for device_type in (_DEVICE_TYPE_GPU, _DEVICE_TYPE_IGPU, _DEVICE_TYPE_CPU):
        device = by_type(device_type)
        if not device:
            continue
        name = str(describe(device).decode())
        if device_type == _DEVICE_TYPE_CPU and (unit := vector_unit(llama.llama_print_system_info().decode())):
            name += f", {unit}"
        return name
    return "unknown"


def vector_unit(system_info: str) -> str | None:
    """The widest vector unit among the features that llama.cpp lists, as "AVX2 = 1"; None where none is known here."""
    return next((name for feature, name in _VECTOR_UNITS.items() if f" {feature} = 1 " in f" {system_info} "), None)


def gpus() -> list[Gpu]:
    """The graphics processors that the engine sees; their memory as it is now."""
    lib = load().llama_cpp._lib
    count, get, kind = lib.ggml_backend_dev_count, lib.ggml_backend_dev_get, lib.ggml_backend_dev_type
    describe, memory = lib.ggml_backend_dev_description, lib.ggml_backend_dev_memory
    count.restype, count.argtypes = ctypes.c_size_t, []
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    kind.restype, kind.argtypes = ctypes.c_int, [ctypes.c_void_p]
    describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    memory.restype, memory.argtypes = None, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    found = []
    for i in range(count()):
        device = get(i)
        if kind(device) not in (_DEVICE_TYPE_GPU, _DEVICE_TYPE_IGPU):
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(Gpu(describe(device).decode(), free.value, total.value))
    return found
