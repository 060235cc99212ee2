"""What the user asked of sampling, as one frozen value.

Knows nothing of llama.cpp: `native/sampler.py` turns these options into a sampler chain.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from entmtp_local.errors import UsageError

# llama.cpp reads the last 32-bit value as "draw a seed yourself", so it cannot be a seed.
MAX_SEED = 2**32 - 2

# Below this the quotient logit / temp overflows a 32-bit float; the limit it stands for is the arg-max.
MIN_TEMP = 1e-6

# llama.cpp makes room for as many tokens at once; longer texts than this are no model's.
MAX_LAST_N = 2**24

_MAX_F32 = 3.4028234663852886e38

# What follows "general.sampling." in a GGUF key -> (field, type). Source: LLM_KV_GENERAL_SAMPLING_* of llama-arch.cpp.
_MODEL_KEYS: dict[str, tuple[str, type[int] | type[float]]] = {
    "temp": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "penalty_repeat": ("repeat_penalty", float),
    "penalty_last_n": ("repeat_last_n", int),
}


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """The sampler chain's parameters; the defaults are llama.cpp's own.

    Args:
        temp: temperature; 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 or less keeps all.
        top_p: keep the smallest set with this probability mass; 1 keeps all.
        min_p: drop tokens below this share of the top probability; 0 keeps all.
        repeat_penalty: divide (positive) or multiply (negative) logits of recent tokens; 1 is off.
        repeat_last_n: how many recent tokens, the prompt's included, the penalties look at; 0 is off.
        presence_penalty: subtracted once from the logit of each recent token.
        frequency_penalty: subtracted from the logit of a recent token once per occurrence.
        seed: of the random numbers, 0 to `MAX_SEED`; None draws one.
        logit_bias: (token id, added to its logit) pairs; -inf forbids a token.
        grammar: GBNF text with a rule `root`.
        json_schema: a JSON schema, as JSON text; excludes `grammar`.
    Raises:
        UsageError: a value out of its range.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    json_schema: str | None = None

    def __post_init__(self) -> None:
        _require(_finite(self.temp) and self.temp >= 0, "temp", self.temp, "0 or more")
        _require(-(2**31) <= self.top_k < 2**31, "top-k", self.top_k, "a 32-bit number")
        _require(0.0 <= self.top_p <= 1.0, "top-p", self.top_p, "between 0 and 1")
        _require(0.0 <= self.min_p <= 1.0, "min-p", self.min_p, "between 0 and 1")
        # llama.cpp also divides by the penalty, so its reciprocal must be finite in 32 bits.
        _require(
            _finite(self.repeat_penalty) and self.repeat_penalty > 1e-30,
            "repeat-penalty",
            self.repeat_penalty,
            "above 0 (1 switches it off)",
        )
        _require(0 <= self.repeat_last_n <= MAX_LAST_N, "repeat-last-n", self.repeat_last_n, f"between 0 and {MAX_LAST_N}")
        _require(_finite(self.presence_penalty), "presence-penalty", self.presence_penalty, "a finite number")
        _require(_finite(self.frequency_penalty), "frequency-penalty", self.frequency_penalty, "a finite number")
        if self.seed is not None:
            _require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"between 0 and {MAX_SEED}")
        for token, bias in self.logit_bias:
            _require(token >= 0, "logit-bias", token, "a token id of 0 or more")
            _require(bias == -math.inf or _finite(bias), "logit-bias", bias, "a finite number or -inf")
        self._check_constraints()

    def _check_constraints(self) -> None:
        if self.grammar is not None and self.json_schema is not None:
            raise UsageError("a grammar and a JSON schema exclude each other: give one of them.")
        if self.grammar is not None:
            if not self.grammar.strip():
                raise UsageError("the grammar is empty: it needs at least a rule named root, such as root ::= [0-9]+.")
            # C strings end at a zero byte: what follows would be dropped without a word.
            if "\0" in self.grammar:
                raise UsageError("the grammar holds a zero byte: write it as \\x00.")
        if self.json_schema is not None:
            try:
                json.loads(self.json_schema)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UsageError(f"the JSON schema is not valid JSON: {error}.") from None

    @property
    def penalizes(self) -> bool:
        """True when recent tokens change the row that is sampled from."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )

    @property
    def constrained(self) -> bool:
        """True when a grammar or a JSON schema limits the text."""
        return self.grammar is not None or self.json_schema is not None

    @property
    def greedy(self) -> bool:
        """True when these options always take the arg-max of the model's own row."""
        return self.temp < MIN_TEMP and not self.penalizes and not self.logit_bias and not self.constrained

    def with_seed(self) -> SamplingOptions:
        """Draw the seed if there is none yet, so that it can be reported and used again."""
        if self.seed is not None:
            return self
        return replace(self, seed=secrets.randbelow(MAX_SEED + 1))


def parse_bias(text: str) -> tuple[int, float]:
    """TOKEN+BIAS or TOKEN-BIAS, as llama.cpp writes it.

    Raises: UsageError naming what is wanted.
    """
    match = re.fullmatch(r"\s*(\d{1,10})([+-])(\d+(?:\.\d*)?|\.\d+|inf)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a token id, + or -, and a number, such as 1234-5 or 1234-inf.")
    token, sign, size = match.groups()
    return int(token), float(sign + size)


def model_defaults(sampling: Mapping[str, object]) -> dict[str, int | float]:
    """Read the sampling defaults that a model file recommends.

    Args:
        sampling: the file's keys that begin with "general.sampling.", without that.
    Returns: keyword arguments of SamplingOptions, for the keys present and usable.
    Source: common_init_sampler_from_model of llama.cpp's common/common.cpp.
    """
    found: dict[str, int | float] = {}
    for key, (field, kind) in _MODEL_KEYS.items():
        value = sampling.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            continue
        try:
            SamplingOptions(**{field: kind(value)})  # type: ignore[arg-type]
        except UsageError:
            # The file's mistake, not the user's: fall back to llama.cpp's default.
            continue
        found[field] = kind(value)
    return found


def _finite(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= _MAX_F32


def _require(ok: bool, name: str, value: float, wanted: str) -> None:
    if not ok:
        raise UsageError(f"--{name} must be {wanted}, not {value}.")
