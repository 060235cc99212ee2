"""Tells reasoning from answer in streamed text. Knows nothing of how either is shown."""

from __future__ import annotations

from collections.abc import Iterator

from entmtp_local.chat.tags import THINK, Tags


class ReasoningSplitter:
    """Splits text at a model's tags, which may come in pieces.

    Args:
        inside: the prompt has opened the reasoning already.
    """

    def __init__(self, tags: Tags = THINK, *, inside: bool) -> None:
        self._tags, self._inside = tags, inside
        self._held = ""
        self._started = inside  # reasoning only ever stands at an answer's beginning

    @property
    def inside(self) -> bool:
        return self._inside

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """Give (is reasoning, text) pairs; what may be the beginning of a tag is held back."""
        text = self._held + text
        self._held = ""
        begin, end = self._tags.begin, self._tags.end
        if not self._started:
            # an answer that begins otherwise has no reasoning, and one that begins with its end an empty one
            beginning = text.lstrip()
            found = next((tag for tag in (begin, end) if beginning.startswith(tag)), "")
            if not found and (begin.startswith(beginning) or end.startswith(beginning)):
                self._held = text
                return
            self._started, self._inside = True, found == begin
            text = beginning[len(found) :] if found else text
        if self._inside:
            reasoning, found, text = text.partition(end)
            if not found:
                n_held = max((n for n in range(1, len(end)) if reasoning.endswith(end[:n])), default=0)
                self._held = reasoning[len(reasoning) - n_held :]
                reasoning = reasoning[: len(reasoning) - n_held]
            self._inside = not found
            if reasoning:
                yield True, reasoning
        if text:
            yield False, text

    def finish(self) -> Iterator[tuple[bool, str]]:
        """What was held back."""
        if self._held:
            yield self._inside, self._held
            self._held = ""


def opens_reasoning(prompt: str, tags: Tags = THINK) -> bool:
    """Whether a rendered prompt ends with an opened reasoning."""
    return prompt.rstrip().endswith(tags.begin.rstrip())


def without_reasoning(text: str, tags: Tags = THINK, *, inside: bool) -> str:
    """The answer itself."""
    splitter = ReasoningSplitter(tags, inside=inside and tags.end in text)
    parts = [*splitter.feed(text), *splitter.finish()]
    return "".join(part for is_reasoning, part in parts if not is_reasoning).strip("\n")
