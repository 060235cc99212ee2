#!/usr/bin/env python3
"""Write tiny GGUF models with MTP heads for the tests.

Each file has the tensors and metadata that one architecture of the pinned llama.cpp asks for, at a size of a few
hundred kilobytes. The weights are not trained, but they are not noise either: the next token is mostly a function of
the current one, so an MTP head that sees only the current embedding and a little of the hidden row agrees with the
trunk often, not always, and its second and third choices are sometimes right.

How: every token has three possible successors (three random cycles through the vocabulary) whose logits lie close
together, and the context, which enters through small attention, delta-net and feed-forward outputs, picks one. `noise`
sets how large those outputs are and so how much the trunk and its head disagree.

This module does not know llama.cpp; that the files load is checked by the native tests.

    .venv/bin/python scripts/make_tiny_models.py OUT_DIR [--kinds qwen35,glm4moe] [--type f32|f16|q8_0]
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

N_EMBD = 128
N_FF = 128
N_CTX_TRAIN = 4096
HEAD_DIM = 64
N_HEAD = 2
N_HEAD_KV = 1
RMS_EPS = 1e-6
TYPES = ("f32", "f16", "q8_0")

# Of the first few seeds this one gives greedy text that loops least (about three quarters of its 6-grams differ over
# 400 tokens) with 62 to 70 % agreement between head and trunk.
DEFAULT_SEED = 6

# A prompt ending in STOP_LEAD continues with STOP and then with the end-of-turn token, in the trunk and in the head:
# an end inside a drafted chain. Nothing else leads to either, so other text does not end by itself.
STOP_LEAD = "`"
STOP = "~"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

_MERGE_WORDS = (
    " the of and to in is that it for was on are as with his they at be this have from or one had by word but not what "
    "all were we when your can said there use an each which she do how their if will up other about out many then them"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
N_VOCAB = 384  # a multiple of 64: views of the first rows of the output matrix must be


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A byte-level BPE tokenizer as GGUF stores it."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]

    def id(self, token: str) -> int:
        return self.tokens.index(token)


def _byte_alphabet() -> list[str]:
    """The printable stand-ins for the 256 bytes that byte-level BPE uses (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]


def make_tokenizer() -> Tokenizer:
    """Build the vocabulary: 256 bytes, merges of common English words, special tokens at the end of the ids."""
    alphabet = _byte_alphabet()
    tokens = list(alphabet)
    merges: list[str] = []
    n_normal = N_VOCAB - 16
    for word in _MERGE_WORDS.split(" ")[1:]:
        left = alphabet[0x20]
        for byte in word.encode():
            if len(tokens) == n_normal:
                break
            right = alphabet[byte]
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
            left += right
    if len(tokens) != n_normal:
        raise ValueError(f"the word list gives {len(tokens)} tokens, {n_normal} are needed")
    types = [int(gguf.TokenType.NORMAL)] * n_normal
    special = [*_SPECIAL, *(f"<|reserved_{i}|>" for i in range(N_VOCAB - n_normal - len(_SPECIAL)))]
    tokens += special
    types += [int(gguf.TokenType.CONTROL)] * len(special)
    return Tokenizer(tuple(tokens), tuple(types), tuple(merges))


@dataclass(slots=True)
class TinyModel:
    """Metadata and tensors of one file, in writing order."""

    arch: str
    name: str
    seed: int
    noise: float
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, F32] = field(default_factory=dict)
    keep_f32: set[str] = field(default_factory=set)

    def set(self, **values: Any) -> None:
        """Add architecture keys; `__` in a name stands for a dot."""
        for key, value in values.items():
            self.metadata[f"{self.arch}.{key.replace('__', '.')}"] = value

    def uniform(self, name: str, *shape: int) -> F32:
        """Uniform values of variance 1 from (seed, tensor name), so that no tensor depends on another's order."""
        rng = np.random.RandomState((self.seed ^ zlib.crc32(name.encode())) & 0xFFFFFFFF)
        values: F32 = ((rng.random_sample(shape) * 2.0 - 1.0) * 3.0**0.5).astype(np.float32)
        return values

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0, *, n_expert: int = 0) -> None:
        """A projection that keeps the variance of its input, times gain; shape (n_out, n_in)."""
        shape = (n_expert, n_out, n_in) if n_expert else (n_out, n_in)
        self.tensors[name] = self.uniform(name, *shape) * np.float32(gain / n_in**0.5)

    def write_back(self, name: str, n_in: int, gain: float = 1.0, *, n_expert: int = 0) -> None:
        """A projection into the residual stream. It leaves feature 0 alone: see `embedding_rows`."""
        self.matrix(name, N_EMBD, n_in, gain * self.noise, n_expert=n_expert)
        self.tensors[name][..., 0, :] = 0.0

    def vector(self, name: str, values: F32) -> None:
        self.tensors[name] = np.ascontiguousarray(values, dtype=np.float32)
        self.keep_f32.add(name)

    def norm(self, name: str, n: int, value: float = 1.0) -> None:
        self.vector(name, np.full(n, value, np.float32))


def embedding_rows(seed: int) -> F32:
    """Token embeddings, (n_vocab, n_embd); feature 0 is 1 for every token.

    Nothing writes to feature 0, so a negative weight on it in the output matrix keeps a token's logit low everywhere.
    """
    rng = np.random.RandomState(seed)
    rows: F32 = ((rng.random_sample((N_VOCAB, N_EMBD)) * 2.0 - 1.0) * 3.0**0.5).astype(np.float32)
    rows[:, 0] = 1.0
    return rows


def output_rows(embedding: F32, tokenizer: Tokenizer, seed: int) -> F32:
    """Output matrix, (n_vocab, n_embd): each token's three successors get the logits 9, 9 w2 and 9 w3.

    w2 in 0.85..1 and w3 in 0.6..w2 differ from token to token, so entropy and agreement do too.
    """
    rng = np.random.RandomState(seed + 1)
    stop_lead, stop, end = tokenizer.id(STOP_LEAD), tokenizer.id(STOP), tokenizer.id("<|im_end|>")
    printable = [b for b in range(0x20, 0x7F) if b not in (stop_lead, stop)]
    partial_utf8 = [0xC3, *range(0xA0, 0xB0)]  # a lead byte and continuation bytes: text that streams need to join
    reachable = np.array([0x0A, *printable, *partial_utf8, *range(256, N_VOCAB - 16)])

    output = np.zeros_like(embedding)
    quiet = np.ones(N_VOCAB, bool)
    quiet[reachable] = False
    scale = 9.0 / N_EMBD
    output[quiet, 0] = -12.0

    w2 = 0.85 + 0.15 * rng.random_sample(N_VOCAB)
    w3 = 0.6 + (w2 - 0.6) * rng.random_sample(N_VOCAB)
    for weight in (np.ones(N_VOCAB), w2, w3):
        order = rng.permutation(reachable)
        successor = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
        for token in range(N_VOCAB):
            if token in (stop_lead, stop):
                continue
            target = successor.get(token, int(order[token % len(order)]))
            output[target, 1:] += np.float32(scale * weight[token]) * embedding[token, 1:]
    output[stop] += np.float32(3.0 * scale) * embedding[stop_lead]
    output[end] += np.float32(3.0 * scale) * embedding[stop]
    return output


def add_common(m: TinyModel, *, n_layer: int, n_nextn: int, n_embd: int = N_EMBD) -> None:
    """Metadata that every architecture reads, the tokenizer and the chat template."""
    m.set(
        context_length=N_CTX_TRAIN,
        embedding_length=n_embd,
        block_count=n_layer + n_nextn,
        feed_forward_length=N_FF,
        attention__layer_norm_rms_epsilon=RMS_EPS,
        vocab_size=N_VOCAB,
    )
    if n_nextn:
        m.set(nextn_predict_layers=n_nextn)
    tokenizer = make_tokenizer()
    m.metadata.update(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": list(tokenizer.tokens),
            "tokenizer.ggml.token_type": list(tokenizer.types),
            "tokenizer.ggml.merges": list(tokenizer.merges),
            "tokenizer.ggml.bos_token_id": tokenizer.id("<|endoftext|>"),
            "tokenizer.ggml.eos_token_id": tokenizer.id("<|im_end|>"),
            "tokenizer.ggml.padding_token_id": tokenizer.id("<|endoftext|>"),
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": CHAT_TEMPLATE,
        }
    )


def add_vocabulary_tensors(m: TinyModel) -> None:
    embedding = embedding_rows(m.seed)
    m.tensors["token_embd.weight"] = embedding
    m.norm("output_norm.weight", N_EMBD)
    m.tensors["output.weight"] = output_rows(embedding, make_tokenizer(), m.seed)


def add_attention_keys(m: TinyModel, *, head_dim: int = HEAD_DIM, n_rot: int | None = None) -> None:
    m.set(
        attention__head_count=N_HEAD,
        attention__head_count_kv=N_HEAD_KV,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        rope__dimension_count=head_dim if n_rot is None else n_rot,
        rope__freq_base=10000.0,
    )


# Attention must be sharp to tell contexts apart: with unit keys and queries every head would average the whole past.
Q_GAIN = 3.0


def add_attention(m: TinyModel, i: int, *, gated: bool = False, qk_norm: bool = True, head_dim: int = HEAD_DIM) -> None:
    """Q, K, V and output projections of block i; `gated` doubles Q as Qwen3.5 does (query and gate per head)."""
    p = f"blk.{i}."
    m.matrix(p + "attn_q.weight", N_HEAD * head_dim * (2 if gated else 1), N_EMBD, 1.0 if qk_norm else Q_GAIN)
    m.matrix(p + "attn_k.weight", N_HEAD_KV * head_dim, N_EMBD)
    m.matrix(p + "attn_v.weight", N_HEAD_KV * head_dim, N_EMBD)
    m.write_back(p + "attn_output.weight", N_HEAD * head_dim, 2.0 if gated else 1.0)
    if qk_norm:
        m.norm(p + "attn_q_norm.weight", head_dim, Q_GAIN)
        m.norm(p + "attn_k_norm.weight", head_dim)


def add_fused_attention(m: TinyModel, i: int) -> None:
    p = f"blk.{i}."
    m.matrix(p + "attn_qkv.weight", (N_HEAD + 2 * N_HEAD_KV) * HEAD_DIM, N_EMBD)
    m.tensors[p + "attn_qkv.weight"][: N_HEAD * HEAD_DIM] *= np.float32(Q_GAIN)
    m.write_back(p + "attn_output.weight", N_HEAD * HEAD_DIM)


def add_dense_ffn(m: TinyModel, i: int) -> None:
    p = f"blk.{i}."
    m.matrix(p + "ffn_gate.weight", N_FF, N_EMBD)
    m.matrix(p + "ffn_up.weight", N_FF, N_EMBD)
    m.write_back(p + "ffn_down.weight", N_FF)


N_EXPERT = 4
N_EXPERT_USED = 2
N_FF_EXP = 64


def add_moe_keys(m: TinyModel, *, n_shared: int | None = 1, gating: int | None = None) -> None:
    m.set(expert_count=N_EXPERT, expert_used_count=N_EXPERT_USED, expert_feed_forward_length=N_FF_EXP)
    if n_shared is not None:
        m.set(expert_shared_count=n_shared)
    if gating is not None:
        m.set(expert_gating_func=gating)


def add_moe_ffn(
    m: TinyModel, i: int, *, bias: str | None = "exp_probs_b.bias", gated_shexp: bool = False, gate: bool = True
) -> None:
    """Routed experts and a shared expert; `gated_shexp` adds Qwen's sigmoid gate, `gate` the SwiGLU gate matrices."""
    p = f"blk.{i}."
    m.matrix(p + "ffn_gate_inp.weight", N_EXPERT, N_EMBD)
    if bias is not None:
        m.vector(p + bias, np.linspace(-0.05, 0.05, N_EXPERT, dtype=np.float32))
    if gate:
        m.matrix(p + "ffn_gate_exps.weight", N_FF_EXP, N_EMBD, n_expert=N_EXPERT)
    m.matrix(p + "ffn_up_exps.weight", N_FF_EXP, N_EMBD, n_expert=N_EXPERT)
    m.write_back(p + "ffn_down_exps.weight", N_FF_EXP, n_expert=N_EXPERT)
    if gated_shexp:
        m.vector(p + "ffn_gate_inp_shexp.weight", m.uniform(p + "ffn_gate_inp_shexp.weight", N_EMBD) / N_EMBD**0.5)
    if gate:
        m.matrix(p + "ffn_gate_shexp.weight", N_FF_EXP, N_EMBD)
    m.matrix(p + "ffn_up_shexp.weight", N_FF_EXP, N_EMBD)
    m.write_back(p + "ffn_down_shexp.weight", N_FF_EXP)


SSM_STATE = 32
SSM_N_K_HEAD = 2
SSM_N_V_HEAD = 4
SSM_CONV = 4


def add_delta_net_keys(m: TinyModel) -> None:
    m.set(
        ssm__conv_kernel=SSM_CONV,
        ssm__inner_size=SSM_STATE * SSM_N_V_HEAD,
        ssm__state_size=SSM_STATE,
        ssm__time_step_rank=SSM_N_V_HEAD,
        ssm__group_count=SSM_N_K_HEAD,
    )


def add_delta_net(m: TinyModel, i: int, *, fused_beta_alpha: bool = False) -> None:
    """A gated delta-net layer of Qwen3.5 (or Qwen3-Next, which stores beta and alpha in one matrix)."""
    p = f"blk.{i}."
    key_dim, value_dim = SSM_STATE * SSM_N_K_HEAD, SSM_STATE * SSM_N_V_HEAD
    conv_dim = 2 * key_dim + value_dim
    m.matrix(p + "attn_qkv.weight", conv_dim, N_EMBD)
    m.matrix(p + "attn_gate.weight", value_dim, N_EMBD)
    m.vector(p + "ssm_conv1d.weight", m.uniform(p + "ssm_conv1d.weight", conv_dim, SSM_CONV) * np.float32(0.5))
    m.vector(p + "ssm_dt.bias", m.uniform(p + "ssm_dt.bias", SSM_N_V_HEAD) * np.float32(0.5))
    # decay per token is exp(softplus(alpha + dt) * a): these heads forget within about 2 to 30 tokens
    m.vector(p + "ssm_a", -np.geomspace(0.05, 0.7, SSM_N_V_HEAD).astype(np.float32))
    if fused_beta_alpha:
        m.matrix(p + "ssm_ba.weight", 2 * SSM_N_V_HEAD, N_EMBD)
    else:
        m.matrix(p + "ssm_beta.weight", SSM_N_V_HEAD, N_EMBD)
        m.matrix(p + "ssm_alpha.weight", SSM_N_V_HEAD, N_EMBD)
    m.norm(p + "ssm_norm.weight", SSM_STATE)
    m.write_back(p + "ssm_out.weight", value_dim, 1.5)


H_GAIN = 0.15  # share of the hidden row in the head's input


def add_nextn(m: TinyModel, i: int, *, head_norm: str | None = "nextn.shared_head_norm.weight") -> None:
    """The head's input: the embedding half passes through, the hidden half enters scaled down."""
    p = f"blk.{i}."
    eh_proj = m.uniform(p + "nextn.eh_proj.weight", N_EMBD, 2 * N_EMBD) * np.float32(H_GAIN / N_EMBD**0.5)
    eh_proj[0] = 0.0
    eh_proj[:, :N_EMBD] = np.eye(N_EMBD, dtype=np.float32)
    m.tensors[p + "nextn.eh_proj.weight"] = eh_proj
    m.norm(p + "nextn.enorm.weight", N_EMBD)
    m.norm(p + "nextn.hnorm.weight", N_EMBD)
    if head_norm is not None:
        m.norm(p + head_norm, N_EMBD)


def _qwen35_block(m: TinyModel, i: int, *, recurrent: bool, moe: bool, fused_beta_alpha: bool = False) -> None:
    m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
    m.norm(f"blk.{i}.post_attention_norm.weight", N_EMBD)
    if recurrent:
        add_delta_net(m, i, fused_beta_alpha=fused_beta_alpha)
    else:
        add_attention(m, i, gated=True)
    if moe:
        add_moe_ffn(m, i, bias=None, gated_shexp=True)
    else:
        add_dense_ffn(m, i)


def _qwen35(arch: str, seed: int, noise: float, *, trunk: bool = True, mtp: bool = True) -> TinyModel:
    m = TinyModel(arch, f"tiny {arch}", seed, noise)
    n_layer, moe = 4, arch != "qwen35"
    add_common(m, n_layer=n_layer, n_nextn=int(mtp))
    n_rot = HEAD_DIM // 4
    add_attention_keys(m, n_rot=n_rot)
    m.set(full_attention_interval=2)
    if arch != "qwen3next":
        m.set(rope__dimension_sections=[3, 3, 2, 0])
    if moe:
        add_moe_keys(m, n_shared=None)
        m.set(expert_shared_feed_forward_length=N_FF_EXP)
    add_delta_net_keys(m)
    add_vocabulary_tensors(m)
    fused = arch == "qwen3next"
    for i in range(n_layer if trunk else 0):
        _qwen35_block(m, i, recurrent=(i + 1) % 2 != 0, moe=moe, fused_beta_alpha=fused)
    if mtp:
        _qwen35_block(m, n_layer, recurrent=False, moe=moe)
        add_nextn(m, n_layer)
    return m


def _glm4moe(seed: int, noise: float) -> TinyModel:
    m = TinyModel("glm4moe", "tiny glm4moe", seed, noise)
    n_layer = 3
    add_common(m, n_layer=n_layer, n_nextn=1)
    add_attention_keys(m, n_rot=HEAD_DIM // 2)
    add_moe_keys(m)
    m.set(leading_dense_block_count=1, expert_weights_scale=1.0, expert_weights_norm=True)
    add_vocabulary_tensors(m)
    for i in range(n_layer + 1):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_attention(m, i)
        m.norm(f"blk.{i}.post_attention_norm.weight", N_EMBD)
        if i == 0:
            add_dense_ffn(m, i)
        else:
            add_moe_ffn(m, i)
    add_nextn(m, n_layer)
    return m


def _hy_v3(seed: int, noise: float) -> TinyModel:
    m = TinyModel("hy_v3", "tiny hy_v3", seed, noise)
    n_layer = 2
    add_common(m, n_layer=n_layer, n_nextn=1)
    add_attention_keys(m)
    add_moe_keys(m)
    m.set(expert_shared_feed_forward_length=N_FF_EXP)
    add_vocabulary_tensors(m)
    for i in range(n_layer + 1):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_attention(m, i)
        m.norm(f"blk.{i}.ffn_norm.weight", N_EMBD)
        if i == 0:
            add_dense_ffn(m, i)
        else:
            add_moe_ffn(m, i, bias="exp_probs_b")
    add_nextn(m, n_layer)
    return m


WINDOW = 32


def _mimo2(seed: int, noise: float) -> TinyModel:
    m = TinyModel("mimo2", "tiny mimo2", seed, noise)
    pattern = [True, False, True, False, True]
    n_layer = len(pattern) - 1
    add_common(m, n_layer=n_layer, n_nextn=1)
    add_attention_keys(m)
    m.set(attention__sliding_window=WINDOW, attention__sliding_window_pattern=pattern)
    m.set(expert_feed_forward_length=N_FF_EXP, rope__freq_base_swa=10000.0)
    add_vocabulary_tensors(m)
    for i in range(n_layer + 1):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_fused_attention(m, i)
        m.norm(f"blk.{i}.ffn_norm.weight", N_EMBD)
        add_dense_ffn(m, i)
    add_nextn(m, n_layer)
    return m


def _step35(seed: int, noise: float) -> TinyModel:
    m = TinyModel("step35", "tiny step35", seed, noise)
    pattern = [False, True, True, True, True, True]
    n_nextn = 3
    n_layer = len(pattern) - n_nextn
    add_common(m, n_layer=n_layer, n_nextn=n_nextn)
    add_attention_keys(m)
    add_moe_keys(m, n_shared=None)
    m.set(expert_shared_feed_forward_length=N_FF_EXP, expert_weights_norm=True)
    m.set(attention__sliding_window=WINDOW, attention__sliding_window_pattern=pattern)
    m.set(rope__dimension_count_swa=HEAD_DIM, rope__freq_base_swa=10000.0)
    add_vocabulary_tensors(m)
    for i in range(n_layer + n_nextn):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_attention(m, i)
        m.matrix(f"blk.{i}.attn_gate.weight", N_HEAD, N_EMBD)
        m.norm(f"blk.{i}.ffn_norm.weight", N_EMBD)
        if i == 1:
            add_moe_ffn(m, i)
        else:
            add_dense_ffn(m, i)
        if i >= n_layer:
            add_nextn(m, i)
    return m


GEMMA_HEAD_DIM = 128
GEMMA_HEAD_DIM_SWA = 64


def _gemma_keys(m: TinyModel, pattern: Sequence[bool]) -> None:
    add_attention_keys(m, head_dim=GEMMA_HEAD_DIM)
    m.set(
        attention__key_length_swa=GEMMA_HEAD_DIM_SWA,
        attention__value_length_swa=GEMMA_HEAD_DIM_SWA,
        attention__sliding_window=WINDOW,
        attention__sliding_window_pattern=list(pattern),
        attention__shared_kv_layers=0,
        rope__dimension_count_swa=GEMMA_HEAD_DIM_SWA,
        rope__freq_base_swa=10000.0,
    )


def _post_norm(m: TinyModel, name: str, n_embd: int) -> None:
    """A norm after a sub-layer: its weight, not the projection before it, sets the size of what is added."""
    weight = np.full(n_embd, m.noise * 0.7, np.float32)
    weight[0] = 0.0
    weight[N_EMBD:] = 0.0
    m.vector(name, weight)


def _gemma_block(m: TinyModel, i: int, *, swa: bool, n_embd: int, own_kv: bool) -> None:
    p = f"blk.{i}."
    head_dim = GEMMA_HEAD_DIM_SWA if swa else GEMMA_HEAD_DIM
    m.norm(p + "attn_norm.weight", n_embd)
    m.matrix(p + "attn_q.weight", N_HEAD * head_dim, n_embd)
    if own_kv:
        m.matrix(p + "attn_k.weight", N_HEAD_KV * head_dim, n_embd)
        m.matrix(p + "attn_v.weight", N_HEAD_KV * head_dim, n_embd)
        m.norm(p + "attn_k_norm.weight", head_dim)
    # Gemma does not divide scores by sqrt(head_dim), so the norm weight takes that in
    m.norm(p + "attn_q_norm.weight", head_dim, Q_GAIN / head_dim**0.5)
    m.matrix(p + "attn_output.weight", n_embd, N_HEAD * head_dim)
    _post_norm(m, p + "post_attention_norm.weight", n_embd)
    m.norm(p + "layer_output_scale.weight", 1)
    m.norm(p + "ffn_norm.weight", n_embd)
    m.matrix(p + "ffn_gate.weight", N_FF, n_embd)
    m.matrix(p + "ffn_up.weight", N_FF, n_embd)
    m.matrix(p + "ffn_down.weight", n_embd, N_FF)
    _post_norm(m, p + "post_ffw_norm.weight", n_embd)


def _gemma4(seed: int, noise: float) -> TinyModel:
    m = TinyModel("gemma4", "tiny gemma4", seed, noise)
    pattern = [True, False, True, False]  # the head shares the last two layers: one of each kind
    add_common(m, n_layer=len(pattern), n_nextn=0)
    _gemma_keys(m, pattern)
    m.set(embedding_length_per_layer_input=0)
    add_vocabulary_tensors(m)
    m.tensors["token_embd.weight"] /= np.float32(N_EMBD**0.5)  # Gemma multiplies embeddings by sqrt(n_embd)
    m.norm("rope_freqs.weight", GEMMA_HEAD_DIM // 2)
    for i, swa in enumerate(pattern):
        _gemma_block(m, i, swa=swa, n_embd=N_EMBD, own_kv=True)
    return m


GEMMA_ASSISTANT_N_EMBD = 192


def _gemma4_assistant(seed: int, noise: float) -> TinyModel:
    """The Gemma 4 draft model: its own residual width, the target's embeddings and key-value cache.

    Its residual stream holds the target's in its first N_EMBD features, so the target's output rows fit its tied head.
    """
    m = TinyModel("gemma4-assistant", "tiny gemma4 assistant", seed, noise)
    pattern = [True, False]
    n_embd = GEMMA_ASSISTANT_N_EMBD
    add_common(m, n_layer=0, n_nextn=len(pattern), n_embd=n_embd)
    _gemma_keys(m, pattern)
    m.set(embedding_length_out=N_EMBD)
    head = np.zeros((N_VOCAB, n_embd), np.float32)
    head[:, :N_EMBD] = output_rows(embedding_rows(seed), make_tokenizer(), seed)
    m.tensors["token_embd.weight"] = head
    m.norm("output_norm.weight", n_embd, (N_EMBD / n_embd) ** 0.5)
    post = np.zeros((N_EMBD, n_embd), np.float32)
    post[:, :N_EMBD] = np.eye(N_EMBD, dtype=np.float32)
    m.tensors["nextn.post_projection.weight"] = post
    pre = np.zeros((n_embd, 2 * N_EMBD), np.float32)
    pre[:N_EMBD, :N_EMBD] = np.eye(N_EMBD, dtype=np.float32)
    pre[1:N_EMBD, N_EMBD:] = m.uniform("nextn.pre_projection.weight", N_EMBD - 1, N_EMBD) * (H_GAIN / N_EMBD**0.5)
    m.tensors["nextn.pre_projection.weight"] = pre
    m.norm("rope_freqs.weight", GEMMA_HEAD_DIM // 2)
    for i, swa in enumerate(pattern):
        _gemma_block(m, i, swa=swa, n_embd=n_embd, own_kv=False)
    return m


def _llama(seed: int, noise: float) -> TinyModel:
    m = TinyModel("llama", "tiny llama", seed, noise)
    n_layer = 2
    add_common(m, n_layer=n_layer, n_nextn=0)
    add_attention_keys(m)
    add_vocabulary_tensors(m)
    for i in range(n_layer):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_attention(m, i, qk_norm=False)
        m.norm(f"blk.{i}.ffn_norm.weight", N_EMBD)
        add_dense_ffn(m, i)
    return m


MAMBA_INNER = 2 * N_EMBD
MAMBA_HEAD = 64
MAMBA_GROUP = 1


def add_mamba2_keys(m: TinyModel) -> None:
    m.set(
        ssm__conv_kernel=SSM_CONV,
        ssm__inner_size=MAMBA_INNER,
        ssm__state_size=SSM_STATE,
        ssm__time_step_rank=MAMBA_INNER // MAMBA_HEAD,
        ssm__group_count=MAMBA_GROUP,
    )


def add_mamba2(m: TinyModel, i: int) -> None:
    p = f"blk.{i}."
    n_head = MAMBA_INNER // MAMBA_HEAD
    conv_dim = MAMBA_INNER + 2 * MAMBA_GROUP * SSM_STATE
    m.matrix(p + "ssm_in.weight", MAMBA_INNER + conv_dim + n_head, N_EMBD)
    m.vector(p + "ssm_conv1d.weight", m.uniform(p + "ssm_conv1d.weight", conv_dim, SSM_CONV) * np.float32(0.5))
    m.vector(p + "ssm_conv1d.bias", np.zeros(conv_dim, np.float32))
    m.vector(p + "ssm_dt.bias", m.uniform(p + "ssm_dt.bias", n_head) * np.float32(0.5))
    m.vector(p + "ssm_a", -np.geomspace(0.05, 0.7, n_head).astype(np.float32).reshape(n_head, 1))
    m.vector(p + "ssm_d", np.ones((n_head, 1), np.float32))
    m.vector(p + "ssm_norm.weight", np.ones((MAMBA_GROUP, MAMBA_INNER // MAMBA_GROUP), np.float32))
    m.write_back(p + "ssm_out.weight", MAMBA_INNER)


def _mamba2(seed: int, noise: float) -> TinyModel:
    m = TinyModel("mamba2", "tiny mamba2", seed, noise)
    n_layer = 2
    add_common(m, n_layer=n_layer, n_nextn=0)
    add_mamba2_keys(m)
    add_vocabulary_tensors(m)
    for i in range(n_layer):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_mamba2(m, i)
    return m


MLA_RANK_Q = 64
MLA_RANK_KV = 64
MLA_ROPE = 32
MLA_NOPE = 32
MLA_V = 64


def add_mla_keys(m: TinyModel) -> None:
    m.set(
        attention__key_length=MLA_RANK_KV + MLA_ROPE,
        attention__value_length=MLA_RANK_KV,
        attention__key_length_mla=MLA_NOPE + MLA_ROPE,
        attention__value_length_mla=MLA_V,
        attention__q_lora_rank=MLA_RANK_Q,
        attention__kv_lora_rank=MLA_RANK_KV,
        rope__dimension_count=MLA_ROPE,
        rope__freq_base=10000.0,
    )


def add_mla(m: TinyModel, i: int) -> None:
    """DeepSeek's compressed attention: the cache holds one latent row a token."""
    p = f"blk.{i}."
    m.matrix(p + "attn_q_a.weight", MLA_RANK_Q, N_EMBD)
    m.norm(p + "attn_q_a_norm.weight", MLA_RANK_Q)
    m.matrix(p + "attn_q_b.weight", N_HEAD * (MLA_NOPE + MLA_ROPE), MLA_RANK_Q, Q_GAIN)
    m.matrix(p + "attn_kv_a_mqa.weight", MLA_RANK_KV + MLA_ROPE, N_EMBD)
    m.norm(p + "attn_kv_a_norm.weight", MLA_RANK_KV)
    m.matrix(p + "attn_k_b.weight", MLA_RANK_KV, MLA_NOPE, n_expert=N_HEAD)
    m.matrix(p + "attn_v_b.weight", MLA_V, MLA_RANK_KV, n_expert=N_HEAD)
    m.write_back(p + "attn_output.weight", N_HEAD * MLA_V)


def _deepseek2(seed: int, noise: float) -> TinyModel:
    m = TinyModel("deepseek2", "tiny deepseek2", seed, noise)
    n_layer = 2
    add_common(m, n_layer=n_layer, n_nextn=1)
    m.set(attention__head_count=N_HEAD, attention__head_count_kv=1)
    add_mla_keys(m)
    add_moe_keys(m, gating=2)
    m.set(leading_dense_block_count=1, expert_weights_scale=1.0, expert_weights_norm=True)
    add_vocabulary_tensors(m)
    for i in range(n_layer + 1):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        add_mla(m, i)
        m.norm(f"blk.{i}.ffn_norm.weight", N_EMBD)
        if i == 0:
            add_dense_ffn(m, i)
        else:
            add_moe_ffn(m, i)
    add_nextn(m, n_layer)
    return m


def _nemotron_h_moe(seed: int, noise: float) -> TinyModel:
    """One sub-layer a block: Mamba 2, attention or experts; the head has attention and experts in one block."""
    m = TinyModel("nemotron_h_moe", "tiny nemotron_h_moe", seed, noise)
    blocks = ["mamba", "attention", "experts", "mamba"]
    n_layer = len(blocks)
    add_common(m, n_layer=n_layer, n_nextn=1)
    add_attention_keys(m)
    m.set(
        attention__layer_norm_epsilon=RMS_EPS,
        attention__head_count_kv=[N_HEAD_KV if block == "attention" else 0 for block in blocks] + [N_HEAD_KV],
        feed_forward_length=[N_FF if block == "experts" else 0 for block in blocks] + [N_FF],
        expert_shared_feed_forward_length=N_FF_EXP,
        expert_weights_norm=True,
    )
    add_mamba2_keys(m)
    add_moe_keys(m)
    add_vocabulary_tensors(m)
    for i, block in enumerate(blocks):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        if block == "mamba":
            add_mamba2(m, i)
        elif block == "attention":
            add_attention(m, i, qk_norm=False)
        else:
            add_moe_ffn(m, i, gate=False)
    m.norm(f"blk.{n_layer}.attn_norm.weight", N_EMBD)
    add_attention(m, n_layer, qk_norm=False)
    m.norm(f"blk.{n_layer}.post_attention_norm.weight", N_EMBD)
    add_moe_ffn(m, n_layer, gate=False)
    add_nextn(m, n_layer)
    return m


KDA_HEAD_DIM = 64


def add_kda(m: TinyModel, i: int) -> None:
    """Kimi's delta attention: a delta-net with a decay per channel."""
    p = f"blk.{i}."
    inner = KDA_HEAD_DIM * N_HEAD
    for part in "qkv":
        name = f"{p}ssm_conv1d_{part}.weight"
        m.vector(name, m.uniform(name, inner, 1, SSM_CONV) * np.float32(0.5))
        m.matrix(f"{p}attn_{part}.weight", inner, N_EMBD)
    m.matrix(p + "ssm_f_a.weight", inner, N_EMBD)
    m.matrix(p + "ssm_beta.weight", N_HEAD, N_EMBD)
    m.vector(p + "ssm_a", -np.geomspace(0.05, 0.7, N_HEAD).astype(np.float32).reshape(N_HEAD, 1))
    m.vector(p + "ssm_dt.bias", m.uniform(p + "ssm_dt.bias", inner) * np.float32(0.5))
    m.matrix(p + "ssm_g_a.weight", inner, N_EMBD)
    m.norm(p + "ssm_norm.weight", KDA_HEAD_DIM)
    m.write_back(p + "attn_output.weight", inner, 1.5)


def _bailingmoe3(seed: int, noise: float) -> TinyModel:
    m = TinyModel("bailingmoe3", "tiny bailingmoe3", seed, noise)
    recurrent = [True, False, True]
    n_layer = len(recurrent)
    add_common(m, n_layer=n_layer, n_nextn=1)
    m.set(attention__head_count=N_HEAD, attention__head_count_kv=[0 if r else 1 for r in recurrent] + [1])
    add_mla_keys(m)
    add_moe_keys(m, gating=2)
    m.set(leading_dense_block_count=1, ssm__conv_kernel=SSM_CONV, kda__head_dim=KDA_HEAD_DIM)
    m.set(kda__safe_gate=True, kda__gate_lower_bound=-5.0)
    add_vocabulary_tensors(m)
    for i, is_recurrent in enumerate([*recurrent, False]):
        m.norm(f"blk.{i}.attn_norm.weight", N_EMBD)
        if is_recurrent:
            add_kda(m, i)
        else:
            add_mla(m, i)
            m.matrix(f"blk.{i}.attn_gate.weight", N_HEAD, N_EMBD)
        m.norm(f"blk.{i}.ffn_norm.weight", N_EMBD)
        if i == 0:
            add_dense_ffn(m, i)
        else:
            add_moe_ffn(m, i)
    add_nextn(m, n_layer, head_norm="layer_output_norm.weight")
    return m


@dataclass(frozen=True, slots=True)
class Kind:
    """One model of the set: how to make it and what a runtime should find in it."""

    make: Callable[[int, float], TinyModel]
    head_kind: str  # single | chained | shared | none
    memory_kind: str  # attention | iswa | hybrid | recurrent | other
    sidecar: Callable[[int, float], TinyModel] | None = None
    noise: float = 0.5
    note: str = ""


KINDS: dict[str, Kind] = {
    "glm4moe": Kind(_glm4moe, "single", "attention", note="plain attention, mixture of experts"),
    "qwen35": Kind(lambda s, n: _qwen35("qwen35", s, n), "single", "hybrid", note="delta-net and attention"),
    "step35": Kind(_step35, "chained", "iswa", noise=0.6, note=f"three heads, window {WINDOW}"),
    "gemma4": Kind(_gemma4, "shared", "iswa", sidecar=_gemma4_assistant, note="draft model on the target's cache"),
    "qwen35-sidecar": Kind(
        lambda s, n: _qwen35("qwen35", s, n, mtp=False),
        "single",
        "hybrid",
        sidecar=lambda s, n: _qwen35("qwen35", s, n, trunk=False),
        note="the qwen35 weights, trunk and head in two files",
    ),
    "llama": Kind(_llama, "none", "attention", noise=1.0, note="no head"),
    "mamba2": Kind(_mamba2, "none", "recurrent", noise=1.0, note="no head, recurrent state without rollback"),
    "qwen35moe": Kind(lambda s, n: _qwen35("qwen35moe", s, n), "single", "hybrid", note="mixture of experts"),
    "qwen3next": Kind(lambda s, n: _qwen35("qwen3next", s, n), "single", "hybrid", note="beta and alpha fused"),
    "hy_v3": Kind(_hy_v3, "single", "attention", note="plain attention, query and key norms"),
    "deepseek2": Kind(_deepseek2, "single", "attention", noise=0.6, note="compressed (MLA) attention"),
    "nemotron_h_moe": Kind(_nemotron_h_moe, "single", "other", noise=0.4, note="Mamba 2, attention and experts"),
    "bailingmoe3": Kind(_bailingmoe3, "single", "other", noise=0.6, note="Kimi delta attention and MLA"),
    "mimo2": Kind(_mimo2, "single", "iswa", note=f"window {WINDOW}, fused QKV"),
}


def make_model(kind: str, *, seed: int = DEFAULT_SEED, noise: float | None = None) -> TinyModel:
    """Build the main file's model of a kind in memory."""
    entry = KINDS[kind]
    return entry.make(seed, entry.noise if noise is None else noise)


def make_sidecar(kind: str, *, seed: int = DEFAULT_SEED, noise: float | None = None) -> TinyModel | None:
    """Build the head's own file of a kind, for the kinds that have one."""
    entry = KINDS[kind]
    return None if entry.sidecar is None else entry.sidecar(seed, entry.noise if noise is None else noise)


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # general.file_type values of llama.cpp


def write_model(model: TinyModel, path: Path, *, weight_type: str = "f32") -> None:
    """Write one GGUF; the same model gives the same bytes."""
    writer = gguf.GGUFWriter(path, model.arch)
    general = {"general.name": model.name, "general.file_type": _FILE_TYPES[weight_type]}
    for key, value in (general | model.metadata).items():
        _add_value(writer, key, value)
    for name, data in model.tensors.items():
        data = np.ascontiguousarray(data, np.float32)
        if weight_type == "f32" or name in model.keep_f32:
            writer.add_tensor(name, data)
        elif weight_type == "f16":
            writer.add_tensor(name, data.astype(np.float16))
        else:
            quantised = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(out_dir: Path, kinds: Iterable[str] = tuple(KINDS), *, weight_type: str = "f32", seed: int = DEFAULT_SEED) -> Path:
    """Write the files and the manifest.

    Args:
        out_dir: created if absent.
        kinds: names from KINDS.
        weight_type: f32, f16 or q8_0 for the matrices; norms and state parameters stay f32.
        seed: every weight follows from it.
    Returns: path of manifest.json.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    models = []
    for name in kinds:
        entry = KINDS[name]
        file = f"{name}.gguf"
        model = make_model(name, seed=seed)
        write_model(model, out_dir / file, weight_type=weight_type)
        sidecar_file = None
        sidecar = make_sidecar(name, seed=seed)
        if sidecar is not None:
            sidecar_file = f"{name}-mtp.gguf"
            write_model(sidecar, out_dir / sidecar_file, weight_type=weight_type)
        models.append(
            {
                "kind": name,
                "arch": model.arch,
                "file": file,
                "sidecar": sidecar_file,
                "head_kind": entry.head_kind,
                "memory_kind": entry.memory_kind,
                "n_vocab": N_VOCAB,
                "n_embd": N_EMBD,
                "window": model.metadata.get(f"{model.arch}.attention.sliding_window"),
                "note": entry.note,
            }
        )
    manifest = {"version": 1, "seed": seed, "type": weight_type, "stop_prompt": f"hello{STOP_LEAD}", "models": models}
    path = out_dir / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return path


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write tiny GGUF models with MTP heads for the tests.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated; default: all")
    parser.add_argument("--type", dest="weight_type", choices=TYPES, default="f32")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args(argv)
    args.kinds = args.kinds.split(",")
    unknown = [kind for kind in args.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"unknown kind {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    return args


if __name__ == "__main__":
    _args = _parse_args(None)
    print(main(_args.out_dir, _args.kinds, weight_type=_args.weight_type, seed=_args.seed))
