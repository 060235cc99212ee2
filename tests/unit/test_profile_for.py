"""Which profile a session gets: measured once, read once, and again where the file is another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import KEY, model_info

from entmtp_local.cli import profiles
from entmtp_local.errors import ProfileError
from entmtp_local.native.session import SessionOptions
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.profile import Profile

OPTIONS = SessionOptions(Path("m.gguf"))


class Calibration:
    """Stands in for measuring, and counts."""

    def __init__(self) -> None:
        self.n_measured = self.n_read = 0
        self.notes: list[str] = []
        self.given: Path | None = None

    def measure(self, *_: Any) -> tuple[Profile, None]:
        self.n_measured += 1
        return Profile(CostTable({1: 0.01 * self.n_measured}), KEY, created="2026-11-22"), None

    def profile(self) -> Profile:
        session: Any = SimpleNamespace(n_ctx=1000, clear=lambda: None)
        return profiles.profile_for(session, OPTIONS, model_info(), self.given, self.notes.append)


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Calibration]:
    found = Calibration()
    load = Profile.load

    def counted(*arguments: Any) -> Profile:
        found.n_read += 1
        return load(*arguments)

    monkeypatch.setattr(profiles, "profile_folder", lambda: tmp_path / "profiles")
    monkeypatch.setattr(profiles, "key_of", lambda *_: KEY)
    monkeypatch.setattr(profiles, "calibrate", found.measure)
    monkeypatch.setattr(profiles, "template_of", lambda *_: None)
    monkeypatch.setattr(profiles, "prompt_tokens", lambda *_: [1, 2, 3])
    monkeypatch.setattr(profiles.Profile, "load", staticmethod(counted))
    monkeypatch.setattr(profiles, "_loaded", {})
    yield found


def test_a_profile_is_measured_once_and_read_once(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibration.profile()
    assert calibration.profile() is first and (calibration.n_measured, calibration.n_read) == (1, 0)
    # the next start
    monkeypatch.setattr(profiles, "_loaded", {})
    again = calibration.profile()
    assert again.costs.verify == first.costs.verify and again is calibration.profile()
    assert (calibration.n_measured, calibration.n_read) == (1, 1)


def test_a_file_that_was_replaced_is_read_again(calibration: Calibration, tmp_path: Path) -> None:
    calibration.profile()
    (path,) = (tmp_path / "profiles").iterdir()
    Profile(CostTable({1: 0.5, 2: 0.6}), KEY).save(path)
    assert calibration.profile().costs.verify[1] == 0.5
    path.unlink()
    assert calibration.profile().costs.verify[1] == 0.02 and calibration.n_measured == 2


def test_what_cannot_be_kept_is_not_measured_for_each_policy(calibration: Calibration, tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("no folder")
    first = calibration.profile()
    assert calibration.profile() is first and calibration.n_measured == 1
    assert sum("cannot be kept" in note for note in calibration.notes) == 1


def test_what_something_else_disturbed_is_not_kept(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of drafts is a layer or two, and cannot take longer than the model."""
    disturbed = Profile(CostTable({1: 0.001}, level={1: 0.1}), KEY)
    monkeypatch.setattr(profiles, "calibrate", lambda *_: (disturbed, None))
    assert calibration.profile() is disturbed is calibration.profile()
    assert sum("is not kept" in note for note in calibration.notes) == 1
    # the next start
    monkeypatch.setattr(profiles, "_loaded", {})
    monkeypatch.setattr(profiles, "calibrate", calibration.measure)
    assert calibration.profile() is not disturbed and calibration.n_measured == 1


def test_a_file_of_the_users_own_comes_first(calibration: Calibration, tmp_path: Path) -> None:
    calibration.given = tmp_path / "own.json"
    with pytest.raises(ProfileError, match="there is no profile"):
        calibration.profile()
    Profile(CostTable({1: 0.7}), KEY).save(calibration.given)
    assert [calibration.profile().costs.verify[1] for _ in range(2)] == [0.7, 0.7]
    assert (calibration.n_measured, calibration.n_read) == (0, 1)
