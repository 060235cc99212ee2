"""The reference tokenizer: its ids, its special tokens, and what a GGUF file is told about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="the tokenizers package is not installed: pip install -e '.[dev]'")

from scripts.reference import tokenizer as reference

N_VOCAB = 512
TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py"))]


@pytest.fixture(scope="module")
def trained() -> reference.Tokenizer:
    return reference.train_tokenizer(TEXTS, N_VOCAB)


def test_the_special_tokens_are_the_last_ids_in_order(trained: reference.Tokenizer) -> None:
    assert trained.get_vocab_size(with_added_tokens=True) == N_VOCAB
    assert [trained.token_to_id(token) for token in reference.SPECIAL] == list(range(N_VOCAB - 21, N_VOCAB))
    assert reference.SPECIAL[:5] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x\n", "Ünïcödé 漢字 😀\x00\u2028", "  two  spaces \n\n", "12345 + 67", "It's <|im_end|>!"]
)
def test_text_comes_back(trained: reference.Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_every_digit_is_its_own_token(trained: reference.Tokenizer) -> None:
    assert trained.encode("2026", add_special_tokens=False).tokens == ["2", "0", "2", "6"]


def test_a_document_ends_with_the_end_mark(trained: reference.Tokenizer) -> None:
    ids = reference.encode_document(trained, "<|im_start|>user\nHi<|im_end|>\n")
    special = [i for i in ids if i >= N_VOCAB - 21]
    assert [reference.SPECIAL[i - (N_VOCAB - 21)] for i in special] == ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert ids[-1] == special[-1]


def test_special_tokens_in_the_sample_are_not_learnt_as_text() -> None:
    trained = reference.train_tokenizer([*TEXTS, "<|im_start|>user\nHi<|im_end|>\n" * 5_000], N_VOCAB)
    assert not [token for token in trained.get_vocab(with_added_tokens=False) if "im_s" in token or "im_e" in token]


def test_the_same_text_gives_the_same_tokenizer(trained: reference.Tokenizer) -> None:
    assert reference.train_tokenizer(TEXTS, N_VOCAB).to_str() == trained.to_str()


def test_saved_and_loaded_is_the_same(trained: reference.Tokenizer, tmp_path: Path) -> None:
    reference.save(trained, tmp_path / "sub" / "tokenizer.json")
    assert reference.load(tmp_path / "sub" / "tokenizer.json").to_str() == trained.to_str()


def test_gguf_fields(trained: reference.Tokenizer) -> None:
    fields = reference.gguf_fields(trained)
    assert len(fields.tokens) == len(fields.types) == N_VOCAB
    assert fields.tokens[-21:] == list(reference.SPECIAL)
    assert fields.types == [1] * (N_VOCAB - 21) + [3, 3, 3, 4, 4] + [3] * 16
    assert len(fields.merges) == N_VOCAB - 21 - 256
    assert all("".join(merge.split(" ")) in fields.tokens for merge in fields.merges)
    assert (fields.tokens[fields.eos], fields.tokens[fields.eot_text]) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("n_vocab", [100, 256, 513])
def test_a_size_that_does_not_fit_is_refused(n_vocab: int) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        reference.train_tokenizer(TEXTS, n_vocab)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="take more text"):
        reference.train_tokenizer(["abc"], N_VOCAB)


def test_the_sample_takes_more_of_the_texts_that_people_wrote(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for kind in ("code", "math", "chat", "prose"):
        lines = [json.dumps({"text": f"{kind} {i:05d} " + "x" * 88}) for i in range(1_000)]
        (tmp_path / "train" / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    sample = reference.balanced_sample(tmp_path, 50_000)
    counts = {kind: sum(text.startswith(kind) for text in sample) for kind in ("code", "math", "chat", "prose")}
    assert min(counts["code"], counts["prose"]) > 3.5 * max(counts["math"], counts["chat"]) > 0
    assert reference.balanced_sample(tmp_path, 50_000) == sample
