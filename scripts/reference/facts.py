"""Tables of facts for the generated dialogues: common knowledge, written for this project, and facts Python itself holds.

Does not know how a dialogue is phrased.
"""

from __future__ import annotations

import builtins
import calendar
import errno
import html.entities
import http
import importlib
import inspect
import os
import re
import string
import unicodedata
from dataclasses import dataclass


def words(text: str) -> list[str]:
    """Words of a table that would be a column of quoted strings otherwise."""
    return text.split()


COUNTRIES: tuple[tuple[str, str, str, str], ...] = tuple(
    (parts[0], parts[1], parts[2], parts[3])
    for parts in (
        line.split(",")
        for line in [
            "Argentina,Buenos Aires,South America,Spanish",
            "Australia,Canberra,Oceania,English",
            "Austria,Vienna,Europe,German",
            "Bangladesh,Dhaka,Asia,Bengali",
            "Belgium,Brussels,Europe,Dutch",
            "Bolivia,Sucre,South America,Spanish",
            "Brazil,Brasilia,South America,Portuguese",
            "Bulgaria,Sofia,Europe,Bulgarian",
            "Cambodia,Phnom Penh,Asia,Khmer",
            "Canada,Ottawa,North America,English",
            "Chile,Santiago,South America,Spanish",
            "China,Beijing,Asia,Mandarin",
            "Colombia,Bogota,South America,Spanish",
            "Croatia,Zagreb,Europe,Croatian",
            "Cuba,Havana,North America,Spanish",
            "Czechia,Prague,Europe,Czech",
            "Denmark,Copenhagen,Europe,Danish",
            "Ecuador,Quito,South America,Spanish",
            "Egypt,Cairo,Africa,Arabic",
            "Estonia,Tallinn,Europe,Estonian",
            "Ethiopia,Addis Ababa,Africa,Amharic",
            "Finland,Helsinki,Europe,Finnish",
            "France,Paris,Europe,French",
            "Germany,Berlin,Europe,German",
            "Ghana,Accra,Africa,English",
            "Greece,Athens,Europe,Greek",
            "Hungary,Budapest,Europe,Hungarian",
            "Iceland,Reykjavik,Europe,Icelandic",
            "India,New Delhi,Asia,Hindi",
            "Indonesia,Jakarta,Asia,Indonesian",
            "Iran,Tehran,Asia,Persian",
            "Iraq,Baghdad,Asia,Arabic",
            "Ireland,Dublin,Europe,English",
            "Italy,Rome,Europe,Italian",
            "Jamaica,Kingston,North America,English",
            "Japan,Tokyo,Asia,Japanese",
            "Jordan,Amman,Asia,Arabic",
            "Kenya,Nairobi,Africa,Swahili",
            "Laos,Vientiane,Asia,Lao",
            "Latvia,Riga,Europe,Latvian",
            "Lebanon,Beirut,Asia,Arabic",
            "Lithuania,Vilnius,Europe,Lithuanian",
            "Madagascar,Antananarivo,Africa,Malagasy",
            "Malaysia,Kuala Lumpur,Asia,Malay",
            "Mali,Bamako,Africa,Bambara",
            "Mexico,Mexico City,North America,Spanish",
            "Mongolia,Ulaanbaatar,Asia,Mongolian",
            "Morocco,Rabat,Africa,Arabic",
            "Nepal,Kathmandu,Asia,Nepali",
            "Netherlands,Amsterdam,Europe,Dutch",
            "New Zealand,Wellington,Oceania,English",
            "Nigeria,Abuja,Africa,English",
            "Norway,Oslo,Europe,Norwegian",
            "Pakistan,Islamabad,Asia,Urdu",
            "Paraguay,Asuncion,South America,Spanish",
            "Peru,Lima,South America,Spanish",
            "Philippines,Manila,Asia,Filipino",
            "Poland,Warsaw,Europe,Polish",
            "Portugal,Lisbon,Europe,Portuguese",
            "Romania,Bucharest,Europe,Romanian",
            "Rwanda,Kigali,Africa,Kinyarwanda",
            "Senegal,Dakar,Africa,French",
            "Serbia,Belgrade,Europe,Serbian",
            "Slovakia,Bratislava,Europe,Slovak",
            "Slovenia,Ljubljana,Europe,Slovene",
            "South Korea,Seoul,Asia,Korean",
            "Spain,Madrid,Europe,Spanish",
            "Sweden,Stockholm,Europe,Swedish",
            "Switzerland,Bern,Europe,German",
            "Syria,Damascus,Asia,Arabic",
            "Tanzania,Dodoma,Africa,Swahili",
            "Thailand,Bangkok,Asia,Thai",
            "Tunisia,Tunis,Africa,Arabic",
            "Turkey,Ankara,Asia,Turkish",
            "Uganda,Kampala,Africa,English",
            "Ukraine,Kyiv,Europe,Ukrainian",
            "Uruguay,Montevideo,South America,Spanish",
            "Venezuela,Caracas,South America,Spanish",
            "Vietnam,Hanoi,Asia,Vietnamese",
            "Zambia,Lusaka,Africa,English",
        ]
    )
)

ELEMENTS = tuple(
    (name, symbol, number + 1)
    for number, (name, symbol) in enumerate(
        entry.split(":")
        for entry in words(
            "hydrogen:H helium:He lithium:Li beryllium:Be boron:B carbon:C nitrogen:N oxygen:O fluorine:F neon:Ne sodium:Na "
            "magnesium:Mg aluminium:Al silicon:Si phosphorus:P sulfur:S chlorine:Cl argon:Ar potassium:K calcium:Ca "
            "scandium:Sc titanium:Ti vanadium:V chromium:Cr manganese:Mn iron:Fe cobalt:Co nickel:Ni copper:Cu zinc:Zn "
            "gallium:Ga germanium:Ge arsenic:As selenium:Se bromine:Br krypton:Kr"
        )
    )
)

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")

# name, class, legs, usual food, young, mass in kilograms
ANIMALS: tuple[tuple[str, str, int, str, str, float], ...] = (
    ("cat", "mammal", 4, "mice and fish", "kitten", 4),
    ("dog", "mammal", 4, "meat", "puppy", 20),
    ("cow", "mammal", 4, "grass", "calf", 600),
    ("horse", "mammal", 4, "grass and hay", "foal", 500),
    ("sheep", "mammal", 4, "grass", "lamb", 70),
    ("goat", "mammal", 4, "leaves and grass", "kid", 50),
    ("pig", "mammal", 4, "roots and grain", "piglet", 150),
    ("fox", "mammal", 4, "mice and berries", "cub", 6),
    ("bear", "mammal", 4, "berries and fish", "cub", 250),
    ("lion", "mammal", 4, "meat", "cub", 190),
    ("elephant", "mammal", 4, "leaves and bark", "calf", 5000),
    ("mouse", "mammal", 4, "seeds and grain", "pup", 0.02),
    ("rabbit", "mammal", 4, "grass and clover", "kit", 2),
    ("kangaroo", "mammal", 2, "grass", "joey", 60),
    ("whale", "mammal", 0, "krill and fish", "calf", 40000),
    ("dolphin", "mammal", 0, "fish", "calf", 150),
    ("bat", "mammal", 2, "insects", "pup", 0.03),
    ("hen", "bird", 2, "grain and worms", "chick", 2.5),
    ("duck", "bird", 2, "water plants and snails", "duckling", 1.2),
    ("goose", "bird", 2, "grass", "gosling", 4.5),
    ("owl", "bird", 2, "mice", "owlet", 1),
    ("eagle", "bird", 2, "fish and small animals", "eaglet", 5),
    ("sparrow", "bird", 2, "seeds", "chick", 0.025),
    ("penguin", "bird", 2, "fish", "chick", 15),
    ("swan", "bird", 2, "water plants", "cygnet", 11),
    ("frog", "amphibian", 4, "flies and worms", "tadpole", 0.05),
    ("snake", "reptile", 0, "mice and eggs", "hatchling", 1.5),
    ("turtle", "reptile", 4, "plants and small animals", "hatchling", 9),
    ("salmon", "fish", 0, "small fish and shrimps", "fry", 5),
    ("shark", "fish", 0, "fish", "pup", 400),
    ("bee", "insect", 6, "nectar and pollen", "larva", 0.0001),
    ("ant", "insect", 6, "seeds and sugar", "larva", 0.000005),
    ("butterfly", "insect", 6, "nectar", "caterpillar", 0.0005),
    ("spider", "arachnid", 8, "flies", "spiderling", 0.001),
)

GROUPS: dict[str, list[str]] = {
    name: members.split()
    for name, members in {
        "fruits": "apple pear plum cherry banana orange lemon peach grape melon mango fig apricot kiwi papaya pineapple",
        "vegetables": "carrot potato onion leek cabbage spinach pea bean cucumber pumpkin radish celery turnip pepper",
        "colours": "red blue green yellow orange purple brown black white grey pink turquoise",
        "tools": "hammer saw drill screwdriver wrench pliers chisel file axe spade rake level",
        "musical instruments": "piano violin guitar flute trumpet drum cello harp clarinet oboe horn organ",
        "sports": "tennis football swimming rowing cycling running skiing hockey basketball volleyball climbing fencing",
        "trees": "oak beech birch pine maple willow elm ash larch spruce cedar poplar",
        "drinks": "water tea coffee milk juice lemonade cocoa soda",
        "pieces of furniture": "table chair bed shelf desk sofa cupboard stool bench wardrobe",
        "parts of the body": "hand foot arm leg head neck knee elbow shoulder back ear eye nose",
        "kinds of weather": "rain snow fog wind hail sunshine thunder frost drizzle",
        "jobs": "baker teacher nurse farmer driver pilot painter tailor doctor gardener carpenter librarian",
        "birds": "owl eagle sparrow robin swan duck goose hen crow stork swallow heron",
        "metals": "iron copper gold silver tin zinc lead nickel aluminium titanium",
        "rivers": "Nile Amazon Danube Rhine Thames Volga Ganges Mississippi Congo Seine Elbe",
        "clothes": "shirt coat hat scarf glove sock shoe dress skirt jacket belt",
        "vehicles": "car bus train bicycle tram boat truck plane ferry scooter",
        "programming languages": "Python C Rust Java JavaScript Go Ruby Haskell Lua Perl",
        "rooms of a house": "kitchen bathroom bedroom cellar attic hall study pantry",
        "kitchen things": "pan pot knife fork spoon plate bowl kettle oven cup ladle sieve",
        "flowers": "rose tulip daisy lily violet sunflower poppy iris orchid lavender",
        "shapes": "circle square triangle rectangle pentagon hexagon oval cube sphere cone",
    }.items()
}

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "hot/cold big/small long/short early/late open/closed light/dark fast/slow full/empty wet/dry young/old high/low "
        "hard/soft near/far thick/thin loud/quiet rich/poor strong/weak sharp/blunt clean/dirty true/false first/last "
        "up/down left/right inside/outside always/never before/after day/night summer/winter north/south east/west "
        "love/hate begin/end buy/sell push/pull win/lose give/take rise/fall remember/forget accept/refuse deep/shallow "
        "wide/narrow heavy/light cheap/expensive easy/difficult"
    )
)

SYNONYMS = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "begin/start big/large quick/fast happy/glad small/little finish/end smart/clever answer/reply choose/select "
        "help/assist repair/mend near/close silent/quiet strange/odd rich/wealthy sick/ill brave/courageous shout/yell "
        "gift/present error/mistake child/kid buy/purchase speak/talk wish/desire road/street forest/wood autumn/fall "
        "correct/right build/construct"
    )
)

# base, past, past participle
VERBS = tuple(
    tuple(entry.split("/"))
    for entry in words(
        "go/went/gone see/saw/seen take/took/taken write/wrote/written eat/ate/eaten give/gave/given know/knew/known "
        "sing/sang/sung swim/swam/swum break/broke/broken speak/spoke/spoken drive/drove/driven choose/chose/chosen "
        "begin/began/begun fall/fell/fallen fly/flew/flown make/made/made find/found/found keep/kept/kept "
        "build/built/built teach/taught/taught bring/brought/brought buy/bought/bought catch/caught/caught read/read/read "
        "put/put/put cut/cut/cut run/ran/run come/came/come drink/drank/drunk ride/rode/ridden wear/wore/worn "
        "walk/walked/walked play/played/played open/opened/opened clean/cleaned/cleaned carry/carried/carried "
        "stop/stopped/stopped paint/painted/painted"
    )
)

PLURALS = tuple(
    tuple(entry.split("/"))
    for entry in words(
        "child/children foot/feet tooth/teeth mouse/mice goose/geese man/men woman/women knife/knives leaf/leaves "
        "wolf/wolves box/boxes bus/buses city/cities baby/babies story/stories fox/foxes church/churches dish/dishes "
        "potato/potatoes tomato/tomatoes sheep/sheep fish/fish book/books river/rivers key/keys day/days tree/trees "
        "house/houses bridge/bridges garden/gardens window/windows letter/letters"
    )
)

# one unit in another: name of the large one, of the small one, how many
UNITS = (
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000),
    ("tonnes", "kilograms", 1000),
    ("litres", "millilitres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("kibibytes", "bytes", 1024),
    ("bytes", "bits", 8),
    ("dozens", "pieces", 12),
    ("euros", "cents", 100),
    ("centuries", "years", 100),
    ("decades", "years", 10),
)

HOW_TOS: dict[str, tuple[str, ...]] = {
    "make tea": (
        "Boil fresh water.",
        "Put a tea bag into a cup.",
        "Pour the water over it.",
        "Wait for three to five minutes.",
        "Take the bag out.",
    ),
    "boil an egg": (
        "Put the egg into boiling water.",
        "Wait six minutes for a soft egg, or ten for a hard one.",
        "Cool it in cold water.",
    ),
    "plant a tree": (
        "Dig a hole twice as wide as the roots.",
        "Set the tree in straight.",
        "Fill the hole with soil.",
        "Water it well.",
    ),
    "write a letter": (
        "Write the date at the top.",
        "Greet the reader.",
        "Say what you want to say in short paragraphs.",
        "Sign your name.",
    ),
    "cook rice": (
        "Rinse the rice.",
        "Use two cups of water for one cup of rice.",
        "Let it simmer for about fifteen minutes.",
        "Let it rest with the lid on.",
    ),
    "clean a window": (
        "Wipe off the dust.",
        "Wash the glass with warm water and a little soap.",
        "Dry it with a cloth from top to bottom.",
    ),
    "fix a flat tyre": (
        "Take the wheel off.",
        "Pull out the tube and find the hole.",
        "Roughen the place and glue on a patch.",
        "Pump the tyre up again.",
    ),
    "bake bread": (
        "Mix flour, water, yeast and salt.",
        "Knead the dough for ten minutes.",
        "Let it rise for an hour.",
        "Bake it until it sounds hollow.",
    ),
    "wash a wool jumper": ("Use cold water and mild soap.", "Press it gently and do not wring it.", "Dry it flat on a towel."),
    "read a map": (
        "Find north.",
        "Look up the signs in the legend.",
        "Use the scale to measure distances.",
        "Compare the map with what you see.",
    ),
    "learn a poem": (
        "Read it aloud twice.",
        "Learn two lines at a time.",
        "Repeat it in the evening.",
        "Say it again the next morning.",
    ),
    "make a salad": (
        "Wash and dry the leaves.",
        "Cut tomatoes and cucumber.",
        "Mix oil, vinegar and salt.",
        "Pour the dressing over it just before eating.",
    ),
    "start a Python program": (
        "Save the code in a file that ends in `.py`.",
        "Open a terminal in that folder.",
        "Type `python` and the file's name.",
    ),
    "undo a commit in Git": (
        "Run `git log` to find the commit.",
        "Run `git revert` with its hash.",
        "Git makes a new commit that takes the change back.",
    ),
    "find a bug": (
        "Make it happen again with the smallest input.",
        "Read the error message.",
        "Change one thing at a time.",
        "Write a test for it.",
    ),
    "save electricity": (
        "Switch off lights you do not need.",
        "Use lids when you cook.",
        "Wash at low temperature.",
        "Unplug chargers.",
    ),
    "pack a suitcase": (
        "Make a list.",
        "Roll the clothes.",
        "Put heavy things at the bottom.",
        "Keep papers and medicine at hand.",
    ),
    "repot a plant": (
        "Take a slightly larger pot.",
        "Loosen the roots.",
        "Fill it up with fresh soil.",
        "Water it and keep it out of the sun.",
    ),
    "brush your teeth": (
        "Use a little toothpaste.",
        "Brush every tooth inside and outside.",
        "Take two minutes.",
        "Do it twice a day.",
    ),
    "tie a knot": ("Cross the two ends.", "Pass one end under the other.", "Pull both ends tight."),
}

# For machines with little documentation and code to draw on.
SENTENCES = (
    "The shelf holds many old books.",
    "Rain fell on the roof all night.",
    "A good tool lasts for many years.",
    "The train was late again this morning.",
    "Most birds build a new nest every spring.",
    "The smallest key opens the largest door.",
)
FUNCTIONS = (
    (
        "Return the larger of two numbers.",
        'def larger(a, b):\n    """Return the larger of two numbers."""\n    if a > b:\n        return a\n    return b',
    ),
    (
        "Count the vowels in a word.",
        'def count_vowels(word):\n    """Count the vowels in a word."""\n    return sum(letter in "aeiou" for letter in word)',
    ),
    (
        "Return the words of a text backwards.",
        'def reverse_words(text):\n    """Return the words of a text backwards."""\n    return " ".join(text.split()[::-1])',
    ),
    (
        "Say whether a number is even.",
        'def is_even(number):\n    """Say whether a number is even."""\n    rest = number % 2\n    return rest == 0',
    ),
)

WORDS = sorted({word for members in GROUPS.values() for word in members if word.islower()} | {animal[0] for animal in ANIMALS})


@dataclass(frozen=True, slots=True)
class Definition:
    """What a name means: the name as one writes it in code, what it is, and the first sentences of its documentation."""

    name: str
    what: str
    text: str


_MODULES = words(
    "abc argparse array ast asyncio base64 bisect calendar cmath collections colorsys configparser contextlib copy "
    "csv dataclasses datetime decimal difflib dis email enum filecmp fileinput fnmatch fractions functools gc getpass "
    "gettext glob graphlib gzip hashlib heapq hmac html http inspect io ipaddress itertools json keyword linecache "
    "locale logging lzma math mimetypes numbers operator os os.path pathlib pickle platform plistlib pprint queue "
    "random re sched secrets select shelve shlex shutil signal socket sqlite3 ssl stat statistics string struct "
    "subprocess sys tarfile tempfile textwrap threading time timeit tokenize traceback types typing unicodedata "
    "unittest urllib.parse urllib.request uuid warnings weakref wave webbrowser xml.etree.ElementTree zipfile zlib "
    "zoneinfo"
)


def first_sentences(doc: str, longest: int = 240) -> str:
    """The first paragraph of a docstring where it is one to three plain sentences, else nothing."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", inspect.cleandoc(doc))]
    # Built-in functions begin with their signature.
    paragraphs = [part for part in paragraphs if part and not re.match(r"[\w.]+\(.*\)( ->.*)?$", part)]
    if not paragraphs:
        return ""
    text = re.sub(r"``?([^`]+)``?", r"`\1`", re.sub(r":\w+:`~?([^`]+)`", r"`\1`", paragraphs[0]))
    text = re.sub(r"^[\w.]+\([^)]*\) -+>? ?[\w ]*(:|--)? *", "", text)
    if (
        not text.isascii()
        or not 24 <= len(text) <= longest
        or not re.match(r"[A-Z]", text)
        or re.search(r"http|::|>>>|[|{}<>]|\*\w", text)
    ):
        return ""
    return text if text.endswith(".") else text + "." if text[-1].isalnum() else ""


def definitions() -> list[Definition]:
    """Documentation of the standard library's public names and the built-in functions and methods, from `inspect`."""
    found: dict[str, Definition] = {}

    def note(name: str, what: str, thing: object) -> None:
        text = first_sentences(getattr(thing, "__doc__", None) or "")
        if text and name not in found:
            found[name] = Definition(name, what, text)

    for kind in (str, list, dict, set, tuple, int, float, bytes):
        for name in sorted(vars(kind)):
            if not name.startswith("_"):
                note(f"{kind.__name__}.{name}", "method", getattr(kind, name))
    for name in sorted(vars(builtins)):
        if not name.startswith("_"):
            thing = getattr(builtins, name)
            exception = isinstance(thing, type) and issubclass(thing, BaseException)
            note(name, "exception" if exception else "built-in", thing)
    for module_name in _MODULES:
        module = importlib.import_module(module_name)
        note(module_name, "module", module)
        for name in sorted(getattr(module, "__all__", None) or dir(module)):
            thing = getattr(module, name, None)
            if name.startswith("_") or not callable(thing) or getattr(thing, "__module__", None) in {None, "builtins", "typing"}:
                continue
            note(f"{module_name}.{name}", "class" if isinstance(thing, type) else "function", thing)
            if isinstance(thing, type):
                for member in sorted(vars(thing)):
                    if not member.startswith("_") and callable(getattr(thing, member, None)):
                        note(f"{name}.{member}", "method", getattr(thing, member))
    return list(found.values())


def http_statuses() -> list[tuple[int, str, str]]:
    """HTTP status codes with phrase and description."""
    return [(status.value, status.phrase, status.description) for status in http.HTTPStatus if status.description]


def error_numbers() -> list[tuple[str, str]]:
    """Names of the system's error numbers and what they mean."""
    return [(name, os.strerror(number)) for number, name in sorted(errno.errorcode.items())]


def characters() -> list[tuple[str, str]]:
    """Printable ASCII punctuation and letters with their Unicode names."""
    return [(each, unicodedata.name(each).lower()) for each in string.punctuation + string.ascii_letters + string.digits]


def entities() -> list[tuple[str, int]]:
    """HTML entities and their code points."""
    return sorted(html.entities.name2codepoint.items())


MONTHS = tuple(calendar.month_name)[1:]
WEEKDAYS = tuple(calendar.day_name)
