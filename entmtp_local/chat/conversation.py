"""A conversation as messages and, at the same time, as the exact token ids the model has seen.

The model's answers are kept as the ids it generated: their text would often be split into other tokens, and then
everything after them would have to be decoded again. Knows nothing of the engine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from entmtp_local.chat.tags import Tags
from entmtp_local.chat.template import ChatTemplate
from entmtp_local.errors import TranscriptError


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
        self.system: str | None = None  # what the model is told before the first question
        self.thinking: bool | None = None  # None leaves it to the template
        self.clear()

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The answered questions and their answers, oldest first."""
        return tuple(self._messages)

    @property
    def tags(self) -> Tags:
        """What the model writes around its reasoning."""
        return self._template.tags

    def clear(self) -> None:
        """Forget all messages; the system message stays."""
        self._messages: list[dict[str, str]] = []
        self.n_dropped = 0  # the oldest messages, which the model no longer sees
        self._text = ""
        self._ids: tuple[int, ...] = ()
        # (characters, ids): places where a prefix of the text and a prefix of the ids mean the same.
        self._marks: list[tuple[int, int]] = []

    def ask(self, question: str) -> Prompt:
        """Render the conversation with one more question; nothing is kept until `answered`.

        Returns: ids that repeat as many as possible of the ids seen before.
        Raises: ModelFileError when the template refuses.
        """
        text = self._render([{"role": "user", "content": question}])
        return Prompt(question, text, self._tokens(text))

    def n_alone(self, question: str) -> int:
        """How many ids the prompt of a question has where it is the first one."""
        before, self.n_dropped = self.n_dropped, len(self._messages)
        try:
            return len(self.ask(question).ids)
        finally:
            self.n_dropped = before

    def stable(self, prompt: Prompt) -> int:
        """How many of a prompt's ids the prompts after it begin with, whatever the template makes of the answer."""
        text = self._render([{"role": "user", "content": prompt.question}], add_generation_prompt=False)
        return _common(self._tokens(os.path.commonprefix([text, prompt.text])), prompt.ids)

    def closed(self) -> tuple[int, ...]:
        """The ids of all answered questions, up to where the next question is to begin.

        Raises: ModelFileError when the template refuses.
        """
        return self._tokens(self._render([], add_generation_prompt=False)) if self._messages else ()

    def answered(self, prompt: Prompt, answer: str, ids: Sequence[int] | None) -> None:
        """Keep a question and its answer.

        Args:
            prompt: what `ask` gave.
            answer: its text, also when it was cut short.
            ids: the generated ids behind the text; None when the text is only a part of them.
        """
        marks = [mark for mark in self._marks if self._matches(mark, prompt)]
        self.append(prompt.question, answer)
        self._text, self._ids = prompt.text, prompt.ids
        self._marks = [*marks, (len(self._text), len(self._ids))]
        if ids is not None:
            self._text += answer
            self._ids += tuple(ids)
            self._marks.append((len(self._text), len(self._ids)))

    def append(self, question: str, answer: str) -> None:
        """Keep a question and an answer whose ids are not known."""
        self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> str | None:
        """Take the last question and its answer back.

        Returns: the question, None where there is none.
        """
        if not self._messages:
            return None
        question = self._messages[-2]["content"]
        del self._messages[-2:]
        # What the model has seen stays in the marks: they hold as long as the text before them is the same.
        self.n_dropped = min(self.n_dropped, len(self._messages))
        return question

    def drop_oldest(self) -> bool:
        """Keep the oldest question that the model still sees from it, with its answer. False: there is none left."""
        if self.n_dropped >= len(self._messages):
            return False
        self.n_dropped += 2
        return True

    # -- as JSON

    def as_json(self) -> dict[str, Any]:
        seen = {"text": self._text, "ids": list(self._ids), "marks": [list(mark) for mark in self._marks]}
        return {
            "system": self.system,
            "thinking": self.thinking,
            "messages": [dict(message) for message in self._messages],
            "n_dropped": self.n_dropped,
            **seen,
            "digest": _digest(seen),
        }

    def load(self, content: Any, *, ids: bool) -> None:
        """Go on with what `as_json` gave.

        Args:
            ids: they are of this model; otherwise, and where they are not what was written, the text is split anew.
        Raises: TranscriptError where it is something else; nothing has changed then.
        """
        try:
            messages = [{"role": message["role"], "content": message["content"]} for message in content["messages"]]
            texts = [message["content"] for message in messages]
            roles = [message["role"] for message in messages]
            n_dropped, system, thinking = content["n_dropped"], content["system"], content["thinking"]
            text, tokens, marks = content["text"], tuple(content["ids"]), [(a, b) for a, b in content["marks"]]
            _require(all(type(each) is str for each in (*texts, text)) and roles == ["user", "assistant"] * (len(roles) // 2))
            _require(all(type(each) is int and each >= 0 for each in (*tokens, *(number for mark in marks for number in mark))))
            _require(all(a <= len(text) and b <= len(tokens) for a, b in marks))
            _require(type(n_dropped) is int and 0 <= n_dropped <= len(messages) and n_dropped % 2 == 0)
            _require((system is None or type(system) is str) and thinking in (None, True, False))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise TranscriptError("it does not hold a conversation") from None
        self.clear()
        self.system, self.thinking = system, thinking
        self._messages, self.n_dropped = messages, n_dropped
        # a wrong id would be another word to the model, and nobody would see it
        if ids and content.get("digest") == _digest({"text": text, "ids": list(tokens), "marks": [list(mark) for mark in marks]}):
            self._text, self._ids, self._marks = text, tokens, marks

    # -- text and ids

    def _render(self, added: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self._messages[self.n_dropped :], *added]
        return self._template.render(messages, add_generation_prompt, thinking=self.thinking)

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


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of what two lists begin with."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _digest(seen: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(seen, sort_keys=True).encode(), digest_size=16).hexdigest()


def _require(ok: bool) -> None:
    if not ok:
        raise ValueError
