"""A conversation as messages and, at the same time, as the exact token ids the model has seen.

The model's answers are kept as the ids it generated: their text would often be split into other tokens, and then
everything after them would have to be decoded again. Knows nothing of the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from entmtp_local.chat.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is decoded to answer one question.

    Args:
        question: the user's words.
        text: the whole conversation, rendered.
        ids: the same as token ids.
    """

    question: str
    text: str
    ids: tuple[int, ...]


class Conversation:
    """Messages that grow by one question and one answer at a time.

    Args:
        template: renders the messages.
        tokenize: text and add_special to ids; special tokens in the text are parsed.
    """

    def __init__(self, template: ChatTemplate, tokenize: Callable[[str, bool], list[int]]) -> None:
        self._template = template
        self._tokenize = tokenize
        self.clear()

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The answered questions and their answers, oldest first."""
        return tuple(self._messages)

    def clear(self) -> None:
        """Forget everything."""
        self._messages: list[dict[str, str]] = []
        self._text = ""
        self._ids: tuple[int, ...] = ()
        # (characters, ids): places where a prefix of the text and a prefix of the ids mean the same.
        self._marks: list[tuple[int, int]] = []

    def ask(self, question: str) -> Prompt:
        """Render the conversation with one more question; nothing is kept until `answered`.

        Returns: ids that repeat as many as possible of the ids seen before.
        Raises: ModelFileError when the template refuses.
        """
        text = self._template.render([*self._messages, {"role": "user", "content": question}])
        return Prompt(question, text, self._tokens(text))

    def answered(self, prompt: Prompt, answer: str, ids: Sequence[int] | None) -> None:
        """Keep a question and its answer.

        Args:
            prompt: what `ask` gave.
            answer: its text, also when it was cut short.
            ids: the generated ids behind the text; None when the text is only a part of them.
        """
        marks = [mark for mark in self._marks if self._matches(mark, prompt)]
        self._messages += [{"role": "user", "content": prompt.question}, {"role": "assistant", "content": answer}]
        self._text, self._ids = prompt.text, prompt.ids
        self._marks = [*marks, (len(self._text), len(self._ids))]
        if ids is not None:
            self._text += answer
            self._ids += tuple(ids)
            self._marks.append((len(self._text), len(self._ids)))

    def _matches(self, mark: tuple[int, int], prompt: Prompt) -> bool:
        n_chars, n_ids = mark
        return prompt.text[:n_chars] == self._text[:n_chars] and prompt.ids[:n_ids] == self._ids[:n_ids]

    def _tokens(self, text: str) -> tuple[int, ...]:
        # Templates write the first token of a text themselves or leave it to the vocabulary; twice would be wrong.
        bos = self._template.bos_token
        fresh = tuple(self._tokenize(text, not (bos and text.startswith(bos))))
        # Templates may rewrite what they rendered before (reasoning is usually dropped from earlier answers),
        # so only the part up to the last mark before the first difference can be kept.
        n_same = len(os.path.commonprefix([text, self._text]))
        n_chars, n_ids = max((mark for mark in self._marks if mark[0] <= n_same), default=(0, 0))
        kept = self._ids[:n_ids]
        if fresh[:n_ids] == kept:
            return fresh
        return kept + tuple(self._tokenize(text[n_chars:], False))
