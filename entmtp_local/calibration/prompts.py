"""Prompts of workloads as a model reads them, and those of them that calibration takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entmtp_local.bench import workloads
from entmtp_local.chat.template import ChatTemplate
from entmtp_local.errors import UsageError
from entmtp_local.native.session import Session
from entmtp_local.speculative.entmtp import SIGNALS
from entmtp_local.speculative.profile import ALL


def calibration_prompts(names: Sequence[str], n: int) -> dict[str, list[workloads.Prompt]]:
    """The last n prompts of each workload: benchmarks take the first ones.

    Args:
        names: workloads, or files of prompts.
    Raises: UsageError where a name is unknown, a file holds no prompts or two tasks would have one name.
    """
    found: dict[str, list[workloads.Prompt]] = {}
    for name in names:
        prompts = workloads.load(name)
        label = name if name in workloads.NAMES else Path(name).stem
        if label == ALL:
            raise UsageError(f"a task cannot be called '{ALL}', which stands for all of them together; rename {name}.")
        if label in workloads.NAMES and label != name:
            raise UsageError(
                f"a task of a file cannot be called '{label}', which is one of those that are shipped; rename {name}."
            )
        if label in SIGNALS:
            raise UsageError(f"a task cannot be called '{label}', which --policy entmtp:{label} means already; rename {name}.")
        if found.get(label, prompts[-n:]) != prompts[-n:]:
            raise UsageError(f"two tasks are called '{label}', after their files; rename one of them.")
        found[label] = prompts[-n:]
    return found


def prompt_tokens(session: Session, template: ChatTemplate, prompt: workloads.Prompt) -> list[int]:
    """As `entmtp-local run` and `chat` read it."""
    if prompt.messages is None:
        return session.tokenize(prompt.text or "", add_special=True, parse_special=True)
    text = template.render([{"role": message.role, "content": message.content} for message in prompt.messages])
    bos = template.bos_token
    return session.tokenize(text, add_special=not (bos and text.startswith(bos)), parse_special=True)
