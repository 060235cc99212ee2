"""Builds the reference models' corpus: code, prose, worked arithmetic and dialogue, split into training and held-out text.

Deterministic: the same machine, seed and size give the same bytes. Does not know the tokenizer; a document carries no
end mark, the trainer puts one after each.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from entmtp_local.bench import workloads
from scripts.reference import facts
from scripts.reference.cleaning import code_documents, prose_documents
from scripts.reference.dialogue import conversation, render
from scripts.reference.math_problems import worksheet
from scripts.reference.sources import SourceFile, find_sources
from scripts.reference.turns import Knowledge

KINDS = ("code", "math", "chat", "prose")
# Shares of the bytes asked for; the trainer weighs the kinds once more. Prose takes what the machine has.
SHARES = {"code": 0.44, "math": 0.14, "chat": 0.20, "prose": 0.22}
HELD_OUT_PERCENT = 5
# What perplexity is measured on; chosen by heldout.py.
SHIPPED_HELDOUT = Path(__file__).resolve().parents[2] / "models" / "heldout"
MAX_PACKAGE_SHARE = {"code": 0.12, "prose": 0.2}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Document:
    """One line of a corpus file."""

    text: str
    kind: str
    source: str
    licence: str


@lru_cache(maxsize=1)
def _in_workloads() -> frozenset[str]:
    """Files and questions that the shipped workloads show, and files of the shipped sample: held out whatever the seed."""
    names: set[str] = set()
    for workload in workloads.NAMES:
        for prompt in workloads.load(workload):
            names.add(prompt.source)
            names.update(message.content for message in prompt.messages or () if message.role == "user")
            names.update(re.findall(r"^Problem: (.*)$", prompt.text or "", re.MULTILINE))
    for kind in ("code", "prose"):
        with (SHIPPED_HELDOUT / f"{kind}.jsonl").open(encoding="utf-8") as lines:
            names.update(json.loads(line)["source"] for line in lines)
    return frozenset(names)


def held_out(name: str, seed: int) -> bool:
    """Whether a file (by its name in the manifest) or a generated question belongs to the held-out text."""
    if name in _in_workloads():
        return True
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


class Novelty:
    """Tells new text from text seen before, so that no document comes twice, nor in training and held-out text."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def _new(self, piece: str) -> bool:
        key = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "big")
        new = key not in self._seen
        self._seen.add(key)
        return new

    def code(self, text: str) -> bool:
        """Whether at least half of the runs of three lines are new."""
        lines = [line for line in (raw.strip() for raw in text.split("\n")) if len(line) > 3]
        new = [self._new("\n".join(lines[i : i + 3])) for i in range(max(1, len(lines) - 2))]
        return sum(new) >= 0.5 * len(new)

    def prose(self, text: str) -> str:
        """The document without the paragraphs that stood in one before, headings that lost their text included."""
        kept: list[str] = []
        for paragraph in text.strip().split("\n\n"):
            if paragraph.startswith("# "):
                if kept and kept[-1].startswith("# "):
                    kept.pop()
                kept.append(paragraph)
            elif self._new(" ".join(paragraph.lower().split())):
                kept.append(paragraph)
        while kept and kept[-1].startswith("# "):
            kept.pop()
        return "\n\n".join(kept) + "\n" if kept else ""


def _in_turn(files: list[SourceFile], seed: int) -> Iterator[SourceFile]:
    """Files of all packages in turn, so that a size limit takes from the large ones and leaves the small ones whole."""
    packages: dict[str, list[SourceFile]] = defaultdict(list)
    for file in files:
        packages[file.package].append(file)
    for name, members in packages.items():
        Random(f"{seed}/{name}").shuffle(members)
    while packages:
        for name in list(packages):
            # The standard library is the best-kept Python there is: more of it earlier.
            for _ in range(4 if "standard library" in name else 1):
                if packages[name]:
                    yield packages[name].pop()
            if not packages[name]:
                del packages[name]


def collect(files: list[SourceFile], seed: int, n_bytes: dict[str, int], say: Say) -> dict[str, list[Document]]:
    """Code and prose documents of source files, up to a number of bytes a kind.

    Args:
        files: what may be read.
        seed: decides which files are held out and the order of reading.
        n_bytes: limits for "code" and "prose".
        say: gets a line of progress now and then.
    Returns: documents by kind, in the order of reading.
    """
    novelty = {"code": Novelty(), "prose": Novelty()}
    found: dict[str, list[Document]] = {"code": [], "prose": []}
    size: Counter[str] = Counter()
    by_package: Counter[tuple[str, str]] = Counter()
    for i, file in enumerate(_in_turn(files, seed)):
        if i % 2_000 == 0:
            say(f"{i} of {len(files)} files read, {size['code'] / 1e6:.1f} MB of code, {size['prose'] / 1e6:.1f} MB of prose")
        wanted = [
            kind
            for kind in ("code", "prose")
            if size[kind] < n_bytes[kind]
            and by_package[kind, file.package] < max(200_000, MAX_PACKAGE_SHARE[kind] * n_bytes[kind])
            and (kind == "prose" or file.path.suffix == ".py")
        ]
        if all(size[kind] >= limit for kind, limit in n_bytes.items()):
            break
        if not wanted:
            continue
        try:
            text = file.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for kind in wanted:
            documents = code_documents(text) if kind == "code" else prose_documents(text, file.path.suffix.lower())
            for document in documents:
                if kind == "prose":
                    document = novelty[kind].prose(document)
                    if len(document) < 200:
                        continue
                elif not novelty[kind].code(document):
                    continue
                found[kind].append(Document(document, kind, file.name, file.licence))
                size[kind] += len(document)
                by_package[kind, file.package] += len(document)
    return found


# "Return the ...", "Compute ...", "Checks whether ...": what can be asked for in words.
_TASK = re.compile(r"[A-Z][a-z]+ [a-z`\"'(]")


def _documented(node: ast.stmt, module: str) -> Iterator[tuple[str, facts.Definition]]:
    """The public names that a statement defines, with the beginning of their documentation."""
    for member in [node, *node.body] if isinstance(node, ast.ClassDef) else [node]:
        if not isinstance(member, ast.FunctionDef | ast.ClassDef) or member.name.startswith(("_", "test_")):
            continue
        text = facts.first_sentences(ast.get_docstring(member) or "", 200)
        if not text:
            continue
        if isinstance(node, ast.ClassDef) and member is not node:
            name, what = f"{node.name}.{member.name}", "method"
        elif isinstance(member, ast.FunctionDef):
            name, what = f"{module}.{member.name}", "function"
        else:
            name, what = member.name, "class"
        yield name, facts.Definition(name, what, text)


def _asked_for(node: ast.FunctionDef, text: str) -> tuple[str, str] | None:
    """A short function with the task its docstring states, or with none where it has no docstring."""
    source = "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])
    if node.decorator_list or len(source) > 900 or not 3 <= source.count("\n") <= 25 or node.name.startswith("test_"):
        return None
    documentation = ast.get_docstring(node)
    if documentation:
        sentence = facts.first_sentences(documentation, 200).split(". ")[0].rstrip(".") + "."
        return (sentence, source) if _TASK.match(sentence) else None
    # Without a docstring the name has to say it all.
    plain = "_" in node.name.strip("_") and len(node.name) > 8 and source.split("\n", 1)[0].endswith("):") and len(source) < 500
    return ("", source) if plain else None


def knowledge(code: list[Document], prose: list[Document], definitions: list[facts.Definition]) -> Knowledge:
    """What dialogues may draw on, from one side of the split.

    Args:
        code, prose: that side's documents.
        definitions: that side's share of Python's own documentation.
    """
    functions: dict[str, tuple[str, str]] = {}
    more: dict[str, facts.Definition] = {}
    for document in code:
        module = Path(document.source.split(": ")[-1]).stem.strip("_")
        for node in ast.parse(document.text).body:
            for name, definition in _documented(node, module):
                more.setdefault(name, definition)
            if isinstance(node, ast.FunctionDef):
                asked = _asked_for(node, document.text)
                if asked:
                    functions.setdefault(node.name, asked)
    sentences = [
        sentence
        for document in prose
        for paragraph in document.text.split("\n")
        if not paragraph.startswith(("#", "-"))
        for sentence in re.findall(r"(?:^|(?<=\. ))[A-Z][a-z]*(?: [a-z]+[,]?){3,9} [a-z]+\.(?= |$)", paragraph)
    ]
    # A third of the questions on definitions go to Python itself: those names come up often enough to be learnt.
    return Knowledge(
        definitions=definitions + list(more.values())[: 2 * len(definitions)],
        functions=list(functions.values()) or facts.FUNCTIONS,
        sentences=sentences or facts.SENTENCES,
    )


def _generated(kind: str, side: str, seed: int, n_bytes: int, write: Callable[[Random], str]) -> list[Document]:
    documents: list[Document] = []
    seen: set[str] = set()
    size = 0
    for i in count():
        text = write(Random(f"{seed}/{kind}/{side}/{i}"))
        if size >= n_bytes or i > 40 * (len(documents) + 1_000):
            return documents
        if text not in seen:
            seen.add(text)
            documents.append(
                Document(
                    text, kind, f"generated {kind}", "MIT" if kind == "math" else "MIT; quotations under their sources' licences"
                )
            )
            size += len(text)
    raise AssertionError("unreachable")


def _manifest(
    documents: dict[str, list[Document]], files: dict[str, dict[str, Any]], packages: dict[str, str], seed: int, megabytes: float
) -> dict[str, Any]:
    sums: dict[tuple[str, str, str, str], Counter[str]] = defaultdict(Counter)
    names: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    for side, members in documents.items():
        for each in members:
            name = each.source.split(": ")[0]
            key = (each.kind, packages.get(name, name), each.licence, side)
            sums[key].update(documents=1, bytes=len(each.text.encode()))
            names[key].add(each.source)
    return {
        "format": 1,
        "seed": seed,
        "megabytes": megabytes,
        "python": platform.python_version(),
        "held_out_percent": HELD_OUT_PERCENT,
        "files": files,
        "sources": [
            {
                "kind": kind,
                "package": package,
                "licence": licence,
                "side": side,
                "files": len(names[kind, package, licence, side]),
                **dict(total),
            }
            for (kind, package, licence, side), total in sorted(sums.items())
        ],
    }


def build(out: Path, *, seed: int = 1, megabytes: float = 90, trees: tuple[Path, ...] = (), say: Say = print) -> dict[str, Any]:
    """Write OUT/train/*.jsonl, OUT/heldout/*.jsonl and OUT/manifest.json.

    Args:
        out: the folder, made where it does not exist.
        seed: decides the split, the order and everything generated.
        megabytes: about how much text, all kinds together.
        trees: further source trees, each with a LICENSE file.
        say: gets progress lines.
    Returns: the manifest.
    Raises: ValueError where a tree's licence cannot be told.
    """
    wanted = {kind: int(share * megabytes * 1e6) for kind, share in SHARES.items()}
    sources = find_sources(trees)
    real = collect(sources, seed, {kind: wanted[kind] for kind in ("code", "prose")}, say)
    documents: dict[str, list[Document]] = {"train": [], "heldout": []}
    all_definitions = facts.definitions()
    for side in documents:
        ours = side == "heldout"
        parts = {kind: [each for each in members if held_out(each.source, seed) == ours] for kind, members in real.items()}
        known = knowledge(parts["code"], parts["prose"], [each for each in all_definitions if held_out(each.name, seed) == ours])
        counts = f"{len(known.definitions)} definitions, {len(known.functions)} functions, {len(known.sentences)} sentences"
        say(f"{side}: dialogues draw on {counts}")
        share = (HELD_OUT_PERCENT if ours else 100 - HELD_OUT_PERCENT) / 100

        def accept(question: str, ours: bool = ours) -> bool:
            return held_out(question, seed) == ours

        def math(rng: Random, accept: Callable[[str], bool] = accept) -> str:
            return worksheet(rng, accept)

        def chat(rng: Random, accept: Callable[[str], bool] = accept, known: Knowledge = known) -> str:
            return render(conversation(rng, known, accept))

        parts["math"] = _generated("math", side, seed, int(share * wanted["math"]), math)
        # Definitions, functions and sentences are split by file already; questions on them need no second split.
        parts["chat"] = _generated("chat", side, seed, int(share * wanted["chat"]), chat)
        documents[side] = [each for kind in KINDS for each in parts[kind]]

    files: dict[str, dict[str, Any]] = {}
    for side, members in documents.items():
        (out / side).mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            chosen = [each for each in members if each.kind == kind]
            Random(f"{seed}/{side}/{kind}").shuffle(chosen)
            data = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in chosen).encode()
            (out / side / f"{kind}.jsonl").write_bytes(data)
            text_bytes = sum(len(each.text.encode()) for each in chosen)
            files[f"{side}/{kind}.jsonl"] = {
                "documents": len(chosen),
                "text_bytes": text_bytes,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            say(f"{side}/{kind}: {len(chosen)} documents, {text_bytes / 1e6:.1f} MB")
    packages = {file.name.split(": ")[0]: file.package for file in sources}
    manifest = _manifest(documents, files, packages, seed, megabytes)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest
