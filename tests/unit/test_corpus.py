"""The corpus builder: what it takes from sources, that what it generates is right, and that the split holds."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from random import Random
from typing import Any

import pytest

from scripts import build_corpus
from scripts.reference import cleaning, corpus, dialogue, facts, math_problems, sources, turns, turns_python, turns_talk

KNOWN = turns.Knowledge(
    definitions=[facts.Definition("math.gcd", "function", "Greatest Common Divisor.")],
    functions=[("Return the sum of two numbers.", "def add(a, b):\n    return a + b")],
    sentences=["The shelf holds many old books."],
)


# -- licences


@pytest.mark.parametrize(
    ("expression", "free"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("BSD-3-Clause AND MIT", True),
        ("MIT AND GPL-2.0-only", False),
        ("MPL-2.0", False),
    ],
)
def test_an_spdx_expression_is_free_where_every_part_offers_a_free_licence(expression: str, free: bool) -> None:
    assert sources.free_licence(expression) is free


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "ISC")], "ISC"),
        ([("Classifier", "License :: OSI Approved :: MIT License")], "MIT License"),
        ([("License", "Apache 2.0")], "Apache 2.0"),
        ([("License", "MIT"), ("Classifier", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)")], None),
        ([("License", "Mozilla Public License 2.0")], None),
        ([("License", "UNKNOWN")], None),
        ([], None),
    ],
)
def test_a_package_without_a_free_licence_is_left_out(fields: list[tuple[str, str]], licence: str | None) -> None:
    class Package(Distribution):
        def read_text(self, filename: str) -> str | None:
            message = Message()
            message["Name"] = "thing"
            for name, value in fields:
                message[name] = value
            return message.as_string() if filename == "METADATA" else None

        def locate_file(self, path: Any) -> Path:
            return Path(path)

    assert sources.package_licence(Package()) == licence


def test_a_source_tree_needs_a_licence_file(tmp_path: Path) -> None:
    assert sources.tree_licence(tmp_path) is None
    with pytest.raises(ValueError, match="has no LICENSE file"):
        sources.find_sources((tmp_path,))
    (tmp_path / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free of charge, to any person ...")
    assert sources.tree_licence(tmp_path) == "MIT"


def test_tests_and_hidden_folders_are_not_walked(tmp_path: Path) -> None:
    for name in ("a.py", "tests/b.py", ".git/c.py", "docs/d.md", "e.so", "LICENSE.txt", "_pb2.py/x_pb2.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.name for file in sources.walk(tmp_path, "tree", "tree 1", "MIT")] == ["tree: a.py", "tree: docs/d.md"]


# -- code

MODULE = '''# Copyright (c) somebody. All rights reserved.
"""What this module is for."""

import os


def first(path):
    """Say whether a path is there.

    This paragraph belongs to the first ones,
    and the list of arguments does not.

    Args:
        path: some path.
    Returns:
        whether it is there.
    """
    found = os.path.exists(path)
    return bool(found)
'''


def _method(i: int) -> str:
    rng = Random(i)
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(24)]
    body = "\n".join(f"        {names[j]} = self.{names[j + 8]}({names[j + 15]})" for j in range(8))
    return f"    def method_{i}(self):\n{body}\n        return {names[0]}\n"


def test_a_short_module_is_one_document_without_its_licence_header() -> None:
    (text,) = cleaning.code_documents(MODULE)
    assert "Copyright" not in text
    assert text.startswith('"""What this module is for."""')
    assert text.endswith("    return bool(found)\n")


def test_a_long_docstring_keeps_its_first_paragraphs() -> None:
    (text,) = cleaning.code_documents(MODULE)
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    docstring = ast.get_docstring(function) or ""
    assert docstring.startswith("Say whether a path is there.\n\nThis paragraph")
    assert "Args" not in docstring


def test_a_long_class_becomes_documents_that_all_parse() -> None:
    source = "class Long(Base):\n\n" + "\n".join(_method(i) for i in range(12)) + "\n\ndef after(x):\n" + "    return x\n"
    documents = cleaning.code_documents(source)
    assert len(documents) >= 2
    for text in documents:
        tree = ast.parse(text)
        assert cleaning.MIN_CODE <= len(text) <= cleaning.MAX_CODE
        assert isinstance(tree.body[0], ast.ClassDef)
        assert tree.body[0].name == "Long"
    names = [node.name for text in documents for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert names == [f"method_{i}" for i in range(12)]


@pytest.mark.parametrize(
    "source",
    [
        "def broken(:\n    pass\n" * 20,
        "# generated by a tool\n" + MODULE,
        "\n".join(f"CONSTANT_{i} = 'value number {i}'" for i in range(80)),
        MODULE.replace("found = ", "mark = '<|im_start|>'; found = "),
        "x = 1\n",
    ],
    ids=["broken", "generated", "table", "template marks", "short"],
)
def test_what_a_model_should_not_read_is_dropped(source: str) -> None:
    assert cleaning.code_documents(source) == []


# -- prose

FIRST = "A variable that has been declared can be used in the rest of the block in which it stands, and nowhere else."
SECOND = "The compiler reports an error when you try to use it outside of that block, because its memory may be gone by then."
THIRD = "Names are looked up from the innermost block to the outermost, and the first one that is found is taken."


def test_html_gives_headings_and_paragraphs_without_code() -> None:
    page = (
        f"<nav><p>Menu of the {FIRST}</p></nav><main><h1>Scopes of <code>let</code></h1><p>{FIRST}</p>"
        "<p>Like this:</p><pre><code>let x = 5;</code></pre>"
        f"<p>{SECOND.replace('an error', '<em>an error</em>')}</p>"
        f"<ul><li>An item of the list that is long enough</li></ul><p>{THIRD}</p></main>"
    )
    (text,) = cleaning.prose_documents(page, ".html")
    assert text == f"# Scopes of `let`\n\n{FIRST}\n\n{SECOND}\n\n- An item of the list that is long enough\n\n{THIRD}\n"


def test_markdown_loses_links_fences_and_badges() -> None:
    linked = SECOND.replace("an error", "[an error](err.md)")
    page = f"# Scopes\n\n![badge](x.svg)\n\n{FIRST}\n\n```rust\nlet x = 5;\n```\n\n{linked}\n\n| a | b |\n|---|---|\n\n{THIRD}\n"
    assert cleaning.prose_documents(page, ".md") == [f"# Scopes\n\n{FIRST}\n\n{SECOND}\n\n{THIRD}\n"]


def test_restructured_text_loses_roles_and_directives() -> None:
    page = f"Scopes\n======\n\n.. note:: x\n\n{FIRST}\n\n{SECOND.replace('an error', ':class:`~pkg.Error`')}\n\n{THIRD}\n"
    (text,) = cleaning.prose_documents(page, ".rst")
    assert text == f"# Scopes\n\n{FIRST}\n\n{SECOND.replace('an error', '`pkg.Error`')}\n\n{THIRD}\n"


def test_docstrings_give_their_descriptions() -> None:
    parameters = "Parameters\n    ----------\n    x : int\n        The number of things that are counted in the list."
    source = f'def scope():\n    """{FIRST}\n\n    {SECOND}\n\n    {THIRD}\n\n    {parameters}\n    """\n'
    assert cleaning.prose_documents(source, ".py") == [f"# `scope`\n\n{FIRST}\n\n{SECOND}\n\n{THIRD}\n"]


def test_text_in_another_language_is_dropped() -> None:
    german = "Eine Variable kann im Rest des Blocks benutzt werden, in dem sie steht, und sonst nirgends, weil sie dann weg ist."
    assert cleaning.prose_documents("\n\n".join([german] * 4), ".md") == []


# -- arithmetic

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b}


def _check_equations(text: str) -> int:
    n_checked = 0
    for left, right, remainder in re.findall(r"(?<![\w.])(-?\d+(?: [+x-] -?\d+)+) = (-?\d+)(, remainder)?", text):
        first, *rest = left.split(" ")
        total = int(first)
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            total = SIGNS[sign](total, int(number))
        assert total == int(right) and not remainder, text
        n_checked += 1
    for a, b, quotient, rest in re.findall(r"(\d+) / (\d+) = (\d+)(?:, remainder (\d+))?", text):
        assert int(quotient) * int(b) + int(rest or 0) == int(a), text
        assert int(rest or 0) < int(b), text
        n_checked += 1
    return n_checked


@pytest.mark.parametrize("maker", [maker for maker, _ in math_problems.KINDS], ids=lambda maker: maker.__name__.strip("_"))
def test_every_equation_in_a_worked_problem_is_true(maker: Any) -> None:
    without_equations = {"comparison", "sorting", "parity", "rounding"}
    n_checked = 0
    for i in range(200):
        question, steps, answer = maker(Random(i))
        assert question[-1] in ".?"
        assert steps and answer
        n_checked += _check_equations("\n".join([*steps, answer]))
    assert n_checked >= 200 or maker.__name__.strip("_") in without_equations


def test_the_written_digits_are_the_answer() -> None:
    for i in range(400):
        rng = Random(i)
        a, b = sorted((math_problems.operand(rng), math_problems.operand(rng)), reverse=True)
        for steps, result in (
            (math_problems.add_steps(a, b), a + b),
            (math_problems.subtract_steps(a, b), a - b),
            (math_problems.times_steps(a, b % 8 + 2), a * (b % 8 + 2)),
        ):
            written = re.findall(r"Write (\d+)", "\n".join(steps))
            assert int("".join(reversed(written))) == result


def test_comparisons_and_sorting_are_right() -> None:
    for i in range(200):
        left, sign, right = math_problems._comparison(Random(i))[2].split(" ")
        assert {"<": int(left) < int(right), ">": int(left) > int(right), "=": left == right}[sign]
        question, _, answer = math_problems._sorting(Random(i))
        numbers = [int(number) for number in answer.split(", ")]
        assert numbers == sorted(numbers, reverse="from greatest" in question)


# -- dialogue


def _messages(text: str) -> list[tuple[str, str]]:
    return re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", text, re.DOTALL)


def test_dialogues_follow_the_template_and_end() -> None:
    texts = [dialogue.render(dialogue.conversation(Random(i), KNOWN)) for i in range(400)]
    for text in texts:
        messages = _messages(text)
        assert "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages) == text
        roles = [role for role, _ in messages if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(content.strip() == content and content for _, content in messages)
    assert len(set(texts)) > 390


@pytest.mark.parametrize("intent", [intent for intent, _ in dialogue.INTENTS], ids=lambda intent: intent.__name__)
def test_every_intent_answers(intent: Any) -> None:
    for i in range(100):
        asked, answer = intent(Random(i), KNOWN)
        assert asked and answer
        assert "{" not in asked.replace("{'", "").replace("{}", "") or "`" in asked
        assert "<|" not in asked + answer


def test_sums_in_dialogues_are_right() -> None:
    for intent in (turns_talk.sum_turn, turns_talk.difference_turn, turns_talk.product_turn):
        for i in range(300):
            _check_equations(intent(Random(i), KNOWN)[1])


def test_python_values_in_dialogues_are_pythons() -> None:
    for i in range(100):
        asked, answer = turns_python.python_value_turn(Random(i), KNOWN)
        expression = re.search(r"`(.*)`", asked)
        assert expression
        assert answer.rstrip(".").endswith(f"`{eval(expression.group(1))!r}`")


def test_a_conversation_asks_only_what_is_accepted_and_nothing_twice() -> None:
    offered: list[str] = []

    def accept(asked: str) -> bool:
        offered.append(asked)
        return len(asked) % 2 == 0

    for i in range(50):
        offered.clear()
        messages = [
            message["content"] for message in dialogue.conversation(Random(i), KNOWN, accept) if message["role"] == "user"
        ]
        refused = [asked for asked in offered if len(asked) % 2]
        assert not set(messages) & set(refused)
        assert len(set(messages)) == len(messages)


# -- the whole


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with forty modules and forty pages."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "LICENSE").write_text("Permission is hereby granted, free of charge, to any person ...")
    for i in range(40):
        words = [f"{name}_{i * 7 + j}" for j, name in enumerate(("read", "join", "count", "split", "sort"))]
        functions = [
            f'def {word}(first_{i}, second_{j}):\n    """Return the {word} of two {words[j - 1]} values."""\n'
            f"    {word}_value = first_{i} + second_{j}\n    return {word}_value * {j}\n"
            for j, word in enumerate(words)
        ]
        (folder / f"module_{i:02d}.py").write_text("\n\n".join(functions))
        paragraphs = [FIRST.replace("variable", words[0]), SECOND.replace("error", words[1]), THIRD.replace("block", words[2])]
        (folder / f"page_{i:02d}.md").write_text("\n\n".join([f"# Page {words[0]}", *paragraphs]) + "\n")
    return folder


def _build(tree: Path, out: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 1) -> dict[str, Any]:
    monkeypatch.setattr(corpus, "find_sources", lambda trees: list(sources.walk(tree, "tree", "tree 1.0", "MIT")))
    monkeypatch.setattr(
        corpus.facts,
        "definitions",
        lambda: [facts.Definition(f"mod.f{i}", "function", f"Return the value number {i}.") for i in range(400)],
    )
    return corpus.build(out, seed=seed, megabytes=0.4, say=lambda line: None)


def _documents(out: Path, side: str) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for file in sorted((out / side).glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def test_the_same_seed_gives_the_same_bytes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (_build(tree, tmp_path / name, monkeypatch, seed)["files"] for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one == two
    assert one != three
    for name, facts_of_file in one.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == facts_of_file["sha256"]


def test_no_file_and_no_text_is_on_both_sides(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(tree, tmp_path / "out", monkeypatch)
    train, held = _documents(tmp_path / "out", "train"), _documents(tmp_path / "out", "heldout")
    assert {each["kind"] for each in train} == set(corpus.KINDS)
    assert all(set(each) == {"text", "kind", "source", "licence"} for each in train + held)

    def files(documents: list[dict[str, str]]) -> set[str]:
        return {each["source"] for each in documents if not each["source"].startswith("generated")}

    assert files(train) and files(held)
    assert not files(train) & files(held)
    assert not {each["text"] for each in train} & {each["text"] for each in held}

    def questions(documents: list[dict[str, str]]) -> set[str]:
        return {
            question
            for each in documents
            if each["kind"] == "math"
            for question in re.findall(r"^Problem: (.*)$", each["text"], re.MULTILINE)
        }

    assert questions(held)
    assert not questions(train) & questions(held)


def test_the_manifest_sums_the_sources(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = _build(tree, tmp_path / "out", monkeypatch)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")) == manifest
    assert sum(source["bytes"] for source in manifest["sources"]) == sum(
        file["text_bytes"] for file in manifest["files"].values()
    )
    assert {source["licence"] for source in manifest["sources"] if source["package"] == "tree 1.0"} == {"MIT"}
    assert str(tmp_path) not in json.dumps(manifest)


def test_what_the_workloads_show_is_held_out_whatever_the_seed() -> None:
    shown = [prompt.source for name in ("code", "prose") for prompt in corpus.workloads.load(name)]
    assert shown
    assert all(corpus.held_out(name, seed) for name in shown for seed in (1, 2, 3))


def test_a_repeated_document_and_a_repeated_paragraph_are_told() -> None:
    novelty = corpus.Novelty()
    text = "\n".join(f"line number {i}" for i in range(20))
    assert novelty.code(text)
    assert not novelty.code(text + "\nand one more line")
    assert novelty.prose(f"# One\n\n{FIRST}\n\n# Two\n\n{SECOND}\n")
    assert novelty.prose(f"# Three\n\n{FIRST}\n\n# Four\n\n{THIRD}\n") == f"# Four\n\n{THIRD}\n"


def test_functions_for_dialogues_come_with_their_task() -> None:
    code = corpus.Document(
        'def area(width, height):\n    """Return the area of a rectangle."""\n    area = width * height\n    return area\n',
        "code",
        "tree: shapes.py",
        "MIT",
    )
    known = corpus.knowledge([code], [], [])
    assert known.functions == [("Return the area of a rectangle.", code.text.rstrip("\n"))]
    assert corpus.knowledge([], [], []).functions == facts.FUNCTIONS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--megabytes", "0"], "--megabytes must be positive, got 0"),
        (["--source-tree", "{empty}"], "has no LICENSE file with a free licence"),
    ],
)
def test_the_script_refuses_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = build_corpus.main([str(tmp_path / "out"), *(each.format(empty=tmp_path) for each in arguments)])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code > 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
