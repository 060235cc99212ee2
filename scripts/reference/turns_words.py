"""Exchanges about words and sentences.

Does not know how dialogues are put together.
"""

from __future__ import annotations

from random import Random

from scripts.reference import facts
from scripts.reference.math_problems import NAMES, PLACES_TO_BE
from scripts.reference.turns import Knowledge, Turn, listed


def letters_turn(rng: Random, known: Knowledge) -> Turn:
    word = rng.choice(facts.WORDS)
    case = rng.randrange(8)
    spelled = "-".join(word)
    if case == 0:
        return rng.choice(
            (f"How many letters are in the word {word}?", f"How many letters does {word} have?")
        ), f"{spelled}: the word {word} has {len(word)} letters."
    if case == 1:
        letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("aeioust")
        count = word.count(letter)
        asked = rng.choice((f"How many times does the letter {letter} occur in {word}?", f"Count the letter {letter} in {word}."))
        return (
            asked,
            f"{spelled}: the letter {letter} occurs {'once' if count == 1 else 'twice' if count == 2 else f'{count} times'}.",
        )
    if case == 2:
        return f"Spell the word {word}.", rng.choice((f"{spelled}.", f"The word {word} is spelled {spelled}."))
    if case == 3:
        return rng.choice(
            (f"Write {word} backwards.", f"Reverse the word {word}.")
        ), f"{spelled} backwards is {'-'.join(reversed(word))}: {word[::-1]}."
    if case == 4:
        return rng.choice((f"Write {word} in capital letters.", f"Put {word} in upper case.")), f"{word.upper()}"
    if case == 5:
        vowels = [letter for letter in word if letter in "aeiou"]
        return (
            f"Which vowels are in {word}?",
            f"{spelled}: the vowels are {listed(vowels)}." if vowels else f"{spelled}: there is no vowel.",
        )
    if case == 6:
        which = rng.choice(("first", "last"))
        return (
            f"What is the {which} letter of {word}?",
            f"The {which} letter of {word} is {word[0] if which == 'first' else word[-1]}.",
        )
    words = rng.sample(facts.WORDS, rng.randrange(3, 6))
    if rng.random() < 0.5:
        return rng.choice(
            (f"Sort these words: {', '.join(words)}.", f"Put {', '.join(words)} in alphabetical order.")
        ), f"{', '.join(sorted(words))}."
    longest = max(words, key=len)
    return f"Which of these words is the longest: {', '.join(words)}?", f"The longest is {longest}, with {len(longest)} letters."


def list_turn(rng: Random, known: Knowledge) -> Turn:
    group = rng.choice(list(facts.GROUPS))
    n = rng.randrange(2, 6)
    members = rng.sample(facts.GROUPS[group], n)
    count = ("", "", "two", "three", "four", "five")[n]
    if rng.random() < 0.2:
        member = members[0]
        other = rng.choice([name for name in facts.GROUPS if member not in facts.GROUPS[name] and name != group])
        odd = rng.choice([word for word in facts.GROUPS[other] if word not in facts.GROUPS[group]])
        shown = [*members, odd]
        rng.shuffle(shown)
        return f"Which word does not belong: {', '.join(shown)}?", f"{odd.capitalize()} does not belong. The others are {group}."
    asked = rng.choice(
        (
            "Name {n} {g}.",
            "Give me {n} {g}.",
            "List {n} {g}.",
            "Can you name {n} {g}?",
            "I need {n} examples of {g}.",
            "Tell me {n} {g}, please.",
        )
    )
    if rng.random() < 0.4:
        return asked.format(n=count, g=group), "\n".join(f"{i}. {member.capitalize()}" for i, member in enumerate(members, 1))
    return asked.format(n=count, g=group), rng.choice(
        (
            f"{listed(members).capitalize() if members[0].islower() else listed(members)}.",
            f"Here are {count} {group}: {listed(members)}.",
        )
    )


def words_turn(rng: Random, known: Knowledge) -> Turn:
    case = rng.randrange(5)
    if case == 0:
        pair = rng.choice(facts.OPPOSITES)
        a, b = pair if rng.random() < 0.5 else pair[::-1]
        return rng.choice((f"What is the opposite of {a}?", f"Which word means the opposite of {a}?")), rng.choice(
            (f"The opposite of {a} is {b}.", f"It is {b}.")
        )
    if case == 1:
        pair = rng.choice(facts.SYNONYMS)
        a, b = pair if rng.random() < 0.5 else pair[::-1]
        return rng.choice((f"What is another word for {a}?", f"Give me a synonym of {a}.")), rng.choice(
            (f"Another word for {a} is {b}.", f"You can say {b}.")
        )
    if case == 2:
        one, many = rng.choice(facts.PLURALS)
        return f"What is the plural of {one}?", rng.choice((f"The plural of {one} is {many}.", f"One {one}, two {many}."))
    base, past, participle = rng.choice(facts.VERBS)
    if case == 3:
        return f"What is the past tense of {base}?", rng.choice(
            (f"The past tense of {base} is {past}.", f"Today I {base}, yesterday I {past}.")
        )
    return f"What are the three forms of the verb {base}?", f"The three forms are {base}, {past}, {participle}."


def rewriting_turn(rng: Random, known: Knowledge) -> Turn:
    name = rng.choice(NAMES)
    base, past, _ = rng.choice(
        [verb for verb in facts.VERBS if verb[0] in {"go", "walk", "run", "ride", "swim", "drive", "fly", "come"}]
    )
    place = rng.choice(PLACES_TO_BE)
    way = {"go": "goes", "fly": "flies"}.get(base, f"{base}s")
    present, before = f"{name} {way} to the {place}.", f"{name} {past} to the {place}."
    case = rng.randrange(6)
    if case == 0:
        return rng.choice((f"Put this into the past tense: {present}", f"Rewrite in the past tense: {present}")), before
    if case == 1:
        return f"Turn this into a question: {present}", f"Does {name} {base} to the {place}?"
    if case == 2:
        return f"Make this negative: {present}", f"{name} does not {base} to the {place}."
    if case == 3:
        return f"Put this into the future: {present}", f"{name} will {base} to the {place}."
    if case == 4:
        wish = rng.choice(
            (
                "open the window",
                "close the door",
                "call me back",
                "send me the file",
                "help me",
                "wait a moment",
                "bring some water",
                "read this page",
            )
        )
        return f"Make this more polite: {wish.capitalize()}!", rng.choice(
            (f"Could you please {wish}?", f"Would you {wish}, please?", f"Would you be so kind as to {wish}?")
        )
    weather = rng.choice(
        ("it was raining", "it was cold", "the bus was late", "the shop was closed", "there was no time", "the sun was shining")
    )
    return f"Join these sentences: {before} {weather.capitalize()}.", rng.choice(
        (f"{name} {past} to the {place} although {weather}.", f"{name} {past} to the {place} while {weather}.")
    ) if "rain" in weather or "cold" in weather or "sun" in weather else f"{name} {past} to the {place} although {weather}."


def text_task_turn(rng: Random, known: Knowledge) -> Turn:
    sentence = rng.choice(known.sentences)
    words = sentence.rstrip(".").split()
    case = rng.randrange(5)
    if case == 0:
        return f"How many words are in this sentence: {sentence}", f"The sentence has {len(words)} words."
    if case == 1:
        return f"What is the first word of this sentence: {sentence}", f"The first word is {words[0]}."
    if case == 2:
        return f"What is the last word of this sentence: {sentence}", f"The last word is {words[-1]}."
    if case == 3:
        return f"Repeat this sentence: {sentence}", sentence
    return f"Write this sentence in lower case: {sentence}", sentence.lower()
