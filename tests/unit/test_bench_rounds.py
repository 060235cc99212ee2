"""Rounds in their order, resumed and interrupted; sweeps; what is written down of each visit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import N_VOCAB, FakeArm, begin, plan, subject, wrong_from_5

from entmtp_local.bench.arms import StockSetting, sweep
from entmtp_local.bench.record import Record
from entmtp_local.bench.results import invalid_arms
from entmtp_local.bench.rounds import (
    Plan,
    Subject,
    best_overall,
    best_settings,
    compare_distributions,
    look_for_settings,
    measure,
    plain_texts,
)
from entmtp_local.bench.worker import END
from entmtp_local.errors import EngineError, UsageError

VISIT = {"round": 0, "model": 0, "temp": 0.0, "workload": "code", "arm": "a", "kind": "ours"}
VISIT |= {"load_seconds": 1.0, "resident_bytes": None, "device_bytes": None}


def quiet(*_: object) -> None: ...


def go(record: Record, a_plan: Plan, *subjects: Subject) -> None:
    for each in subjects:
        plain_texts(record, each, a_plan)
    measure(record, a_plan, subjects, quiet)


def test_arms_take_turns_and_turn_around() -> None:
    log: list[str] = []
    arms = [FakeArm(name, log=log) for name in "abc"]
    a_plan = plan(workloads=("code",), n_rounds=3)
    go(begin(a_plan), a_plan, subject(arms))
    assert "".join(name for name in log if len(name) == 1) == "abccbaabc"
    # nobody runs beside another
    assert log[:4] == ["a", "a closed", "b", "b closed"]


def test_models_take_turns_within_a_workload() -> None:
    log: list[str] = []
    one, two = FakeArm("a", log=log), FakeArm("b", log=log)
    a_plan = plan(workloads=("code",))
    go(begin(a_plan, 2), a_plan, subject([one]), subject([two], number=1))
    assert [name for name in log if len(name) == 1] == ["a", "b", "b", "a"]


def test_all_arms_are_asked_the_same() -> None:
    one, two = FakeArm("a"), FakeArm("b", "stock")
    a_plan = plan(temps=(0.0, 0.8))
    go(begin(a_plan), a_plan, subject([one, two]))
    # the order of rounds differs, what is asked does not
    assert sorted(map(repr, one.requests)) == sorted(map(repr, two.requests))
    warm, first, second = one.requests[:3]
    assert warm.n == 4 and warm.prompt == (9, 9) and first.n == second.n == 40
    seeds = [request.sampling.seed for request in one.requests if request.sampling.temp == 0.8 and request.n == 40]
    assert sorted(set(seeds)) == [1, 2, 1001, 1002], "another text in each round"


def test_a_visit_keeps_what_was_measured() -> None:
    a_plan = plan()
    record = begin(a_plan)
    go(record, a_plan, subject([FakeArm("a")]))
    visit = record.content["visits"][0]
    assert (visit["round"], visit["model"], visit["temp"], visit["workload"], visit["arm"]) == (0, 0, 0.0, "code", "a")
    assert visit["resident_bytes"] > 2**20 and visit["kind"] == "ours"
    text = visit["texts"][1]
    assert text["prompt"] == 1 and text["n"] == 40 and text["difference"] is None and text["loops"] is False
    json.dumps(record.content)


def test_there_is_rest_before_each_visit() -> None:
    rests: list[float] = []
    a_plan = plan(cool_down=2.5, workloads=("code",))
    record, about = begin(a_plan), subject([FakeArm("a"), FakeArm("b")])
    plain_texts(record, about, a_plan)
    measure(record, a_plan, [about], quiet, rests.append)
    assert rests == [2.5] * 4


def test_progress_goes_from_the_first_visit_to_the_last() -> None:
    said: list[tuple[int, int]] = []
    a_plan = plan()
    record, about = begin(a_plan), subject([FakeArm("a")])
    plain_texts(record, about, a_plan)
    measure(record, a_plan, [about], lambda done, total, what: said.append((done, total)))
    assert said == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_arm_that_fails_is_given_up_and_the_others_go_on() -> None:
    good, bad = FakeArm("a"), FakeArm("b", "stock", fails_at=2)
    a_plan = plan(n_rounds=3)
    record = begin(a_plan)
    go(record, a_plan, subject([good, bad]))
    assert (good.opened, bad.opened) == (6, 2)
    assert record.failure(0, "b") == "b ended with code 1."
    assert invalid_arms(record, 0) == {"b": "it failed: b ended with code 1."}


def test_wrong_text_ends_an_arm() -> None:
    good = FakeArm("a")
    wrong = FakeArm("b", edit=wrong_from_5)
    a_plan = plan(n_rounds=3)
    record, about = begin(a_plan), subject([good, wrong], gap=0.5)
    go(record, a_plan, about)
    assert (good.opened, wrong.opened) == (6, 1), "no time is spent on what is not reported"
    assert set(invalid_arms(record, 0)) == {"b"} and "wrong text: token 5" in invalid_arms(record, 0)["b"]


def test_nearly_tied_tokens_are_no_fault() -> None:
    arm = FakeArm("b", edit=wrong_from_5)
    a_plan = plan(n_rounds=3)
    record = begin(a_plan)
    go(record, a_plan, subject([arm], gap=0.02))
    assert arm.opened == 6 and invalid_arms(record, 0) == {}


def test_a_text_that_ends_elsewhere_is_judged_by_the_tokens_that_end_texts() -> None:
    arm = FakeArm("b", edit=lambda tokens: tokens[:7])
    a_plan = plan(n_rounds=1, workloads=("code",))
    record, about = begin(a_plan), subject([arm])
    go(record, a_plan, about)
    assert {judged["gap"] for judged in record.content["judged"].values()} == {1.0}
    assert record.content["visits"][0]["texts"][0]["difference"] == {"at": 7, "token": END}
    assert set(invalid_arms(record, 0)) == {"b"}


@pytest.mark.parametrize("token", [N_VOCAB, -5])
def test_a_number_that_is_no_token_is_wrong_text(token: int) -> None:
    arm = FakeArm("b", "peer", edit=lambda tokens: [*tokens[:3], token, *tokens[4:]])
    a_plan = plan(n_rounds=1, workloads=("code",))
    record = begin(a_plan)
    go(record, a_plan, subject([arm], gap=0.0))
    assert f"token 3 is {token}, which the model does not have" in invalid_arms(record, 0)["b"]


# -- going on


class Stop:
    """Ctrl-C at a visit."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, *_: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_finished_visits_and_resume_goes_on(tmp_path: Path) -> None:
    a_plan, path = plan(n_rounds=3), tmp_path / "bench.json"
    settings = begin(a_plan).content["settings"]
    record = Record.begin(path, settings, "now", resume=False)
    record.content["models"] = begin(a_plan).content["models"]
    arms = [FakeArm("a"), FakeArm("b")]
    plain_texts(record, subject(arms), a_plan)
    with pytest.raises(KeyboardInterrupt):
        measure(record, a_plan, [subject(arms)], Stop(5))
    assert len(json.loads(path.read_text())["visits"]) == 5

    with pytest.raises(UsageError, match="holds the rounds of an interrupted run; go on with --resume"):
        Record.begin(path, settings, "now", resume=False)
    resumed = Record.begin(path, settings, "later", resume=True)
    plain_texts(resumed, subject(arms), a_plan)
    measure(resumed, a_plan, [subject(arms)], quiet)
    visits = json.loads(path.read_text())["visits"]
    assert len(visits) == 12 == sum(arm.opened for arm in arms)
    assert len({(v["round"], v["workload"], v["arm"]) for v in visits}) == 12

    more = plan(n_rounds=4)
    again = Record.begin(path, {**settings, "n_rounds": 4}, "later", resume=True)
    measure(again, more, [subject(arms)], quiet)
    assert len(again.content["visits"]) == 16


def test_a_difference_that_nobody_looked_at_is_looked_at_when_resumed() -> None:
    arms = [FakeArm("a"), FakeArm("b", edit=wrong_from_5)]
    a_plan = plan(n_rounds=1, workloads=("code",))
    record, about = begin(a_plan), subject(arms, gap=0.5)
    go(record, a_plan, about)
    record.content["judged"] = {}  # as where Ctrl-C came just before
    assert "--resume" in invalid_arms(record, 0)["b"], "no speed is shown before it is known what was written"
    measure(record, a_plan, [about], quiet)
    assert "wrong text: token 5" in invalid_arms(record, 0)["b"]
    assert len(record.content["visits"]) == 2


def test_finished_rounds_are_not_overwritten(tmp_path: Path) -> None:
    path, a_plan = tmp_path / "bench.json", plan(n_rounds=1)
    record = Record.begin(path, begin(a_plan).content["settings"], "now", resume=False)
    record.content["models"] = begin(a_plan).content["models"]
    go(record, a_plan, subject([FakeArm("a")]))
    record.content["complete"] = True
    record.save()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="holds the rounds of a finished run; go on with --resume and more --rounds"):
        Record.begin(path, {}, "later", resume=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        {"visits": [{}]},
        {"models": [1]},
        {"visits": [VISIT]},
        {"visits": [{**VISIT, "texts": [{}]}]},
        {"visits": [{**VISIT, "texts": [{"prompt": 0, "n": 1, "prefill_seconds": 1, "decode_seconds": 1, "compared": True}]}]},
        {"judged": {"0/code/0/1/2": 5}},
        {"judged": {"0/code/0/1/2": {"gap": "x", "tolerance": 0.1}}},
        {"models": [{}]},
        {"settings": {}},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(begin(plan()).content | damage))
    with pytest.raises(UsageError, match="is damaged"):
        Record.read(path)


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (("visits", 0, "round"), "a"),
        (("visits", 0, "model"), 5),
        (("visits", 0, "arm"), [1]),
        (("visits", 0, "texts", 0, "prompt"), 99),
        (("visits", 0, "texts", 0, "n"), 1e308),
        (("visits", 0, "texts", 0, "n_steps"), "x"),
        (("visits", 0, "texts", 0, "decode_seconds"), float("inf")),
        (("visits", 0, "texts", 0, "pace"), [[1]]),
        (("visits", 0, "texts", 0, "parts"), {"draft": None}),
        (("models", 0, "plain"), {"code": [1]}),
        (("models", 0, "sweep"), [{"temp": 0.0}]),
        (("models", 0, "sweep"), [{"arm": "a", "setting": {"n_max": 1}, "error": "none"}]),
        (("models", 0, "chi_square"), {"a": {"same": False}}),
        (("visits", 0, "texts", 0, "difference"), {"at": 3, "token": 5}),
        (("visits", 0, "round"), 0.5),
        (("visits", 0, "temp"), True),
    ],
)
def test_a_damaged_value_is_refused(tmp_path: Path, at: tuple[Any, ...], wrong: object) -> None:
    path, a_plan = tmp_path / "bench.json", plan(n_rounds=1)
    record = begin(a_plan)
    go(record, a_plan, subject([FakeArm("a")]))
    content = json.loads(json.dumps(record.content))
    path.write_text(json.dumps(content))
    assert Record.read(path).content == content
    inside = content
    for name in at[:-1]:
        inside = inside[name]
    inside[at[-1]] = wrong
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="is damaged"):
        Record.read(path)


def test_what_was_published_can_be_read() -> None:
    """Right tokens may be behind by a rounding, so that gaps are below 0."""
    paths = sorted((Path(__file__).parents[2] / "docs" / "results").glob("bench-*.json"))
    gaps = [each["gap"] for path in paths for each in Record.read(path).content["judged"].values()]
    assert len(paths) >= 5 and min(gaps) < 0


def test_a_difference_that_cannot_be_looked_at_loses_nothing() -> None:
    """Its arm has no figures until somebody can tell."""
    a_plan, wrong = plan(n_rounds=2), FakeArm("b", edit=wrong_from_5)
    record, about = begin(a_plan), subject([FakeArm("a"), wrong])

    class Failing(FakeArm):
        def gap(self, *_: Any) -> Any:
            raise EngineError("no room.")

    plain_texts(record, about, a_plan)
    measure(record, a_plan, [replace(about, judge=Failing("judge").open)], quiet)
    assert len(record.content["visits"]) == 4 * len(a_plan.workloads) and "was not looked at" in invalid_arms(record, 0)["b"]
    measure(record, a_plan, [about], quiet)
    assert "wrong text" in invalid_arms(record, 0)["b"]


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    given = {"n_rounds": 6, "n_tokens": 256, "n_prompts": 2, "device": "a"}
    Record.begin(path, given, "now", resume=False).save()
    for settings, word in [
        ({**given, "n_tokens": 128, "device": "b"}, r'\(device "a", now "b"; n_tokens 256, now 128\)'),
        ({**given, "n_rounds": 5}, r"\(n_rounds 6, now 5\)"),
    ]:
        with pytest.raises(UsageError, match=word):
            Record.begin(path, settings, "now", resume=True)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "entmtp-local bench", "version": 1}', "{", '{"format": "profile"}'])
def test_files_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    for resume in (True, False):
        with pytest.raises(UsageError) as error:
            Record.begin(path, {"n_rounds": 1}, "now", resume=resume)
        assert "\n" not in str(error.value)
    assert path.read_text() == content
    with pytest.raises(UsageError, match="--resume goes on with the file of --json"):
        Record.begin(None, {}, "now", resume=True)


# -- the best setting


def test_the_sweeps_are_those_of_the_protocol() -> None:
    quick, full = sweep("quick"), sweep("full")
    assert {(s.n_max, s.p_min) for s in quick} == {(n, p) for n in range(1, 5) for p in (0.0, 0.75)}
    grid = {(s.n_max, s.p_min, s.draft_sampling, s.backend_sampling) for s in full if not s.lookup}
    assert len(grid) == 6 * 3 * 2 * 2 and sum(s.lookup for s in full) == 18 and len(set(full)) == len(full)
    assert len({s.name for s in full}) == len(full), "figures are kept by name"
    assert sweep("default") == []


def test_the_best_setting_is_found_for_each_workload_and_for_all() -> None:
    a_plan = plan(temps=(0.0, 0.8))
    # one is best for one workload, another on the whole
    settings = [StockSetting(1), StockSetting(2), StockSetting(3)]
    speeds = {"code": (50.0, 90.0, 100.0), "prose": (60.0, 55.0, 20.0)}
    rows = [
        {"setting": {"n_max": s.n_max}, "temp": 0.0, "workload": name, "tokens_per_second": some[i]}
        for name, some in speeds.items()
        for i, s in enumerate(settings)
    ]
    assert best_settings(rows, 0.0, "code") == [StockSetting(3), StockSetting(2)]
    assert best_settings(rows, 0.0, "prose") == [StockSetting(1), StockSetting(2)]
    assert best_overall(rows, 0.0) == StockSetting(2)
    assert best_settings(rows, 0.8, "code") == []

    record = begin(a_plan)
    arms = [(s, FakeArm(s.name, "stock", speed=100.0 * s.n_max, fails_at=1 if s.n_max == 3 else None)) for s in settings]
    look_for_settings(record, a_plan, subject([]), arms, 1, 16, quiet)
    rows = record.content["models"][0]["sweep"]
    assert best_settings(rows, 0.8, "code") == [StockSetting(2)], "one that fails is not chosen"
    assert [arm.opened for _, arm in arms] == [2, 2, 1]
    assert {request.n for request in arms[0][1].requests} == {4, 16}
    look_for_settings(record, a_plan, subject([]), arms, 1, 16, quiet)
    assert [arm.opened for _, arm in arms] == [2, 2, 1], "nothing is measured twice"


def test_arguments_of_a_setting_are_llama_servers() -> None:
    assert StockSetting().arguments == (
        "--spec-type", "draft-mtp", "--spec-draft-n-max", "3", "--spec-draft-p-min", "0.0", "--spec-draft-backend-sampling",
    )  # fmt: skip
    found = StockSetting(2, 0.75, False, True, True)
    assert found.arguments[1] == "draft-mtp,ngram-mod" and found.arguments[-1] == "--backend-sampling"
    assert found.name == "stock mtp:2 p0.75 -dbs +bs +ngram"


# -- sampled text


def test_a_wrong_distribution_is_found() -> None:
    """Tokens take few values, as they do at a low temperature; those of one arm are others."""
    a_plan = plan(temps=(0.8,))
    good, judge = (FakeArm(name, edit=lambda tokens: [token % 5 for token in tokens]) for name in ("a", "judge"))
    wrong = FakeArm("b", edit=lambda tokens: [token % 5 // 2 for token in tokens])
    silent = FakeArm("c", "peer", fails_at=1)
    record, about = begin(a_plan), subject([good, wrong, silent])
    about = replace(about, judge=judge.open)
    said: list[tuple[int, int, str]] = []
    compare_distributions(record, a_plan, about, 0.8, 400, lambda *what: said.append(what))
    found = record.content["models"][0]["chi_square"]
    assert found["a"]["same"] and not found["b"]["same"] and "error" in found["c"]
    assert found["a"]["n_values"] == 5 and found["a"]["at"] > 0
    seeds = [{request.sampling.seed for request in arm.requests} for arm in (judge, good, wrong)]
    assert [len(some) for some in seeds] == [400] * 3 and len(set.union(*seeds)) == 1200, (
        "other seeds, or equal texts prove nothing"
    )
    n_plain = 440 + 40 * (len(a_plan.workloads) - 1)
    assert [done for done, total, _ in said if total == n_plain] == list(range(n_plain)), "every text is told before it is drawn"
    assert [(done, what[-1]) for done, total, what in said if total == 1200] == [
        *((done, "a") for done in range(400)), *((done, "b") for done in range(400, 800)),
    ]  # fmt: skip
