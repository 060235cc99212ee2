"""Worked arithmetic: problems whose steps are each one small look-up, and whose answers are always right.

The steps are written so that a small model can be right: digits are named by their place, carries are written out, no
step needs more than a one-digit table. Does not know how documents are mixed or split.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from scripts.reference import facts

PLACES = ("ones", "tens", "hundreds", "thousands", "ten-thousands")
NAMES = facts.words(
    "Ada Alan Amira Anna Ben Bruno Carla Chen Clara Daniel David Diego Elena Emma Farid Felix Grace Hana Hugo Ines "
    "Ivan Jack Jana Jonas Julia Kai Lena Leo Lila Lucas Maria Marta Maya Mila Nadia Nina Noah Olga Omar Oscar Paula "
    "Peter Priya Rosa Ruth Sam Sara Simon Sofia Tara Theo Tom Vera Victor Wei Yara Yusuf Zoe"
)
ITEMS = facts.words(
    "apples pears books pencils coins stamps marbles cards stickers shells buttons candles cookies plums oranges "
    "flowers cups plates keys postcards ribbons tickets balloons bottles boxes chairs bricks beads peaches lemons "
    "eggs seeds leaves stones toys photos maps nails screws"
)
HOLDERS = facts.words("boxes bags baskets shelves jars drawers packets trays crates rows")
PLACES_TO_BE = facts.words("shop market garden school library kitchen harbour station farm museum park office")

Problem = tuple[str, list[str], str]  # the question, the steps, the answer


def _digits(number: int, n_digits: int = 0) -> list[int]:
    """Digits from the ones upwards."""
    return [int(digit) for digit in reversed(str(number).zfill(n_digits))]


def _spelled(number: int, n_digits: int = 0) -> str:
    parts = [f"{digit} {place}" for digit, place in zip(_digits(number, n_digits), PLACES, strict=False)]
    return f"{number} is {', '.join(reversed(parts))}."


def operand(rng: Random) -> int:
    """Mostly two or three digits; every length up to four has its share."""
    n_digits = rng.choices((1, 2, 3, 4), (1, 5, 4, 1))[0]
    return rng.randrange(10 ** (n_digits - 1), 10**n_digits)


def add_steps(a: int, b: int) -> list[str]:
    """Column addition from the ones upwards, carries written out."""
    n = max(len(str(a)), len(str(b)))
    steps, carry = [_spelled(a, n), _spelled(b, n)], 0
    for place, x, y in zip(PLACES, _digits(a, n), _digits(b, n), strict=False):
        total = x + y + carry
        terms = f"{x} + {y} + {carry}" if carry else f"{x} + {y}"
        if total > 9 and place != PLACES[n - 1]:
            steps.append(f"{place.capitalize()}: {terms} = {total}. Write {total - 10}, carry 1.")
        else:
            steps.append(f"{place.capitalize()}: {terms} = {total}. Write {total}.")
        carry = total // 10
    return steps


def subtract_steps(a: int, b: int) -> list[str]:
    """Column subtraction from the ones upwards, a >= b, borrows written out."""
    n = len(str(a))
    steps, borrow = [_spelled(a), _spelled(b, n)], 0
    for place, x, y in zip(PLACES, _digits(a), _digits(b, n), strict=False):
        top = x - borrow
        less = f"{x} - 1 = {top}. " if borrow else ""
        if top < y:
            digit = top + 10 - y
            steps.append(
                f"{place.capitalize()}: {less}{top} is less than {y}, borrow: {top + 10} - {y} = {digit}. Write {digit}."
            )
        else:
            steps.append(f"{place.capitalize()}: {less}{top} - {y} = {top - y}. Write {top - y}.")
        borrow = int(top < y)
    return steps


def times_steps(a: int, digit: int) -> list[str]:
    """A number times one digit, from the ones upwards."""
    steps, carry, digits = [_spelled(a)], 0, _digits(a)
    for i, (place, x) in enumerate(zip(PLACES, digits, strict=False)):
        product = x * digit
        total = product + carry
        step = f"{place.capitalize()}: {x} x {digit} = {product}"
        step += f", {product} + {carry} = {total}" if carry else ""
        last = i == len(digits) - 1
        steps.append(f"{step}. Write {total}." if last or total < 10 else f"{step}. Write {total % 10}, carry {total // 10}.")
        carry = total // 10
    return steps


def sum_in_words(a: int, b: int) -> str:
    """One or two small additions on one line: tens first, then ones."""
    if b < 10 or b % 10 == 0 or a < 10:
        return f"{a} + {b} = {a + b}."
    tens = b - b % 10
    return f"{a} + {tens} = {a + tens}, {a + tens} + {b % 10} = {a + b}. So {a} + {b} = {a + b}."


def difference_in_words(a: int, b: int) -> str:
    """Tens first, then ones, on one line."""
    if b < 10 or b % 10 == 0:
        return f"{a} - {b} = {a - b}."
    tens = b - b % 10
    return f"{a} - {tens} = {a - tens}, {a - tens} - {b % 10} = {a - b}. So {a} - {b} = {a - b}."


def _addition(rng: Random) -> Problem:
    a, b = operand(rng), operand(rng)
    asked = rng.choice(
        ("What is {a} + {b}?", "Add {a} and {b}.", "Find the sum of {a} and {b}.", "Calculate {a} + {b}.", "Work out {a} + {b}.")
    )
    return asked.format(a=a, b=b), add_steps(a, b), f"{a} + {b} = {a + b}"


def _subtraction(rng: Random) -> Problem:
    a, b = sorted((operand(rng), operand(rng)), reverse=True)
    asked = rng.choice(
        (
            "What is {a} - {b}?",
            "Subtract {b} from {a}.",
            "Find the difference of {a} and {b}.",
            "Calculate {a} - {b}.",
            "Take {b} away from {a}.",
        )
    )
    return asked.format(a=a, b=b), subtract_steps(a, b), f"{a} - {b} = {a - b}"


def _times_digit(rng: Random) -> Problem:
    a, b = rng.randrange(11, 1000 if rng.random() < 0.4 else 100), rng.randrange(2, 10)
    asked = rng.choice(("What is {a} x {b}?", "Multiply {a} by {b}.", "Find the product of {a} and {b}.", "Calculate {a} x {b}."))
    return asked.format(a=a, b=b), times_steps(a, b), f"{a} x {b} = {a * b}"


def _times_two_digits(rng: Random) -> Problem:
    a, b = rng.randrange(11, 100), rng.randrange(11, 100)
    tens, ones = divmod(b, 10)
    asked = rng.choice(("What is {a} x {b}?", "Multiply {a} by {b}.", "Calculate {a} x {b}."))
    steps = [f"{b} is {tens} tens, {ones} ones."]
    if ones:
        steps += [f"First {a} x {ones}:", *times_steps(a, ones)[1:], f"{a} x {ones} = {a * ones}."]
    steps += [
        f"{'Then' if ones else 'First'} {a} x {tens}:",
        *times_steps(a, tens)[1:],
        f"{a} x {tens} = {a * tens}, so {a} x {tens}0 = {a * tens}0.",
    ]
    if ones:
        steps += [f"Now {a * ones} + {a * tens * 10}:", *add_steps(a * ones, a * tens * 10)]
    return asked.format(a=a, b=b), steps, f"{a} x {b} = {a * b}"


def _division(rng: Random) -> Problem:
    b = rng.randrange(2, 10)
    a = rng.randrange(20, 1000) if rng.random() < 0.5 else b * rng.randrange(6, 130)
    steps, remainder, quotient = [], 0, ""
    for i, digit in enumerate(str(a)):
        current = remainder * 10 + int(digit)
        head = f"Start with {digit}" if i == 0 else f"Bring down {digit}"
        remainder = current % b
        steps.append(f"{head}: {current} / {b} = {current // b}, remainder {remainder}.")
        quotient += str(current // b)
    asked = rng.choice(
        (
            "What is {a} / {b}?",
            "Divide {a} by {b}.",
            "How many times does {b} go into {a}?",
            "Calculate {a} / {b} with remainder.",
        )
    )
    tail = f", remainder {remainder}" if remainder else ""
    return asked.format(a=a, b=b), steps, f"{a} / {b} = {int(quotient)}{tail}"


def _comparison(rng: Random) -> Problem:
    a = operand(rng) + 10
    b = max(1, a + rng.choice((-1, 1)) * rng.choice((1, 2, 3, 9, 10, 20, 90, 100))) if rng.random() < 0.6 else operand(rng)
    asked = rng.choice(("Which is greater, {a} or {b}?", "Compare {a} and {b}.", "Which number is larger: {a} or {b}?")).format(
        a=a, b=b
    )
    if len(str(a)) != len(str(b)):
        steps = [f"{a} has {len(str(a))} digits. {b} has {len(str(b))} digits.", "The number with more digits is greater."]
    else:
        steps = [f"Both have {len(str(a))} digits."]
        for place, x, y in reversed(list(zip(PLACES, _digits(a), _digits(b), strict=False))):
            if x != y:
                steps.append(f"{place.capitalize()}: {x} is {'greater' if x > y else 'less'} than {y}.")
                break
            steps.append(f"{place.capitalize()}: {x} and {y} are equal.")
    sign = ">" if a > b else "<" if a < b else "="
    return asked, steps, f"{a} {sign} {b}"


def _sequence(rng: Random) -> Problem:
    start, step, n = rng.randrange(1, 60), rng.randrange(2, 13), rng.randrange(3, 6)
    falling = rng.random() < 0.3
    values = [start + step * i for i in range(n + 3)]
    values = [value + 12 for value in reversed(values)] if falling else values
    shown, wanted = values[:n], values[n:]
    sign = "-" if falling else "+"
    listed = ", ".join(map(str, shown))
    asked = rng.choice(
        (
            "What are the next three numbers in {s}, ...?",
            "Continue the sequence {s} by three numbers.",
            "The sequence is {s}. Which three numbers follow?",
        )
    )
    high, low = max(shown[:2]), min(shown[:2])
    steps = [f"{high} - {low} = {step}, so each number is {step} {'less' if falling else 'more'} than the one before."]
    steps += [f"{before} {sign} {step} = {after}." for before, after in zip(values[n - 1 :], wanted, strict=False)]
    return asked.format(s=listed), steps, ", ".join(map(str, wanted))


def _missing_number(rng: Random) -> Problem:
    x, b = rng.randrange(2, 90), rng.randrange(2, 60)
    letter = rng.choice("xynab")
    kind = rng.randrange(3)
    if kind == 0:
        return (
            f"Solve {letter} + {b} = {x + b}.",
            [f"Subtract {b} from both sides.", difference_in_words(x + b, b)],
            f"{letter} = {x}",
        )
    if kind == 1:
        return f"Solve {letter} - {b} = {x}.", [f"Add {b} to both sides.", sum_in_words(x, b)], f"{letter} = {x + b}"
    b, x = rng.randrange(2, 10), rng.randrange(2, 13)
    return f"Solve {b}{letter} = {b * x}.", [f"Divide both sides by {b}.", f"{b * x} / {b} = {x}."], f"{letter} = {x}"


def _order_of_operations(rng: Random) -> Problem:
    a, b, c = rng.randrange(2, 40), rng.randrange(2, 10), rng.randrange(2, 10)
    if rng.random() < 0.5:
        return f"Calculate {a} + {b} x {c}.", ["Multiply first.", f"{b} x {c} = {b * c}.", sum_in_words(a, b * c)], str(a + b * c)
    a = rng.randrange(2, 10)
    return (
        f"Calculate ({a} + {b}) x {c}.",
        ["The brackets come first.", f"{a} + {b} = {a + b}.", *times_steps(a + b, c)[1:]],
        str((a + b) * c),
    )


def _rectangle(rng: Random) -> Problem:
    width, height = rng.randrange(2, 13), rng.randrange(2, 13)
    unit = rng.choice(("cm", "m", "km"))
    thing = rng.choice(
        {"cm": ("rectangle", "card", "tile", "photo"), "m": ("garden", "room", "field"), "km": ("forest", "park", "lake")}[unit]
    )
    given = f"A {thing} is {width} {unit} long and {height} {unit} wide."
    if rng.random() < 0.5:
        return (
            f"{given} What is its area?",
            ["The area is length times width.", f"{width} x {height} = {width * height}."],
            f"{width * height} square {unit}",
        )
    half = width + height
    return (
        f"{given} What is its perimeter?",
        ["The perimeter is twice the sum of length and width.", f"{width} + {height} = {half}.", f"{half} x 2 = {2 * half}."],
        f"{2 * half} {unit}",
    )


def _clock(rng: Random) -> Problem:
    hour, minute, more = rng.randrange(1, 20), rng.randrange(0, 12) * 5, rng.randrange(1, 24) * 5
    total = minute + more
    carried, rest = divmod(total, 60)
    steps = [f"{minute} + {more} = {total} minutes."]
    if carried:
        steps.append(f"{total} minutes are {carried} {'hour' if carried == 1 else 'hours'} and {rest} minutes.")
        steps.append(f"{hour} + {carried} = {hour + carried} hours.")
    thing = rng.choice(("A film", "A lesson", "A train ride", "A concert", "A meeting", "A walk", "A match"))
    asked = f"{thing} starts at {hour}:{minute:02d} and takes {more} minutes. When does it end?"
    return asked, steps, f"{hour + carried}:{rest:02d}"


def _percent(rng: Random) -> Problem:
    share, divisor = rng.choice(((50, 2), (25, 4), (10, 10), (20, 5)))
    part = rng.randrange(2, 20)
    whole = part * divisor
    return f"What is {share}% of {whole}?", [f"{share}% is one part in {divisor}.", f"{whole} / {divisor} = {part}."], str(part)


def _sorting(rng: Random) -> Problem:
    numbers = rng.sample(range(1, 100), rng.randrange(4, 7))
    down = rng.random() < 0.4
    left, ordered, steps = list(numbers), [], []
    while len(left) > 1:
        chosen = max(left) if down else min(left)
        left.remove(chosen)
        ordered.append(chosen)
        steps.append(f"The {'greatest' if down else 'smallest'} is {chosen}. Left: {', '.join(map(str, left))}.")
    ordered += left
    order = "from greatest to smallest" if down else "from smallest to greatest"
    return f"Sort {', '.join(map(str, numbers))} {order}.", steps, ", ".join(map(str, ordered))


def _mean(rng: Random) -> Problem:
    n = rng.randrange(3, 5)
    numbers = [rng.randrange(2, 20) for _ in range(n)]
    numbers[-1] += (-sum(numbers)) % n
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total} + {number} = {total + number}.")
        total += number
    steps.append(f"There are {n} numbers. {total} / {n} = {total // n}.")
    return f"What is the average of {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}?", steps, str(total // n)


def _parity(rng: Random) -> Problem:
    number = operand(rng)
    last = number % 10
    kind = "even" if number % 2 == 0 else "odd"
    return f"Is {number} even or odd?", [f"The last digit is {last}.", f"{last} is {kind}."], f"{number} is {kind}"


def _rounding(rng: Random) -> Problem:
    number = rng.randrange(11, 1000)
    ones, down = number % 10, number - number % 10
    steps = [
        f"{number} lies between {down} and {down + 10}.",
        f"The ones digit is {ones}, so round {'up' if ones >= 5 else 'down'}.",
    ]
    return f"Round {number} to the nearest ten.", steps, str(down + 10 if ones >= 5 else down)


def _digit_sum(rng: Random) -> Problem:
    number = rng.randrange(100, 100_000)
    digits = [int(digit) for digit in str(number)]
    steps, total = [f"The digits are {', '.join(map(str, digits))}."], digits[0]
    for digit in digits[1:]:
        steps.append(f"{total} + {digit} = {total + digit}.")
        total += digit
    return f"What is the sum of the digits of {number}?", steps, str(total)


def _gain_story(rng: Random) -> Problem:
    name, other = rng.sample(NAMES, 2)
    item, place = rng.choice(ITEMS), rng.choice(PLACES_TO_BE)
    a, b = rng.randrange(3, 70), rng.randrange(2, 40)
    story = rng.choice(
        (
            "{n} has {a} {i}. {o} gives {n} {b} more. How many {i} does {n} have now?",
            "There are {a} {i} in the {p}. {n} brings {b} more. How many {i} are there now?",
            "{n} collected {a} {i} on Monday and {b} on Tuesday. How many {i} is that in all?",
            "{n} has {a} {i} and {o} has {b}. How many {i} do they have together?",
            "At the {p}, {n} counted {a} {i} in the morning and {b} in the afternoon. How many were counted?",
            "{n} found {a} {i}, and {o} found {b} more than {n}. How many {i} did {o} find?",
        )
    )
    return (
        story.format(n=name, o=other, i=item, p=place, a=a, b=b),
        ["Add the two numbers.", sum_in_words(a, b)],
        f"{a + b} {item}",
    )


def _loss_story(rng: Random) -> Problem:
    name, other = rng.sample(NAMES, 2)
    item, place = rng.choice(ITEMS), rng.choice(PLACES_TO_BE)
    a, b = sorted(rng.sample(range(2, 90), 2), reverse=True)
    story = rng.choice(
        (
            "{n} has {a} {i} and gives {b} to {o}. How many {i} are left?",
            "There were {a} {i} in the {p}. {n} took {b} of them. How many {i} remain?",
            "{n} wants {a} {i} and has {b}. How many {i} are missing?",
            "{n} has {a} {i}, {o} has {b}. How many more {i} does {n} have?",
            "Of {a} {i} at the {p}, {b} were sold. How many {i} were not sold?",
            "{n} packed {a} {i} and lost {b} on the way. How many {i} arrived?",
        )
    )
    return (
        story.format(n=name, o=other, i=item, p=place, a=a, b=b),
        ["Subtract the second number from the first.", difference_in_words(a, b)],
        f"{a - b} {item}",
    )


def _groups_story(rng: Random) -> Problem:
    name, item, holder = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(HOLDERS)
    a, b = rng.randrange(2, 13), rng.randrange(2, 13)
    if rng.random() < 0.5:
        story = rng.choice(
            (
                "{n} has {a} {h} with {b} {i} in each. How many {i} are there?",
                "{n} puts {b} {i} into each of {a} {h}. How many {i} is that?",
                "Each of the {a} {h} holds {b} {i}. How many {i} do they hold together?",
            )
        )
        return story.format(n=name, a=a, b=b, h=holder, i=item), ["Multiply.", f"{a} x {b} = {a * b}."], f"{a * b} {item}"
    story = rng.choice(
        (
            "{n} shares {t} {i} equally between {a} {h}. How many {i} are in each?",
            "{t} {i} are put into {a} {h} of the same size. How many {i} does each hold?",
        )
    )
    return story.format(n=name, a=a, t=a * b, h=holder, i=item), ["Divide.", f"{a * b} / {a} = {b}."], f"{b} {item}"


def _two_step_story(rng: Random) -> Problem:
    name, other = rng.sample(NAMES, 2)
    item, holder = rng.choice(ITEMS), rng.choice(HOLDERS)
    a, b, c = rng.randrange(2, 10), rng.randrange(2, 10), rng.randrange(2, 30)
    total = a * b
    if rng.random() < 0.5 or c >= total:
        asked = f"{name} fills {a} {holder} with {b} {item} each and keeps {c} more {item}. How many {item} does {name} have?"
        return (
            asked,
            [f"In the {holder}: {a} x {b} = {total}.", f"With the rest: {sum_in_words(total, c)}"],
            f"{total + c} {item}",
        )
    asked = f"{name} buys {a} {holder} of {b} {item} and gives {c} {item} to {other}. How many {item} are left?"
    return asked, [f"Bought: {a} x {b} = {total}.", f"Left: {difference_in_words(total, c)}"], f"{total - c} {item}"


def _change_story(rng: Random) -> Problem:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    n, price = rng.randrange(2, 7), rng.randrange(2, 10)
    paid = next(note for note in (20, 50, 100) if note >= n * price)
    asked = f"{name} buys {n} {item} at {price} euros each and pays with {paid} euros. How much change is due?"
    return (
        asked,
        [f"Cost: {n} x {price} = {n * price} euros.", f"Change: {difference_in_words(paid, n * price)}"],
        f"{paid - n * price} euros",
    )


KINDS: tuple[tuple[Callable[[Random], Problem], int], ...] = (
    (_addition, 14),
    (_subtraction, 12),
    (_times_digit, 10),
    (_times_two_digits, 4),
    (_division, 8),
    (_comparison, 5),
    (_sequence, 7),
    (_missing_number, 6),
    (_order_of_operations, 4),
    (_rectangle, 4),
    (_clock, 4),
    (_percent, 3),
    (_sorting, 4),
    (_mean, 4),
    (_parity, 2),
    (_rounding, 3),
    (_digit_sum, 3),
    (_gain_story, 7),
    (_loss_story, 7),
    (_groups_story, 6),
    (_two_step_story, 5),
    (_change_story, 4),
)


def topic(maker: Callable[[Random], Problem]) -> str:
    """The kind of problem that a maker makes, in words."""
    return maker.__name__.strip("_").replace("_", " ")


def problem(rng: Random) -> Problem:
    """One problem of a kind drawn by weight."""
    return rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0](rng)


def lead(question: str) -> str:
    """A problem as far as its question: a prompt."""
    return f"Problem: {question}\nSolution:\n"


def worksheet(rng: Random, accept: Callable[[str], bool] = lambda question: True) -> str:
    """A document of one problem with its solution, now and then two or three: after an answer comes the end, not the next one.

    Args:
        rng: decides everything.
        accept: says whether a question may be asked; training and held-out text ask different ones.
    """
    n_problems = rng.choices((1, 2, 3), (14, 3, 1))[0]
    parts: list[str] = []
    while len(parts) < n_problems:
        question, steps, answer = problem(rng)
        if accept(question):
            parts.append(lead(question) + "\n".join(steps) + f"\nAnswer: {answer}\n")
    return "\n".join(parts)
