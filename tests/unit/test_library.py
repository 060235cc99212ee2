"""What is known of the build of an engine: two builds never share a profile.

| test | failure it catches |
|---|---|
| recorded | a build that is known by anything else than its record |
| not recorded | two builds that count as one, or one build that counts as another when it is copied or linked to |
| keys | profiles of one build that are used with another |
| vector units | processors that differ by a factor of two and have one name |
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fakes import FakeSession

from entmtp_local.calibration.calibrate import key_of
from entmtp_local.native import library
from entmtp_local.native.library import build_of, library_file, vector_unit
from entmtp_local.native.session import SessionOptions

RECORD = {"source_sha256": "a" * 64, "patches_sha256": "b" * 64, "backend": "cuda"}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three libraries, of which one is larger than what of it is hashed."""
    monkeypatch.setattr(library, "_HASHED_BYTES", 1000)
    folder = tmp_path / "engine" / "bin"
    folder.mkdir(parents=True)
    suffix = library_file(folder).suffix
    for name, size in ((library_file(folder).name, 1500), (f"libggml{suffix}", 700), (f"libggml-cuda{suffix}", 9000)):
        (folder / name).write_bytes(bytes(i % 251 for i in range(size)))
    return folder


def test_a_recorded_build_is_known_by_its_record(engine: Path) -> None:
    (engine.parent / "engine.json").write_text(json.dumps({**RECORD, "processor": "x"}))
    assert build_of(engine) == RECORD
    (engine / "engine.json").write_text("{}")
    assert build_of(engine) == dict.fromkeys(RECORD, "unknown")


def test_builds_of_which_nothing_is_recorded_are_told_apart(engine: Path, tmp_path: Path) -> None:
    before = build_of(engine)
    assert {name: before[name] for name in RECORD} == dict.fromkeys(RECORD, "unknown")
    copied = tmp_path / "copied"
    shutil.copytree(engine, copied)
    (copied / "README").write_text("not a library")
    assert build_of(copied) == before
    for path in sorted(engine.iterdir()):
        content = path.read_bytes()
        for at in (0, 600, len(content) - 1):
            changed = bytearray(content)
            changed[at] ^= 1
            path.write_bytes(changed)
            assert build_of(engine) != before, (path.name, at)
        path.write_bytes(content + b"x")
        assert build_of(engine) != before, path.name
        path.write_bytes(content)
        assert build_of(engine) == before
    # links to a library are that library
    suffix = library_file(engine).suffix
    (copied / f"libggml-link{suffix}").symlink_to(f"libggml{suffix}")
    assert build_of(copied) == before


def test_keys_of_such_builds_differ(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"a model")
    options = SessionOptions(tmp_path / "model.gguf", n_threads=1)
    session, keys = FakeSession([]), set()
    for content in (b"one", b"another"):
        library_file(engine).write_bytes(content)
        session.engine_info = build_of(engine)
        keys.add(key_of(session, options).engine)  # type: ignore[arg-type]
    session.engine_info = RECORD
    assert len(keys) == 2 and key_of(session, options).engine == f"{'a' * 16} {'b' * 16} cuda"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "unit"),
    [
        (
            "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | AVX512 = 1 | AVX512_VBMI = 1 | AVX512_VNNI = 1 | OPENMP = 1 |",
            "AVX-512 VNNI",
        ),
        ("CPU : AVX = 1 | AVX2 = 1 | FMA = 1 | AVX512 = 1 | LLAMAFILE = 1 | ", "AVX-512"),
        ("CUDA : ARCHS = 860 | CPU : AVX = 1 | AVX2 = 1", "AVX2"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1", "NEON"),
        ("CPU : AVX = 1 | AVX2 = 0", None),
        ("", None),
    ],
)
def test_the_vector_unit_is_part_of_what_a_processor_is_called(features: str, unit: str | None) -> None:
    assert vector_unit(features) == unit
