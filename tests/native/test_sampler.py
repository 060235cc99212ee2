"""The sampler chain against llama.cpp itself, and the ways in which a grammar could end the process."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from entmtp_local.cli.models import shipped_model
from entmtp_local.errors import EngineError, UsageError
from entmtp_local.native import library
from entmtp_local.native.log import LogCapture
from entmtp_local.native.sampler import Sampler, check_grammar
from entmtp_local.speculative.sampling import SamplingOptions

Row = npt.NDArray[np.float32]


class Vocabulary:
    """The shipped model's vocabulary, without its weights."""

    def __init__(self) -> None:
        self.llama: Any = library.load()
        self._log = LogCapture(self.llama, verbose=False)
        params = self.llama.llama_model_default_params()
        params.vocab_only = True
        self._model = self.llama.llama_model_load_from_file(str(shipped_model()).encode(), params)
        assert self._model
        self.vocab = self.llama.llama_model_get_vocab(self._model)
        self.n_vocab = int(self.llama.llama_vocab_n_tokens(self.vocab))
        self.eog = [token for token in range(self.n_vocab) if self.llama.llama_vocab_is_eog(self.vocab, token)]

    def sampler(self, **values: Any) -> Sampler:
        return Sampler(self.vocab, self.n_vocab, SamplingOptions(**values))

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = self.llama.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:n]

    def rows(self, n: int, seed: int = 0) -> Row:
        return (3 * np.random.default_rng(seed).normal(size=(n, self.n_vocab))).astype(np.float32)

    def text(self, sampler: Sampler, n_most: int = 60) -> bytes:
        """What a sampler makes of random rows until it ends."""
        text = b""
        for row in self.rows(n_most):
            token = sampler.sample_logits(row)
            if token in self.eog:
                break
            text += self.piece(token)
        return text

    def close(self) -> None:
        self.llama.llama_model_free(self._model)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    vocabulary = Vocabulary()
    yield vocabulary
    vocabulary.close()


def test_greedy_is_the_arg_max(vocabulary: Vocabulary) -> None:
    with vocabulary.sampler(temp=0.0) as sampler:
        assert sampler.greedy
        for row in vocabulary.rows(5):
            assert sampler.sample_logits(row) == int(np.argmax(row))
        with pytest.raises(EngineError, match="NaN"):
            sampler.sample_logits(np.full(vocabulary.n_vocab, np.nan, dtype=np.float32))
    # The chain with a temperature of 0 agrees: only the way is longer.
    with vocabulary.sampler(temp=0.0, logit_bias=((0, -1.0),)) as sampler:
        assert not sampler.greedy
        for row in vocabulary.rows(5):
            row[0] = -100
            assert sampler.sample_logits(row) == int(np.argmax(row))


def test_a_seed_fixes_the_tokens(vocabulary: Vocabulary) -> None:
    rows = vocabulary.rows(40)

    def tokens(sampler: Sampler) -> list[int]:
        return [sampler.sample_logits(row) for row in rows]

    with vocabulary.sampler(seed=5) as one, vocabulary.sampler(seed=5) as same, vocabulary.sampler(seed=6) as other:
        first = tokens(one)
        assert tokens(same) == first != tokens(other)
        assert tokens(one) != first
        one.reset()
        assert tokens(one) == first
    with vocabulary.sampler() as drawn, vocabulary.sampler(seed=drawn.seed) as again:
        assert tokens(drawn) == tokens(again)


@pytest.mark.parametrize(
    "values",
    [{}, {"top_k": 0, "top_p": 0.8}, {"min_p": 0.3}, {"temp": 1.7, "repeat_penalty": 1.3, "presence_penalty": 0.5}],
)
def test_the_chain_is_the_one_of_llama_cpp(vocabulary: Vocabulary, values: dict[str, Any]) -> None:
    """Independent of the class: the samplers called one by one in the order of common_sampler_init."""
    llama = vocabulary.llama
    options = SamplingOptions(seed=11, **values)
    members = [
        llama.llama_sampler_init_penalties(
            vocabulary.n_vocab, 64, options.repeat_penalty, options.frequency_penalty, options.presence_penalty
        ),
        llama.llama_sampler_init_top_k(options.top_k),
        llama.llama_sampler_init_top_p(options.top_p, 0),
        llama.llama_sampler_init_min_p(options.min_p, 0),
        llama.llama_sampler_init_temp_ext(options.temp, 0.0, 1.0),
        llama.llama_sampler_init_dist(11),
    ]
    with Sampler(vocabulary.vocab, vocabulary.n_vocab, options) as sampler:
        for row in vocabulary.rows(20):
            data = (llama.llama_token_data * vocabulary.n_vocab)(
                *((token, logit, 0.0) for token, logit in enumerate(row.tolist()))
            )
            array = llama.llama_token_data_array(data, len(data), -1, False)
            for member in members:
                llama.llama_sampler_apply(member, ctypes.byref(array))
            wanted = array.data[array.selected].id
            for member in members:
                llama.llama_sampler_accept(member, wanted)
            assert sampler.sample_logits(row) == wanted
    for member in members:
        llama.llama_sampler_free(member)


def test_samples_follow_the_distribution(vocabulary: Vocabulary) -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    row = np.full(vocabulary.n_vocab, -np.inf, dtype=np.float32)
    row[:4] = np.log(probabilities)
    n = 4000
    with vocabulary.sampler(temp=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1) as sampler:
        counts = np.bincount([sampler.sample_logits(row) for _ in range(n)], minlength=4)
    assert len(counts) == 4
    chi_square = float(np.sum((counts - n * probabilities) ** 2 / (n * probabilities)))
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_a_token_that_is_taken_counts_as_one_that_was_chosen(vocabulary: Vocabulary) -> None:
    row = np.zeros(vocabulary.n_vocab, dtype=np.float32)
    row[7], row[8], row[9] = 3.0, 2.5, 2.0
    with vocabulary.sampler(temp=0.0, presence_penalty=1.0) as sampler:
        sampler.take(7)
        assert sampler.sample_logits(row) == 8
        sampler.reset()
        assert sampler.sample_logits(row) == 7
    rows = vocabulary.rows(20)
    with vocabulary.sampler(seed=3) as one, vocabulary.sampler(seed=3) as other:
        for row in rows:
            one.take(5)
            assert one.sample_logits(row) == other.sample_logits(row), "no random number was drawn for it"


def test_a_token_that_the_grammar_refuses_cannot_be_taken(vocabulary: Vocabulary) -> None:
    yes, no = (next(t for t in range(vocabulary.n_vocab) if vocabulary.piece(t) == text) for text in (b"y", b"n"))
    with vocabulary.sampler(temp=0.0, grammar='root ::= "y" "n" "y"') as sampler:
        sampler.take(yes)
        with pytest.raises(EngineError, match=f"does not allow token {yes} "):
            sampler.take(yes)
        sampler.take(no)
        assert vocabulary.text(sampler) == b"y"


def test_biases_of_a_row(vocabulary: Vocabulary) -> None:
    row = vocabulary.rows(1)[0]
    row.setflags(write=False)
    with vocabulary.sampler() as sampler:
        assert sampler.biased(row) is row
    with vocabulary.sampler(temp=0.0, logit_bias=((5, 40.0), (7, -math.inf), (5, 2.0))) as sampler:
        biased = sampler.biased(row)
        assert biased[5] == np.float32(row[5] + 42) and biased[7] == -np.inf
        assert np.array_equal(np.delete(biased, [5, 7]), np.delete(row, [5, 7]))
        assert sampler.sample_logits(row) == biased.argmax() == 5, "as the chain itself adds them"


def test_the_prompt_counts_for_penalties_and_a_reset_forgets_it(vocabulary: Vocabulary) -> None:
    row = np.zeros(vocabulary.n_vocab, dtype=np.float32)
    row[7], row[8], row[9] = 3.0, 2.5, 2.0
    with vocabulary.sampler(temp=0.0, presence_penalty=1.0, repeat_last_n=2) as sampler:
        # Only the last two tokens are looked at.
        sampler.prime([9, 7])
        assert sampler.sample_logits(row) == 8
        sampler.reset()
        assert sampler.sample_logits(row) == 7


def test_biases(vocabulary: Vocabulary) -> None:
    row = np.zeros(vocabulary.n_vocab, dtype=np.float32)
    row[7], row[8] = 3.0, 2.5
    with vocabulary.sampler(temp=0.0, logit_bias=((7, -math.inf), (9, 10.0), (8, 1.0))) as sampler:
        assert sampler.sample_logits(row) == 9
    with pytest.raises(UsageError, match=f"names token {vocabulary.n_vocab}"):
        vocabulary.sampler(logit_bias=((vocabulary.n_vocab, 1.0),))


def test_rows_may_be_read_only(vocabulary: Vocabulary) -> None:
    row = vocabulary.rows(1)[0]
    before = row.copy()
    row.flags.writeable = False
    with vocabulary.sampler(seed=1, repeat_penalty=1.2) as sampler:
        sampler.sample_logits(row)
    assert np.array_equal(row, before)


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_a_grammar_is_followed_to_its_end(vocabulary: Vocabulary, temp: float) -> None:
    with vocabulary.sampler(temp=temp, seed=2, grammar='root ::= "yes" | "no, " [a-z]{2,4}') as sampler:
        for _ in range(3):
            text = vocabulary.text(sampler)
            assert text == b"yes" or (text.startswith(b"no, ") and 6 <= len(text) <= 8)
            sampler.reset()


def test_a_json_schema_is_followed(vocabulary: Vocabulary) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    with vocabulary.sampler(seed=3, json_schema=json.dumps(schema)) as sampler:
        told = json.loads(vocabulary.text(sampler, n_most=200))
    assert told["a"] in ("x", "yy") and isinstance(told["b"], bool)


def test_a_grammar_that_no_token_can_follow_is_an_error_not_an_abort(vocabulary: Vocabulary) -> None:
    forbidden = tuple((token, -math.inf) for token in vocabulary.eog)
    row = vocabulary.rows(1)[0]
    with vocabulary.sampler(temp=0.0, grammar='root ::= "a"', logit_bias=forbidden) as sampler:
        sampler.sample_logits(row)
        with pytest.raises(EngineError, match="grammar allows no token"):
            sampler.sample_logits(row)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('root := "a"', "expecting ::="),
        ('other ::= "a"', "no rule named root"),
        ('root ::= root "a"', "left recursion"),
        ("root ::= missing", "missing"),
        ('root ::= "a', "unexpected end of input"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "a"{9999999999999999999999}', "repeats something over 2000 times"),
        ('root ::= "a"{9999999,}', "repeats something over 2000 times"),
        ('root ::= "a"{5,2}', "at least 5 and at most 2"),
        ("root ::= " + '"a"? ' * 9000, "more than 2000 optional parts"),
        ("root ::= " + " | ".join(['"a"'] * 3000), "more than 2000 optional parts"),
        ("root ::= " + "(" * 300 + '"a"' + ")" * 300, "nests more than"),
        ("".join(f'r{i} ::= "a"\n' for i in range(10_001)), "more than 10000 rules"),
        ("root ::= \udcff", "not valid UTF-8"),
    ],
)
def test_a_grammar_that_does_not_parse(
    vocabulary: Vocabulary, capfd: pytest.CaptureFixture[str], grammar: str, reason: str
) -> None:
    with pytest.raises(UsageError, match="grammar") as caught:
        check_grammar(SamplingOptions(grammar=grammar))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    with pytest.raises(UsageError, match="grammar"):
        vocabulary.sampler(grammar=grammar)
    # libllama prints its complaint and the whole grammar; the user sees one sentence.
    assert capfd.readouterr() == ("", "")


def test_parentheses_in_literals_are_not_nesting() -> None:
    check_grammar(SamplingOptions(grammar='root ::= "' + "(" * 300 + '" [(] # ' + "(" * 300))


def test_tokens_named_in_a_grammar_are_left_to_the_vocabulary(vocabulary: Vocabulary) -> None:
    for grammar, exists in (('root ::= <|im_start|> "a"', True), ('root ::= <no such token> "a"', False)):
        check_grammar(SamplingOptions(grammar=grammar))
        if exists:
            vocabulary.sampler(grammar=grammar).close()
        else:
            with pytest.raises(UsageError, match="invalid token"):
                vocabulary.sampler(grammar=grammar)


@pytest.mark.parametrize("schema", ['{"type": "foo"}', '{"$ref": "#/none"}', "[1]", "5", '{"type": "string", "pattern": "("}'])
def test_a_schema_that_is_no_schema(schema: str) -> None:
    with pytest.raises(UsageError, match="cannot be turned into a grammar|must be an object"):
        check_grammar(SamplingOptions(json_schema=schema))


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "string", "minLength": 999999999999}',
        '{"type": "array", "items": {"type": "string", "maxLength": 99999}}',
        '{"type": "array", "items": {}, "maxItems" : 2001}',
        '{"type": "string", "pattern": "^a{99999999,}$"}',
    ],
)
def test_a_schema_whose_bounds_would_be_written_out_for_ever(schema: str) -> None:
    with pytest.raises(UsageError, match="repeats something over 2000 times: lower the bound"):
        check_grammar(SamplingOptions(json_schema=schema))
    check_grammar(SamplingOptions(json_schema='{"type": "string", "minLength": 2, "maxLength": 20}'))


def test_closing_twice_is_harmless(vocabulary: Vocabulary) -> None:
    sampler = vocabulary.sampler(grammar='root ::= "a"')
    sampler.close()
    sampler.close()
