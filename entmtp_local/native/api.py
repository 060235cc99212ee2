"""ctypes bindings of include/llama-entmtp.h, the C prototype above each one.

Array arguments are addresses (int) of int32 or float32 memory that the caller keeps alive: converting an array costs more
than the call itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

# The value of LLAMA_ENTMTP_ABI that these bindings were written for.
ABI = 5

MAX_NODES = 256
MAX_TOP = 64
VOCAB_STEP = 64

# enum llama_entmtp_status
OK = 0
INVALID = -1
UNSUPPORTED = -10
LOST = -11
NO_MEMORY = -12

# enum llama_entmtp_support_kind
SUPPORT_NONE = 0
SUPPORT_CHAIN = 1
SUPPORT_TREE = 2

# enum llama_entmtp_head_kind
HEAD_NONE = 0
HEAD_SINGLE = 1
HEAD_CHAINED = 2
HEAD_SHARED = 3

_ctx = ctypes.c_void_p
_ptr = ctypes.c_void_p
_i32 = ctypes.c_int32
_bool = ctypes.c_bool


class Api:
    """The llama_entmtp_* functions of a loaded library."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        def bind(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
            return function  # type: ignore[no-any-return]

        # int32_t llama_entmtp_abi(void)
        self.abi = bind("llama_entmtp_abi", _i32)

        # enum llama_entmtp_support_kind llama_entmtp_support(ctx, char * why, size_t n_why)
        self.support = bind("llama_entmtp_support", _i32, _ctx, ctypes.c_char_p, ctypes.c_size_t)

        # bool llama_entmtp_recurrent_trees(model)
        self.recurrent_trees = bind("llama_entmtp_recurrent_trees", _bool, _ctx)

        # int32_t llama_entmtp_reserve(ctx, int32_t n_nodes)
        self.reserve = bind("llama_entmtp_reserve", _i32, _ctx, _i32)

        # int32_t llama_entmtp_max_depth(ctx)
        self.max_depth = bind("llama_entmtp_max_depth", _i32, _ctx)

        # enum llama_entmtp_head_kind llama_entmtp_head(ctx_mtp)
        self.head = bind("llama_entmtp_head", _i32, _ctx)

        # void llama_entmtp_set_nextn(ctx, bool value, bool masked)
        self.set_nextn = bind("llama_entmtp_set_nextn", None, _ctx, _bool, _bool)

        # const float * llama_entmtp_get_nextn(ctx)
        self.get_nextn = bind("llama_entmtp_get_nextn", ctypes.POINTER(ctypes.c_float), _ctx)

        # int32_t llama_entmtp_decode(ctx, seq_id, n, const llama_token * token, const int32_t * parent, const int8_t * output)
        self.decode = bind("llama_entmtp_decode", _i32, _ctx, _i32, _i32, _ptr, _ptr, _ptr)

        # int32_t llama_entmtp_commit(ctx, seq_id, node)
        self.commit = bind("llama_entmtp_commit", _i32, _ctx, _i32, _i32)

        # int32_t llama_entmtp_n_nodes(ctx)
        self.n_nodes = bind("llama_entmtp_n_nodes", _i32, _ctx)

        # bool llama_entmtp_truncate(ctx, seq_id, n_past)
        self.truncate = bind("llama_entmtp_truncate", _bool, _ctx, _i32, _i32)

        # void llama_entmtp_clear(ctx)
        self.clear = bind("llama_entmtp_clear", None, _ctx)

        # int32_t llama_entmtp_set_top(ctx, int32_t k)
        self.set_top = bind("llama_entmtp_set_top", _i32, _ctx, _i32)

        # int32_t llama_entmtp_row(ctx, int32_t i, int32_t k, llama_token * ids, float * logp, float * entropy)
        self.row = bind("llama_entmtp_row", _i32, _ctx, _i32, _i32, _ptr, _ptr, _ptr)

        # int32_t llama_entmtp_top_k(ctx, int32_t i, int32_t k, llama_token * ids, float * logits)
        self.top_k = bind("llama_entmtp_top_k", _i32, _ctx, _i32, _i32, _ptr, _ptr)

        # int32_t llama_entmtp_greedy(ctx, n, const llama_token * token, const int32_t * parent, llama_token * best)
        self.greedy = bind("llama_entmtp_greedy", _i32, _ctx, _i32, _ptr, _ptr, _ptr)

        # int32_t llama_entmtp_mtp_push(ctx_mtp, ctx_tgt, seq_id, n, const llama_token * token, const int32_t * row)
        self.mtp_push = bind("llama_entmtp_mtp_push", _i32, _ctx, _ctx, _i32, _i32, _ptr, _ptr)

        # int32_t llama_entmtp_mtp_keep(ctx_mtp, ctx_tgt, int32_t row)
        self.mtp_keep = bind("llama_entmtp_mtp_keep", _i32, _ctx, _ctx, _i32)

        # int32_t llama_entmtp_mtp_flush(ctx_mtp, seq_id)
        self.mtp_flush = bind("llama_entmtp_mtp_flush", _i32, _ctx, _i32)

        # int32_t llama_entmtp_mtp_draft(ctx_mtp, seq_id, n, const int32_t * parent, const int32_t * rank, float least,
        #                                llama_token * token, float * logp, float * entropy, int32_t * n_levels)
        self.mtp_draft = bind(
            "llama_entmtp_mtp_draft", _i32, _ctx, _i32, _i32, _ptr, _ptr, ctypes.c_float, _ptr, _ptr, _ptr, _ptr
        )

        # int32_t llama_entmtp_mtp_set_vocab(ctx_mtp, int32_t n)
        self.mtp_set_vocab = bind("llama_entmtp_mtp_set_vocab", _i32, _ctx, _i32)

        # int32_t llama_entmtp_mtp_set_embd(ctx_mtp, int32_t wanted)
        self.mtp_set_embd = bind("llama_entmtp_mtp_set_embd", _i32, _ctx, _i32)

        # int32_t llama_entmtp_mtp_set_head_type(ctx_mtp, int32_t type)
        self.mtp_set_head_type = bind("llama_entmtp_mtp_set_head_type", _i32, _ctx, _i32)
