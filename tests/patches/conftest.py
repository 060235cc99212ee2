"""What `scripts/setup --with-tests` leaves in the build folder; a test that needs it fails where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from entmtp_local.native.build import library_file
from entmtp_local.native.source import Git, Layout, Upstream, find_layout, patches_sha256, read_upstream
from entmtp_local.native.stages import read_json


@pytest.fixture(scope="session")
def layout() -> Layout:
    return find_layout()


@pytest.fixture(scope="session")
def upstream(layout: Layout) -> Upstream:
    return read_upstream(layout.patches)


@pytest.fixture(scope="session")
def git() -> Git:
    return Git("scripts/setup")


@pytest.fixture(scope="session")
def programs(layout: Layout) -> Path:
    """Folder of the pinned source's own tests, built from the patched tree as the series is now."""
    record = read_json(layout.root / "engine" / "tests.json")
    assert record is not None, "the pinned source's tests are not built: run scripts/setup --with-tests"
    assert record["patches_sha256"] == patches_sha256(layout.patches), "the series changed: run scripts/setup --with-tests"
    folder = Path(record["library_dir"])
    assert library_file(folder).is_file()
    return folder


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    path = Path(__file__).parents[2] / "models" / "reference-11m.gguf"
    assert path.is_file()
    return path
