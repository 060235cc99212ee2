"""Imports point down: cli > calibration > chat, bench > engine > speculative, native > errors; cli > hub > errors.

And the speculative part is NumPy only.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "entmtp_local"

ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "plots": set(),
    "speculative": {"errors", "files", "speculative"},
    "native": {"errors", "files", "speculative", "native"},
    "hub": {"__version__", "errors", "files", "hub"},
    "engine": {"errors", "speculative"},
    "chat": {"errors", "files", "plots", "speculative", "native", "engine", "chat"},
    "bench": {"errors", "files", "plots", "speculative", "native", "engine", "bench"},
    "calibration": {"errors", "files", "plots", "speculative", "native", "engine", "chat", "bench", "calibration"},
    "cli": {"errors", "files", "speculative", "native", "engine", "chat", "bench", "calibration", "hub", "cli"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    if layer in ("__init__", "__main__"):
        return
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("entmtp_local.")}
    assert ours <= ALLOWED[layer], f"{path} reaches up to {sorted(ours - ALLOWED[layer])}"


def test_the_speculative_part_needs_numpy_only() -> None:
    for path in MODULES:
        if layer_of(path) == "speculative":
            outside = {name.split(".")[0] for name in imports_of(path)}
            assert not outside & {"llama_cpp", "ctypes", "click", "gguf", "jinja2", "huggingface_hub"}, path
