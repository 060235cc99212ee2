"""The reference models' tokenizer: byte-level BPE with the pre-tokenizer that llama.cpp calls "qwen2".

Needs the `tokenizers` package (a training extra). Does not know the corpus' files; that llama.cpp splits text the same way
is checked by tests/native/test_tokenizer_agreement.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

# src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2. Its "original regex" has (?i:...); what it runs is this one.
QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZER = "qwen2"  # tokenizer.ggml.pre

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, THINK_END = "<think>", "</think>"
# Never in any text, so that a trained model gives them no probability; widening pads the vocabulary with their rows.
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(16))
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, THINK, THINK_END, *RESERVED)

# llama_token_type in gguf-py's constants.TokenType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


@dataclass(frozen=True, slots=True)
class GgufVocab:
    """What a GGUF file says about a byte-level BPE vocabulary.

    Args:
        tokens: text of every id, bytes written as GPT-2's visible characters.
        types: llama_token_type of every id.
        merges: "left right", best first.
        eos: the id that ends a turn.
        eot_text: the id that ends a document; also the padding id.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    eos: int
    eot_text: int


def _new(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    # ByteLevel's own pattern is off: the qwen2 pattern has split before.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> Tokenizer:
    """Train a byte-level BPE whose last ids are the special tokens.

    Args:
        texts: the sample to train on; special tokens in it are cut out first.
        n_vocab: ids altogether, a multiple of 64 and at least 320.
    Returns: a tokenizer with exactly n_vocab ids: 256 bytes, merges, then SPECIAL in its order.
    Raises: ValueError for a size that does not fit, or for too little text to find that many merges.
    """
    if n_vocab % 64 or n_vocab < 320:
        raise ValueError(f"The vocabulary needs a multiple of 64 of at least 320 ids, got {n_vocab}.")
    n_learnt = n_vocab - len(SPECIAL)
    tokenizer = _new({}, [])
    trainer = BpeTrainer(
        vocab_size=n_learnt, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_without_special(texts), trainer)
    if tokenizer.get_vocab_size() != n_learnt:
        raise ValueError(
            f"The text gives only {tokenizer.get_vocab_size()} of {n_learnt} ids: take more text or a smaller vocabulary."
        )
    for token in SPECIAL:
        # As in Qwen's files: <think> is one id but text to a reader, not a control mark.
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in (THINK, THINK_END))])
    return tokenizer


def _without_special(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for token in SPECIAL:
            text = text.replace(token, "\n")
        yield text


def balanced_sample(corpus: Path, n_bytes: int, seed: int = 1) -> list[str]:
    """Documents of a corpus' training part, balanced by kind.

    Args:
        corpus: a folder that build_corpus.py wrote.
        n_bytes: of all kinds together.
        seed: which documents.
    Returns: the texts; a kind that is smaller than its share is taken whole.
    """
    files = sorted((corpus / "train").glob("*.jsonl"))
    texts: list[str] = []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        Random(f"{seed}/{file.name}").shuffle(lines)
        # Digits are split one by one and chat repeats its phrases: of the generated kinds a quarter as much is enough.
        left = n_bytes * (0.1 if file.stem in {"math", "chat"} else 0.4)
        for line in lines:
            text = json.loads(line)["text"]
            left -= len(text.encode())
            if left < 0:
                break
            texts.append(text)
    return texts


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def load(path: Path) -> Tokenizer:
    """Read tokenizer.json."""
    return Tokenizer.from_file(str(path))


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """A document's ids with the end mark after it. Special tokens written in the text become their ids."""
    return [*tokenizer.encode(text, add_special_tokens=False).ids, int(tokenizer.token_to_id(END_OF_TEXT))]


def gguf_fields(tokenizer: Tokenizer) -> GgufVocab:
    """The tokens, types and merges that the `gguf` package writes.

    Raises: ValueError where the ids have a gap.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    by_id = {number: token for token, number in vocab.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError("The tokenizer's ids have gaps; llama.cpp needs ids 0 to n - 1.")
    added = tokenizer.get_added_tokens_decoder()
    types = [(_CONTROL if added[i].special else _USER_DEFINED) if i in added else _NORMAL for i in range(len(by_id))]
    merges = [" ".join(pair) if not isinstance(pair, str) else pair for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return GgufVocab(
        tokens=[by_id[i] for i in range(len(by_id))],
        types=types,
        merges=merges,
        eos=int(tokenizer.token_to_id(TURN_END)),
        eot_text=int(tokenizer.token_to_id(END_OF_TEXT)),
    )
