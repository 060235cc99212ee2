"""`calibrate` and the profile of a first use, on the shipped model and in this process.

| test | failure it catches |
|---|---|
| calibrate | a profile that its own program refuses; a log that cannot be replayed |
| interruption | texts that are recorded twice or lost; a log that differs from one made without a break |
| first use | measuring at every start; a damaged or foreign profile that is used, or that ends the run |
| head | a choice among rows to draft from that is not the best of what was compared, or that overrules what the user gave |
| folders | a cache that cannot be written and takes the run with it |
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from unit.test_cli import assert_one_line_error

from entmtp_local.bench.repetition import find_loop
from entmtp_local.calibration import calibrate as calibration
from entmtp_local.calibration import head as head_choice
from entmtp_local.calibration.calibrate import Effort, Interrupted, calibrate, key_of
from entmtp_local.calibration.fit import fit_tasks
from entmtp_local.calibration.record import record, wide_shape
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.cli import profiles as first_use
from entmtp_local.cli.main import main
from entmtp_local.engine import generate
from entmtp_local.errors import ProfileError
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative import draft_vocab
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.profile import Key, Profile
from entmtp_local.speculative.sampling import SamplingOptions

PROMPTS = {"code": ["def main", "class A:"], "prose": ["Once upon", "It was"]}
NAMES = ("tokens", "entropies", "drafts", "logp", "head_entropies")
# as short as it can be, and as long on a busy machine
BRIEF = replace(calibration.QUICK, n_prompts=1, n_tokens=12, cost_seconds=0.3, log_seconds=math.inf)
# two would wait for each other where something else runs
ONE_THREAD = ("--threads", "1")
MEASURING = "first use of this model here"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def session(shipped: Path) -> Iterator[tuple[Session, Key]]:
    options = SessionOptions(shipped, n_ctx=512, n_threads=1, max_depth=8, max_nodes=31)
    with Session.open(options) as session:
        yield session, key_of(session, options)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "QUICK", BRIEF)
    monkeypatch.setattr("entmtp_local.cli.calibrate.QUICK", BRIEF)
    monkeypatch.setattr("entmtp_local.cli.calibrate.FULL", replace(calibration.FULL, check_seconds=0.0, timing_seconds=0.1))


@pytest.fixture(scope="module")
def made(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Result]]:
    """A profile and a log that the command wrote, from a task of the user's own."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "notes.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("def main", "Hello, I am")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entmtp_local.cli.calibrate.QUICK", BRIEF)
        result = call(
            *("calibrate", str(shipped), "--quick", "--task", str(folder / "notes.jsonl"), "--task", "code", "--json"),
            *(
                "--out",
                str(folder / "p.json"),
                "--log",
                str(folder / "l.npz"),
                "-n",
                "12",
                "--prompts",
                "2",
                "-c",
                "512",
                *ONE_THREAD,
            ),
        )
    yield folder / "p.json", folder / "l.npz", result


def test_calibrate_writes_a_profile_and_a_log(made: tuple[Path, Path, Result]) -> None:
    out, log_file, result = made
    said = [line for line in result.stderr.splitlines() if "something else ran" not in line]
    assert result.exit_code == 0 and all(re.match(r"calibrating, \d+ %: ", line) for line in said)
    assert json.loads(result.stdout) == json.loads(out.read_text())
    profile, log = Profile.load(out), WideLog.load(log_file)
    assert profile.key is not None and profile.quick and list(profile.tasks) == ["all", "notes", "code"]
    assert log.tasks == ["notes", "code"] and len(log.texts) == 4
    assert all(2 <= len(text.tokens) <= 12 for text in log.texts)
    assert profile.tasks["all"].n_positions == log.n_positions
    assert {1, 2, 4} <= set(profile.costs.verify) and profile.costs.level
    for text in log.texts:
        # the head's own probabilities: of siblings the first is the likeliest, and all together at most one
        for siblings in log.shape.children:
            if siblings:
                given = text.logp[:, list(siblings)]
                assert (np.diff(given, axis=1) <= 1e-6).all() and (np.exp(given).sum(axis=1) < 1.001).all()
        inner = [node for node, children in enumerate(log.shape.children) if children]
        assert np.isfinite(text.head_entropies[:, inner]).all()


def test_a_log_is_replayed_without_a_model(made: tuple[Path, Path, Result]) -> None:
    out, log_file, _ = made
    result = call("calibrate", "--replay", str(log_file), "--costs", str(out), "--json")
    rows = json.loads(result.stdout)["rows"]
    assert result.exit_code == 0 and {row["task"] for row in rows} == {"notes", "code"}
    for task in ("notes", "code"):
        speeds = {row["policy"]: row["tokens_per_second"] for row in rows if row["task"] == task}
        assert speeds["oracle (all-seeing)"] >= max(speeds.values()) * (1 - 1e-9)
        assert {"off", "throughput", f"entmtp:{task}", f"hydra:7:{task}", "best static tree"} <= set(speeds)
    shown = call("calibrate", "--replay", str(log_file), "--costs", "rtx-3090-27b", "--policies", "off,entmtp:TASK")
    assert shown.exit_code == 0 and shown.stdout.startswith("costs: derived") and "not measured" in shown.stdout
    for arguments, words in (
        (("--replay", str(log_file)), ("--costs", "rtx-3090-27b")),
        (("--replay", str(log_file), "--costs", "none"), ("no costs 'none'", "rtx-3090-27b")),
        (("--replay", str(log_file), "--costs", str(out), "--policies", "hydra:0"), ("no policy 'hydra:0'",)),
        (("--replay", str(out), "--costs", str(out)), ("not a wide log",)),
        (
            ("--replay", str(log_file), "--costs", str(out), "--policies", "entmtp:chat"),
            ("no texts for entmtp:chat", "notes, code"),
        ),
        (("--costs", str(out)), ("--replay",)),
        (("--replay", str(log_file), "--costs", str(out), "--out", "p.json", "--quick"), ("leave", "--out", "--quick")),
        (("model.gguf", "--replay", str(log_file), "--costs", str(out)), ("leave MODEL out",)),
    ):
        result = call("calibrate", *arguments)
        assert result.exit_code == 2 and result.stdout == "" and all(word in result.stderr for word in words)


def test_tasks_that_another_calibration_wrote_meanwhile_are_kept(
    shipped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("calibrate", str(shipped), "--quick", "-n", "8", "--prompts", "1", "-c", "512", *ONE_THREAD)
    assert call(*command, "--task", "prose").exit_code == 0
    (kept,) = cache.glob("*.json")
    other = kept.read_bytes()
    kept.unlink()

    def overtaken(*arguments: Any) -> Any:
        found = calibrate(*arguments)
        kept.write_bytes(other)
        return found

    monkeypatch.setattr("entmtp_local.cli.calibrate.calibrate", overtaken)
    assert call(*command, "--task", "code").exit_code == 0
    assert set(Profile.load(kept).tasks) == {"all", "code", "prose"}


def test_what_cannot_be_calibrated(shipped: Path, tiny: Path, tmp_path: Path) -> None:
    result = call("calibrate", str(tiny / "llama.gguf"), "--quick")
    assert result.exit_code == 2 and "nothing to calibrate" in result.stderr and "no MTP head" in result.stderr
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(f"from {name}\n")
    (tmp_path / "path.txt").write_text("from path\n")
    (tmp_path / "long.txt").write_text("word " * 3000 + "\n")
    two = ("--task", str(tmp_path / "a" / "x.txt"), "--task", str(tmp_path / "b" / "x.txt"))
    for arguments, word in (
        (("--task", "none"), "There is no workload none"),
        (("--out", str(tmp_path / "no" / "p.json")), "cannot be written"),
        (("--log", "/dev/null"), "no regular file"),
        (("--out", str(tmp_path / "p"), "--report", str(tmp_path / "p")), "name one file"),
        (("--log", str(shipped)), "is read by this command"),
        (("--task", str(tmp_path / "a" / "x.txt"), "--report", str(tmp_path / "a" / "x.txt")), "is read by this command"),
        (("--task", str(tmp_path / "path.txt")), "cannot be called 'path'"),
        (two, "two tasks are called 'x'"),
        (("--task", "code", "--task", str(tmp_path / "long.txt")), "a prompt of task long has "),
    ):
        result = call("calibrate", str(shipped), "--quick", *arguments)
        assert_one_line_error(result, 2, word)


@pytest.mark.parametrize("large", [False, True])
def test_what_drafts_are_read_from_is_compared(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(f"{__name__}.BRIEF", replace(BRIEF, head_seconds=5.0, n_tokens=40))
    if large:
        # as if its vocabulary were worth cutting
        monkeypatch.setattr(draft_vocab, "_WORTH_CUTTING", 1024)
        monkeypatch.setattr(head_choice, "_FEWEST", 1024)
    options = SessionOptions(shipped, n_ctx=512, n_threads=1, max_depth=8, max_nodes=31)
    with Session.open(options) as opened:
        key = key_of(opened, options)
        n_rows: list[int] = []
        prompts = {
            task: [opened.tokenize(text, add_special=True, parse_special=True) for text in some] for task, some in PROMPTS.items()
        }
        profile, _ = calibrate(
            opened,
            key,
            prompts,
            SamplingOptions(temp=0.8),
            replace(BRIEF, head_seconds=5.0, n_tokens=40),
            lambda _, what: n_rows.append(opened.n_draft_vocab) if "text" in what else None,
            lambda: False,
        )
        assert n_rows == [opened.n_vocab] * 4, "what is logged is not verified, and no reason to draft from fewer tokens"
        head = profile.head
        assert head is not None and set(head.speeds) == {"same", "Q8_0", "Q4_0"}
        sizes = {"1024", "2048", "4096"} if large else {"0"}
        assert all(set(speeds) == sizes for speeds in head.speeds.values()) and str(head.size) in sizes
        best = max(speed for speeds in head.speeds.values() for speed in speeds.values())
        assert head.speeds[head.kind][str(head.size)] > 0.98 * best
        assert opened.draft_head_type == (None if head.kind == "same" else head.kind)
        assert head.size <= opened.n_draft_vocab < (head.size + 1000 if large else opened.n_vocab + 1)
        profile.save(tmp_path / "p.json")
        assert Profile.load(tmp_path / "p.json", key) == profile
        assert opened.read_draft_head("same")
        again, _ = run((opened, replace(key, draft_head_type="same")), None)
        assert again.head is None if not large else again.head is not None and set(again.head.speeds) == {"same"}


# -- interruption


def run(
    opened: tuple[Session, Key],
    partial: Path | None,
    stop: Callable[[], bool] = lambda: False,
    said: list[str] | None = None,
    effort: Effort | None = None,
) -> tuple[Profile, WideLog]:
    session, key = opened
    prompts = {
        task: [session.tokenize(text, add_special=True, parse_special=True) for text in some] for task, some in PROMPTS.items()
    }

    def say(_: float, what: str) -> None:
        if said is not None:
            said.append(what)

    return calibrate(session, key, prompts, SamplingOptions(temp=0.8), effort or BRIEF, say, stop, partial)


def test_an_interrupted_calibration_goes_on_where_it_was(
    session: tuple[Session, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, recorded = tmp_path / "cache" / "m.partial.npz", 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal recorded
        recorded += 1
        return record(*arguments, **options)

    monkeypatch.setattr(calibration, "record", counting)
    _, whole = run(session, None)
    assert recorded == len(whole.texts) == 4
    # within the first text, and within the third
    recorded = 0
    with pytest.raises(Interrupted):
        run(session, partial, lambda: recorded == 1)
    assert not partial.exists(), "the first was not finished"
    polled = 0

    def later() -> bool:
        nonlocal polled
        polled += recorded == 4  # the third, after the first was begun a second time
        return polled > 5

    with pytest.raises(Interrupted):
        run(session, partial, later)
    assert len(WideLog.load(partial).texts) == 2 and recorded == 4
    said: list[str] = []
    recorded = 0
    _, log = run(session, partial, said=said)
    assert recorded == 2 and [what for what in said if "text" in what] == ["prose: text 1 of 2", "prose: text 2 of 2"]
    assert not partial.exists()
    for a, b in zip(whole.texts, log.texts, strict=True):
        assert all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in NAMES[:3])


def test_a_calibration_that_has_time_for_less_goes_on_all_the_same(
    session: tuple[Session, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a draft takes decides how many tokens there is time for, and is not the same twice."""
    monkeypatch.setattr(sys.modules[__name__], "BRIEF", replace(BRIEF, log_seconds=20.0))
    partial, draft = tmp_path / "m.partial.npz", [1.0]
    monkeypatch.setattr(calibration, "pass_seconds", lambda *_, **__: ({}, draft))
    said: list[str] = []
    with pytest.raises(Interrupted):
        run(session, partial, lambda: "prose: text 1 of 2" in said, said)
    interrupted = WideLog.load(partial)
    assert len(interrupted.texts) == 2 and interrupted.about["n_tokens"] == 4
    draft[0] = 0.7
    _, log = run(session, partial)
    assert log.about == interrupted.about and len(log.texts) == 4
    assert all(len(text.tokens) <= 4 for text in log.texts)
    # one that was interrupted while something else kept the machine busy is begun anew
    interrupted.save(partial)
    draft[0] = 0.5
    _, log = run(session, partial)
    assert log.about["n_tokens"] == 9 and len(log.texts) == 4 and max(len(text.tokens) for text in log.texts) > 4


def test_what_a_step_takes_is_not_measured_for_long(session: tuple[Session, Key]) -> None:
    opened, costs = session[0], CostTable({1: 1.0})
    prompts = {"code": [opened.tokenize("def main", add_special=True, parse_special=True)]}

    def measured(limit: float, stop: bool) -> CostTable:
        return calibration._with_step(opened, costs, prompts, SamplingOptions(), limit, lambda: stop)

    assert measured(60.0, False).step > 0
    assert measured(0.0, False) == measured(60.0, True) == costs


def test_an_interruption_after_the_texts_loses_none(
    session: tuple[Session, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "m.partial.npz"

    def interrupted(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(calibration, "fit_tasks", interrupted)
    with pytest.raises(Interrupted):
        run(session, partial)
    assert len(WideLog.load(partial).texts) == 4


def test_thorough_costs_are_those_of_before_and_behind_the_texts(
    session: tuple[Session, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, partial = [CostTable({1: 1.0, 2: 3.0, 3: 4.0}), CostTable({1: 2.0, 2: 4.0})], tmp_path / "m.partial.npz"
    left = list(tables)
    monkeypatch.setattr(calibration, "measure_costs", lambda *_: left.pop(0))
    thorough = replace(BRIEF, quick=False)
    profile, _ = run(session, None, effort=thorough)
    assert profile.costs.verify == {1: 1.5, 2: 3.5} and not left
    left = tables[:1]
    assert run(session, None)[0].costs.verify == tables[0].verify and not left, "quick calibration has time for one"
    # interrupted meanwhile
    left = list(tables)
    with pytest.raises(Interrupted):
        run(session, partial, lambda: not left, effort=thorough)
    assert len(WideLog.load(partial).texts) == 4


def test_what_was_decoded_before_an_interruption_is_kept(
    session: tuple[Session, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BRIEF", replace(BRIEF, n_checked=1))
    partial, said = tmp_path / "m.partial.npz", list[str]()
    second = "prose: decoding with the finalists"
    with pytest.raises(Interrupted):
        run(session, partial, lambda: second in said, said)
    kept = WideLog.load(partial).about["measured"]
    assert list(kept) == ["code"] and {"off", "throughput"} <= {row["policy"] for row in kept["code"]["rows"]}
    said.clear()
    profile, log = run(session, partial, said=said)
    assert [row for row in profile.measured if row["task"] == "code"] == kept["code"]["rows"] and "measured" not in log.about
    assert {row["task"] for row in profile.measured} == {"code", "prose"}
    assert not any(what.startswith("code:") for what in said) and second in said
    # what somebody wrote into it is not believed
    log.about["measured"] = {"code": {"head": None, "rows": [{"policy": 5}]}}
    log.save(partial)
    assert [row["policy"] for row in run(session, partial)[0].measured].count("off") == 2


def test_finalists_decode_for_as_long_as_they_are_to(session: tuple[Session, Key]) -> None:
    """A tenth of a second of a small model tells nothing."""
    opened, key = session
    ids = opened.tokenize("def main", add_special=True, parse_special=True)
    profile = Profile(CostTable({1: 1e-3}), key)

    def decoded(seconds: float) -> list[dict[str, Any]]:
        effort = replace(BRIEF, check_seconds=seconds, n_tokens=32)
        names, shares = ["off", "chain:2"], list[float]()
        found = calibration._decoded(
            opened, profile, names, "code", [ids], SamplingOptions(), effort, shares.append, lambda: False
        )
        assert shares == sorted(shares) and 0 <= shares[0] <= shares[-1] <= 1
        return found

    once, long = decoded(0.0), decoded(1.0)
    assert [row["policy"] for row in long] == ["off", "chain:2"]
    assert all(row["n_tokens"] <= 15 for row in once) and all(row["n_tokens"] > 15 for row in long)
    assert long[0]["ratio"] == 1 and long[0]["tokens_per_step"] == 1, "a token that ends a text takes a step, too"


def test_a_partial_log_of_something_else_is_not_gone_on_with(session: tuple[Session, Key], tmp_path: Path) -> None:
    partial = tmp_path / "m.partial.npz"
    partial.write_bytes(b"not a log")
    assert len(run(session, partial)[1].texts) == 4
    other = WideLog(wide_shape(8, 16), {"model": "another"})
    other.save(partial)
    assert len(run(session, partial)[1].texts) == 4
    (tmp_path / "file").write_text("")
    assert len(run(session, tmp_path / "file" / "m.partial.npz")[1].texts) == 4, "a folder that is none"


def test_another_calibration_leaves_an_interrupted_one_alone(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recorded, interrupted = [0], [True]

    def counting(*arguments: Any, **options: Any) -> Any:
        recorded[0] += 1
        return record(*arguments, **options)

    def fitting(*arguments: Any) -> Any:
        if interrupted[0]:
            raise Interrupted
        return fit_tasks(*arguments)

    monkeypatch.setattr(calibration, "record", counting)
    monkeypatch.setattr(calibration, "fit_tasks", fitting)
    brief = ("calibrate", str(shipped), "--quick", "-c", "512", "--out", str(tmp_path / "p.json"), *ONE_THREAD)
    assert call(*brief, "--task", "code").exit_code == 130 and recorded == [1]
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    before = kept.read_bytes()
    for other in (("--task", "math"), ("--task", "code", "--temp", "0"), ("--task", "code", "-n", "8")):
        interrupted[0] = True
        assert call(*brief, *other).exit_code == 130
        interrupted[0] = False
        result = call(*brief, *other)
        assert result.exit_code == 0 and "going on" in result.stderr, result.output
        assert list((tmp_path / "cache").rglob("*.npz")) == [kept] and kept.read_bytes() == before
    assert recorded == [4]
    result = call(*brief, "--task", "code")
    assert result.exit_code == 0 and "going on" in result.stderr and recorded == [4], "all its texts were there already"
    assert not kept.exists()


def test_a_recorded_text_is_that_of_plain_decoding(session: tuple[Session, Key]) -> None:
    opened, sampling = session[0], SamplingOptions(temp=0.8, seed=3)
    ids = opened.tokenize("def main", add_special=True, parse_special=True)
    with opened.new_sampler(sampling) as sampler:
        text = record(opened, ids, sampler, 16, wide_shape(8, 16), task="code")
    opened.clear()
    with opened.new_sampler(sampling) as sampler:
        generation = generate(opened, ids, sampler=sampler, max_tokens=16)
        tokens: Sequence[int] = [token for step in generation for token in step.tokens]
    assert text is not None and text.tokens.tolist()[: len(tokens)] == tokens
    assert text.n_prompt == len(ids) and text.drafts[:, 0].tolist() == text.tokens[:-1].tolist()


def test_a_recorded_text_has_one_copy_of_a_loop(session: tuple[Session, Key]) -> None:
    opened, sampling, shape = session[0], SamplingOptions(temp=0.0), wide_shape(8, 16)
    ids = opened.tokenize("Once upon a time", add_special=True, parse_special=True)
    opened.clear()
    with opened.new_sampler(sampling) as sampler:
        generation = generate(opened, ids, sampler=sampler, max_tokens=192)
        tokens = [token for step in generation for token in step.tokens]
    loop = find_loop(tokens)
    assert loop is not None and len(tokens) == 192
    passes: list[float] = []
    with opened.new_sampler(sampling) as sampler:
        text = record(opened, ids, sampler, 192, shape, task="prose", stop=lambda: passes.append(0.0) or False)
    assert text is not None and not text.ended
    assert text.tokens.tolist() == tokens[: loop.start + loop.period]
    assert len(text.drafts) == len(text.tokens) - 1 and len(text.entropies) == len(text.tokens)
    assert len(passes) < 150, "what repeats itself is not waited for"


# -- first use


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "entmtp-local" / "profiles"


def run_model(shipped: Path, *more: str) -> Result:
    result = call("run", str(shipped), "-p", "def main", "--temp", "0", "-n", "8", "--json", *ONE_THREAD, *more)
    assert result.exit_code == 0 and json.loads(result.stdout)["policy"] == "throughput"
    return result


def test_a_first_use_measures_and_the_next_does_not(shipped: Path, cache: Path) -> None:
    first = run_model(shipped)
    assert first.stderr.startswith(MEASURING)
    (kept,) = cache.iterdir()
    profile = Profile.load(kept)
    assert set(profile.tasks) == {"all", "code", "math", "chat", "prose"}
    before = kept.read_bytes()
    assert run_model(shipped).stderr == "" and kept.read_bytes() == before
    # damaged: named, measured again and replaced
    kept.write_bytes(before[: len(before) // 2])
    damaged = run_model(shipped)
    assert str(kept) in damaged.stderr and "cannot be read" in damaged.stderr and MEASURING in damaged.stderr
    assert Profile.load(kept).key == profile.key
    # of another model: the reason is told, and the kept one is used
    other = kept.with_name("other.json")
    assert profile.key is not None
    replace(profile, key=replace(profile.key, model="another")).save(other)
    foreign = run_model(shipped, "--profile", str(other))
    assert foreign.stderr == f"the profile {other} was measured with another model; calibrate again.\n"
    # none at all
    os.mkfifo(cache / "pipe")
    for name, words in (("none.json", "there is no profile"), ("pipe", "is no regular file")):
        missing = call("run", str(shipped), "-p", "def main", *ONE_THREAD, "--profile", str(cache / name))
        assert missing.exit_code == 2 and words in missing.stderr and missing.stderr.count("\n") == 1
    # another number of threads is another profile
    key = replace(profile.key, n_threads=profile.key.n_threads + 1)
    assert calibration.profile_path(cache, shipped, key) != kept


def test_a_cache_that_cannot_be_written_is_survived(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run_model(shipped)
    assert MEASURING in result.stderr and "cannot be kept" in result.stderr and "next start measures again" in result.stderr
    arguments = ("calibrate", str(shipped), "--quick", "--task", "code", "-c", "512", *ONE_THREAD)
    made = call(*arguments, "--out", str(tmp_path / "p.json"))
    assert made.exit_code == 0 and "what pays: forecast from the log\n  code " in made.stdout
    assert f"use it: entmtp-local chat {shipped} --threads 1 --profile {tmp_path / 'p.json'}" in made.stdout
    refused = call(*arguments)
    assert refused.exit_code == 1 and refused.stdout == "" and refused.stderr.startswith("error: the system refused")


@pytest.mark.parametrize("n_ctx", ["16", "64"])
def test_a_context_without_room_is_survived_and_not_kept(shipped: Path, cache: Path, n_ctx: str) -> None:
    result = run_model(shipped, "-c", n_ctx)
    assert "nothing fits into the context" in result.stderr and not list(cache.glob("*.json"))


def test_a_task_that_was_not_calibrated_is_named(shipped: Path, made: tuple[Path, Path, Result]) -> None:
    options = ("--profile", str(made[0]), "--policy", "entmtp:poems", "-c", "512", *ONE_THREAD)
    result = call("run", str(shipped), "-p", "a", "-n", "2", *options)
    assert result.exit_code == ProfileError.exit_code
    assert "no task poems (it has: " in result.stderr and "--task poems" in result.stderr


def test_where_there_is_no_time_for_texts_it_says_so(shipped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entmtp_local.cli.calibrate.QUICK", replace(BRIEF, log_seconds=1e-9))
    result = call("calibrate", str(shipped), "--quick", "--task", "code", "-c", "512", *ONE_THREAD)
    assert result.exit_code == 2 and not list(cache.glob("*.json"))
    assert "nothing was learnt of code: the machine was too slow or too busy" in result.stderr
    assert "no profile was written; leave out --quick" in result.stderr


def test_what_would_be_replaced_is_told_before_anything_is_measured(
    shipped: Path, made: tuple[Path, Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entmtp_local.cli.calibrate.QUICK", replace(BRIEF, log_seconds=1e-9))
    out, profile = tmp_path / "p.json", Profile.load(made[0])
    assert profile.key is not None

    def said() -> str:
        return call("calibrate", str(shipped), "--quick", "--task", "code", "-c", "512", "--out", str(out), *ONE_THREAD).stderr

    replaced = "will be replaced"
    assert replaced not in said()
    replace(profile, key=replace(profile.key, n_threads=7)).save(out)
    assert said().startswith(f"the profile {out} was measured with other --threads; it {replaced}.\n")
    out.write_text("{}")
    assert said().startswith(f"{out} is not a profile of this program; it {replaced}.\n")
    profile.save(out)
    assert replaced not in said()


def test_a_thorough_calibration_is_added_to_and_not_replaced_by_a_quick_one(shipped: Path, cache: Path, tmp_path: Path) -> None:
    few = ("calibrate", str(shipped), "-n", "16", *ONE_THREAD)
    assert call(*few, "--task", "code", "--task", "math", "--prompts", "2").exit_code == 0
    (kept,) = cache.glob("*.json")
    before = Profile.load(kept)
    refused = call(*few, "--quick")
    assert refused.exit_code == 2 and "--quick does not replace" in refused.stderr and Profile.load(kept) == before
    assert call(*few, "--task", "prose", "--prompts", "2").exit_code == 0
    after = Profile.load(kept)
    assert set(after.tasks) == {"all", "code", "math", "prose"}
    assert all(after.tasks[task] == before.tasks[task] for task in before.tasks)
    assert before.measured and all(after.measured_of(task) == before.measured_of(task) for task in ("code", "math"))
    assert {row["task"] for row in after.measured} == {"code", "math", "prose"}
    # and so is one that --out names
    out = tmp_path / "p.json"
    before.save(out)
    refused = call(*few, "--quick", "--out", str(out))
    assert refused.exit_code == 2 and "give another --out FILE" in refused.stderr and Profile.load(out) == before
    assert call(*few, "--task", "chat", "--prompts", "1", "--out", str(out)).exit_code == 0
    added = Profile.load(out)
    assert set(added.tasks) == {"all", "code", "math", "chat"} and added.tasks["code"] == before.tasks["code"]
    assert added.measured_of("code") == before.measured_of("code") and added.measured_of("chat")
    # no room for anything behind this prompt: nothing is learnt, and nothing is replaced
    (tmp_path / "long.txt").write_text("one two three four five six seven eight nine ten " * 12)
    result = call(*few, "--task", str(tmp_path / "long.txt"), "-c", "256")
    assert result.exit_code == 2 and "nothing was learnt of long" in result.stderr and Profile.load(kept) == after
