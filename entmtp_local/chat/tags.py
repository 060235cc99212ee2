"""What models write around their reasoning, which their chat templates tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tags:
    """The texts before and after an answer's reasoning.

    Args:
        mark: what a template has that uses them; "" for `end`.
    """

    begin: str
    end: str
    mark: str = ""


THINK = Tags("<think>", "</think>")

# Source: the templates in llama.cpp's models/templates, but for Kimi K3's, whose macros put its tags together.
_OTHERS = (
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("<mm:think>", "</mm:think>"),  # MiniMax-M3
    Tags("<think:opensource>", "</think:opensource>", "<think{}>"),  # Hunyuan 3
    Tags("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B, Command A
    Tags("<|channel>thought\n", "<channel|>"),  # Gemma 4
    Tags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    Tags("<|think|>", "<|content|>", "assistant<|think|>"),  # Solar Open
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Tags("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]", "Here are my reasoning steps"),  # Apriel
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    Tags("<reasoning>", "</reasoning>"),
)


def tags_of(template: str) -> Tags:
    """The tags of a template's model; THINK where it names no others."""
    return next((tags for tags in _OTHERS if (tags.mark or tags.end) in template), THINK)
