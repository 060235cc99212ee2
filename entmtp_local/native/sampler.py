"""The user's sampler chain, run by llama.cpp on one row of logits at a time.

Order and rules are those of llama.cpp's common_sampler, so that a seed and the same rows give the same
tokens there and here. Knows nothing of trees: the caller samples once per visited node, in depth order.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entmtp_local.errors import EngineError, UsageError
from entmtp_local.native import library
from entmtp_local.native.api import MAX_TOP
from entmtp_local.speculative.sampling import MIN_TEMP, SamplingOptions

# struct llama_token_data { llama_token id; float logit; float p; }
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

# libllama's grammar parser recurses per parenthesis and per rule and has no limit of its own: a stack overflow
# kills the process. With 8 MiB of stack that happens between 16,000 and 32,000 parentheses and between 20,000
# and 100,000 chained rules.
_MAX_GRAMMAR_NESTING = 200
_MAX_GRAMMAR_RULES = 10_000
# Above these it takes seconds a token.
_MAX_REPETITION = 2_000
_MAX_CHOICES = 2_000

_GRAMMAR_ROOT = b"root"

NO_NUMBERS = "the model computed NaN or infinity: its file is probably damaged, download it again."


class Sampler:
    """llama.cpp's sampler chain with its grammar, history and random numbers.

    Args:
        vocab: llama_vocab pointer of the model.
        n_vocab: length of a row of logits.
        options: the user's parameters; a seed of None draws one, see `seed`.
    Raises:
        UsageError: a grammar that does not parse, or a bias on a token id outside the vocabulary.
        EngineError: libllama refused to build a sampler.
    Source: common_sampler_init, _sample and _accept of llama.cpp's common/sampling.cpp.
    """

    def __init__(self, vocab: Any, n_vocab: int, options: SamplingOptions) -> None:
        self._lib: Any = library.load()
        self._vocab = vocab
        self._n_vocab = n_vocab
        self._options = options.with_seed()
        self._chain: Any = None
        self._grammar: Any = None
        biases = self._biases()
        self._biased_ids = np.array([token for token, _ in biases], dtype=np.intp)
        self._bias = np.array([bias for _, bias in biases], dtype=np.float32)
        # Suppressed tokens change the row as a bias does, whatever the user asked for.
        self.greedy = options.greedy and not biases
        try:
            if options.constrained:
                self._grammar = _init_grammar(self._lib, vocab, grammar_text(options))
            self._chain = self._init_chain(biases)
        except BaseException:
            self.close()
            raise
        # Where the chain begins with top-k, so many best tokens are all that it needs of a row; 0 = the whole row.
        k = 1 if self.greedy else options.top_k
        changed = biases or options.penalizes or options.constrained
        self.n_best = min(k, n_vocab) if 0 < k <= MAX_TOP and not changed else 0
        self._best_ids = np.zeros(MAX_TOP, dtype=np.int32)
        self._best_logits = np.zeros(MAX_TOP, dtype=np.float32)
        self._best_addresses = (int(self._best_ids.ctypes.data), int(self._best_logits.ctypes.data))
        self._top_k = library.api().top_k
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._candidates = np.zeros(n_vocab, dtype=_TOKEN_DATA)
        self._data = self._candidates.ctypes.data_as(self._lib.llama_token_data_p)
        self._array: Any = self._lib.llama_token_data_array()

    @property
    def seed(self) -> int:
        """The seed in use, drawn or given."""
        assert self._options.seed is not None
        return self._options.seed

    def sample(self, ctx: Any, row: int) -> int:
        """Choose the token that follows output row `row`, and accept it.

        Args:
            ctx: llama_context pointer whose last decode produced the row.
            row: index as for llama_get_logits_ith.
        Returns: the token id; penalties, grammar and random numbers have advanced by one token.
        Raises:
            EngineError: the row does not exist or its maximum is not finite, or the grammar allows no token.
        """
        if self.n_best:
            return self._sample_best(ctx, row)
        pointer = self._lib.llama_get_logits_ith(ctx, row)
        if not pointer:
            raise EngineError(f"the engine holds no logits for output row {row}: this is a bug, please report it.")
        return self.sample_logits(np.ctypeslib.as_array(pointer, shape=(self._n_vocab,)))

    def _sample_best(self, ctx: Any, row: int) -> int:
        n = self._top_k(ctx, row, self.n_best, *self._best_addresses)
        if n <= 0 or not math.isfinite(self._best_logits[0]):
            raise EngineError(NO_NUMBERS)
        candidates = self._candidates
        candidates["id"][:n] = self._best_ids[:n]
        candidates["logit"][:n] = self._best_logits[:n]
        token = self._apply(n, ordered=True)
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def sample_logits(self, logits: NDArray[np.float32]) -> int:
        """As `sample`, from a row of logits that the caller holds.

        Args:
            logits: (n_vocab,) f32, not changed.
        """
        # One NaN makes the maximum NaN. llama.cpp's samplers sort by it as if it were a number, and choose it or its neighbours.
        if not math.isfinite(logits.max()):
            raise EngineError(NO_NUMBERS)
        if self.greedy:
            return int(np.argmax(logits))
        token = self._apply_chain(logits)
        if self._grammar is not None and not self._grammar_allows(token):
            token = self._apply_chain(logits, grammar_first=True)
            # Accepting a refused token would abort the process inside libllama.
            if not self._grammar_allows(token):
                raise EngineError("the grammar allows no token of this model's vocabulary at this point of the text.")
        self._accept(token)
        return token

    def take(self, token: int) -> None:
        """Accept a token that was not sampled here: penalties and grammar advance, the random numbers do not.

        Raises:
            EngineError: the grammar refuses it.
        """
        # Accepting a refused token would abort the process inside libllama.
        if self._grammar is not None and not self._grammar_allows(token):
            raise EngineError(f"the grammar does not allow token {token} at this point of the text.")
        self._accept(token)

    def biased(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """The row with the biases of the options and the tokens that the model suppresses; itself where there are none."""
        if not len(self._bias):
            return row
        row = row.copy()
        # a token may be named twice: its biases add up, as in llama.cpp
        np.add.at(row, self._biased_ids, self._bias)
        return row

    def prime(self, tokens: Sequence[int]) -> None:
        """Let the penalties see the prompt, as llama-server does; the grammar sees generated tokens only.

        Args:
            tokens: the prompt's ids, oldest first.
        """
        if self._options.penalizes:
            for token in tokens[-self._options.repeat_last_n :]:
                self._lib.llama_sampler_accept(self._chain, token)

    def reset(self) -> None:
        """Start a new generation: history and grammar cleared, random numbers from the seed again."""
        self._lib.llama_sampler_reset(self._chain)
        if self._grammar is not None:
            self._lib.llama_sampler_reset(self._grammar)

    def close(self) -> None:
        """Free the native samplers; a second call does nothing."""
        # llama_sampler_free takes NULL, and freeing the chain frees its members.
        self._lib.llama_sampler_free(self._grammar)
        self._lib.llama_sampler_free(self._chain)
        self._grammar = None
        self._chain = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _accept(self, token: int) -> None:
        if self._grammar is not None:
            self._lib.llama_sampler_accept(self._grammar, token)
        self._lib.llama_sampler_accept(self._chain, token)

    def _biases(self) -> list[tuple[int, float]]:
        for token, _ in self._options.logit_bias:
            if token >= self._n_vocab:
                raise UsageError(f"--logit-bias names token {token}, but this model's ids end at {self._n_vocab - 1}.")
        n_suppress = ctypes.c_int32(0)
        suppress = self._lib.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(n_suppress))
        suppressed = [(int(suppress[i]), -np.inf) for i in range(n_suppress.value)]
        return [*self._options.logit_bias, *suppressed]

    def _init_chain(self, biases: Sequence[tuple[int, float]]) -> Any:
        lib, options = self._lib, self._options
        members = []
        if biases:
            array = (lib.llama_logit_bias * len(biases))(*biases)
            members.append(lib.llama_sampler_init_logit_bias(self._n_vocab, len(biases), array))
        members += [
            lib.llama_sampler_init_penalties(
                self._n_vocab,
                options.repeat_last_n,
                options.repeat_penalty,
                options.frequency_penalty,
                options.presence_penalty,
            ),
            lib.llama_sampler_init_top_k(options.top_k),
            lib.llama_sampler_init_top_p(options.top_p, 0),
            lib.llama_sampler_init_min_p(options.min_p, 0),
            lib.llama_sampler_init_temp(options.temp if options.temp >= MIN_TEMP else 0.0),
            lib.llama_sampler_init_dist(self.seed),
        ]
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if not chain or not all(members):
            raise EngineError("libllama could not build the sampler chain: the memory is probably exhausted.")
        for member in members:
            lib.llama_sampler_chain_add(chain, member)
        return chain

    def _apply_chain(self, logits: NDArray[np.float32], grammar_first: bool = False) -> int:
        # The chain sorts the candidates in place, so the ids are written anew for each row. Field by field:
        # NumPy copies whole records ten times slower.
        self._candidates["id"] = self._ids
        self._candidates["logit"] = logits
        return self._apply(self._n_vocab, grammar_first=grammar_first)

    def _apply(self, n: int, *, ordered: bool = False, grammar_first: bool = False) -> int:
        """Run the chain over the first n candidates; `ordered` says that the best come first."""
        array = self._array
        # Samplers may have moved or shortened the array in the row before.
        array.data = self._data
        array.size = n
        array.selected = -1
        array.sorted = ordered
        if grammar_first:
            self._lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        self._lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise EngineError("the sampler chain chose no token: this is a bug, please report it.")
        return int(array.data[array.selected].id)

    def _grammar_allows(self, token: int) -> bool:
        lib = self._lib
        candidate = lib.llama_token_data(token, 1.0, 0.0)
        array = lib.llama_token_data_array(ctypes.pointer(candidate), 1, -1, False)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(candidate.logit != -np.inf)


def grammar_text(options: SamplingOptions) -> str:
    """Give the GBNF text that the options ask for.

    Args:
        options: with a grammar or a JSON schema.
    Raises:
        UsageError: a JSON schema that cannot be written as a grammar.
    """
    if options.grammar is not None:
        return options.grammar
    assert options.json_schema is not None
    with suppress(ValueError):
        if not isinstance(json.loads(options.json_schema), dict):
            raise UsageError("the JSON schema must be an object, such as {} for any object.")
    # The converter writes repetitions out, too: those of strings and lists, and those in patterns.
    bounds = re.findall(r'"(?:min|max)(?:Length|Items)"\s*:\s*(\d+)', options.json_schema)
    bounds += [number for pair in re.findall(r"\{(\d*),?(\d*)\}", options.json_schema) for number in pair]
    _check_bounds(bounds)
    library.load()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(options.json_schema))
    # The converter has no error type of its own: whatever it raises says that it cannot read the schema.
    except Exception as error:
        reason = _short(str(error)) or type(error).__name__
        raise UsageError(f"the JSON schema cannot be turned into a grammar: {reason}.") from error


def check_grammar(options: SamplingOptions) -> None:
    """Refuse a grammar that does not parse, before a model is loaded for it.

    Args:
        options: with or without a grammar or JSON schema.
    Raises:
        UsageError: it does not parse.
    """
    if not options.constrained:
        return
    lib = library.load()
    try:
        lib.llama_sampler_free(_init_grammar(lib, None, grammar_text(options)))
    except _NeedsVocabulary:
        # A token reference such as <think>: only the loaded model can tell, and Sampler asks it.
        return


class _NeedsVocabulary(UsageError):
    """The grammar names tokens by their text."""


def _init_grammar(lib: Any, vocab: Any, text: str) -> Any:
    if _nesting(text) > _MAX_GRAMMAR_NESTING:
        raise UsageError(
            f"the grammar nests more than {_MAX_GRAMMAR_NESTING} parentheses: give the inner parts rules of their own."
        )
    _check_repetitions(text)
    if text.count("::=") > _MAX_GRAMMAR_RULES:
        raise UsageError(f"the grammar has more than {_MAX_GRAMMAR_RULES} rules: simplify it.")
    try:
        source = text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the grammar is not valid UTF-8 text.") from None
    with _captured_stderr() as messages:
        grammar = lib.llama_sampler_init_grammar(vocab, source, _GRAMMAR_ROOT)
    if grammar:
        return grammar
    printed = "".join(messages)
    if vocab is None and "no vocab to parse token" in printed:
        raise _NeedsVocabulary("the grammar names tokens by their text")
    raise UsageError(f"the grammar does not parse: {_reason(text, printed)}.")


def _reason(text: str, printed: str) -> str:
    parsed = re.search(r"error parsing grammar: (.*)", printed)
    if parsed:
        return _short(parsed.group(1))
    if not re.search(r"^\s*root\s*::=", text, re.MULTILINE):
        return "it has no rule named root"
    if "left recursion" in printed:
        return "a rule begins with itself (left recursion), which llama.cpp does not support"
    return "llama.cpp refused it, often because a rule begins with itself (left recursion)"


def _short(text: str, n_max: int = 120) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= n_max else line[: n_max - 3] + "..."


def _without_texts(grammar: str) -> str:
    """The grammar without literals, character sets and comments."""
    return re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', "", grammar, flags=re.DOTALL)


def _check_repetitions(grammar: str) -> None:
    """libllama writes repetitions out, and tries every way through optional parts: it would not come back from these."""
    bare = _without_texts(grammar)
    for least, most in re.findall(r"\{\s*(\d+)\s*,\s*(\d+)\s*\}", bare):
        if int(most) < int(least):
            raise UsageError(f"the grammar repeats something at least {least} and at most {most} times: swap them.")
    _check_bounds(number for pair in re.findall(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}", bare) for number in pair)
    if max(sum(map(bare.count, "?*+")), bare.count("|")) > _MAX_CHOICES:
        raise UsageError(f"the grammar has more than {_MAX_CHOICES} optional parts or alternatives: simplify it.")


def _check_bounds(numbers: Iterable[str]) -> None:
    if any(len(number) > 9 or int(number or 0) > _MAX_REPETITION for number in numbers):
        raise UsageError(f"the grammar (or its schema) repeats something over {_MAX_REPETITION} times: lower the bound.")


def _nesting(grammar: str) -> int:
    """Depth of the parentheses outside of literals, character sets and comments."""
    depth = deepest = 0
    for char in _without_texts(grammar):
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    return deepest


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Collect what libllama prints while it parses: it writes to the C stream and has no other way to tell."""
    messages: list[str] = []
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):
        # No standard error to keep clean.
        yield messages
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            messages.append(file.read().decode("utf-8", errors="replace"))
