"""Where files are kept, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from entmtp_local.errors import UsageError


def user_cache() -> Path:
    """The user's folder for what can be computed again."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    return _home() / "Library" / "Caches" if sys.platform == "darwin" else _home() / ".cache"


def user_data() -> Path:
    """The user's folder for what cannot be computed again."""
    named = os.environ.get("XDG_DATA_HOME")
    if named:
        return Path(named)
    return _home() / "Library" / "Application Support" if sys.platform == "darwin" else _home() / ".local" / "share"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError("this user has no home folder: name one with HOME, such as HOME=/tmp.") from None


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read. A pipe would be waited for without end, and a device read without end: neither is opened.

    Raises: OSError, also where it is something else than a regular file.
    """
    _check_regular(path)
    return path.open("rb")


def reason(error: Exception) -> str:
    """Why a file cannot be read, in the system's words where it has some."""
    return isinstance(error, OSError) and error.strerror or type(error).__name__


def _place(path: Path) -> Path:
    """Where a file of this name is written: a link stays, and what it leads to is replaced.

    Raises: OSError where something else than a regular file is there, or links lead in a circle.
    """
    with suppress(FileNotFoundError):
        _check_regular(path)
    return Path(os.path.realpath(path))


def check_writable(path: Path) -> None:
    """Raises: UsageError before minutes are spent on what cannot be written, or would replace what is no file."""
    try:
        folder = _place(path).parent
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        # what the folder's mode says is not all: some file systems hold no files of ours
        with NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: its folder {folder} does not exist or may not be written ({error.strerror})."
        ) from None


@contextmanager
def replace_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Write a file that takes its name only when it is complete; what is there is kept until then and where writing fails.

    Args:
        private: nobody but its owner may read it.
    Raises: OSError, also where something else than a regular file is there.
    """
    path = _place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115 - closed below
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            # a temporary file is its owner's alone; this one is to be like any other
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file.name, 0o666 & ~mask)
        os.replace(file.name, path)
    except BaseException:
        # it has taken its name already where Ctrl-C comes behind that
        with suppress(FileNotFoundError):
            os.unlink(file.name)
        raise


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other programs of this package from writing a file meanwhile.

    Raises: UsageError where one does.
    """
    try:
        place = _place(path)
        place = place.with_name(f".{place.name}.lock")
        file = place.open("a")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # one that ends meanwhile takes the name away, under which the next one locks another file
            is_ours = os.fstat(file.fileno()).st_ino == place.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        except OSError:
            # a file system without locks
            is_ours = True
        if not is_ours:
            raise UsageError(f"another program writes {path}; let it end, or name another file.")
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                os.unlink(place)
