"""Finds text under free licences on this machine: which files, from which package, under which licence.

Does not know what is done with a file, only whether its licence allows it. A file whose licence cannot be told is left out.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

FREE_IDS = frozenset(
    {
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "0BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "Apache-2.0",
        "ISC",
        "PSF-2.0",
        "Python-2.0",
        "CNRI-Python",
    }
    | {"Zlib", "Unlicense", "CC0-1.0", "BSL-1.0", "HPND"}
)

_FREE_WORDS = re.compile(
    r"\b(MIT|Expat|BSD|Apache|ISC|ISCL|PSF|Python Software Foundation|Unlicense|CC0|zlib|HPND)\b|public domain", re.IGNORECASE
)
_OTHER_WORDS = re.compile(r"GPL|General Public|Mozilla|\bMPL|proprietary|non-?commercial|Creative Commons|CC-BY", re.IGNORECASE)

_LICENCE_TEXTS = (
    ("Apache-2.0", re.compile(r"Apache License\s+Version 2\.0")),
    ("MIT", re.compile(r"Permission is hereby granted, free of charge")),
    ("BSD", re.compile(r"Redistribution and use in source and binary forms")),
    ("ISC", re.compile(r"Permission to use, copy, modify, and/or distribute this software")),
)

_CODE_SUFFIXES = (".py",)
_PROSE_SUFFIXES = (".md", ".rst", ".txt", ".html")
_SKIPPED_PARTS = frozenset(
    {"__pycache__", "test", "tests", "testing", "_vendor", "vendored", "third_party", "lib2to3", "encodings", "site-packages"}
    | {"dist-packages", "node_modules", ".git", ".venv", "benchmarks", "idlelib", "turtledemo", "ensurepip", "licenses", "ci"}
    | {"changelogs"}
)
_RUST_BOOKS = (
    ("book", "reference", "cargo", "rustc", "nomicon", "embedded-book", "edition-guide", "clippy", "error_codes")
    + ("rust-by-example", "style-guide", "rustdoc", "std")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that may be used.

    Args:
        path: where it lies.
        name: "package: path inside the package", free of versions and of this machine's paths; it decides the split.
        package: the package or tree it belongs to, with its version; the manifest sums by it.
        licence: as the package states it.
    """

    path: Path
    name: str
    package: str
    licence: str


def free_licence(expression: str) -> bool:
    """Whether an SPDX expression lets everybody use the text: each of its AND parts offers a licence in FREE_IDS."""
    parts = re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " ").strip())
    return all(any(choice.strip() in FREE_IDS for choice in re.split(r"\s+OR\s+", part)) for part in parts)


def package_licence(package: Distribution) -> str | None:
    """The free licence a package's metadata states, None where it states none, or another, or cannot be told."""
    metadata = package.metadata
    expression: str = (metadata.get_all("License-Expression") or [""])[0]
    if expression:
        return expression if free_licence(expression) else None
    stated: list[str] = [
        line.split("::")[-1].strip() for line in metadata.get_all("Classifier") or [] if line.startswith("License")
    ]
    first_line = (metadata.get_all("License") or [""])[0].strip().split("\n")[0]
    if first_line and first_line != "UNKNOWN" and len(first_line) < 90:
        stated.append(first_line)
    text = "; ".join(dict.fromkeys(stated))
    if not text or _OTHER_WORDS.search(text) or not _FREE_WORDS.search(text):
        return None
    return stated[0]


def tree_licence(folder: Path) -> str | None:
    """The free licence whose text stands in a folder's LICENSE or COPYING file, None where there is none."""
    for file in sorted(folder.glob("LICEN[CS]E*")) + sorted(folder.glob("COPYING*")):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            for name, pattern in _LICENCE_TEXTS:
                if pattern.search(text):
                    return name
    return None


def _usable(relative: Path, suffixes: tuple[str, ...]) -> bool:
    name = relative.name.lower()
    return (
        relative.suffix.lower() in suffixes
        and not _SKIPPED_PARTS.intersection(relative.parts[:-1])
        and not any(part.startswith(".") for part in relative.parts)
        and not name.startswith(
            ("test_", "license", "licence", "copying", "copyright", "changelog", "news", "authors", "requirements")
        )
        and not name.endswith(("_test.py", "_pb2.py", "cmakelists.txt", "top_level.txt", "entry_points.txt"))
        and name not in {"print.html", "toc.html", "404.html", "summary.html", "all.md"}
    )


def walk(
    folder: Path, name: str, package: str, licence: str, suffixes: tuple[str, ...] = _CODE_SUFFIXES + _PROSE_SUFFIXES
) -> Iterator[SourceFile]:
    """The usable files of a folder, in the order of their paths."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and _usable(relative, suffixes):
            yield SourceFile(path, f"{name}: {relative.as_posix()}", package, licence)


def _package_files(package: Distribution) -> Iterator[SourceFile]:
    licence = package_licence(package)
    if licence is None:
        return
    name = package.metadata["Name"]
    for entry in sorted(package.files or [], key=str):
        relative = Path(str(entry))
        path = Path(str(package.locate_file(entry)))
        # dist-info holds no sources; ".." leads to scripts outside the package.
        if ".." in relative.parts or relative.parts[0].endswith((".dist-info", ".egg-info")):
            continue
        if _usable(relative, _CODE_SUFFIXES + _PROSE_SUFFIXES) and path.is_file():
            yield SourceFile(path, f"{name}: {relative.as_posix()}", f"{name} {package.version}", licence)


def _documentation_trees() -> Iterator[tuple[Path, str, str]]:
    """Documentation that other tools install, with the licence their projects state for it."""
    rust = sorted(Path.home().glob(".rustup/toolchains/stable*/share/doc/rust/html"))[:1] + [Path("/usr/share/doc/rust-doc/html")]
    for root in rust:
        for book in _RUST_BOOKS:
            yield root / book, f"Rust documentation, {book}", "MIT OR Apache-2.0"
    yield Path("/usr/share/doc/nodejs/api"), "Node.js API documentation", "MIT"
    for folder in sorted(Path("/usr/share").glob("cmake*/Help")):
        yield folder, "CMake documentation", "BSD-3-Clause"


def find_sources(trees: tuple[Path, ...] = ()) -> list[SourceFile]:
    """Every usable file: the standard library, installed packages, known documentation, and the given source trees.

    Args:
        trees: folders with a LICENSE file of their own.
    Returns: files in a fixed order; the same machine gives the same list.
    Raises: ValueError for a tree without a licence that can be told.
    """
    licences: dict[Path, str] = {}
    for folder in trees:
        stated = tree_licence(folder)
        if stated is None:
            raise ValueError(f"{folder} has no LICENSE file with a free licence that this script recognises.")
        licences[folder] = stated
    files: list[SourceFile] = []
    version = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
    files.extend(walk(Path(sysconfig.get_paths()["stdlib"]), "Python standard library", version, "PSF-2.0", _CODE_SUFFIXES))
    # A virtual environment sees its own packages; those of the interpreter it came from are on the machine as well.
    base = sysconfig.get_path("purelib", vars={"base": sys.base_prefix})
    places = dict.fromkeys([sysconfig.get_paths()["purelib"], base, "/usr/lib/python3/dist-packages"])
    seen: set[str] = set()
    for place in places:
        for package in sorted(distributions(path=[place]), key=lambda each: (each.metadata["Name"] or "").lower()):
            name = (package.metadata["Name"] or "").lower()
            if name and name not in seen:
                seen.add(name)
                files.extend(_package_files(package))
    for folder, name, licence in _documentation_trees():
        if folder.is_dir():
            files.extend(walk(folder, name, name, licence, (".md", ".rst") if "Rust" not in name else (".html",)))
    for folder, stated in licences.items():
        files.extend(walk(folder, folder.name, f"source tree {folder.name}", stated))
    return files
