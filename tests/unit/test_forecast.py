"""What `info` says of a machine: what fits it, and what speed a profile lets expect."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import KEY, FakeSession, install, model_info

from entmtp_local.calibration.calibrate import profile_path
from entmtp_local.cli import forecast, machine
from entmtp_local.cli.main import main
from entmtp_local.errors import EngineError
from entmtp_local.native.library import Gpu
from entmtp_local.speculative.acceptance import AcceptanceModel
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.expected import expected_speeds, plain_speed
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import SETS, NodePath, Profile, TaskFit, TreeSet

GIB = 1024**3
THROUGHPUT = parse_policy("throughput")
# 10 ms a verification and 1 ms more for each further node, 1 ms a level, 1 ms for the rest: plain decoding is 1000/11 tokens/s
COSTS = CostTable({n: 0.009 + 0.001 * n for n in range(1, 17)}, level={1: 0.001}, step=0.001)


def fit(by_rank: tuple[tuple[float, ...], ...], medusa: tuple[NodePath, ...] = ((),)) -> TaskFit:
    no_trees = TreeSet((((),),), (), (0,))
    acceptance = AcceptanceModel().as_json()
    return TaskFit(100, 3, acceptance, by_rank, (), 0.0, 1, 0.5, medusa, ((),), dict.fromkeys(SETS, no_trees))


def profile(**tasks: TaskFit) -> Profile:
    return Profile(COSTS, KEY, {"all": fit(((0.1,),)), **tasks})


# -- speed


def test_the_best_chain_is_found() -> None:
    found = profile(code=fit(((0.9,), (0.8,), (0.1,))))
    assert plain_speed(found) == pytest.approx(1000 / 11)
    (row,) = expected_speeds(found, THROUGHPUT, trees=False)
    # two levels: 1 + .9 + .72 tokens in 12 + 2 + 1 ms; a third would bring .072 tokens for 2 ms
    assert row.tokens_per_second == pytest.approx(2.62 / 0.015)
    assert row.ratio == pytest.approx(2.62 / 0.015 * 0.011)
    assert (row.task, row.by, row.measured) == ("code", "chain of 2", False)


def test_a_tree_where_it_is_better_and_can_be_verified() -> None:
    # the second candidate of the first level is worth its row, the second level is not
    found = profile(chat=fit(((0.5, 0.4), (0.1,)), medusa=((), (0,), (1,), (0, 0))))
    (row,) = expected_speeds(found, THROUGHPUT, trees=True)
    assert (row.by, row.tokens_per_second) == ("tree of 2 nodes", pytest.approx(1.9 / 0.014))
    (row,) = expected_speeds(found, THROUGHPUT, trees=False)
    assert (row.by, row.tokens_per_second) == ("chain of 1", pytest.approx(1.5 / 0.013))


def test_drafts_that_do_not_hold_are_not_recommended() -> None:
    (row,) = expected_speeds(profile(prose=fit(((0.05, 0.01),))), THROUGHPUT, trees=True)
    assert (row.by, row.ratio, row.tokens_per_second) == ("plain decoding", 1.0, pytest.approx(1000 / 11))


def test_what_was_measured_counts_more_than_what_is_computed() -> None:
    rows: tuple[dict[str, Any], ...] = (
        {"task": "code", "policy": "chain:3", "temp": 0.8, "tokens_per_second": 100.0, "ratio": 1.1, "tokens_per_step": 2.0},
        {"task": "code", "policy": "throughput", "temp": 0.8, "tokens_per_second": 120.0, "ratio": 1.3, "tokens_per_step": 2.2},
    )
    found = replace(profile(code=fit(((0.9,),)), math=fit(((0.9,),))), measured=rows)
    code, math = expected_speeds(found, THROUGHPUT, trees=True)
    assert (code.by, code.tokens_per_second, code.ratio, code.measured) == ("throughput", 120.0, 1.3, True)
    assert (math.by, math.measured) == ("chain of 1", False)
    # of what was not measured the best that was stands for it
    code, math = expected_speeds(found, parse_policy("entropy-chain"), trees=True)
    assert (code.by, math.by) == ("throughput", "chain of 1")
    # but a shape can be computed
    policy = parse_policy("hydra:1")
    policy.calibrated(found)
    code, _ = expected_speeds(found, policy, trees=True)
    assert (code.by, code.measured, code.best) == ("plain decoding", False, "throughput"), "no node was grown"
    code, _ = expected_speeds(found, parse_policy("chain:1"), trees=True)
    assert (code.by, code.measured, code.best_ratio) == ("chain of 1", False, 1.3)


def test_what_gained_more_than_its_tokens_allow_is_not_told_as_measured() -> None:
    """Something else ran while plain decoding was measured."""
    rows: tuple[dict[str, Any], ...] = tuple(
        {"task": "code", "policy": policy, "temp": 0.8, "tokens_per_second": 100 * ratio, "ratio": ratio, "tokens_per_step": n}
        for policy, ratio, n in (("off", 1.0, 1.0), ("chain:3", 1.2, 2.0), ("throughput", 7.08, 2.2))
    )
    code, _ = expected_speeds(replace(profile(code=fit(((0.9,),)), math=fit(((0.9,),))), measured=rows), THROUGHPUT, trees=True)
    # so the gain of the chain, which its tokens allow, is not known either
    assert (code.by, code.measured, code.best) == ("chain of 1", False, "chain of 1")


def test_what_is_said_is_of_the_policy_that_was_named() -> None:
    rows: tuple[dict[str, Any], ...] = tuple(
        {"task": "code", "policy": policy, "temp": 0.8, "tokens_per_second": 100 * ratio, "ratio": ratio, "tokens_per_step": 2.0}
        for policy, ratio in (("off", 1.0), ("throughput", 0.8), ("entmtp:code", 0.9))
    )
    found = replace(profile(code=fit(((0.9,),)), math=fit(((0.9,), (0.8,), (0.1,)))), measured=rows)
    for name, by in (("throughput", "throughput"), ("entmtp", "entmtp:code"), ("entmtp:code", "entmtp:code"), ("off", "off")):
        code, _ = expected_speeds(found, parse_policy(name), trees=True)
        assert (code.by, code.best, code.best_ratio) == (by, "off", 1.0)
    _, math = expected_speeds(found, parse_policy("chain:1"), trees=True)
    assert (math.by, math.best) == ("chain of 1", "chain of 2") and math.ratio == pytest.approx(1.9 * 11 / 13)
    _, math = expected_speeds(found, parse_policy("off"), trees=True)
    assert (math.by, math.ratio, math.best) == ("plain decoding", 1.0, "chain of 2")
    speed = {"plain": 100.0, "tasks": [asdict(code) for code in expected_speeds(found, THROUGHPUT, trees=True)], "quick": False}
    speed["doubtful"] = []
    lines = forecast.speed_text({**speed, "created": "", "again": "again"})
    assert lines[1] == "80.0 tokens/s for code, 0.80 times plain decoding (measured: throughput; off: 1.00)"
    assert not any("not used" in line for line in lines)
    doubted = forecast.speed_text({**speed, "doubtful": ["math"], "created": "", "again": ""})
    (line,) = (line for line in doubted if "not used" in line)
    assert line.startswith("what was measured of math is not used: drafts gained more")
    few = replace(found, measured=tuple({**row, "n_tokens": 62} for row in rows))
    speed["tasks"] = [asdict(code) for code in expected_speeds(few, THROUGHPUT, trees=True)]
    assert "(measured over few tokens, 62: throughput;" in forecast.speed_text({**speed, "created": "", "again": "again"})[1]


def test_a_profile_of_all_tasks_alone_is_told_as_that() -> None:
    (row,) = expected_speeds(profile(), THROUGHPUT, trees=True)
    assert row.task == "all"
    assert expected_speeds(Profile(COSTS), THROUGHPUT, trees=True) == []


def test_sizes_that_were_not_measured_are_not_promised() -> None:
    found = replace(profile(code=fit(((0.99,),) * 8)), costs=replace(COSTS, verify={1: 0.010, 2: 0.010}))
    (row,) = expected_speeds(found, THROUGHPUT, trees=True)
    assert row.by == "chain of 1"


# -- fit


def fitted(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], n_ctx: int = 2048, **how: Any) -> dict[str, Any]:
    info = model_info(size_bytes=10 * GIB, n_layer=39, kv_bytes_per_token=1024**2, n_ctx_train=4096)
    monkeypatch.setattr(forecast, "_gpus", lambda: gpus)
    monkeypatch.setattr(forecast, "available_memory", lambda: 64 * GIB)
    return forecast.fit_of(info, None, n_ctx, parse_policy("off"), how.get("n_gpu_layers"))


def test_a_gpu_that_holds_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fitted(monkeypatch, [Gpu("Some GPU", 20 * GIB, 24 * GIB)])
    assert (told["device"], told["n_gpus"], told["fits"], told["gpu_layers"]) == ("Some GPU", 1, True, None)
    assert (told["available_bytes"], told["total_bytes"], told["largest_n_ctx"]) == (20 * GIB, 24 * GIB, 4096)
    assert fitted(monkeypatch, [Gpu("Some GPU", 20 * GIB, 24 * GIB)], 6144)["largest_n_ctx"] == 6144, "what was asked for"


def test_a_context_that_is_too_long_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fitted(monkeypatch, [Gpu("Some GPU", int(11.5 * GIB), 12 * GIB)])
    assert told["fits"] is False and told["largest_n_ctx"] % 256 == 0 and 256 <= told["largest_n_ctx"] < 2048
    assert fitted(monkeypatch, [Gpu("Some GPU", int(11.5 * GIB), 12 * GIB)], told["largest_n_ctx"])["fits"] is True


def test_a_gpu_that_holds_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fitted(monkeypatch, [Gpu("Some GPU", 6 * GIB, 8 * GIB)])
    assert told["fits"] is False and told["largest_n_ctx"] is None
    # 12 GiB of weights and cache in 41 layers, and about 0.1 GiB for the rest
    assert 18 <= told["gpu_layers"] <= 20
    assert fitted(monkeypatch, [Gpu("Some GPU", 1, 8 * GIB)])["gpu_layers"] == 0


def test_a_part_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = fitted(monkeypatch, [Gpu("Some GPU", 6 * GIB, 8 * GIB)])["gpu_layers"]
    for n, fits in ((1, True), (layers, True), (layers + 1, False)):
        told = fitted(monkeypatch, [Gpu("Some GPU", 6 * GIB, 8 * GIB)], n_gpu_layers=n)
        assert (told["fits"], told["gpu_layers"]) == (fits, layers)
    # more than all are all
    assert fitted(monkeypatch, [Gpu("Some GPU", 20 * GIB, 24 * GIB)], n_gpu_layers=99)["largest_n_ctx"] == 4096


def test_several_gpus_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fitted(monkeypatch, [Gpu("A", 8 * GIB, 8 * GIB), Gpu("B", 8 * GIB, 8 * GIB)])
    assert (told["device"], told["fits"], told["available_bytes"]) == ("2 GPUs", True, 16 * GIB)


def test_main_memory_where_there_is_no_gpu_or_it_is_not_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (fitted(monkeypatch, []), fitted(monkeypatch, [Gpu("A", 8 * GIB, 8 * GIB)], n_gpu_layers=0)):
        assert (told["device"], told["fits"], told["available_bytes"]) == ("main memory", True, 64 * GIB)


def test_memory_that_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_gpus", list)
    monkeypatch.setattr(forecast, "available_memory", lambda: None)
    told = forecast.fit_of(model_info(), None, 2048, parse_policy("off"), None)
    assert told["fits"] is None and "unknown" in forecast.fit_text(told, 2048, 4096)


def test_the_largest_context() -> None:
    assert machine.largest_context(lambda n: 1000 + n, 1000 + 256) == 256
    assert machine.largest_context(lambda n: 1000 + n, 1000 + 767) == 512
    assert machine.largest_context(lambda n: 1000 + n, 1000 + 255) is None
    # a window grows up to its length only
    assert machine.largest_context(lambda n: n + 10 * min(n, 1536), 15_360 + 40_000) == 40_000 // 256 * 256


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"fits": True, "largest_n_ctx": 4096}, "yes: 8.0 GiB of GPU are available, which is enough for all 4096 tokens"),
        ({"fits": True, "largest_n_ctx": 3072}, "which is enough up to -c 3072"),
        ({"fits": True, "largest_n_ctx": 8192}, "which is enough up to -c 8192"),
        ({"fits": True, "largest_n_ctx": None, "gpu_layers": 12}, "which is enough for up to --gpu-layers 12"),
        (
            {"fits": False, "largest_n_ctx": 512, "gpu_layers": 0},
            "not at -c 2048: 8.0 GiB of GPU are available, which is enough up",
        ),
        ({"fits": False, "largest_n_ctx": None, "gpu_layers": 12}, "in part: 8.0 GiB of GPU are available; --gpu-layers 12"),
        ({"fits": False, "largest_n_ctx": None, "gpu_layers": 0}, "no: 8.0 GiB of GPU are available; use a smaller quantisation"),
    ],
)
def test_what_fits_in_words(values: dict[str, Any], text: str) -> None:
    told = {"device": "GPU", "n_gpus": 1, "available_bytes": 8 * GIB, "total_bytes": None, "gpu_layers": None, **values}
    assert text in forecast.fit_text(told, 2048, 4096)


# -- the command


def info(*arguments: str) -> list[str]:
    result = CliRunner().invoke(main, ["info", "m.gguf", *arguments])
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_info_with_a_kept_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeSession([]))
    monkeypatch.setattr(forecast, "profile_folder", lambda: tmp_path)
    kept = replace(profile(code=fit(((0.9,), (0.8,), (0.1,)))), created="2026-11-20T23:30:00+00:00")
    kept.save(profile_path(tmp_path, Path("m.gguf"), KEY))
    lines = info()
    assert lines[-3:-1] == [
        "speed          90.9 tokens/s decoded one by one",
        "               174.7 tokens/s for code, 1.92 times plain decoding (forecast by the cost model: chain of 2)",
    ]
    assert lines[-1].startswith("               from a quick calibration of 2026-11-20")
    assert lines[-1].endswith("; entmtp-local calibrate m.gguf measures more")
    told = json.loads("".join(info("--json", "--n-ctx", "512")))
    assert told["speed"]["plain"] == pytest.approx(1000 / 11) and told["speed"]["tasks"][0]["task"] == "code"
    assert info("--policy", "entmtp:verse")[-1].startswith("speed          the profile has no task verse (it has: code); run")
    assert told["memory"]["n_ctx"] == 512 and told["speed"]["created"] == "2026-11-20T23:30:00+00:00"


@pytest.mark.parametrize(
    ("created", "words"),
    [
        ("2026-11-22T23:30:00+00:00", " of 2026-11-22, today"),
        ("2026-11-21T23:30:00+00:00", " of 2026-11-21, yesterday"),
        ("2025-11-22", " of 2025-11-22, 365 days ago"),
        ("2027-01-01", " of 2027-01-01"),
        ("", ""),
        ("\x1b[31mlast week", ""),
    ],
)
def test_the_age_of_a_profile(created: str, words: str) -> None:
    assert forecast._when(created, datetime(2026, 11, 22, 10, tzinfo=timezone.utc)) == words


def test_info_with_a_profile_of_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeSession([]))
    path = tmp_path / "p.json"
    replace(profile(), key=replace(KEY, device="another device")).save(path)
    assert info("--profile", str(path))[-1].endswith(f"the profile {path} was measured on another device; calibrate again")
    assert "there is no profile" in info("--profile", str(tmp_path / "none"))[-1]


def test_info_names_the_threads_that_there_is_a_profile_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeSession([]))
    monkeypatch.setattr(forecast, "profile_folder", lambda: tmp_path)
    for n in (7, 12):
        key = replace(KEY, n_threads=n)
        replace(profile(), key=key).save(profile_path(tmp_path, Path("m.gguf"), key))
    assert f"not measured yet with {KEY.n_threads} threads: entmtp-local calibrate m.gguf does it" in info()[-1]
    assert info()[-1].endswith("; there is a profile for --threads 7 and 12")


def test_info_without_drafts_or_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeSession([]), model_info(head_kind="none", has_mtp=False, n_layer_nextn=0))
    assert "entmtp-local run m.gguf -p TEXT --verbose tells" in info()[-1]
    install(monkeypatch, FakeSession([]))
    monkeypatch.setattr(forecast.library, "is_built", lambda: False)
    assert "unknown until the engine is built; run " in info()[-1]

    def broken() -> None:
        raise EngineError("it does not load.")

    install(monkeypatch, FakeSession([]))
    monkeypatch.setattr(forecast.library, "load", broken)
    assert "unknown until the engine is built" in info()[-1]
