"""What a calibration advises.

| test | failure it catches |
|---|---|
| gains | drafts advised that cost more than they bring, or not advised where they gain |
| default | another policy advised for a gain that is within the error |
| measured | a forecast that is believed more than what was decoded |
| costs | costs of a disturbed moment that nothing is said of |
| chains | trees advised where none can be verified |
| lines | advice that says another policy than its command, or a command that does not find the profile |
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from synthetic import synthetic_log

from entmtp_local.calibration.advice import Advice, advise
from entmtp_local.calibration.calibrate import finalists
from entmtp_local.calibration.fit import fit_tasks
from entmtp_local.calibration.record import wide_shape
from entmtp_local.cli.calibrate import _advice, _command, _decodes_otherwise
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.profile import Profile

LOG = synthetic_log(wide_shape(8, 24), n_texts=2, n_tokens=80)
# eight nodes in about the time of one, and two in three times that
CHEAP = CostTable({1: 20.0, 2: 20.1, 4: 20.3, 8: 20.7, 16: 30.0}, level={1: 0.2})
DEAR = CostTable({1: 20.0, 2: 60.0, 4: 70.0, 8: 90.0, 16: 160.0}, level={1: 9.0})


def profile(costs: CostTable, **measured: float) -> Profile:
    rows = tuple({"task": "code", "policy": name.replace("_", ":"), "ratio": ratio} for name, ratio in measured.items())
    return Profile(costs, tasks=fit_tasks(LOG, costs), measured=rows)


def test_what_gains_is_advised_and_nothing_else() -> None:
    found = advise(profile(CHEAP), LOG, "code", "off", trees=True)
    assert found.policy != "off" and found.ratio > 1.5 and found.default_ratio == 1.0 and not found.measured
    found = advise(profile(DEAR), LOG, "code", "chain:3", trees=True)
    assert (found.policy, found.ratio) == ("off", 1.0)
    assert found.default_ratio is not None and found.default_ratio < 0.7


def test_the_default_is_kept_where_others_hardly_gain_more() -> None:
    def advised(**measured: float) -> tuple[str, float]:
        found = advise(profile(CHEAP, off=1.0, **measured), LOG, "code", "throughput", trees=True)
        assert found.measured and found.default_ratio == measured["throughput"]
        return found.policy, found.ratio

    assert advised(chain_2=1.40, throughput=1.38) == ("throughput", 1.38)
    assert advised(chain_2=1.50, throughput=1.38) == ("chain:2", 1.50)
    assert advised(chain_2=1.02, throughput=0.9) == ("off", 1.0)
    assert advised(chain_2=1.0, throughput=1.04) == ("off", 1.0)


def test_where_a_policy_gained_more_than_the_tokens_of_its_steps_the_forecast_counts() -> None:
    """Another program ran while plain decoding was measured, which makes all gains too large."""

    def advised(*gains: tuple[str, float, float]) -> Advice:
        rows = tuple({"task": "code", "policy": name, "ratio": ratio, "tokens_per_step": n} for name, ratio, n in gains)
        return advise(replace(profile(CHEAP), measured=rows), LOG, "code", "throughput", trees=True)

    assert advised() == advised(("off", 1.0, 1.0), ("chain:2", 7.3, 1.5), ("throughput", 1.4, 2.0))
    assert advised(("off", 1.0, 1.0), ("chain:2", 1.4, 1.5)) == Advice("code", "chain:2", 1.4, None, True)


def test_what_was_decoded_is_believed_unless_nothing_was() -> None:
    measured = profile(CHEAP, off=1.0, throughput=0.8)
    assert advise(measured, LOG, "code", "throughput", trees=True) == Advice("code", "off", 1.0, 0.8, True)
    ended_at_once = profile(CHEAP, off=0.0, throughput=0.0)
    found = advise(ended_at_once, LOG, "code", "throughput", trees=True)
    assert not found.measured and found.ratio > 1.5 and found.n_tokens is None
    rows = tuple({**row, "n_tokens": 200 + i} for i, row in enumerate(profile(CHEAP, off=1.0, chain_2=1.3).measured))
    assert advise(replace(measured, measured=rows), LOG, "code", "off", trees=True).n_tokens == 201


def test_costs_that_decoding_contradicts_are_told() -> None:
    def contradicted(speed: float) -> bool:
        rows = (
            {"task": "code", "policy": "off", "tokens_per_second": speed},
            {"task": "code", "policy": "chain:2", "tokens_per_second": 9.9},
        )
        return _decodes_otherwise(replace(profile(CHEAP), measured=rows))

    # 20 seconds a token by the table
    assert contradicted(0.2) and contradicted(0.01)
    assert not contradicted(0.1) and not contradicted(0.03) and not contradicted(0.0)


def test_no_trees_are_advised_where_chains_are_verified() -> None:
    fitted = profile(CHEAP)
    assert any("hydra" in name for name in finalists(fitted, LOG, "code", True))
    assert not any("hydra" in name for name in finalists(fitted, LOG, "code", False))
    # at what a chain of the trees' spines gains, not at what the trees would
    best = max(advise(fitted, LOG, "code", f"chain:{n}", trees=False).ratio for n in (2, 8))
    assert 1.5 < best < advise(fitted, LOG, "code", "off", trees=True).ratio


def test_the_lines_and_their_command() -> None:
    command = ["entmtp-local", "chat", "my model.gguf"]
    code = Advice("code", "chain:2", 1.5, 1.3, False)
    (head, line, use) = _advice([code], "throughput", command)
    assert head == "what pays: forecast from the log" and use == "use it: entmtp-local chat 'my model.gguf' --policy chain:2"
    assert line == "  code     chain:2, 1.50 times plain decoding (the default, throughput: 1.30)"
    prose = Advice("prose", "off", 1.0, 0.9, False)
    *_, line, use, more = _advice([code, prose], "throughput", command)
    assert line == "  prose    nothing: no drafts gain 5 % or more (the default, throughput: 0.90)"
    assert use == "use it: entmtp-local chat 'my model.gguf'" and more.strip() == "and for texts of one kind --policy as above"
    # worse on the whole than nothing
    *_, use, more = _advice([code, replace(prose, default_ratio=0.5)], "throughput", command)
    assert use == "use it: entmtp-local chat 'my model.gguf' --policy off" and more
    default = Advice("code", "throughput", 1.3, 1.3, True)
    (head, line, use) = _advice([default], "throughput", command)
    assert head == "what pays: decoded with the model" and use == "use it: entmtp-local chat 'my model.gguf'"
    assert line == "  code     throughput, 1.30 times plain decoding"
    few = replace(default, n_tokens=62)
    (head, line, forecast, use) = _advice([few, replace(default, task="math", measured=False)], "throughput", command)
    assert head == "what pays: decoded with the model"
    assert line == "  code     throughput, 1.30 times plain decoding; by 62 tokens, which say little"
    assert forecast == "  math     throughput, 1.30 times plain decoding; forecast from the log"


def test_the_command_says_what_the_profile_holds_for() -> None:
    nothing = dict.fromkeys(("mtp_model", "n_threads", "n_gpu_layers", "draft_vocab", "draft_head_type", "out"))
    assert _command(None, nothing) == ["entmtp-local", "chat"]
    everything = {"mtp_model": Path("a b.gguf"), "n_threads": 4, "n_gpu_layers": 0, "draft_vocab": 0}
    everything |= {"draft_head_type": "same", "out": Path("p.json")}
    assert shlex.join(_command("m.gguf", everything)) == (
        "entmtp-local chat m.gguf --mtp-model 'a b.gguf' --threads 4 --gpu-layers 0 --draft-vocab full --draft-head-type same "
        "--profile p.json"
    )
    assert _command(None, nothing | {"draft_vocab": 4096})[2:] == ["--draft-vocab", "4096"]
