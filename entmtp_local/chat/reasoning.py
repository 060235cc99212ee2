"""Tells reasoning from answer in streamed text. Knows nothing of how either is shown."""

from __future__ import annotations

from collections.abc import Iterator

from entmtp_local.chat.template import THINK_BEGIN, THINK_END


class ReasoningSplitter:
    """Splits text at <think> and </think>, which may come in pieces.

    Args:
        inside: the prompt has opened the reasoning already.
    """

    def __init__(self, *, inside: bool) -> None:
        self._inside = inside
        self._held = ""
        self._started = inside  # reasoning only ever stands at an answer's beginning

    @property
    def inside(self) -> bool:
        return self._inside

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """Give (is reasoning, text) pairs; what may be the beginning of a tag is held back."""
        text = self._held + text
        self._held = ""
        while text:
            if not self._inside and self._started:
                yield False, text
                return
            tag = THINK_END if self._inside else THINK_BEGIN
            at = text.find(tag)
            # an answer that begins otherwise has no reasoning
            if not self._inside and (text.lstrip()[: len(tag)] != tag[: len(text.lstrip())]):
                self._started = True
                continue
            if at >= 0:
                if self._inside and at > 0:
                    yield True, text[:at]
                text = text[at + len(tag) :]
                self._inside = not self._inside
                self._started = True
                continue
            n_held = max((n for n in range(1, len(tag)) if text.endswith(tag[:n])), default=0) if self._inside else len(text)
            self._held = text[len(text) - n_held :]
            if n_held < len(text):
                yield self._inside, text[: len(text) - n_held]
            return

    def finish(self) -> Iterator[tuple[bool, str]]:
        """What was held back."""
        if self._held:
            yield self._inside, self._held
            self._held = ""


def opens_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends with an opened reasoning."""
    return prompt.rstrip().endswith(THINK_BEGIN)


def without_reasoning(text: str, *, inside: bool) -> str:
    """The answer itself."""
    splitter = ReasoningSplitter(inside=inside and "</think>" in text)
    parts = [*splitter.feed(text), *splitter.finish()]
    return "".join(part for is_reasoning, part in parts if not is_reasoning).strip("\n")
