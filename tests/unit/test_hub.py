"""Fetching from a hub that breaks off, lies, stalls and refuses: what arrives is whole or is not there."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import COMMIT, FakeHub, Repo, content, serving, use
from filelock import FileLock
from huggingface_hub import constants, try_to_load_from_cache

from entmtp_local.errors import HubError
from entmtp_local.hub import download
from entmtp_local.hub.cache import ModelFiles, cached_models, find_cached, repo_folder
from entmtp_local.hub.download import list_models
from entmtp_local.hub.header import announces_head
from entmtp_local.hub.names import Reference

NAME = "m-Q4_K_M.gguf"
REFERENCE = Reference("o/r", "Q4_K_M")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving() as hub:
        use(hub, tmp_path, monkeypatch)
        hub.repos["o/r"] = Repo({NAME: content(), "README.md": b"# about\n"})
        yield hub


def pull(reference: Reference = REFERENCE) -> ModelFiles:
    return download.pull(reference, notes.append)


def refusal(reference: Reference = REFERENCE) -> str:
    with pytest.raises(HubError) as caught:
        pull(reference)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


notes: list[str] = []


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    notes.clear()


def partials() -> list[Path]:
    return sorted(repo_folder("o/r").glob("blobs/*.incomplete"))


# -- what arrives


def test_a_file_arrives_whole_and_where_the_hubs_own_tools_find_it(hub: FakeHub) -> None:
    files = pull()
    assert files.mtp_path is None
    assert files.path.read_bytes() == hub.repos["o/r"].files[NAME]
    assert files.path == repo_folder("o/r") / "snapshots" / COMMIT / NAME and files.path.is_symlink()
    assert try_to_load_from_cache("o/r", NAME) == str(files.path)
    assert notes == [f"{NAME} (0.2 MB)"]
    assert partials() == [] and cached_models() == ["o/r:Q4_K_M"]


def test_what_is_here_is_checked_but_not_fetched_again(hub: FakeHub) -> None:
    first = pull()
    n_sent = hub.ranges()
    assert pull() == first
    assert hub.ranges() == n_sent == [0]


def test_what_was_damaged_here_is_fetched_again(hub: FakeHub) -> None:
    path = pull().path
    damaged = bytearray(path.read_bytes())
    damaged[50_000] ^= 1
    path.resolve().write_bytes(damaged)
    assert pull().path.read_bytes() == hub.repos["o/r"].files[NAME]
    assert f"{NAME} is damaged on this machine and is fetched again." in notes


def test_a_newer_revision_replaces_an_older_one(hub: FakeHub) -> None:
    old = pull().path
    hub.repos["o/r"].files[NAME] = content(seed="newer")
    hub.repos["o/r"].commit = "f" * 40
    new = pull().path
    assert new != old and new.read_bytes() == content(seed="newer")
    assert find_cached(REFERENCE) == ModelFiles(new)


def test_all_parts_of_a_split_model_arrive_and_the_first_is_given(hub: FakeHub) -> None:
    parts = {f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf": content(30_000, seed=str(i)) for i in (1, 2, 3)}
    hub.repos["o/r"].files.update(parts)
    path = pull(Reference("o/r", "Q8_0")).path
    assert path.name == "m-Q8_0-00001-of-00003.gguf" and notes == [f"{next(iter(parts))} (0.1 MB in 3 parts)"]
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
        Path(name).name: data for name, data in parts.items()
    }


def test_a_head_of_its_own_comes_first(hub: FakeHub) -> None:
    hub.repos["o/r"].files |= {NAME: content(n_heads=None), "mtp-m-Q4_K_M.gguf": content(20_000, seed="head")}
    files = pull()
    assert files.mtp_path is not None and files.mtp_path.name == "mtp-m-Q4_K_M.gguf"
    sizes = [path.stat().st_mtime_ns for path in (files.mtp_path, files.path)]
    assert sizes == sorted(sizes)
    assert find_cached(REFERENCE) == files
    assert notes == [f"{NAME} (0.2 MB), and its MTP head mtp-m-Q4_K_M.gguf"]


def test_a_head_is_left_where_the_model_has_one(hub: FakeHub) -> None:
    hub.repos["o/r"].files["mtp-m-Q4_K_M.gguf"] = content(20_000, seed="head")
    assert pull().mtp_path is None
    assert len(hub.ranges()) == 1


def test_of_files_with_equal_names_the_one_with_a_head_is_taken(hub: FakeHub) -> None:
    hub.repos["o/r"].files = {"a/m-Q4_K_M.gguf": content(n_heads=None), "b/m-Q4_K_M.gguf": content(seed="with")}
    files = pull()
    assert files.path.parent.name == "b"
    assert find_cached(REFERENCE) == files


def test_that_a_model_has_no_head_is_said_before_it_is_fetched(hub: FakeHub) -> None:
    hub.repos["o/r"].files[NAME] = content(n_heads=0)
    pull()
    assert "it has no MTP head" in notes[1]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (content(300), True),
        (content(300, n_heads=0), False),
        (content(300, n_heads=None), False),
        (content(300)[:60], None),
        (b"PK" + content(300), None),
        (b"", None),
    ],
)
def test_what_the_first_bytes_say(start: bytes, expected: bool | None) -> None:
    assert announces_head(start) is expected


# -- interruptions


def test_broken_connections_are_gone_on_from(hub: FakeHub) -> None:
    hub.break_after = 60_000
    assert pull().path.read_bytes() == hub.repos["o/r"].files[NAME]
    starts = hub.ranges()
    assert starts == sorted(starts) and starts[0] == 0 and len(starts) >= 4
    assert hub.n_sent < 1.5 * len(hub.repos["o/r"].files[NAME])


def test_a_connection_that_brings_nothing_ends_with_what_there_is(hub: FakeHub) -> None:
    partial = repo_folder("o/r") / "blobs" / f"{hashlib.sha256(content()).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content()[:70_000])
    hub.break_after = 0
    sentence = refusal()
    assert "the connection to" in sentence and "run entmtp-local pull o/r:Q4_K_M" in sentence
    assert partial.read_bytes() == content()[:70_000]
    hub.break_after, hub.requests[:] = None, []
    assert pull().path.read_bytes() == content()
    assert hub.ranges() == [70_000]


def test_a_hub_that_stalls_is_left_and_asked_again(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.stall_after = 150_000
    assert pull().path.read_bytes() == content()
    assert hub.ranges()[0] == 0 and hub.ranges()[1] > 100_000


def test_statuses_that_pass_are_waited_for(hub: FakeHub) -> None:
    # the first request is for the beginning alone
    hub.break_after = 60_000
    hub.spoil = lambda data: data if hub.n_sent < 100_000 else fail_for_a_while(data)

    def fail_for_a_while(data: bytes) -> bytes:
        hub.fail["/content/"] = [503, 500, 429]
        hub.spoil = bytes
        return data

    assert pull().path.read_bytes() == content()
    assert hub.fail["/content/"] == [] and hub.ranges() == sorted(hub.ranges())


@pytest.mark.parametrize(("seconds", "in_time"), [(0.05, True), (30.0, False)])
def test_slow_answers(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, seconds: float, in_time: bool) -> None:
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.5)
    hub.slow = {"/api/": seconds, "/resolve/": seconds, "/content/": seconds}
    if in_time:
        assert pull().path.read_bytes() == content()
    else:
        assert "failed (ReadTimeout" in refusal()


def test_ctrl_c_keeps_what_was_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(download.tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.n >= 100_000:
                raise KeyboardInterrupt
            return None

    with monkeypatch.context() as patch:
        patch.setattr(download, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            pull()
    assert [path.stat().st_size for path in partials()] == [100_000]
    assert find_cached(REFERENCE) is None
    hub.requests.clear()
    assert pull().path.read_bytes() == content()
    assert hub.ranges() == [100_000] and partials() == []


def test_a_server_without_ranges_sends_all_again(hub: FakeHub) -> None:
    hub.knows_ranges = False
    partial = repo_folder("o/r") / "blobs" / f"{hashlib.sha256(content()).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 70_000)
    assert pull().path.read_bytes() == content()


def test_a_server_without_ranges_that_breaks_off_is_not_asked_for_ever(hub: FakeHub) -> None:
    hub.knows_ranges, hub.break_after = False, 60_000
    assert "the connection to" in refusal()
    assert len(hub.ranges()) < 20


@pytest.mark.parametrize("left", [b"x" * 70_000, b"x" * 200_000, b"x" * 300_000])
def test_damaged_beginnings_are_found_and_removed(hub: FakeHub, left: bytes) -> None:
    partial = repo_folder("o/r") / "blobs" / f"{hashlib.sha256(content()).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    if len(left) <= len(content()):
        assert "does not have the checksum" in refusal()
    assert pull().path.read_bytes() == content()


def test_parts_that_were_not_asked_for_are_refused_and_what_was_fetched_stays(hub: FakeHub) -> None:
    partial = repo_folder("o/r") / "blobs" / f"{hashlib.sha256(content()).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content()[:50_000])
    hub.wrong_ranges = True
    assert "is not what a hub answers" in refusal() and "bytes from 50000 on" in refusal()
    assert partial.read_bytes() == content()[:50_000]
    hub.wrong_ranges = False
    assert pull().path.read_bytes() == content()


def test_bytes_that_change_on_their_way_are_found(hub: FakeHub) -> None:
    hub.spoil = lambda data: data[:123_456] + b"\0" + data[123_457:]
    sentence = refusal()
    assert "does not have the checksum that the hub gives, and was removed" in sentence and "again" in sentence
    assert partials() == [] and find_cached(REFERENCE) is None
    hub.spoil = bytes
    assert pull().path.read_bytes() == content()


def test_two_programs_do_not_write_to_one_file(hub: FakeHub) -> None:
    digest = hashlib.sha256(content()).hexdigest()
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / repo_folder("o/r").name / f"{digest}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert f"another program is fetching {NAME}" in refusal()
    assert pull().path.is_file()


# -- room


def test_room_is_looked_for_first(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=149_000))
    sentence = refusal()
    assert "needs 0.2 MB more and 0.1 MB are free" in sentence and "HF_HUB_CACHE" in sentence and "o/r:Q4_K_M" in sentence
    assert hub.ranges() == [] and partials() == []
    # what is there already needs no room
    partial = repo_folder("o/r") / "blobs" / f"{hashlib.sha256(content()).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content()[:60_000])
    assert pull().path.read_bytes() == content()


def test_a_disk_that_is_full_all_the_same(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    assert "is full; make room and run entmtp-local pull o/r:Q4_K_M" in refusal()


def test_a_folder_that_cannot_be_written(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert "cannot be written" in refusal() and "HF_HUB_CACHE" in refusal()


def test_files_that_need_another_program(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 100_000)
    assert f"run hf download o/r {NAME}" in refusal()


# -- refusals


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    sentence = refusal()
    assert "the connection to http://127.0.0.1:9 failed (ConnectError" in sentence and "check the network" in sentence


def test_an_unknown_repository(hub: FakeHub) -> None:
    assert "the hub shows no such repository: check the name, or" in refusal(Reference("o/none"))


def test_a_wrong_quantisation_says_what_there_is(hub: FakeHub) -> None:
    assert "nothing named Q9, but Q4_K_M (0.2 MB)" in refusal(Reference("o/r", "Q9"))


def test_a_private_repository_needs_the_token_of_the_environment(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["o/r"].token = "secret"
    assert "HF_TOKEN" in refusal()
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "does not accept your token" in refusal()
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.requests.clear()
    assert pull().path.is_file()
    # where contents come from, the token is not shown
    tokens = {request.path.split("/")[1]: request.token for request in hub.requests}
    assert tokens["api"] == tokens["o"] == "secret" and tokens["content"] is None


@pytest.mark.parametrize(("token", "words"), [(None, "put a token of it into HF_TOKEN"), ("any", "the account of your token")])
def test_a_gated_repository(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None, words: str) -> None:
    hub.repos["o/r"].gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    sentence = refusal()
    assert f"o/r is gated: accept its terms at {hub.endpoint}/o/r" in sentence and words in sentence


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "may not read o/r (403)"),
        (429, "too many requests from here (429)"),
        (500, "fails at present (500)"),
        (503, "fails at present (503)"),
        (418, "refuses o/r (418)"),
    ],
)
@pytest.mark.parametrize("where", ["/api/", "/content/"])
def test_statuses(hub: FakeHub, status: int, words: str, where: str) -> None:
    hub.fail[where] = [status] * 20
    sentence = refusal()
    assert words in sentence and "run entmtp-local pull o/r:Q4_K_M" in sentence


def test_a_file_that_has_just_gone(hub: FakeHub) -> None:
    hub.fail["/resolve/"] = [404]
    assert "a file of o/r:Q4_K_M has just been removed" in refusal()


@pytest.mark.parametrize("listed", [{"lfs": None, "blobId": None}, {"lfs": {"sha256": "../../x", "size": 3, "pointerSize": 1}}])
def test_lists_without_checksums_are_refused(hub: FakeHub, listed: dict[str, object]) -> None:
    hub.repos["o/r"].listed[NAME] = listed
    assert "gives no checksum" in refusal()


@pytest.mark.parametrize("difference", [-10, 10])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_lists_with_wrong_sizes_are_found_out(hub: FakeHub, difference: int, knows_ranges: bool) -> None:
    hub.knows_ranges = knows_ranges
    digest, size = hashlib.sha256(content()).hexdigest(), len(content()) + difference
    hub.repos["o/r"].listed[NAME] = {"lfs": {"sha256": digest, "size": size, "pointerSize": 134}}
    assert "run entmtp-local pull o/r:Q4_K_M" in refusal()
    assert find_cached(REFERENCE) is None
    hub.repos["o/r"].listed.clear()
    assert pull().path.read_bytes() == content()


@pytest.mark.parametrize(
    "listed",
    [
        {"lfs": {"size": 5}},
        {"lfs": "x"},
        {"lfs": {"sha256": None, "size": None, "pointerSize": None}},
        {"size": "many", "lfs": None, "blobId": 7},
        {"rfilename": None},
        {"rfilename": "a\0-Q4_K_M.gguf"},
        {"rfilename": "../../../m-Q4_K_M.gguf"},
    ],
)
def test_nonsense_in_lists_ends_with_a_sentence(hub: FakeHub, listed: dict[str, object]) -> None:
    hub.repos["o/r"].listed[NAME] = listed
    assert "entmtp-local pull" in refusal()
    assert find_cached(REFERENCE) is None


def test_what_is_no_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["o/r"].commit = "main"
    assert "is not what a hub answers" in refusal() and "HF_ENDPOINT" in refusal()
    monkeypatch.setattr(constants, "ENDPOINT", "nonsense")
    assert "nonsense" in refusal()


# -- without a network


def test_offline_what_is_here_is_found_and_the_rest_is_not_asked_for(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pull()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_cached(REFERENCE) == find_cached(Reference("o/r")) == files
    assert "HF_HUB_OFFLINE forbids" in refusal(Reference("o/r", "Q8_0"))
    assert hub.requests == []


def test_a_model_with_a_part_missing_is_not_found(hub: FakeHub) -> None:
    hub.repos["o/r"].files = {f"m-Q4_K_M-0000{i}-of-00002.gguf": content(30_000, seed=str(i)) for i in (1, 2)}
    path = pull().path
    assert find_cached(REFERENCE) == ModelFiles(path)
    (path.parent / "m-Q4_K_M-00002-of-00002.gguf").resolve().unlink()
    assert find_cached(REFERENCE) is None
    assert find_cached(Reference("o/other")) is None


def test_a_model_of_an_earlier_revision_is_found(hub: FakeHub) -> None:
    old = pull()
    hub.repos["o/r"].commit = "f" * 40
    hub.repos["o/r"].files["m-Q8_0.gguf"] = content(seed="other")
    pull(Reference("o/r", "Q8_0"))
    assert find_cached(REFERENCE) == old


def test_what_a_repository_has(hub: FakeHub) -> None:
    hub.repos["o/r"].files["mtp-m-Q8_0.gguf"] = content(seed="head")
    assert [(model.name, model.is_head) for model in list_models(REFERENCE)] == [(NAME, False), ("mtp-m-Q8_0.gguf", True)]
