"""A conversation's token ids: what was seen before stays as it was, whatever the template does to its text."""

from __future__ import annotations

import pytest
from fakes import EOG, SPECIAL, WORDS, encode

from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.template import ChatTemplate

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)
# Drops the reasoning of every answer but the last message's, and opens it in the prompt, as Qwen3.5's does.
THINKING = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n<think>' if add_generation_prompt else '' }}"
)
TRIMMING = CHATML.replace("m.content +", "m.content|trim +")
DATED = "{{ bos_token }}" + CHATML

# "hello" as the model may spell it: not the ids that its text would be split into.
SPELLED = list(b"hello")


def new_conversation(source: str, *, add_bos: bool = False, bos_token: str = "") -> Conversation:
    def tokenize(text: str, add_special: bool) -> list[int]:
        return [SPECIAL["<|bos|>"]] * (add_special and add_bos) + encode(text)

    return Conversation(ChatTemplate(source, bos_token=bos_token), tokenize)


def test_the_first_prompt_is_the_rendered_text() -> None:
    prompt = new_conversation(CHATML).ask("Hi")
    assert prompt.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert list(prompt.ids) == encode(prompt.text)


def test_the_next_prompt_begins_with_the_exact_generated_ids() -> None:
    conversation = new_conversation(CHATML)
    first = conversation.ask("Hi")
    conversation.answered(first, "hello", SPELLED)
    second = conversation.ask("And?")
    seen = [*first.ids, *SPELLED]
    assert list(second.ids[: len(seen)]) == seen
    assert list(second.ids[len(seen) :]) == encode("<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")
    # The text says the same as a fresh rendering.
    assert second.text.count("hello") == 1

    conversation.answered(second, "hello", SPELLED)
    third = conversation.ask("Go on")
    seen = [*second.ids, *SPELLED, EOG]
    assert list(third.ids[: len(seen)]) == seen


def test_a_partial_answer_stays_and_the_template_closes_it() -> None:
    conversation = new_conversation(CHATML)
    first = conversation.ask("Hi")
    # Cut in the middle of a character: its bytes are among the ids, not in the text.
    conversation.answered(first, "hell", [*b"hell", 0xC3])
    second = conversation.ask("And?")
    assert list(second.ids[: len(first.ids) + 6]) == [*first.ids, *b"hell", 0xC3, EOG]
    assert conversation.messages[-1] == {"role": "assistant", "content": "hell"}


def test_dropped_reasoning_is_read_again_from_the_answer_on_only() -> None:
    conversation = new_conversation(THINKING)
    first = conversation.ask("Hi")
    assert first.ids[-1] == WORDS["<think>"]
    conversation.answered(first, "hm</think>hello", [*b"hm", WORDS["</think>"], *SPELLED])
    second = conversation.ask("And?")
    assert "hm" not in second.text and second.text.count("hello") == 1
    # Everything up to the reasoning is what the session holds already.
    assert second.ids[: len(first.ids) - 1] == first.ids[:-1]
    assert list(second.ids) == encode(second.text)

    # An answer kept exactly in turn one stays exact when a later one is rewritten.
    conversation = new_conversation(THINKING)
    first = conversation.ask("Hi")
    conversation.answered(first, "x</think>hello", [*b"x", WORDS["</think>"], *SPELLED])
    second = conversation.ask("And?")
    conversation.answered(second, "y</think>hello", [*b"y", WORDS["</think>"], *SPELLED])
    third = conversation.ask("So?")
    assert third.ids[: len(second.ids) - 1] == second.ids[:-1]


def test_exact_ids_before_a_rewritten_answer_are_kept() -> None:
    conversation = new_conversation(TRIMMING)
    first = conversation.ask("Hi")
    conversation.answered(first, "hello", SPELLED)
    second = conversation.ask("And?")
    # The template trims this answer, so only its own text is read again.
    conversation.answered(second, "hello  ", [*SPELLED, *b"  "])
    third = conversation.ask("So?")
    assert third.ids[: len(second.ids)] == second.ids
    assert list(third.ids[len(second.ids) :]) == encode(third.text[len(second.text) :])
    assert third.ids[len(second.ids)] == WORDS["hello"]


def test_an_answer_cut_at_a_stop_text_is_read_from_its_text() -> None:
    conversation = new_conversation(CHATML)
    first = conversation.ask("Hi")
    conversation.answered(first, "hello", None)
    second = conversation.ask("And?")
    assert list(second.ids) == encode(second.text)


def test_a_question_without_an_answer_leaves_no_trace() -> None:
    conversation = new_conversation(CHATML)
    conversation.answered(conversation.ask("Hi"), "hello", SPELLED)
    expected = conversation.ask("And?")
    conversation.ask("something else entirely")
    assert conversation.ask("And?") == expected
    assert len(conversation.messages) == 2


def test_clear_forgets() -> None:
    conversation = new_conversation(CHATML)
    first = conversation.ask("Hi")
    conversation.answered(first, "hello", SPELLED)
    conversation.clear()
    assert conversation.messages == () and conversation.ask("Hi") == first


def test_the_first_token_is_never_doubled() -> None:
    bos = SPECIAL["<|bos|>"]
    by_template = new_conversation(DATED, add_bos=True, bos_token="<|bos|>").ask("Hi")
    by_vocabulary = new_conversation(CHATML, add_bos=True, bos_token="<|bos|>").ask("Hi")
    for prompt in (by_template, by_vocabulary):
        assert prompt.ids[0] == bos and prompt.ids.count(bos) == 1


def test_what_prompts_to_come_share_is_known_before_the_answer() -> None:
    for source in (CHATML, THINKING, TRIMMING):
        conversation = new_conversation(source)
        for question in ("Hi", "And?"):
            prompt = conversation.ask(question)
            n = conversation.stable(prompt)
            # up to what introduces the answer
            assert n == len(prompt.ids) - 1 - prompt.ids[::-1].index(SPECIAL["<|im_start|>"])
            conversation.answered(prompt, "hm</think> hello ", [*b"hm", WORDS["</think>"], *b" ", *SPELLED, *b" "])
            assert conversation.ask("So?").ids[:n] == prompt.ids[:n]


def test_a_closed_conversation_begins_the_next_prompt() -> None:
    conversation = new_conversation(CHATML)
    assert conversation.closed() == ()
    first = conversation.ask("Hi")
    conversation.answered(first, "hello", SPELLED)
    closed = conversation.closed()
    assert closed[: len(first.ids) + 5] == (*first.ids, *SPELLED) and len(closed) > len(first.ids) + 5
    assert conversation.ask("And?").ids[: len(closed)] == closed


def test_taking_back_and_dropping() -> None:
    conversation = new_conversation(CHATML)
    conversation.system = "Be brief."
    for i in range(3):
        conversation.answered(conversation.ask(f"Q{i}"), f"A{i}", list(f"A{i}".encode()))
    assert conversation.drop_oldest()
    text = conversation.ask("?").text
    assert "Q0" not in text and "Q1" in text and "Be brief." in text
    assert conversation.undo() == "Q2" and conversation.undo() == "Q1" and conversation.n_dropped == 2
    assert not conversation.drop_oldest() and conversation.undo() == "Q0" and conversation.n_dropped == 0
    assert conversation.undo() is None


def test_a_conversation_comes_back_with_its_ids_or_without() -> None:
    conversation = new_conversation(CHATML)
    conversation.system, conversation.thinking = "S", False
    conversation.answered(conversation.ask("Hi"), "hello", SPELLED)
    for exact in (True, False):
        other = new_conversation(CHATML)
        other.load(conversation.as_json(), ids=exact)
        assert other.messages == conversation.messages and (other.system, other.thinking) == ("S", False)
        prompt = other.ask("And?")
        assert (prompt == conversation.ask("And?")) == exact
        assert prompt.text == conversation.ask("And?").text


def test_templates_that_want_reasoning_apart_get_it_so() -> None:
    source = "{%- for m in messages %}[{{ m.reasoning_content|default('-') }}][{{ m.content }}]{% endfor %}"
    conversation = new_conversation(source)
    conversation.answered(conversation.ask("Hi</think>"), "<think>\nhm\n</think>\n\nhello", None)
    assert conversation.ask("And?").text == "[-][Hi</think>][hm][hello][-][And?]"


HARMONY = (
    "{%- for m in messages %}{%- if '<|channel|>' in m.content %}{{ raise_exception('tags in content') }}{% endif -%}"
    "{%- if m.role == 'user' %}[{{ m.content }}]{% else %}"
    "<|channel|>final<|message|>{{ m.content }}{% endif %}{% endfor %}{% if false %}{{ message.thinking }}{% endif %}"
)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>hello", "hello"),
        ("<|channel|>final<|message|>hello", "hello"),
        ("<|channel|>analysis<|message|>it was stopped", ""),
        ("hello", "hello"),
    ],
)
def test_reasoning_in_channels_is_no_part_of_the_history(answer: str, kept: str) -> None:
    conversation = new_conversation(HARMONY)
    conversation.answered(conversation.ask("Hi"), answer, None)
    assert conversation.ask("And?").text == f"[Hi]<|channel|>final<|message|>{kept}[And?]"


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        # dropped where it is apart, and not looked for in the text (DeepSeek V3.2)
        (
            "{%- for m in messages %}[{{ m.content }}]{% endfor %}{% if false %}{{ m.reasoning_content }}</think>{% endif %}",
            "hello",
        ),
        # cut out of the text (Qwen3)
        (
            "{%- for m in messages %}[{{ m.content.split('</think>')[-1] }}]{% endfor %}{# m.reasoning_content #}",
            "hello",
        ),
        # kept where it is apart too: the text is what the model has seen (Seed-OSS)
        (
            "{%- for m in messages %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
            "[{{ m.content }}]{% endfor %}",
            "<think>hm</think>hello",
        ),
        # not asked for (ChatML)
        ("{%- for m in messages %}[{{ m.content }}]{% endfor %}", "<think>hm</think>hello"),
        # its mere words are no fields
        ("Your thinking and reasoning.{%- for m in messages %}[{{ m.content }}]{% endfor %}", "<think>hm</think>hello"),
    ],
)
def test_reasoning_is_fed_back_as_the_template_says(source: str, kept: str) -> None:
    conversation = new_conversation(source)
    conversation.answered(conversation.ask("Hi"), "<think>hm</think>hello", None)
    assert conversation.ask("And?").text.removeprefix("Your thinking and reasoning.") == f"[Hi][{kept}][And?]"


def test_thinking_is_told_to_the_template() -> None:
    conversation = new_conversation("{{ enable_thinking|default('unset') }}")
    for thinking, text in ((None, "unset"), (True, "True"), (False, "False")):
        conversation.thinking = thinking
        assert conversation.ask("Hi").text == text
