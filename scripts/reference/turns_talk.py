"""Exchanges of small talk, sums, stories and reading.

Does not know how dialogues are put together.
"""

from __future__ import annotations

from random import Random

from scripts.reference import facts
from scripts.reference.math_problems import NAMES, PLACES_TO_BE, difference_in_words, sum_in_words
from scripts.reference.turns import Knowledge, Turn, an, listed


def greeting_turn(rng: Random, known: Knowledge) -> Turn:
    return rng.choice(
        (
            (
                rng.choice(("Hello!", "Hi!", "Hi there.", "Good morning!", "Good evening.", "Hey!")),
                rng.choice(
                    (
                        "Hello! How can I help you today?",
                        "Hi! What can I do for you?",
                        "Good day! What would you like to know?",
                        "Hello! What is on your mind?",
                    )
                ),
            ),
            (
                rng.choice(("How are you?", "How are you doing?", "How is it going?")),
                rng.choice(
                    (
                        "I am fine, thank you. How can I help you?",
                        "All is well here. What can I do for you?",
                        "I am doing well, thanks for asking!",
                    )
                ),
            ),
            (
                rng.choice(("Who are you?", "What are you?", "Are you a person?")),
                rng.choice(
                    (
                        "I am a small language model. I answer short questions.",
                        "I am a small language model, not a person. I can help with short questions.",
                        "I am a program that predicts text. Ask me about words, numbers or Python.",
                    )
                ),
            ),
            (
                rng.choice(("What can you do?", "What can you help me with?", "What may I ask you?")),
                rng.choice(
                    (
                        "I can explain Python functions, do small sums, convert units and answer questions about words.",
                        "You can ask me about numbers, dates, countries, animals and Python.",
                        "I can answer short questions, make lists and write small Python functions.",
                    )
                ),
            ),
        )
    )


def introduction_turn(rng: Random, known: Knowledge) -> Turn:
    name, job = rng.choice(NAMES), rng.choice(facts.GROUPS["jobs"])
    city = rng.choice(facts.COUNTRIES)[1]
    asked = rng.choice(
        (
            f"My name is {name} and I am {an(job)}.",
            f"Hi, I am {name}. I live in {city}.",
            f"I am {name}, {an(job)} from {city}.",
        )
    )
    reply = rng.choice((f"Nice to meet you, {name}!", f"Hello {name}, nice to meet you!", f"Welcome, {name}!"))
    if job in asked and rng.random() < 0.7:
        reply += rng.choice(
            (
                f" How long have you been {an(job)}?",
                f" What do you like about being {an(job)}?",
                " How can I help you with your work?",
            )
        )
    elif city in asked:
        reply += rng.choice(
            (f" What is the weather like in {city}?", f" Do you like living in {city}?", " What can I do for you?")
        )
    return asked, reply


def farewell_turn(rng: Random, known: Knowledge) -> Turn:
    return rng.choice(
        (
            "Thanks!",
            "Thank you.",
            "Thank you, that helps.",
            "Great, thanks!",
            "That is all, thank you.",
            "Goodbye!",
            "See you later.",
        )
    ), rng.choice(
        (
            "You are welcome!",
            "You are welcome. Have a nice day!",
            "Happy to help!",
            "Glad I could help. Goodbye!",
            "Any time!",
            "Goodbye, and take care!",
        )
    )


def sum_turn(rng: Random, known: Knowledge) -> Turn:
    a, b = rng.randrange(2, 100), rng.randrange(2, 60)
    asked = rng.choice(
        (
            "What is {a} plus {b}?",
            "How much is {a} + {b}?",
            "Can you add {a} and {b}?",
            "I have {a} and get {b} more. How much is that?",
        )
    )
    return asked.format(a=a, b=b), rng.choice((sum_in_words(a, b), f"{sum_in_words(a, b)} The answer is {a + b}."))


def difference_turn(rng: Random, known: Knowledge) -> Turn:
    a, b = sorted(rng.sample(range(3, 100), 2), reverse=True)
    asked = rng.choice(
        (
            "What is {a} minus {b}?",
            "How much is {a} - {b}?",
            "What is left of {a} if I take away {b}?",
            "How far is it from {b} to {a}?",
        )
    )
    return asked.format(a=a, b=b), rng.choice((difference_in_words(a, b), f"{difference_in_words(a, b)} The answer is {a - b}."))


def product_turn(rng: Random, known: Knowledge) -> Turn:
    a, b = rng.randrange(2, 13), rng.randrange(2, 13)
    if rng.random() < 0.4:
        return rng.choice(
            (f"What is {a * b} divided by {a}?", f"How much is {a * b} / {a}?")
        ), f"{a * b} divided by {a} is {b}, because {b} times {a} is {a * b}."
    asked = rng.choice((f"What is {a} times {b}?", f"How much is {a} x {b}?", f"Multiply {a} by {b}, please."))
    return asked, rng.choice((f"{a} times {b} is {a * b}.", f"{a} x {b} = {a * b}.", f"That is {a * b}."))


def reading_turn(rng: Random, known: Knowledge) -> Turn:
    who, other = rng.sample(NAMES, 2)
    place, day = rng.choice(PLACES_TO_BE), rng.choice(facts.WEEKDAYS)
    n, thing = (
        rng.randrange(2, 20),
        rng.choice(
            ("apples", "books", "pens", "cups", "candles", "tickets", "flowers", "maps", "keys", "plates", "lemons", "stamps")
        ),
    )
    colour = rng.choice(facts.GROUPS["colours"])
    did = rng.choice(("bought", "found", "sold", "lost", "saw", "picked up"))
    text = rng.choice(
        (
            f"On {day}, {who} went to the {place} with {other} and {did} {n} {colour} {thing}.",
            f"{who} {did} {n} {colour} {thing} at the {place} on {day}. {other} was there too.",
            f"{who} met {other} at the {place} on {day}. There {who} {did} {n} {colour} {thing}.",
        )
    )
    asked, answer = rng.choice(
        (
            ("Who was with {w}?", f"{other} was with {who}."),
            (f"What did {{w}} {'buy' if did == 'bought' else 'do'}?", f"{who} {did} {n} {colour} {thing}."),
            (f"How many {thing} were there?", f"There were {n} {thing}."),
            (f"What colour were the {thing}?", f"The {thing} were {colour}."),
            ("On which day was it?", f"It was on {day}."),
            ("Where was {w}?", f"{who} was at the {place}."),
        )
    )
    return f"{text} {asked.format(w=who)}", answer


def number_fact_turn(rng: Random, known: Knowledge) -> Turn:
    n = rng.randrange(2, 100)
    case = rng.randrange(5)
    if case == 0:
        return f"Is {n} even or odd?", f"{n} is {'odd' if n % 2 else 'even'}, because it ends in {n % 10}."
    if case == 1:
        divisor = next((d for d in range(2, n) if n % d == 0), None)
        return f"Is {n} a prime number?", f"No, {n} is {divisor} x {n // divisor}." if divisor else f"Yes, {n} is a prime number."
    if case == 2:
        n = rng.randrange(1, 50)
        numerals = (("L", 50), ("XL", 40), ("X", 10), ("IX", 9), ("V", 5), ("IV", 4), ("I", 1))
        rest, roman = n, ""
        for letters, value in numerals:
            while rest >= value:
                roman, rest = roman + letters, rest - value
        return rng.choice((f"Write {n} as a Roman numeral.", f"What is {n} in Roman numerals?")), f"{n} is {roman}."
    if case == 3:
        n = rng.randrange(2, 31)
        factors = [str(d) for d in range(1, n + 1) if n % d == 0]
        return f"What are the divisors of {n}?", f"The divisors of {n} are {listed(factors)}."
    ones = facts.words(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen"
    )
    tens = facts.words("x x twenty thirty forty fifty sixty seventy eighty ninety")
    word = ones[n] if n < 20 else tens[n // 10] + (f"-{ones[n % 10]}" if n % 10 else "")
    return rng.choice((f"Write {n} in words.", f"How do you write the number {n}?")), f"{n} is written {word}."


def story_turn(rng: Random, known: Knowledge) -> Turn:
    animal = rng.choice([each for each in facts.ANIMALS if each[5] > 0.01])
    who, job, place = rng.choice(NAMES), rng.choice(facts.GROUPS["jobs"]), rng.choice(PLACES_TO_BE)
    thing, colour, tool = rng.choice(facts.WORDS), rng.choice(facts.GROUPS["colours"]), rng.choice(facts.GROUPS["tools"])
    name = animal[0]
    mood, end = (
        rng.choice(("small", "clever", "lonely", "curious", "brave", "sleepy", "hungry", "shy")),
        rng.choice(("happy", "tired", "proud", "glad", "surprised", "quiet")),
    )
    start = rng.choice(
        (
            f"Once there was a {mood} {name} that lived near the {place}.",
            f"{who} was {an(job)} and had a {mood} {name}.",
            f"One {rng.choice(('morning', 'evening', 'winter', 'summer', 'Sunday'))} {an(mood)} {name} came to the {place}.",
        )
    )
    middle = rng.sample(
        (
            f"It was looking for {animal[3]}.",
            f"The {job} had lost {an(tool)} there.",
            f"Behind the door it found {an(colour)} {thing}.",
            f"{who} gave it some water and a warm place to sleep.",
            "Suddenly it began to rain.",
            f"Nobody had seen {an(name)} there before.",
            f"It carried the {tool} all the way to {who}.",
            "Everyone in the street came to look.",
            f"Together they went to the {rng.choice(PLACES_TO_BE)}.",
        ),
        rng.randrange(2, 5),
    )
    close = rng.choice(
        (
            f"In the end the {name} was {end}.",
            "From that day on they were friends.",
            f"{who} never forgot it.",
            f"And so the {name} stayed.",
        )
    )
    asked = rng.choice(
        (
            f"Tell me a short story about {an(name)}.",
            f"Write a story with {an(name)} and {an(job)}.",
            f"Make up a story about {an(mood)} {name}.",
            f"I would like to hear a story about {an(name)}.",
        )
    )
    return asked, " ".join((start, *middle, close))


def long_story_turn(rng: Random, known: Knowledge) -> Turn:
    """Ten to sixteen sentences in which what was said before comes up again."""
    hero, friend = rng.sample(NAMES, 2)
    job, other_job = rng.sample(facts.GROUPS["jobs"], 2)
    animal = rng.choice([each for each in facts.ANIMALS if 0.01 < each[5] < 1000])[0]
    home, far = rng.sample(PLACES_TO_BE, 2)
    lost, colour = rng.choice(facts.GROUPS["tools"] + facts.GROUPS["kitchen things"]), rng.choice(facts.GROUPS["colours"])
    vehicle, weather = rng.choice(facts.GROUPS["vehicles"]), rng.choice(("rain", "snow", "fog", "wind"))
    day = rng.choice(facts.WEEKDAYS)
    looks = rng.sample(PLACES_TO_BE, 2)
    opening = [
        rng.choice((f"{hero} was {an(job)} who worked at the {home}.", f"At the {home} there lived {an(job)} called {hero}.")),
        rng.choice((f"{hero}'s best friend was {an(animal)}.", f"Every morning {an(animal)} came to visit.")),
    ]
    trouble = [
        rng.choice((f"One {day} {hero} could not find the {colour} {lost}.", f"On {an(day)} the {colour} {lost} was gone.")),
        rng.choice(
            (
                f"{hero} looked in the {looks[0]} and in the {looks[1]}.",
                f"It was not in the {looks[0]}, and not in the {looks[1]}.",
            )
        ),
        rng.choice(("It was nowhere.", f"Nobody had seen the {lost}.", f'"Without my {lost} I cannot work," said {hero}.')),
    ]
    search = rng.sample(
        [
            f"{hero} asked {friend}, {an(other_job)}, for help.",
            f'"I saw {an(animal)} near the {far}," said {friend}.',
            f"They took the {vehicle} to the {far}.",
            f"The {weather} made the way long.",
            f"On the way they met {rng.choice(NAMES)}, who gave them some {rng.choice(facts.GROUPS['drinks'])}.",
            f"The {vehicle} stopped twice.",
            f"The {animal} walked in front of them.",
            f"{friend} told a story about {an(rng.choice(facts.ANIMALS)[0])}.",
        ],
        rng.randrange(3, 7),
    )
    found = [
        rng.choice((f"At the {far} the {animal} began to dig.", f"Behind the {far} the {animal} stopped.")),
        rng.choice((f"There lay the {colour} {lost}.", f"There was the {lost}, {colour} and a little wet.")),
        rng.choice(
            (f'"Thank you," said {hero}, and gave the {animal} something to eat.', f"{hero} laughed and thanked the {animal}.")
        ),
    ]
    close = rng.choice(
        (
            f"Since that day the {lost} hangs on the wall.",
            f"Then they all went back to the {home}.",
            "That evening everyone slept well.",
        )
    )
    asked = rng.choice(
        (
            f"Tell me a long story about {an(job)} and {an(animal)}.",
            f"Write a longer story in which {an(lost)} is lost and found.",
            f"Tell a story about {hero} and the {colour} {lost}.",
            f"Write a long story that begins at the {home}.",
        )
    )
    return asked, "\n\n".join(" ".join(part) for part in (opening + trouble, search, [*found, close]))
