"""Checkpoints and saved states: what comes after them is what a session that has read everything anew would say."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from native.test_session import PROMPT, open_session, run

from entmtp_local.errors import StateError
from entmtp_local.native import state_file
from entmtp_local.native.checkpoints import Checkpoint, Checkpoints
from entmtp_local.native.state_file import State, load_state, save_state

KINDS = ["glm4moe", "mimo2", "qwen35", "qwen3next", "nemotron_h_moe", "bailingmoe3", "gemma4"]
RECURRENT = ["qwen35", "qwen3next", "nemotron_h_moe", "bailingmoe3"]
OTHER = [21, 22, 23, 24]
IDENTITY = {"model": "m", "engine": "e"}


@pytest.mark.parametrize("policy", ["off", "chain:3"])
@pytest.mark.parametrize("kind", KINDS)
def test_going_back_to_a_checkpoint_computes_only_what_follows_it(tiny: Path, kind: str, policy: str) -> None:
    with open_session(tiny, kind, policy) as session:
        assert session.read_ahead(PROMPT, len(PROMPT), lambda: False) == (len(PROMPT) if session.needs_checkpoints else 0)
        first, _ = run(session, [*PROMPT, 30, 31], policy, 25)
        assert session.read_ahead([*PROMPT, 30, 31], len(PROMPT), lambda: False) == 0, "the place is noted already"
        # the same question again, then another one, then one that leaves the first prompt earlier than the checkpoint
        again, _ = run(session, [*PROMPT, 30, 31], policy, 25)
        assert again.tokens == first.tokens and again.stats.n_prefilled <= 2
        other, _ = run(session, [*PROMPT, 30, *OTHER], policy, 25)
        assert other.stats.n_prefilled <= len(OTHER) + 1
        early, _ = run(session, [*PROMPT[:20], *OTHER], policy, 25)
    with open_session(tiny, kind, policy) as fresh:
        assert run(fresh, [*PROMPT, 30, *OTHER], policy, 25)[0].tokens == other.tokens
    with open_session(tiny, kind, policy) as fresh:
        assert run(fresh, [*PROMPT[:20], *OTHER], policy, 25)[0].tokens == early.tokens


@pytest.mark.parametrize("kind", RECURRENT)
def test_without_a_checkpoint_everything_is_computed_again(tiny: Path, kind: str) -> None:
    with open_session(tiny, kind, "chain:3") as session:
        assert session.needs_checkpoints
        run(session, [*PROMPT, 30, 31], "chain:3", 25)
        other, _ = run(session, [*PROMPT, *OTHER], "chain:3", 5)
        assert other.stats.n_prefilled == len(PROMPT) + len(OTHER)


@pytest.mark.parametrize("policy", ["off", "chain:3"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_as_if_nothing_had_been(tiny: Path, tmp_path: Path, kind: str, policy: str) -> None:
    path = tmp_path / "state"
    with open_session(tiny, kind, policy) as session:
        first, _ = run(session, PROMPT, policy, 25)
        said = [*PROMPT, *first.tokens, 40, 41]
        session.prefill(said[:-1], lambda: False)
        session.checkpoint()
        session.prefill(said, lambda: False)
        state = session.state()
        assert state is not None
        sizes = [len(state.target), len(state.mtp), *(len(data) for _, data in state.checkpoints)]
        assert session.state_bytes() == (sum(sizes[:2]), sum(sizes))
        save_state(path, state, IDENTITY)
        expected, _ = run(session, [*said, *OTHER], policy, 25)
    with open_session(tiny, kind, policy) as session:
        session.load_state(load_state(path, IDENTITY))
        assert session.tokens == said
        found, drafts = run(session, [*said, *OTHER], policy, 25)
        # the last token again, for its hidden row
        assert found.stats.n_prefilled <= len(OTHER) + 1
    with open_session(tiny, kind, policy) as session:
        fresh, fresh_drafts = run(session, [*said, *OTHER], policy, 25)
    assert found.tokens == expected.tokens == fresh.tokens
    assert drafts == fresh_drafts, "the drafter has seen the same"


def test_a_state_of_another_session_is_refused(tiny: Path) -> None:
    with open_session(tiny, "qwen35", "chain:3") as session:
        run(session, PROMPT, "chain:3", 5)
        state = session.state()
        assert state is not None
    with open_session(tiny, "qwen35", "off") as session:
        with pytest.raises(StateError, match="does not fit"):
            session.load_state(state)
        assert session.n_past == 0 and len(run(session, PROMPT, "off", 5)[0].tokens) == 5
    with open_session(tiny, "qwen35", "chain:3", n_ctx=16) as session, pytest.raises(StateError, match="45 tokens|44 tokens"):
        session.load_state(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_holds_for_other_policies_and_contexts(tiny: Path, kind: str) -> None:
    """Rooms for drafts, and cells of the context, are not part of what is kept."""
    with open_session(tiny, kind, "chain:3") as session:
        run(session, PROMPT, "chain:3", 25)
        session.checkpoint()
        said = session.tokens
        state = session.state()
        assert state is not None
    for policy, n_ctx in (("chain:3", 512), ("chain:1", 2048), ("tree:wide", 1024), ("chain:5", 1024)):
        with open_session(tiny, kind, policy, n_ctx=n_ctx) as session:
            session.load_state(state)
            found, _ = run(session, [*said, 40, *OTHER], policy, 25)
        with open_session(tiny, kind, policy, n_ctx=n_ctx) as fresh:
            expected, _ = run(fresh, [*said, 40, *OTHER], policy, 25)
        assert found.tokens == expected.tokens


def small_state() -> State:
    return State((1, 2, 3), b"target" * 20, b"mtp", ((2, b"two"),))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_file_comes_back_as_it_was_and_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(state_file, "_CHUNK", chunk)
    path = tmp_path / "folder" / "state"
    save_state(path, small_state(), IDENTITY)
    assert path.stat().st_mode & 0o077 == 0
    found = load_state(path, IDENTITY)
    assert (found.tokens, bytes(found.target), bytes(found.mtp)) == ((1, 2, 3), b"target" * 20, b"mtp")
    assert [(n_past, bytes(data)) for n_past, data in found.checkpoints] == [(2, b"two")]


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"model": "x", "engine": "e"}, "another model file"),
        ({"model": "m", "engine": "x"}, "another build of the engine"),
        ({"model": "m", "engine": "e", "drafts": "yes"}, "opened in another way"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, identity: dict[str, str], words: str) -> None:
    save_state(tmp_path / "state", small_state(), IDENTITY)
    with pytest.raises(StateError, match=words):
        load_state(tmp_path / "state", identity)


def test_no_damage_gets_through(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, small_state(), IDENTITY)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(len(whole))] + [whole + b"x"]
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= 1 << (i % 8)
        damaged.append(bytes(flipped))
    draw = random.Random(5)
    damaged += [draw.randbytes(draw.randrange(300)) for _ in range(200)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(StateError) as error:
            load_state(path, IDENTITY)
        assert str(error.value).count(".") >= 1 and "\n" not in str(error.value)
    path.write_bytes(whole)
    assert load_state(path, IDENTITY).tokens == (1, 2, 3)


def test_a_file_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, small_state(), IDENTITY)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, state_file.VERSION + 1)
    path.write_bytes(data)
    with pytest.raises(StateError, match="has version 2"):
        load_state(path, IDENTITY)


def test_old_checkpoints_make_room_for_new_ones() -> None:
    kept = Checkpoints(None, None, max_bytes=10)
    for n_past in (1, 5, 9):
        kept.add(Checkpoint(n_past, b"1234"))
    assert kept.positions == [5, 9]
    kept.add(Checkpoint(12, b"x" * 10))
    assert kept.positions == [12]
    kept.add(Checkpoint(13, b"x" * 11))
    assert kept.positions == [12], "there is no room for it"
    kept.forget_after(11)
    assert kept.positions == [] and kept.restore(11) == 0


def test_no_more_memory_is_used_for_checkpoints_than_is_given(tiny: Path) -> None:
    with open_session(tiny, "qwen35", "off") as session:
        session.prefill(PROMPT, lambda: False)
        assert session.checkpoint()
        state = session.state()
        assert state is not None
        n_bytes = len(state.checkpoints[0][1])
    for room, places in ((2 * n_bytes, [30, 40]), (n_bytes, [40]), (n_bytes - 1, [])):
        with open_session(tiny, "qwen35", "off", checkpoint_bytes=room) as session:
            for n in (20, 30, 40):
                session.prefill(PROMPT[:n], lambda: False)
                assert session.checkpoint() == bool(places)
            state = session.state()
            assert state is not None and [n_past for n_past, _ in state.checkpoints] == places
