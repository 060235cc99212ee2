"""llama.cpp and the tokenizer that the reference models are trained with split the same text into the same ids."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from unicodedata import ucd_3_2_0

import numpy as np
import pytest

from entmtp_local.bench import workloads
from entmtp_local.native import library

pytest.importorskip("tokenizers", reason="the tokenizers package is not installed: pip install -e '.[dev]'")

import gguf

from scripts.reference import tokenizer as reference

REPOSITORY = Path(__file__).resolve().parents[2]
N_LINES = 10_000
N_VOCAB = 1_024

SCRIPTS = "äöüßéèñçøåšž αβγδεζ абвгд כלםןא ابتثج हिन्दी ไทยภาษา 中文字符漢 ひらがなカタカナ 한국어"
SCRIPTS += "ǅﬁⅧ²³½٣४๕𝟗 a\u0301o\u0308 \u200d\u200b\ufeff 😀👩‍👩‍👧🇩🇪"
SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\t\t ",
    "\n",
    "\n\n",
    " \n",
    "\n ",
    "\r\n",
    "\r",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x0b",
    "\x0c",
    "\u0085",
    "\u2028",
)
MARKS = (
    "'s",
    "'S",
    "'T",
    "'re",
    "'LL",
    "'x",
    "’s",
    "''",
    "...",
    "==",
    "!=",
    "->",
    "<|",
    "|>",
    "</",
    "$1,000.00",
    "#",
    "@x",
    "__init__",
    "`a`",
    "\\n",
    "\x00",
    "\x7f",
)


def _texts() -> list[str]:
    return [
        path.read_text(encoding="utf-8")
        for folder in ("entmtp_local", "scripts", "tests")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    ]


def _character(rng: random.Random) -> str:
    """Any one that has been in Unicode for long: of newer ones two libraries may not know alike whether they are letters."""
    while True:
        found = chr(rng.choice((rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x30000))))
        if ucd_3_2_0.category(found) != "Cn":
            return found


def _lines() -> list[str]:
    """Real lines and invented ones: scripts of many kinds, odd white space, digits, contractions."""
    rng = random.Random(7)
    lines = [line for text in _texts() for line in text.split("\n")]
    for name in workloads.NAMES:
        for prompt in workloads.load(name):
            lines.append(prompt.text or "\n".join(message.content for message in prompt.messages or ()))
    lines = rng.sample(lines, min(len(lines), N_LINES // 2))
    words = [word for line in lines for word in line.split()]
    while len(lines) < N_LINES:
        parts = []
        for _ in range(rng.randrange(1, 12)):
            parts.append(
                rng.choice(
                    (
                        rng.choice(words),
                        rng.choice(words),
                        str(rng.randrange(10 ** rng.randrange(1, 12))),
                        "".join(rng.choice(SCRIPTS) for _ in range(rng.randrange(1, 6))),
                        rng.choice(MARKS),
                        rng.choice(SPACES) * rng.randrange(1, 4),
                        _character(rng),
                    )
                )
            )
            parts.append(rng.choice(("", "", " ", " ", rng.choice(SPACES))))
        lines.append("".join(parts))
    return lines


@pytest.fixture(scope="module")
def trained() -> reference.Tokenizer:
    return reference.train_tokenizer(_texts(), N_VOCAB)


@pytest.fixture(scope="module")
def tokenize(
    trained: reference.Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, bool], list[int]]]:
    """llama.cpp's tokenizer, from a file that holds the vocabulary and nothing else."""
    fields = reference.gguf_fields(trained)
    path = tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    writer = gguf.GGUFWriter(str(path), "qwen35")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(reference.PRE_TOKENIZER)
    writer.add_token_list(fields.tokens)
    writer.add_token_types(fields.types)
    writer.add_token_merges(fields.merges)
    writer.add_eos_token_id(fields.eos)
    writer.add_pad_token_id(fields.eot_text)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    llama = library.load()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model, "the vocabulary does not load"
    vocab = llama.llama_model_get_vocab(model)

    def call(text: str, special: bool) -> list[int]:
        raw = text.encode()
        ids = np.empty(len(raw) + 8, dtype=np.int32)
        pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        n = llama.llama_tokenize(vocab, raw, len(raw), pointer, len(ids), False, special)
        assert n >= 0
        return [int(i) for i in ids[:n]]

    yield call
    llama.llama_model_free(model)


def test_ten_thousand_lines_have_the_same_ids(trained: reference.Tokenizer, tokenize: Callable[[str, bool], list[int]]) -> None:
    lines = _lines()
    assert len(lines) == N_LINES
    ours = [encoding.ids for encoding in trained.encode_batch(lines, add_special_tokens=False)]
    differing = [line for line, ids in zip(lines, ours, strict=True) if tokenize(line, True) != ids]
    assert not differing, f"{len(differing)} lines differ, the first is {differing[0]!r}"


def test_whole_files_have_the_same_ids(trained: reference.Tokenizer, tokenize: Callable[[str, bool], list[int]]) -> None:
    for text in _texts()[:20]:
        assert tokenize(text, True) == trained.encode(text, add_special_tokens=False).ids


def test_the_template_marks_are_single_ids(trained: reference.Tokenizer, tokenize: Callable[[str, bool], list[int]]) -> None:
    conversation = (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n</think>4<|im_end|>\n<|endoftext|>"
    )
    ids = tokenize(conversation, True)
    assert ids == trained.encode(conversation, add_special_tokens=False).ids
    first = trained.token_to_id("<|endoftext|>")
    assert [i - first for i in ids if i >= first] == [1, 2, 1, 3, 4, 2, 0]


def test_ids_decode_to_the_text(trained: reference.Tokenizer) -> None:
    for line in _lines()[:: N_LINES // 500]:
        assert trained.decode(trained.encode(line, add_special_tokens=False).ids, skip_special_tokens=False) == line
