"""Where files are kept, and files that are there whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO


def user_cache() -> Path:
    """The user's folder for what can be computed again."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    return Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path.home() / ".cache"


def user_data() -> Path:
    """The user's folder for what cannot be computed again."""
    named = os.environ.get("XDG_DATA_HOME")
    if named:
        return Path(named)
    return Path.home() / "Library" / "Application Support" if sys.platform == "darwin" else Path.home() / ".local" / "share"


@contextmanager
def replace_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Write a file that takes its name only when it is complete; what is there is kept until then and where writing fails.

    Args:
        private: nobody but its owner may read it.
    """
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
        os.unlink(file.name)
        raise
