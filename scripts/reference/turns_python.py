"""Exchanges about Python and the system, from documentation and from code.

Does not know how dialogues are put together.
"""

from __future__ import annotations

from random import Random

from scripts.reference import facts
from scripts.reference.turns import Knowledge, Turn, an, listed


def glossary_turn(rng: Random, known: Knowledge) -> Turn:
    chosen = list({each.name: each for each in rng.choices(known.definitions, k=rng.randrange(3, 7))}.values())
    asked = rng.choice(("Explain these Python names: {n}.", "Make a short glossary of {n}.", "What are {n} for?"))
    names = listed([f"`{each.name}`" for each in chosen])
    return asked.format(n=names), "\n".join(f"- `{each.name}`: {each.text}" for each in chosen)


def definition_turn(rng: Random, known: Knowledge) -> Turn:
    it = rng.choice(known.definitions)
    asked = rng.choice(
        (
            f"What does `{it.name}` do?",
            f"What is `{it.name}`?",
            f"Explain `{it.name}`.",
            f"What is `{it.name}` for?",
            f"Can you explain the {it.what} `{it.name}`?",
            f"When do I need `{it.name}`?",
            f"What does Python's documentation say about `{it.name}`?",
        )
    )
    if rng.random() < 0.25:
        return asked, f"`{it.name}` is {an(it.what)} in Python. {it.text}"
    if "." in it.name and it.what == "function" and rng.random() < 0.15:
        module = it.name.rsplit(".", 1)[0]
        return asked, f"{it.text} It is in the `{module}` module."
    return asked, it.text


def which_function_turn(rng: Random, known: Knowledge) -> Turn:
    it = rng.choice(
        [each for each in rng.choices(known.definitions, k=12) if each.what in {"function", "method", "built-in"}]
        or known.definitions
    )
    task = it.text.split(". ")[0].rstrip(".")
    asked = rng.choice(
        ("Which Python name fits this description: {t}?", "Which {w} does this: {t}?", 'Which {w} is documented as "{t}."?')
    )
    return asked.format(t=task, w=it.what), rng.choice(
        (f"That is `{it.name}`.", f"`{it.name}`.", f"You are looking for the {it.what} `{it.name}`.")
    )


def write_function_turn(rng: Random, known: Knowledge) -> Turn:
    task, code = rng.choice(known.functions)
    name = code.split("def ", 1)[1].split("(", 1)[0]
    if not task:
        # An undocumented function is asked for by its first line.
        line = code.split("\n", 1)[0].removeprefix("def ").rstrip(":")
        asked = rng.choice(
            ("Write a Python function `{n}`.", "Please implement `{n}` in Python.", "What could `def {n}` look like?")
        )
        return asked.format(n=line), f"```python\n{code}\n```"
    asked = rng.choice(
        (
            "Write a Python function `{n}`. {t}",
            "Write a function named `{n}`: {t}",
            "I need a Python function called `{n}`. {t}",
            "Please implement `{n}` in Python. {t}",
        )
    ).format(n=name, t=task)
    return asked, rng.choice((f"```python\n{code}\n```", f"Here is `{name}`:\n\n```python\n{code}\n```"))


def python_value_turn(rng: Random, known: Knowledge) -> Turn:
    word, other = rng.choice(facts.WORDS), rng.choice(facts.WORDS)
    numbers = [rng.randrange(0, 20) for _ in range(rng.randrange(3, 6))]
    i = rng.randrange(0, 3)
    expression = rng.choice(
        (
            f'"{word}".upper()',
            f'"{word}".capitalize()',
            f'len("{word}")',
            f'"{word}"[{i}]',
            f'"{word}"[:{i + 1}]',
            f'"{word}"[::-1]',
            f'"{word}".count("{word[i]}")',
            f'"{word}" + "{other}"',
            f'"{word} {other}".split()',
            f'"-".join(["{word}", "{other}"])',
            f"sorted({numbers})",
            f"max({numbers})",
            f"min({numbers})",
            f"len({numbers})",
            f"{numbers}[{i}]",
            f"{numbers}[-1]",
            f"list(reversed({numbers}))",
            f"list(range({i}, {i + 4}))",
            f'"{word[i]}" in "{other}"',
            f'"{word}".replace("{word[0]}", "{other[0]}")',
            f'"{word}".startswith("{word[:2]}")',
            f"[x + {i + 1} for x in {numbers}]",
            f"{numbers[0]} > {numbers[1]}",
            f"{numbers[0]} == {numbers[1]}",
            f"bool({rng.choice(('0', '1', '[]', '[0]'))})",
            f'"{word}".find("{word[i]}")',
            f"dict(a={numbers[0]}, b={numbers[1]})",
            f"abs(-{numbers[0]})",
        )
    )
    value = repr(eval(expression, {}))
    asked = rng.choice(
        ("What is the value of `{e}` in Python?", "What does `{e}` give?", "What does Python print for `{e}`?", "Evaluate `{e}`.")
    )
    return asked.format(e=expression), rng.choice(
        (f"The value is `{value}`.", f"`{expression}` is `{value}`.", f"It gives `{value}`.")
    )


def system_fact_turn(rng: Random, known: Knowledge) -> Turn:
    case = rng.randrange(4)
    if case == 0:
        code, phrase, text = rng.choice(facts.http_statuses())
        return rng.choice((f"What does HTTP status {code} mean?", f"I got the HTTP status {code}. What is that?")), rng.choice(
            (f"HTTP status {code} means {phrase}: {text}.", f"{code} is {phrase}. {text}.")
        )
    if case == 1:
        name, text = rng.choice(facts.error_numbers())
        return rng.choice((f"What does the error {name} mean?", f"What is {name}?")), rng.choice(
            (f"{name} is a system error. It means: {text}.", f"{name} means: {text}.")
        )
    if case == 2:
        character, name = rng.choice(facts.characters())
        return rng.choice(
            (f"What is the name of the character {character}?", f"What is {character} called in Unicode?")
        ), f"The character {character} is called {name}."
    entity, point = rng.choice([each for each in facts.entities() if chr(each[1]).isascii() or each[1] < 256])
    return (
        f"What is the code point of the HTML entity {entity}?",
        f"The entity {entity} stands for the character with code point {point}.",
    )
