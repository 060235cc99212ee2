"""A loaded model with its target context and its MTP context: one timeline of committed tokens.

Invariants between calls: the target context holds exactly `tokens`; the MTP context holds the same tokens, followed by the
pending one while a generation is under way. Drafts are never part of either. Only this module changes the contexts.
It knows nothing of policies and samplers, and nothing of text beyond tokenizing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from entmtp_local.errors import ContextFullError, EngineError, StateError
from entmtp_local.native import api as native
from entmtp_local.native import library
from entmtp_local.native.checkpoints import WHOLE, Checkpoint, Checkpoints, read_state, write_state
from entmtp_local.native.draft_rows import DraftRows
from entmtp_local.native.log import LogCapture
from entmtp_local.native.model_file import check_pair, read_model
from entmtp_local.native.opening import N_BATCH, Opener, SessionOptions
from entmtp_local.native.sampler import NO_NUMBERS, Sampler
from entmtp_local.native.state_file import State
from entmtp_local.speculative.draft_vocab import DraftHead, DraftVocab, PassCost
from entmtp_local.speculative.entropy import row_entropy
from entmtp_local.speculative.protocol import Limits, TokenChooser
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree, TreeShape

__all__ = ["Session", "SessionOptions"]

_SEQ = 0


class Session:
    """See the module. Use `Session.open(options)` as a context manager."""

    def __init__(self, options: SessionOptions, stop: Callable[[], bool]) -> None:
        self._options = options
        self._stop_loading = stop
        self._llama: Any = library.load()
        self._api = library.api()
        self._log = LogCapture(self._llama, verbose=options.verbose)
        self.notices: list[str] = []
        self.turn = 0  # prompts and clearings so far: a generation of an earlier one must not go on
        self.model: Any = None
        self.vocab: Any = None
        self._mtp_model: Any = None
        self.ctx: Any = None
        self._ctx_mtp: Any = None
        self._batch: Any = None
        self._tokens: list[int] = []
        self._n_mtp = 0  # tokens that the MTP context holds
        self._has_row = True  # the hidden row of the last token is kept; a state that was loaded has none
        self._checkpoints: Checkpoints | None = None  # None where any number of tokens can be forgotten
        self._eog: dict[int, bool] = {}
        self._no_ends: set[int] = set()  # tokens that are known to end no text
        self._n_levels = ctypes.c_int32()  # drafted in this step
        self._n_levels_address = ctypes.addressof(self._n_levels)
        self._n_walked = 0  # rows of the last pass whose arg-max is known
        self._draft_rows: DraftRows | None = None
        self._draft_vocab: DraftVocab | None = None  # chooses how many they are, while it is asked
        self.drafts_trees = False  # the MTP context can draft trees, perhaps although the target can only verify chains
        self._draft_shape: TreeShape = ROOT_ONLY  # whose parents and ranks the engine has been given
        self._tree_shape: TreeShape = ROOT_ONLY
        self._n_nodes = 1  # of the last pass
        self._make_draft_buffers(native.MAX_NODES)
        self._make_tree_buffers(native.MAX_NODES)
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._log.forget()

    @staticmethod
    def open(options: SessionOptions, stop: Callable[[], bool] | None = None) -> Session:
        """Load the model and create its contexts.

        Args:
            stop: polled while the model is loaded; True ends it with a ModelFileError.
        Raises: ModelFileError when llama.cpp refuses the file, EngineError when the engine or the contexts cannot be had.
        """
        return Session(options, stop or (lambda: False))

    # -- opening and closing

    def _open(self) -> None:
        options = self._options
        # llama.cpp ends the process on some wrong files, so they are checked before it sees them
        info = read_model(options.model_path)
        head = None
        if options.mtp_path is not None:
            head = read_model(options.mtp_path, role="mtp")
            check_pair(info, head)
        self._has_head = (head or info).has_mtp
        self._pass_bytes = _pass_bytes(info.pass_bytes, head.pass_bytes if head else None)
        self._llama.llama_backend_init()
        self._n_ctx = options.n_ctx or info.n_ctx_train
        opener = Opener(self._llama, self._api, options, self._n_ctx, self._log, self._stop_loading)
        self.model = opener.load(options.model_path, has_head=self._has_head)
        self.vocab = self._llama.llama_model_get_vocab(self.model)
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(self.vocab))
        if options.mtp_path is not None and options.max_depth > 0:
            self._mtp_model = opener.load(options.mtp_path, has_head=self._has_head)

        self.ctx = opener.target(self.model)
        if info.memory_kind != "attention":
            self._checkpoints = Checkpoints(self._llama, self.ctx, _SEQ, options.checkpoint_bytes)
        self._best_on_device = options.best_on_device
        if self._best_on_device is None:
            # the output matrix is the first thing that goes to a GPU
            self._best_on_device = bool(self._llama.llama_supports_gpu_offload()) and options.n_gpu_layers != 0
        self._vocab_piece = ctypes.create_string_buffer(256)
        self._batch = self._llama.llama_batch_init(N_BATCH, 0, 1)
        self._limits = self._open_drafter(opener)

        # Buffers of the hot path, as ctypes arrays: after a pass over the weights nothing of Python is left in the processor's
        # caches, and NumPy's conversions touch several times as much memory as these do.
        self._best = (ctypes.c_int32 * native.MAX_NODES)()
        self._best_address = ctypes.addressof(self._best)
        self._pair_tokens = (ctypes.c_int32 * native.MAX_NODES)()
        self._pair_rows = (ctypes.c_int32 * native.MAX_NODES)()
        self._pair_tokens_address = ctypes.addressof(self._pair_tokens)
        self._pair_rows_address = ctypes.addressof(self._pair_rows)

    def _open_drafter(self, opener: Opener) -> Limits:
        options, api = self._options, self._api
        if options.max_depth == 0:
            return Limits(trees=False, max_depth=0, max_nodes=0, reason="")
        why = ctypes.create_string_buffer(256)
        support = api.support(self.ctx, why, len(why))
        reason = why.value.decode()
        if not self._has_head:
            return self._no_drafts("this model has no MTP head")
        if support == native.SUPPORT_NONE:
            return self._no_drafts(reason)
        model = self._mtp_model or self.model
        self._ctx_mtp = opener.drafter(model, self.ctx)
        head = api.head(self._ctx_mtp)
        max_depth = int(api.max_depth(self.ctx))
        trees = bool(support == native.SUPPORT_TREE)
        if head == native.HEAD_CHAINED:
            max_depth = min(max_depth, int(self._llama.llama_model_n_layer_nextn(model)))
            trees, reason = False, "its MTP heads are trained for one depth each"
        elif head == native.HEAD_SINGLE and api.support(self._ctx_mtp, why, len(why)) != native.SUPPORT_TREE:
            trees, reason = False, why.value.decode()
        self.drafts_trees = trees or (head == native.HEAD_SINGLE and api.support(self._ctx_mtp, None, 0) == native.SUPPORT_TREE)
        api.set_nextn(self.ctx, True, False)
        api.set_nextn(self._ctx_mtp, True, True)
        n_embd = int(self._llama.llama_model_n_embd(model))
        self._draft_rows = DraftRows(api, self._ctx_mtp, self.n_vocab, n_embd, self._pass_bytes, options.draft_head_type)
        if refused := self._draft_rows.refused:
            self.notices.append(
                f"drafting from the output matrix as it is: it cannot be had in {refused}, or would be no smaller."
            )
        wanted = options.draft_vocab
        if self.set_draft_vocab(wanted) == self.n_vocab and wanted and wanted < self.n_vocab:
            self.notices.append("drafting from the whole vocabulary: this model's drafts cannot be restricted to a part of it.")
        if options.max_nodes > options.max_depth and not trees:
            self.notices.append(f"drafting chains instead of trees: {reason}.")
        elif options.max_depth > max_depth:
            self.notices.append(f"drafting at most {max_depth} tokens a step: {reason}.")
        max_copied = options.max_copied if support == native.SUPPORT_TREE else min(options.max_copied, max_depth)
        return Limits(trees, max_depth, options.max_nodes, reason, max_copied)

    def _no_drafts(self, reason: str) -> Limits:
        self.notices.append(f"decoding plainly: {reason}.")
        return Limits(trees=False, max_depth=0, max_nodes=0, reason=reason)

    def close(self) -> None:
        """Free contexts before models. Harmless when called twice; every other call is refused afterwards."""
        if self._batch is not None:
            self._llama.llama_batch_free(self._batch)
        for context in (self._ctx_mtp, self.ctx):
            if context:
                self._llama.llama_free(context)
        for model in (self._mtp_model, self.model):
            if model:
                self._llama.llama_model_free(model)
        self._batch = self._ctx_mtp = self.ctx = self._mtp_model = self.model = self.vocab = self._draft_rows = None
        self._llama = _Closed()
        self._api = cast(native.Api, self._llama)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- what it is

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def n_past(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The committed tokens (a copy)."""
        return list(self._tokens)

    @property
    def engine_info(self) -> dict[str, str]:
        return library.engine_info()

    @property
    def device(self) -> str:
        return library.device_name()

    # -- text

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Args:
            add_special: add the tokens that the model wants at the start (BOS).
            parse_special: read control tokens such as <|im_end|> as such.
        """
        data = text.encode("utf-8", errors="replace")
        capacity = len(data) + 16
        while True:
            buffer = (ctypes.c_int32 * capacity)()
            n = self._llama.llama_tokenize(self.vocab, data, len(data), buffer, capacity, add_special, parse_special)
            if n >= 0:
                return list(buffer[:n])
            capacity = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token, possibly part of a UTF-8 sequence; control tokens are empty unless `special`."""
        n = self._llama.llama_token_to_piece(self.vocab, token, self._vocab_piece, len(self._vocab_piece), 0, special)
        if n < 0:
            self._vocab_piece = ctypes.create_string_buffer(-n)
            n = self._llama.llama_token_to_piece(self.vocab, token, self._vocab_piece, -n, 0, special)
        return self._vocab_piece.raw[:n]

    def edge_texts(self) -> tuple[str, str]:
        """Texts of the tokens that begin and end a text in this vocabulary, "" for none."""
        ids = (self._llama.llama_vocab_bos(self.vocab), self._llama.llama_vocab_eos(self.vocab))
        bos, eos = (self.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else "" for token in ids)
        return bos, eos

    def is_eog(self, token: int) -> bool:
        known = self._eog.get(token)
        if known is None:
            known = self._eog[token] = bool(self._llama.llama_vocab_is_eog(self.vocab, token))
        return known

    def new_sampler(self, options: SamplingOptions) -> Sampler:
        return Sampler(self.vocab, self.n_vocab, options)

    # -- prompt

    def prefill(self, prompt: Sequence[int], stop: Callable[[], bool]) -> int:
        """Make the prompt the committed tokens, computing only what the contexts do not hold.

        Returns: tokens computed. When `stop` asked to end, those computed so far stay.
        Raises: ContextFullError, before anything changes; EngineError, after which the session is empty but usable.
        """
        if not prompt:
            raise EngineError("there is nothing to generate from: the prompt has no tokens.")
        if len(prompt) >= self._n_ctx:
            raise ContextFullError(
                f"the prompt has {len(prompt)} tokens, the context holds {self._n_ctx} and needs room for an answer; "
                f"shorten the prompt or start with a larger -c."
            )
        self.turn += 1
        n_kept = self._keep_prefix(prompt)
        while len(self._tokens) < len(prompt) and not stop():
            n_past = len(self._tokens)
            chunk = prompt[n_past : n_past + N_BATCH]
            self._prefill_chunk(chunk, n_past, wants_logits=n_past + len(chunk) == len(prompt))
        return len(self._tokens) - n_kept

    def _keep_prefix(self, prompt: Sequence[int]) -> int:
        """Cut both contexts back to what they share with the prompt; at least one token is left to compute."""
        common = min(self._common(prompt), len(prompt) - 1)
        if common == len(self._tokens) and (self._has_row or not self._ctx_mtp):
            return common if self._truncate_mtp(common) else self._forget()
        # Inside the kept part the hidden row that the MTP head pairs with the next token is gone: compute its token again.
        n_target = self._cut(common - 1 if self._ctx_mtp else common)
        if n_target <= 0 or not self._truncate_mtp(n_target + (self._ctx_mtp is not None)):
            return self._forget()
        del self._tokens[n_target:]
        return n_target

    def _common(self, prompt: Sequence[int]) -> int:
        pairs = enumerate(zip(self._tokens, prompt, strict=False))
        return next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(self._tokens), len(prompt)))

    def _cut(self, n_past: int) -> int:
        """Cut the target back to so many tokens, or to the last checkpoint before; how many they are, 0 = it cannot be done."""
        if n_past <= 0:
            return 0
        if not self._api.truncate(self.ctx, _SEQ, n_past):
            n_past = self._checkpoints.restore(n_past) if self._checkpoints is not None else 0
            # not by truncate(), which goes no further back than states are stored, even where there is nothing left to forget
            memory = self._llama.llama_get_memory(self.ctx)
            if not n_past or not self._llama.llama_memory_seq_rm(memory, _SEQ, n_past, -1):
                return 0
        if self._checkpoints is not None:
            self._checkpoints.forget_after(n_past)
        return n_past

    # -- what it can come back to

    @property
    def needs_checkpoints(self) -> bool:
        """Whether going back in the text takes a checkpoint, or computing all of it again."""
        return self._checkpoints is not None

    def checkpoint(self) -> bool:
        """Note the committed tokens as a place that prompts to come will share. False: it cannot be."""
        return self._checkpoints is None or (self.n_past > 0 and self._checkpoints.take(self.n_past))

    def read_ahead(self, prompt: Sequence[int], n: int, stop: Callable[[], bool]) -> int:
        """Compute the first n tokens of a prompt and note the place, where that is needed to come back to it.

        Returns: tokens computed.
        Raises: as `prefill`.
        """
        if self._checkpoints is None or n <= 0:
            return 0
        common = self._common(prompt)
        if (n in self._checkpoints.positions and common > n) or n <= common == len(self._tokens):
            return 0  # read already: computing its last token again would take a place before it
        computed = self.prefill(prompt[:n], stop)
        if self.n_past == n:
            self.checkpoint()
        return computed

    def state_bytes(self) -> tuple[int, int]:
        """How much `state` has to copy in main memory, and how much it gives in all, in bytes."""
        contexts = [self.ctx] if self._ctx_mtp is None or self._shares_memory() else [self.ctx, self._ctx_mtp]
        copied = sum(int(self._llama.llama_state_seq_get_size_ext(context, _SEQ, WHOLE)) for context in contexts)
        return copied, copied + sum(len(each.data) for each in self._checkpoints or ())

    def state(self) -> State | None:
        """What the contexts hold, to be loaded into a session of the same model and build.

        The hidden row of the last token is not part of it: what goes on from the last token computes that one again, which on
        recurrent layers takes a checkpoint before it.

        Returns: None where the engine gives none; it is copied in main memory.
        """
        if not self._tokens or not self._truncate_mtp(len(self._tokens)):
            return None
        mtp: Any = b""
        if self._ctx_mtp is not None and not self._shares_memory():
            self._check(self._api.mtp_flush(self._ctx_mtp, _SEQ), "the queue of drafts")
            mtp = read_state(self._llama, self._ctx_mtp, _SEQ, WHOLE)
        target = read_state(self._llama, self.ctx, _SEQ, WHOLE)
        if target is None or mtp is None:
            return None
        kept = tuple((each.n_past, each.data) for each in self._checkpoints or ())
        return State(tuple(self._tokens), target, mtp, kept)

    def load_state(self, state: State) -> None:
        """Take what another session's `state` gave instead of the tokens that are held.

        Raises: StateError, after which the session is empty but usable.
        """
        self.clear()
        own = self._ctx_mtp is not None and not self._shares_memory()
        if len(state.tokens) >= self._n_ctx:
            raise StateError(f"the saved state has {len(state.tokens)} tokens, and the context has room for {self._n_ctx}.")
        fits = bool(len(state.mtp)) == own and write_state(self._llama, self.ctx, state.target, _SEQ, WHOLE)
        if not fits or (own and not write_state(self._llama, self._ctx_mtp, state.mtp, _SEQ, WHOLE)):
            self.clear()
            raise StateError("the saved state does not fit the contexts.")
        self._tokens = list(state.tokens)
        self._n_mtp = len(self._tokens) if self._ctx_mtp is not None else 0
        self._has_row = False
        if self._checkpoints is not None:
            for n_past, data in state.checkpoints:
                self._checkpoints.add(Checkpoint(n_past, data))

    def _truncate_mtp(self, n_past: int) -> bool:
        if self._ctx_mtp is None or self._n_mtp <= n_past:
            return True
        if not self._api.truncate(self._ctx_mtp, _SEQ, n_past) and not self._shares_memory():
            return False
        self._n_mtp = n_past
        return True

    def _shares_memory(self) -> bool:
        return bool(self._api.head(self._ctx_mtp) == native.HEAD_SHARED)

    def _forget(self) -> int:
        self.clear()
        return 0

    def _prefill_chunk(self, chunk: Sequence[int], n_past: int, *, wants_logits: bool) -> None:
        n = len(chunk)
        batch = self._batch
        batch.n_tokens = n
        for i, token in enumerate(chunk):
            batch.token[i] = token
            batch.pos[i] = n_past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = _SEQ
            batch.logits[i] = 0
        batch.logits[n - 1] = wants_logits
        self._check(self._llama.llama_decode(self.ctx, batch), "the prompt")
        self._tokens.extend(chunk)
        self._logits_row = n - 1
        if self._draft_vocab is not None:
            self._draft_vocab.observe(chunk)
        if self._ctx_mtp is None:
            return
        # Pairs (hidden row of the token before, token). The first token of the chunk may be there already.
        n_there = self._n_mtp - n_past
        tokens = np.array(chunk[n_there:], dtype=np.int32)
        rows = np.arange(n_there - 1, n - 1, dtype=np.int32)
        if len(tokens):
            self._check(
                self._api.mtp_push(self._ctx_mtp, self.ctx, _SEQ, len(tokens), tokens.ctypes.data, rows.ctypes.data),
                "the prompt's drafts",
            )
        self._check(self._api.mtp_keep(self._ctx_mtp, self.ctx, n - 1), "the prompt's hidden row")
        self._has_row = True
        self._n_mtp = n_past + n

    # -- one step (the order of the calls is that of speculative/protocol.py)

    def start(self, pending: int) -> None:
        """Take the token sampled from the prompt's last row as pending."""
        if self._ctx_mtp is not None:
            self._push((pending,), (-1,))
            self._n_mtp += 1

    def draft(self, shape: TreeShape, least: float = -inf) -> DraftTree:
        """Give the shape tokens below the pending one; node 0 is the token last given to `start` or `follow`.

        Args:
            least: see the protocol.
        """
        n = shape.n_nodes
        if shape is not self._draft_shape:
            if n > len(self._draft_tokens):
                self._make_draft_buffers(n)
            self._draft_parents[:n], self._draft_ranks[:n] = list(shape.parents), list(shape.ranks)
            self._draft_shape = shape
        vocab = self._draft_vocab
        if vocab is not None and vocab.due(shape.max_depth) and self._draft_rows is not None:
            self._draft_rows.cut(vocab.size)
        code = self._api.mtp_draft(
            self._ctx_mtp,
            _SEQ,
            n,
            self._draft_parents_address,
            self._draft_ranks_address,
            least,
            self._draft_tokens_address,
            self._logp_address,
            self._entropy_address,
            self._n_levels_address,
        )
        if code:
            self._check(code, "a draft")
        drafted = shape.upto(self._n_levels.value)
        n = drafted.n_nodes
        tokens = tuple(self._draft_tokens[:n])
        ends = () if self._no_ends.issuperset(tokens) else self._ends_among(tokens)
        return DraftTree(drafted, tokens, self._logp[:n], entropy=self._entropy[:n], ends=ends)

    def _ends_among(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Which of these tokens end a text."""
        self._no_ends.update(token for token in tokens if not self.is_eog(token))
        return tuple(i for i, token in enumerate(tokens) if token not in self._no_ends)

    def verify(self, tree: DraftTree) -> None:
        """Compute the target's rows of every node in one pass; row i belongs to node i."""
        shape = tree.shape
        n = self._n_nodes = shape.n_nodes
        if shape is not self._tree_shape:
            if n > len(self._tree_tokens):
                self._make_tree_buffers(n)
            self._tree_parents[:n] = list(shape.parents)
            self._tree_shape = shape
        self._tree_tokens[:n] = list(tree.tokens)
        code = self._api.decode(self.ctx, _SEQ, n, self._tree_tokens_address, self._tree_parents_address, None)
        if code:
            self._check(code, f"a tree of {n} nodes")
        self._n_walked = 0

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Keep the path, forget the other nodes."""
        code = self._api.commit(self.ctx, _SEQ, path[-1])
        if code:
            self._check(code, "the accepted tokens")
        tokens = tree.tokens
        self._tokens.extend(tokens[node] for node in path)

    def wait(self) -> None:
        """Wait for the device; `verify` returns before it is done."""
        self._llama.llama_synchronize(self.ctx)

    def discard(self) -> None:
        """Forget a verified tree that will not be committed."""
        if self._api.commit(self.ctx, _SEQ, -1) != native.OK:
            self.clear()

    def follow(self, tree: DraftTree, path: Sequence[int], pending: int | None) -> None:
        """Note the committed path and the new pending token for the MTP context, which the next draft feeds them to.

        With pending = None the generation ends: the last hidden row is kept for what comes next.
        """
        if self._ctx_mtp is None:
            return
        tokens = [tree.tokens[node] for node in path[1:]]
        vocab = self._draft_vocab
        if vocab is not None:
            if self._n_levels.value > 0 and not tree.copied:
                depth = tree.shape.max_depth
                # nothing was drafted below a sibling that ends its branch
                refused = pending if depth == 0 or tree.shape.children[path[-1]] else None
                vocab.observe_draft(tokens, refused, depth, self._n_levels.value)
            self._n_levels.value = 0
            vocab.observe(tokens if pending is None else (*tokens, pending))
        if pending is not None:
            self._push((*tokens, pending), path)
        else:
            if tokens:
                self._push(tokens, path[:-1])
            self._check(self._api.mtp_keep(self._ctx_mtp, self.ctx, path[-1]), "the hidden row of the last token")
        self._n_mtp += len(tokens) + (pending is not None)

    def set_draft_vocab(self, size: int | None) -> int:
        """Let drafts choose among the first `size` tokens, rounded up to the engine's step, and the control tokens at the end.

        Args:
            size: 0 for the whole vocabulary, None to follow the text; what was learnt of it before is kept.
        Returns: tokens that drafts choose from; the whole vocabulary's number where the model or the engine allows no less.
        """
        if self._draft_rows is None:
            return self.n_vocab
        n = self._draft_rows.choose(size)
        self._draft_vocab = self._draft_rows.following
        return n

    @property
    def n_draft_vocab(self) -> int:
        """Tokens that drafts choose from at present; 0 where nothing is drafted."""
        return self._draft_rows.n if self._draft_rows is not None else 0

    @property
    def draft_head_type(self) -> str | None:
        """Type of the copy of the head that drafts read; None where they read the head itself."""
        return self._draft_rows.type_name if self._draft_rows is not None else None

    @property
    def draft_vocab_sizes(self) -> list[int]:
        """Tokens that drafts may come to choose from, other than all; none where their number is fixed."""
        return [] if self._draft_vocab is None else list(self._draft_vocab.sizes)

    @property
    def usual_draft_vocab(self) -> int:
        """What their number begins with where it follows the text; 0 is the whole vocabulary, and where it is fixed."""
        return 0 if self._draft_vocab is None else self._draft_vocab.usual

    @property
    def draft_cost(self) -> PassCost:
        """Bytes that passes read, with rows of the type that drafts read now."""
        return self._pass_bytes if self._draft_rows is None else self._draft_rows.cost

    def read_draft_head(self, kind: str) -> bool:
        """Draft from a copy of the output matrix in another type, SAME for the matrix itself. False: unchanged, there is none."""
        return self._draft_rows is not None and self._draft_rows.read(kind)

    def adopt_draft_head(self, head: DraftHead) -> None:
        """Draft from the rows of the output matrix that calibration chose."""
        if self._draft_rows is not None:
            self._draft_rows.adopt(head)

    @contextmanager
    def steady_draft_vocab(self) -> Iterator[None]:
        """Draft from as many tokens as texts usually need, and learn nothing from the tokens that come: they are no text."""
        followed = self._draft_vocab
        if followed is not None:
            self.set_draft_vocab(followed.usual)
        try:
            yield
        finally:
            if followed is not None:
                self.set_draft_vocab(None)

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """The target's logits at an output row of the last pass, as the model gave them; row -1 is the prompt's last.

        Returns: (n_vocab,) f32, a copy.
        """
        return np.array(self._row(row))

    def entropy(self, row: int) -> float:
        """Entropy of the target's distribution at an output row of the last pass, nats; row -1 is the prompt's last."""
        if self._best_on_device and row >= 0:
            # known already, if the row's best tokens were looked for there
            found = ctypes.c_float()
            if self._api.row(self.ctx, row, 0, None, None, ctypes.addressof(found)) >= 0:
                return found.value
        return row_entropy(self._row(row))

    def _row(self, row: int) -> npt.NDArray[np.float32]:
        """A row of logits in the engine's own memory, which the next pass overwrites."""
        pointer = self._llama.llama_get_logits_ith(self.ctx, row)
        if not pointer:
            raise EngineError(f"the engine holds no logits for output row {row}.")
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def chooser(self, sampler: TokenChooser) -> Callable[[int], int]:
        """The target's token at an output row; the arg-max never leaves the engine's own memory."""
        if self._best_on_device:
            # refused where a back end does not know the operator: rows are fetched there
            self._api.set_top(self.ctx, sampler.n_best)
        if sampler.greedy:
            return self._arg_max
        return self._sample_with(sampler)

    def _arg_max(self, row: int) -> int:
        if row < 0:
            n = self._api.top_k(self.ctx, row, 1, self._best_address, None)
            row = 0
        elif self._n_walked == 0:
            # all rows that greedy acceptance will ask for, in one call
            n = self._n_walked = self._api.greedy(
                self.ctx, self._n_nodes, self._tree_tokens_address, self._tree_parents_address, self._best_address
            )
        else:
            n = self._n_walked
        if n <= 0:
            raise EngineError(NO_NUMBERS)
        return self._best[row]

    def _sample_with(self, sampler: TokenChooser) -> Callable[[int], int]:
        sample, ctx = sampler.sample, self.ctx
        return lambda row: sample(ctx, row)

    def rows(self, sampler: TokenChooser) -> Callable[[int], npt.NDArray[np.float32]]:
        """The target's logits at an output row, biased by the sampler; without biases in the engine's own memory."""
        biased = sampler.biased
        return lambda row: biased(self._row(row))

    def _push(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        n = len(tokens)
        self._pair_tokens[:n] = list(tokens)
        self._pair_rows[:n] = list(rows)
        code = self._api.mtp_push(self._ctx_mtp, self.ctx, _SEQ, n, self._pair_tokens_address, self._pair_rows_address)
        if code:
            self._check(code, "the drafter")

    # What the engine reads and writes lies in memory of its own, where nothing has to ask NumPy for an address at every step.

    def _make_draft_buffers(self, n: int) -> None:
        """For drafted trees of up to n nodes."""
        self._draft_shape = ROOT_ONLY
        self._draft_parents: ctypes.Array[ctypes.c_int32] = (ctypes.c_int32 * n)(-1)
        self._draft_ranks: ctypes.Array[ctypes.c_int32] = (ctypes.c_int32 * n)()
        self._draft_tokens: ctypes.Array[ctypes.c_int32] = (ctypes.c_int32 * n)()
        self._logp: ctypes.Array[ctypes.c_float] = (ctypes.c_float * n)()
        self._entropy: ctypes.Array[ctypes.c_float] = (ctypes.c_float * n)()
        self._draft_parents_address: int = ctypes.addressof(self._draft_parents)
        self._draft_ranks_address: int = ctypes.addressof(self._draft_ranks)
        self._draft_tokens_address: int = ctypes.addressof(self._draft_tokens)
        self._logp_address: int = ctypes.addressof(self._logp)
        self._entropy_address: int = ctypes.addressof(self._entropy)

    def _make_tree_buffers(self, n: int) -> None:
        """For trees of up to n nodes that are verified."""
        self._tree_shape = ROOT_ONLY
        self._tree_parents: ctypes.Array[ctypes.c_int32] = (ctypes.c_int32 * n)(-1)
        self._tree_tokens: ctypes.Array[ctypes.c_int32] = (ctypes.c_int32 * n)()
        self._tree_parents_address: int = ctypes.addressof(self._tree_parents)
        self._tree_tokens_address: int = ctypes.addressof(self._tree_tokens)

    # -- failure

    def clear(self) -> None:
        """Forget all tokens."""
        self.turn += 1
        self._tokens.clear()
        self._n_mtp = 0
        self._n_levels.value = 0
        self._has_row = True
        if self._checkpoints is not None:
            self._checkpoints.clear()
        self._api.clear(self.ctx)
        if self._ctx_mtp is not None:
            self._api.clear(self._ctx_mtp)

    def _check(self, code: int, what: str) -> None:
        """Turn a failed call into an error. The contexts may disagree after one: both are emptied, the next prompt fills them."""
        if code == 0:
            return
        detail = self._log.last_error()
        self.clear()
        if code == 1:
            raise ContextFullError(f"the context has no room for {what}; shorten the conversation or start with a larger -c.")
        raise EngineError(f"decoding {what} failed (code {code}: {detail}); the context was emptied, try again.")


class _Closed:
    """Stands in for the library once the session is closed: its pointers are gone."""

    def __getattr__(self, name: str) -> Any:
        raise EngineError("the session is closed; open another one.")


def _pass_bytes(target: PassCost, head: PassCost | None) -> PassCost:
    """Of a model whose head is perhaps in another file, which may leave the output matrix to the model's."""
    return target if head is None else PassCost(target.target, head.level, head.row or target.row)
