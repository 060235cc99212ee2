"""Chat templates: what they print, and how the ones that fail are told."""

from __future__ import annotations

import pytest

from entmtp_local.chat.template import ChatTemplate
from entmtp_local.errors import ModelFileError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."}

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# The part of Qwen's templates that matters here: earlier answers lose their reasoning.
THINKING = """\
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}{% set ns.last = messages|length - 1 - loop.index0 %}{% break %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def test_chatml() -> None:
    assert ChatTemplate(CHATML).render([USER]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(CHATML).render([USER], add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_reasoning_is_dropped_from_earlier_answers() -> None:
    text = ChatTemplate(THINKING).render([USER, ANSWER, USER])
    assert text == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_texts_are_put_together_without_widths() -> None:
    assert ChatTemplate("{{ '<think{}{x}>'.format(':a', x='b') }}").render([USER]) == "<think:ab>"


def test_blocks_are_trimmed_as_templates_expect() -> None:
    assert ChatTemplate("a\n    {% if true %}\nb\n    {% endif %}\nc").render([USER]) == "a\nb\nc"


def test_what_templates_may_use() -> None:
    source = (
        "{{ bos_token }}{% generation %}{{ messages[0]|tojson }}{% endgeneration %}{{ eos_token }}"
        "{{ tools is none }}{{ strftime_now('%Y')|length }}"
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    # Neither < nor non-ASCII characters are escaped: models read the text as it is.
    assert template.render([{"role": "user", "content": "<é>"}]) == '<s>{"role": "user", "content": "<é>"}</s>True4'


@pytest.mark.parametrize("has_chatml", [True, False])
def test_without_a_template_a_fallback_is_used_and_said(has_chatml: bool) -> None:
    template = ChatTemplate(None, has_chatml=has_chatml)
    assert template.notice is not None and "has no chat template" in template.notice
    conversation = [USER, {"role": "assistant", "content": "Yo"}, USER]
    if has_chatml:
        assert template.render(conversation) == ChatTemplate(CHATML).render(conversation)
        assert template.stop_texts == ()
    else:
        assert template.render(conversation) == "User: Hi\nAssistant: Yo\nUser: Hi\nAssistant:"
        assert template.stop_texts == ("\nUser:",)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ raise_exception('System role not supported.') }}", "refuses this conversation: System role not supported."),
        ("{{ messages[0].content + 1 }}", "failed: "),
        ("{{ missing.name }}", "failed: "),
        ("{% for m in messages %}{{ m.content.nope() }}{% endfor %}", "failed: "),
    ],
)
def test_a_failing_template_is_one_sentence(source: str, sentence: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        ChatTemplate(source).render([USER])
    assert str(caught.value).startswith(f"the model's chat template {sentence}")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(ModelFileError, match="^the model's chat template does not compile: "):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ strftime_now.__self__.__class__.__base__.__subclasses__() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ range(10000000)|list }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(ModelFileError, match="^the model's chat template failed: "):
        ChatTemplate(source).render([USER])


def test_messages_are_not_changed() -> None:
    messages = [dict(USER)]
    with pytest.raises(ModelFileError):
        ChatTemplate("{{ messages[0].update({'content': 'no'}) }}").render(messages)
    assert messages == [USER]


@pytest.mark.parametrize(
    "source",
    [
        "{{ 10 ** (10 ** 9) }}",
        "{{ 'a' * 3000000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a' | center(2000000000) }}",
        "{{ 'a'.center(2000000000) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 5000000000 * 5000000000 }}",
    ],
)
def test_templates_that_make_huge_values(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])


def test_a_template_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entmtp_local.chat.template._SECONDS", 0.2)
    source = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelFileError, match="did not finish within 0.2 seconds"):
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "source", ["{% break %}", "{% for x in y %}" * 25 + "{% endfor %}" * 25, "{{ " + "(" * 500 + "1" + ")" * 500 + " }}"]
)
def test_templates_that_python_cannot_compile(source: str) -> None:
    with pytest.raises(ModelFileError, match="does not compile"):
        ChatTemplate(source)


def test_arithmetic_that_templates_use() -> None:
    source = "{% for m in messages %}{% if loop.index0 % 2 == 0 %}{{ ' ' * 3 + m.content }}{% endif %}{% endfor %}{{ 2 * 3 }}"
    assert ChatTemplate(source).render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "no"}]) == "   Hi6"
