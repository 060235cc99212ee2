"""The model's own chat template: messages in, prompt text out.

Knows nothing of tokens. A template is code from a downloaded file, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
import re
import signal
import string
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from types import FrameType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from entmtp_local.chat.tags import tags_of
from entmtp_local.errors import ModelFileError

Message = Mapping[str, str]

# What templates call the reasoning of a message that is not in its text. The last two are words of their texts too.
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_USE_OF_FIELD = re.compile(r"reasoning_content|\b(?:message|msg)(?:\.|\[.|\.get\(.)(?:reasoning|thinking)\b")

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_PLAIN = """\
{%- for message in messages -%}
{{ message.role | capitalize + ': ' + message.content + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

# A conversation is rendered in milliseconds; a template that takes this long does not end.
_SECONDS = 5.0
_LARGEST_NUMBER = 10**9
_LONGEST_REPETITION = 100_000
# Methods of strings that fill up to any width.
_PADDING = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))

# A model without a template has no token that ends its turn: it goes on by writing the user's next line.
_PLAIN_STOPS = ("\nUser:",)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text of the file's tokenizer.chat_template; None uses a fallback.
        has_chatml: the vocabulary has <|im_start|>, so that the fallback can be ChatML.
        bos_token: text of the vocabulary's first token of a text, "" for none.
        eos_token: text of its last token, "" for none.
    Raises:
        ModelFileError: the template does not compile.
    """

    def __init__(self, source: str | None, *, has_chatml: bool = False, bos_token: str = "", eos_token: str = "") -> None:
        self.notice: str | None = None
        self.stop_texts: tuple[str, ...] = ()
        self.bos_token = bos_token
        self._eos_token = eos_token
        if source is None and has_chatml:
            self.notice = "this model file has no chat template: using ChatML, which its vocabulary supports."
            source = _CHATML
        elif source is None:
            self.notice = 'this model file has no chat template: using plain "User: / Assistant:" lines.'
            self.stop_texts = _PLAIN_STOPS
            source = _PLAIN
        #: The template can be told whether the model is to think before it answers.
        self.has_thinking = "enable_thinking" in source
        self.tags = tags_of(source)
        self._names_end = self.tags.end in source
        self._has_fields = _USE_OF_FIELD.search(source) is not None
        try:
            self._template = _environment().from_string(source)
        # SyntaxError, RecursionError and others come up from Python's own compiler.
        except Exception as error:
            raise ModelFileError(f"the model's chat template does not compile: {_one_line(error)}.") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, *, thinking: bool | None = None) -> str:
        """Write a conversation the way the model was trained to read it.

        Args:
            messages: with role ("system", "user", "assistant") and content, oldest first.
            add_generation_prompt: end with what introduces the assistant's next answer.
            thinking: whether the model is to think first; None leaves it to the template.
        Returns: the prompt's text, special tokens spelled out.
        Raises:
            ModelFileError: the template refuses these messages or fails on them.
        """
        try:
            with _deadline():
                # copies: templates may not change the caller's messages, and `items` must be plain dicts
                own = [self._message(message) for message in messages]
                return self._print(own, add_generation_prompt, {} if thinking is None else {"enable_thinking": thinking})
        except _TemplateRefusal as error:
            raise ModelFileError(f"the model's chat template refuses this conversation: {_one_line(error)}.") from error
        # A template is foreign code: any exception it raises is the file's fault and gets the same sentence.
        except Exception as error:
            raise ModelFileError(f"the model's chat template failed: {_one_line(error)}.") from error

    def _print(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool, switches: Mapping[str, bool]) -> str:
        return self._template.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self._eos_token,
            tools=None,
            documents=None,
            **switches,
        )

    def _message(self, message: Message) -> dict[str, str]:
        """Templates either look for reasoning in an answer's text themselves or want it apart."""
        begin, end = self.tags.begin, self.tags.end
        before, found, after = message["content"].partition(end)
        opened = before.lstrip().startswith(begin)
        if message["role"] != "assistant" or not (found or opened) or not self._wants_apart:
            return dict(message)
        return {**message, **self._apart(before.lstrip().removeprefix(begin), after)}

    @staticmethod
    def _apart(reasoning: str, answer: str) -> dict[str, str]:
        return {"content": answer.lstrip("\n"), **dict.fromkeys(_FIELDS, reasoning.strip("\n"))}

    @cached_property
    def _wants_apart(self) -> bool:
        """Whether reasoning in the text of an earlier answer would be refused, or would stay although it is to be dropped."""
        if not self._has_fields:
            return False
        probe = "a1b2c3"
        inside = self._keeps({"content": f"{self.tags.begin}{probe}{self.tags.end}answer"}, probe)
        apart = self._keeps(self._apart(probe, "answer"), probe)
        if inside is False or apart is None:
            return False
        return inside is None or not apart or not self._names_end

    def _keeps(self, answer: dict[str, str], reasoning: str) -> bool | None:
        """Whether reasoning stays in the history; None where the template refuses."""
        question = {"role": "user", "content": "?"}
        try:
            return reasoning in self._print([question, {"role": "assistant", **answer}, question], True, {})
        except TimeoutError:
            raise
        except Exception:
            return None


@contextmanager
def _deadline() -> Iterator[None]:
    """End the template's own Python code after some seconds; without signals (other threads, other systems) it may go on."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it did not finish within {_SECONDS} seconds")

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class _TemplateRefusal(jinja2.TemplateError):
    """The template called raise_exception."""


class _GenerationTag(jinja2.ext.Extension):
    """Accept {% generation %} ... {% endgeneration %}, which marks training targets and prints its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, less the operations that make huge values in one step; loops are ended by the deadline."""

    # Named here, they are not folded while the template compiles either.
    intercepted_binops = frozenset(("**", "*", "%"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and isinstance(left, str) and isinstance(right, int):
            if len(left) * right > _LONGEST_REPETITION:
                raise jinja2.exceptions.SecurityError("a repeated text is too long")
        elif operator == "**" or not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            raise jinja2.exceptions.SecurityError(f"the operator {operator} is not allowed on these values")
        elif max(abs(left), abs(right)) > _LARGEST_NUMBER:
            raise jinja2.exceptions.SecurityError("a number is too large")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        format_safely = super().wrap_str_format(value)
        if format_safely is None:
            return None

        def format_plainly(*args: Any, **kwargs: Any) -> Any:
            if any(spec for _, _, spec, _ in string.Formatter().parse(str(value.__self__))):
                raise jinja2.exceptions.SecurityError("format() with a width is not allowed")
            return format_safely(*args, **kwargs)

        return format_plainly

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str) and attr in _PADDING)


def _environment() -> _Sandbox:
    # Source: _compile_jinja_template of transformers' utils/chat_template_utils.py, which templates are written for.
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    # One clock for the whole conversation: a date that moved on would change the prompt's first lines,
    # and everything after them would have to be read again.
    now = datetime.now()
    for name in ("center", "format", "indent"):
        del environment.filters[name]  # as the methods in _PADDING
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models have never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _TemplateRefusal(message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
