"""Generated dialogues: many phrasings over tables of real facts, short answers that end, several turns.

Does not know which tokenizer reads the marks, nor how documents are split between training and held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from scripts.reference.turns import Intent, Knowledge, Turn
from scripts.reference.turns_python import (
    definition_turn,
    glossary_turn,
    python_value_turn,
    system_fact_turn,
    which_function_turn,
    write_function_turn,
)
from scripts.reference.turns_talk import (
    difference_turn,
    farewell_turn,
    greeting_turn,
    introduction_turn,
    long_story_turn,
    number_fact_turn,
    product_turn,
    reading_turn,
    story_turn,
    sum_turn,
)
from scripts.reference.turns_words import letters_turn, list_turn, rewriting_turn, text_task_turn, words_turn
from scripts.reference.turns_world import (
    animal_turn,
    conversion_turn,
    country_turn,
    date_turn,
    element_turn,
    how_to_turn,
    many_facts_turn,
    planet_turn,
    weekday_turn,
)

Message = dict[str, str]


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer in plain English.",
    "You are a friendly teacher.",
    "You help people with Python.",
)


def render(messages: Sequence[Message]) -> str:
    """Messages with the template's marks."""
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)


INTENTS: tuple[tuple[Intent, int], ...] = (
    (greeting_turn, 4),
    (introduction_turn, 3),
    (sum_turn, 4),
    (difference_turn, 4),
    (product_turn, 4),
    (conversion_turn, 4),
    (country_turn, 6),
    (element_turn, 3),
    (planet_turn, 2),
    (animal_turn, 6),
    (weekday_turn, 4),
    (date_turn, 2),
    (letters_turn, 7),
    (list_turn, 8),
    (words_turn, 6),
    (rewriting_turn, 6),
    (reading_turn, 7),
    (number_fact_turn, 5),
    (how_to_turn, 5),
    (story_turn, 8),
    (long_story_turn, 6),
    (many_facts_turn, 4),
    (glossary_turn, 4),
    (definition_turn, 16),
    (which_function_turn, 5),
    (write_function_turn, 18),
    (python_value_turn, 8),
    (system_fact_turn, 4),
    (text_task_turn, 3),
)


_OPENINGS = (
    "Hi! ",
    "Hello, ",
    "Please help me. ",
    "I have a question. ",
    "Quick question: ",
    "One more thing: ",
    "Tell me, ",
    "Excuse me, ",
)


_ASSENTS = ("Sure. ", "Of course. ", "Gladly. ", "Certainly. ", "Good question. ")


_CLOSINGS = (" Anything else?", " I hope this helps.", " Let me know if you need more.", " Is there anything else?")


def _intent(rng: Random) -> Intent:
    return rng.choices([intent for intent, _ in INTENTS], [weight for _, weight in INTENTS])[0]


def _dressed(rng: Random, turn: Turn, first: bool) -> Turn:
    asked, answer = turn
    if rng.random() < 0.15 and asked[0].isalpha():
        opening = rng.choice(_OPENINGS[:-3] if first else _OPENINGS[2:])
        asked = opening + asked
    plain = "```" not in answer and "\n" not in answer
    if plain and rng.random() < 0.08:
        answer = rng.choice(_ASSENTS) + answer
    if plain and rng.random() < 0.08:
        answer += rng.choice(_CLOSINGS)
    return asked, answer


# A dozen ways to say hello cannot be split: a model that never saw "Hello!" would be a strange one.
UNSPLIT: tuple[Intent, ...] = (greeting_turn, farewell_turn)


LONG_ANSWERS: tuple[Intent, ...] = (long_story_turn, story_turn, many_facts_turn, glossary_turn, write_function_turn)


def _accepted_turn(rng: Random, known: Knowledge, intent: Intent, said: set[str], accept: Callable[[str], bool]) -> Turn:
    for _ in range(400):
        turn = intent(rng, known)
        if turn[0] not in said and (intent in UNSPLIT or accept(turn[0])):
            return turn
        # Some intents have few questions, and perhaps none that is accepted.
        if rng.random() < 0.1:
            intent = _intent(rng)
    raise RuntimeError("No question was accepted in 400 tries.")


def conversation(rng: Random, known: Knowledge, accept: Callable[[str], bool] = lambda asked: True) -> list[Message]:
    """A conversation of one to five exchanges; some begin with a system message, some end with thanks.

    Args:
        rng: decides everything.
        known: the facts to draw on.
        accept: says whether a question may be asked; training and held-out text ask different ones.
    """
    messages: list[Message] = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    n_turns = rng.choices((1, 2, 3, 4), (5, 4, 3, 2))[0]
    intent = _intent(rng)
    said: set[str] = set()
    for i in range(n_turns):
        # People often stay with what they asked last.
        if i and rng.random() < 0.6:
            intent = _intent(rng)
        turn = _accepted_turn(rng, known, intent, said, accept)
        said.add(turn[0])
        asked, answer = _dressed(rng, turn, i == 0)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if rng.random() < 0.12:
        asked, answer = farewell_turn(rng, known)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages
