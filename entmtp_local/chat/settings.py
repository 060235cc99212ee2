"""What a chat can change while it goes on, by the names that the command line gives it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from entmtp_local.errors import UsageError
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.sampling import SamplingOptions, parse_bias
from entmtp_local.speculative.verify import ACCEPTANCES, AcceptanceRule, parse_acceptance

#: What is done when the conversation has filled the context.
OVERFLOWS = ("stop", "drop")
#: How reasoning is treated: asked for, not asked for, not shown, shown again.
THINKING = ("on", "off", "hide", "show")
NONE = "none"

_NUMBERS: dict[str, type[int] | type[float]] = {
    "temp": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
}
_SWITCHES = {"on": True, "off": False}


@dataclass(slots=True)
class Settings:
    """The state of a chat beside its conversation.

    Args:
        policy: what to draft, as the engine can follow it.
        rule: which drafted tokens are accepted; follows `acceptance` and `sampling`.
        sampling: a seed of None draws one for each answer.
        max_tokens: most tokens of an answer; None ends with the model's own end or a full context.
        overflow: one of OVERFLOWS.
        copy: drafts from the conversation so far.
        draft_vocab: as Session.set_draft_vocab takes it.
        hides_thinking, markdown, stats, trace: what is shown.
        plain_step: seconds of a step that drafts nothing by the policy's cost model, None where it has none.
    """

    policy: Policy
    rule: AcceptanceRule
    sampling: SamplingOptions
    acceptance: str
    max_tokens: int | None = None
    overflow: str = "stop"
    copy: bool = True
    draft_vocab: int | None = None
    hides_thinking: bool = False
    markdown: bool = True
    stats: bool = True
    trace: bool = False
    plain_step: float | None = None

    def names(self) -> list[str]:
        """What `change` knows, as the command line writes it."""
        own = ["seed", "logit_bias", "grammar", "json_schema", "max_tokens", "acceptance", "overflow"]
        return [name.replace("_", "-") for name in (*_NUMBERS, *own, "copy", "draft_vocab", "markdown", "stats", "trace")]

    def values(self, name: str) -> tuple[str, ...]:
        """Words among the values of a setting."""
        field = name.replace("-", "_")
        words = {"overflow": OVERFLOWS, "acceptance": ACCEPTANCES, "draft_vocab": ("auto", "full"), "seed": ("-1",)}
        if field in words:
            return words[field]
        if field in ("logit_bias", "grammar", "json_schema", "max_tokens"):
            return (NONE,)
        return tuple(_SWITCHES) if field in ("copy", "markdown", "stats", "trace") else ()

    def shown(self, name: str) -> str:
        """A setting as it would be entered."""
        field = name.replace("-", "_")
        value: Any = getattr(self.sampling if field in _SAMPLING else self, field)
        if field == "draft_vocab":
            return {None: "auto", 0: "full"}.get(value, str(value))
        if field == "logit_bias":
            return " ".join(f"{token}{bias:+g}" for token, bias in value) or NONE
        if isinstance(value, bool):
            return "on" if value else "off"
        if value is None:
            return "-1" if field == "seed" else NONE
        return str(value)

    def change(self, name: str, value: str, check_sampling: Callable[[SamplingOptions], None]) -> None:
        """Change a setting; nothing has changed where it raises.

        Args:
            check_sampling: raises where the engine cannot sample so: a grammar that it cannot read, tokens that there are not.
        Raises: UsageError naming what is known or wanted.
        """
        field = name.lower().removeprefix("--").replace("-", "_")
        if field.replace("_", "-") not in self.names():
            raise UsageError(f"there is no setting {name}; known are {', '.join(self.names())}, and /policy.")
        try:
            self._change(field, name, value, check_sampling)
        except UsageError as error:
            # they speak of options, which are settings here
            raise UsageError(re.sub(r"--(?=[a-z])", "", str(error))) from None

    def _change(self, field: str, name: str, value: str, check_sampling: Callable[[SamplingOptions], None]) -> None:
        if field in _SAMPLING:
            sampling = replace(self.sampling, **{field: _sampling_value(field, value, self.sampling)})
            rule = parse_acceptance(self.acceptance, sampling)
            check_sampling(sampling)
            self.sampling, self.rule = sampling, rule
        elif field == "acceptance":
            chosen = _one_of(name, value, ACCEPTANCES)
            self.rule = parse_acceptance(chosen, self.sampling)
            self.acceptance = chosen
        elif field == "overflow":
            self.overflow = _one_of(name, value, OVERFLOWS)
        elif field == "max_tokens":
            self.max_tokens = None if value == NONE else _positive(name, value, other=NONE)
        elif field == "draft_vocab":
            self.draft_vocab = (
                {"auto": None, "full": 0}[value] if value in ("auto", "full") else _positive(name, value, other="auto or full")
            )
        else:
            setattr(self, field, _SWITCHES[_one_of(name, value, tuple(_SWITCHES))])


_SAMPLING = frozenset(field.name for field in fields(SamplingOptions))


def _sampling_value(field: str, value: str, now: SamplingOptions) -> Any:
    if field in _NUMBERS:
        kind = _NUMBERS[field]
        try:
            return kind(value)
        except (ValueError, OverflowError):
            wanted = "a whole number" if kind is int else "a number"
            raise UsageError(f"{field.replace('_', '-')} must be {wanted}, not {value}.") from None
    if field == "seed":
        return None if value in ("-1", NONE) else _positive("seed", value, least=0, other="-1 to draw one")
    if value == NONE:
        return () if field == "logit_bias" else None
    if field == "logit_bias":
        return (*now.logit_bias, parse_bias(value))
    return value


def _positive(name: str, value: str, least: int = 1, other: str = "") -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 11 and int(value) >= least):
        raise UsageError(f"{name} must be a whole number from {least}{other and f', or {other}'}, not {value}.")
    return int(value)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{name} must be {' or '.join(known)}, not {value}.")
    return value
