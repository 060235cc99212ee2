"""SamplingOptions: defaults, ranges, and whose word counts."""

from __future__ import annotations

import math

import pytest

from entmtp_local.errors import UsageError
from entmtp_local.speculative.sampling import MAX_SEED, SamplingOptions, model_defaults


def test_defaults_are_those_of_llama_cpp() -> None:
    options = SamplingOptions()
    assert (options.temp, options.top_k, options.top_p, options.min_p) == (0.8, 40, 0.95, 0.05)
    assert (options.repeat_penalty, options.repeat_last_n) == (1.0, 64)
    assert not options.penalizes and not options.constrained and not options.greedy


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temp": -0.1}, "--temp"),
        ({"temp": math.nan}, "--temp"),
        ({"temp": 1e39}, "--temp"),
        ({"top_k": 2**31}, "--top-k"),
        ({"top_p": 1.1}, "--top-p"),
        ({"min_p": -1.0}, "--min-p"),
        ({"repeat_penalty": 0.0}, "--repeat-penalty"),
        ({"repeat_penalty": 1e-45}, "--repeat-penalty"),
        ({"repeat_last_n": -1}, "--repeat-last-n"),
        ({"repeat_last_n": 2**31 - 1}, "--repeat-last-n"),
        ({"presence_penalty": math.inf}, "--presence-penalty"),
        ({"frequency_penalty": math.nan}, "--frequency-penalty"),
        ({"seed": -1}, "--seed"),
        ({"seed": MAX_SEED + 1}, "--seed"),
        ({"logit_bias": ((-1, 1.0),)}, "--logit-bias"),
        ({"logit_bias": ((1, math.inf),)}, "--logit-bias"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, float], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be .*, not "):
        SamplingOptions(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"grammar": "root ::= [0-9]", "json_schema": "{}"}, "exclude each other"),
        ({"grammar": " \n"}, "the grammar is empty"),
        ({"grammar": 'root ::= "\0"'}, "zero byte"),
        ({"json_schema": "{"}, "not valid JSON"),
    ],
)
def test_constraints_are_checked(values: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        SamplingOptions(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "greedy"),
    [
        ({}, True),
        ({"repeat_penalty": 1.1}, False),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, True),
        ({"presence_penalty": 0.5}, False),
        ({"frequency_penalty": 0.5}, False),
        ({"logit_bias": ((3, 1.0),)}, False),
        ({"grammar": "root ::= [0-9]"}, False),
        ({"json_schema": "{}"}, False),
        ({"top_k": 1, "top_p": 0.1}, True),
        ({"temp": 0.1}, False),
    ],
)
def test_greedy_is_the_bare_arg_max_only(values: dict[str, object], greedy: bool) -> None:
    assert SamplingOptions(**({"temp": 0.0} | values)).greedy is greedy  # type: ignore[arg-type]


def test_a_drawn_seed_is_kept_and_a_given_one_is_not_replaced() -> None:
    drawn = SamplingOptions().with_seed()
    assert drawn.seed is not None and 0 <= drawn.seed <= MAX_SEED
    assert drawn.with_seed() is drawn
    assert len({SamplingOptions().with_seed().seed for _ in range(8)}) > 1


def test_model_defaults_are_read_and_nonsense_is_left_out() -> None:
    recommended = {"temp": 0.6, "top_k": 20, "penalty_repeat": 1.05, "penalty_last_n": 128}
    assert model_defaults(recommended) == {"temp": 0.6, "top_k": 20, "repeat_penalty": 1.05, "repeat_last_n": 128}
    assert model_defaults({"top_p": 7.0, "temp": "warm", "min_p": True, "mirostat": 2, "top_k": math.nan}) == {}
