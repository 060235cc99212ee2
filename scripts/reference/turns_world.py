"""Exchanges about countries, animals, dates, units and how things are done.

Does not know how dialogues are put together.
"""

from __future__ import annotations

import calendar
import datetime
from random import Random

from scripts.reference import facts
from scripts.reference.turns import NUMBER_WORDS, Knowledge, Turn, an, listed


def conversion_turn(rng: Random, known: Knowledge) -> Turn:
    large, small, factor = rng.choice(facts.UNITS)
    n = rng.randrange(2, 13)
    if rng.random() < 0.3:
        return (
            rng.choice((f"How many {small} are {n * factor // factor} {large}?", f"Convert {n} {large} to {small}.")),
            f"There are {factor} {small} in one of the {large}, so {n} {large} are {n} x {factor} = {n * factor} {small}.",
        )
    if rng.random() < 0.5:
        return (
            f"How many {large} are {n * factor} {small}?",
            f"{n * factor} {small} are {n} {large}, because {factor} {small} make one.",
        )
    return rng.choice((f"Convert {n} {large} to {small}.", f"What are {n} {large} in {small}?")), rng.choice(
        (f"{n} {large} are {n * factor} {small}.", f"{n} {large} are {n} times {factor} {small}, which is {n * factor} {small}.")
    )


def country_turn(rng: Random, known: Knowledge) -> Turn:
    country, capital, continent, language = rng.choice(facts.COUNTRIES)
    kind = rng.randrange(5 if continent != "Oceania" else 4)
    if kind == 0:
        asked = rng.choice(
            (
                "What is the capital of {c}?",
                "Which city is the capital of {c}?",
                "Do you know the capital of {c}?",
                "Name the capital of {c}.",
            )
        )
        return asked.format(c=country), rng.choice(
            (
                f"The capital of {country} is {capital}.",
                f"It is {capital}.",
                f"{capital} is the capital of {country}, a country in {continent}.",
            )
        )
    if kind == 1:
        return rng.choice((f"Where is {country}?", f"On which continent is {country}?")), rng.choice(
            (f"{country} is in {continent}.", f"{country} lies in {continent}. Its capital is {capital}.")
        )
    if kind == 2:
        return f"{capital} is the capital of which country?", f"{capital} is the capital of {country}."
    if kind == 3:
        return rng.choice(
            (f"What language do people speak in {country}?", f"Which language is spoken in {country}?")
        ), f"Many people in {country} speak {language}."
    others = rng.sample([each[0] for each in facts.COUNTRIES if each[2] == continent], 3)
    return rng.choice(
        (f"Name three countries in {continent}.", f"Which countries are in {continent}?")
    ), f"Three countries in {continent} are {listed(others)}."


def element_turn(rng: Random, known: Knowledge) -> Turn:
    name, symbol, number = rng.choice(facts.ELEMENTS)
    return rng.choice(
        (
            (f"What is the chemical symbol of {name}?", f"The symbol of {name} is {symbol}."),
            (f"Which element has the symbol {symbol}?", f"{symbol} stands for {name}, element number {number}."),
            (
                f"What is the atomic number of {name}?",
                f"{name.capitalize()} has the atomic number {number}. An atom of {name} has {number} protons.",
            ),
        )
    )


def planet_turn(rng: Random, known: Knowledge) -> Turn:
    i = rng.randrange(8)
    planet = facts.PLANETS[i]
    order = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
    if rng.random() < 0.5:
        return f"Which planet is the {order[i]} from the Sun?", rng.choice(
            (f"The {order[i]} planet from the Sun is {planet}.", f"It is {planet}.")
        )
    near = f"It comes after {facts.PLANETS[i - 1]}." if i else "No planet is closer to the Sun."
    return rng.choice(
        (f"Where is {planet} in the solar system?", f"Tell me about {planet}.")
    ), f"{planet} is the {order[i]} planet from the Sun. {near}"


def animal_turn(rng: Random, known: Knowledge) -> Turn:
    name, kind, legs, food, young, mass = rng.choice(facts.ANIMALS)
    case = rng.randrange(6)
    if case == 0:
        return rng.choice((f"What does {an(name)} eat?", f"What do I feed {an(name)}?")), rng.choice(
            (f"{an(name).capitalize()} eats {food}.", f"It mostly eats {food}.")
        )
    if case == 1:
        return rng.choice(
            (f"How many legs does {an(name)} have?", f"How many legs has {an(name)}?")
        ), f"{an(name).capitalize()} has {legs or 'no'} legs."
    if case == 2:
        return f"What is a young {name} called?", rng.choice(
            (f"A young {name} is called {an(young)}.", f"It is called {an(young)}.")
        )
    if case == 3:
        asked_kind = rng.choice(("mammal", "bird", "fish", "insect", kind, kind))
        yes = asked_kind == kind
        return (
            f"Is {an(name)} {an(asked_kind)}?",
            f"{'Yes' if yes else 'No'}, {an(name)} is {an(kind)}{'' if yes else f', not {an(asked_kind)}'}.",
        )
    if case == 4:
        other = rng.choice([each for each in facts.ANIMALS if each[5] > 2 * mass or each[5] * 2 < mass])
        heavy, light = (name, other[0]) if mass > other[5] else (other[0], name)
        return rng.choice(
            (
                f"Which is heavier, {an(name)} or {an(other[0])}?",
                f"Is {an(name)} heavier than {an(other[0])}?",
            )
        ), f"{an(heavy).capitalize()} is heavier than {an(light)}."
    return rng.choice((f"Tell me about the {name}.", f"What is {an(name)}?", f"Describe {an(name)}.")), (
        f"{an(name).capitalize()} is {an(kind)} with {legs or 'no'} legs. It eats {food}. Its young is called {an(young)}."
    )


def weekday_turn(rng: Random, known: Knowledge) -> Turn:
    i, days = rng.randrange(7), rng.randrange(1, 7)
    day = facts.WEEKDAYS
    case = rng.randrange(4)
    if case == 0:
        return f"Which day comes after {day[i]}?", f"After {day[i]} comes {day[(i + 1) % 7]}."
    if case == 1:
        return f"Which day comes before {day[i]}?", f"Before {day[i]} comes {day[i - 1]}."
    if case == 2:
        steps = listed([day[(i + step) % 7] for step in range(1, days + 1)])
        return (
            f"Today is {day[i]}. Which day is it in {days} {'day' if days == 1 else 'days'}?",
            f"Counting on from {day[i]}: {steps}. So it is {day[(i + days) % 7]}.",
        )
    month = rng.randrange(1, 13)
    year = rng.randrange(2001, 2040)
    n_days = calendar.monthrange(year, month)[1]
    reason = ""
    if month == 2:
        reason = f" {year} is {'a leap year' if calendar.isleap(year) else 'not a leap year'}."
    return (
        f"How many days does {facts.MONTHS[month - 1]} {year} have?",
        f"{facts.MONTHS[month - 1]} {year} has {n_days} days.{reason}",
    )


def date_turn(rng: Random, known: Knowledge) -> Turn:
    date = datetime.date(rng.randrange(2001, 2040), rng.randrange(1, 13), rng.randrange(1, 28))
    written = f"{date.day} {facts.MONTHS[date.month - 1]} {date.year}"
    if rng.random() < 0.5:
        return rng.choice(
            (f"Write {date.isoformat()} in words.", f"What date is {date.isoformat()}?")
        ), f"{date.isoformat()} is {written}."
    return f"Write {written} in ISO format.", f"{written} is {date.isoformat()} in ISO format."


def how_to_turn(rng: Random, known: Knowledge) -> Turn:
    task = rng.choice(list(facts.HOW_TOS))
    steps = facts.HOW_TOS[task]
    asked = rng.choice(
        ("How do I {t}?", "How can I {t}?", "Tell me how to {t}.", "What is the best way to {t}?", "Explain how to {t}, please.")
    ).format(t=task)
    case = rng.randrange(3)
    if case == 0:
        return asked, "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    if case == 1:
        return asked, " ".join(steps)
    links = ["First, ", *[rng.choice(("Then ", "Next, ", "After that, ")) for _ in steps[1:-1]], "Finally, "]
    return asked, " ".join(
        link + step[0].lower() + step[1:] if not step.startswith("Git") else step
        for link, step in zip(links, steps, strict=False)
    )


def true_sentence(rng: Random, topic: str) -> str:
    country, capital, continent, language = rng.choice(facts.COUNTRIES)
    animal, kind, legs, food, young, _ = rng.choice(facts.ANIMALS)
    name, symbol, number = rng.choice(facts.ELEMENTS)
    large, small, factor = rng.choice(facts.UNITS)
    sentences = {
        "countries": (
            f"{capital} is the capital of {country}.",
            f"{country} lies in {continent}.",
            f"Many people in {country} speak {language}.",
        ),
        "animals": (
            f"{an(animal).capitalize()} is {an(kind)}.",
            f"{an(animal).capitalize()} has {legs or 'no'} legs.",
            f"{an(animal).capitalize()} eats {food}.",
            f"A young {animal} is called {an(young)}.",
        ),
        "chemistry": (f"The symbol of {name} is {symbol}.", f"{name.capitalize()} is element number {number}."),
        "units": (f"There are {factor} {small} in one of the {large}.",),
    }
    if topic == "the world":
        topic = rng.choice(list(sentences))
    return rng.choice(sentences[topic])


def many_facts_turn(rng: Random, known: Knowledge) -> Turn:
    n = rng.randrange(4, 11)
    topic = rng.choice(("countries", "animals", "chemistry", "the world", "the world"))
    found: dict[str, None] = {}
    while len(found) < n:
        found[true_sentence(rng, topic)] = None
    asked = rng.choice(
        (
            "Tell me {n} facts about {t}.",
            "Name {n} facts about {t}.",
            "Give me a list of {n} true sentences about {t}.",
            "Teach me {n} things about {t}.",
            "What are {n} things one should know about {t}?",
        )
    )
    return asked.format(n=NUMBER_WORDS[n], t=topic), "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(found, 1))
