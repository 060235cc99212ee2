"""The Qwen3.5 architecture with one MTP block, in PyTorch, as llama.cpp computes it.

Knows nothing of text, training schedules and files. Tensors are laid out as llama.cpp wants them: norm weights are factors
(the published checkpoints store the factor minus one), value head h of a delta net uses key head h mod n_key_heads, and the
query projection holds a query and its gate for each head in turn. The decay is stored as the logarithm of its rate.

Source: src/models/qwen35.cpp and src/models/delta-net-base.cpp of the llama.cpp that patches/UPSTREAM names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MTP_DEPTHS = 3
# Tokens of a block of the delta rule: matrix products inside a block, a recursion from block to block.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """The shape of a model. Head counts of 1 and 2 rather than many: heads keep the size that the real family has."""

    n_vocab: int
    n_layer: int = 8  # trunk layers; the MTP block comes on top
    n_embd: int = 256
    n_ff: int = 768
    n_head: int = 2
    n_head_kv: int = 1
    head_dim: int = 256
    n_rot: int = 64
    rope_sections: tuple[int, int, int, int] = (11, 11, 10, 0)
    rope_base: float = 1_000_000.0
    full_attention_interval: int = 4
    n_key_heads: int = 2  # delta net
    n_value_heads: int = 2
    state_size: int = 128
    conv_kernel: int = 4
    rms_eps: float = 1e-6
    n_ctx: int = 2048

    def __post_init__(self) -> None:
        if self.n_vocab % 64 != 0:
            raise ValueError(f"n_vocab is {self.n_vocab}; it must be a multiple of 64.")
        if self.n_layer % self.full_attention_interval != 0:
            raise ValueError(f"n_layer is {self.n_layer}; it must be a multiple of {self.full_attention_interval}.")
        if self.n_head % self.n_head_kv != 0 or self.n_value_heads % self.n_key_heads != 0:
            raise ValueError("query heads must be a multiple of KV heads, and value heads of key heads.")
        if 2 * sum(self.rope_sections) != self.n_rot:
            raise ValueError(f"rope_sections {self.rope_sections} must sum to half of n_rot ({self.n_rot}).")

    def is_recurrent(self, i_layer: int) -> bool:
        return (i_layer + 1) % self.full_attention_interval != 0

    @property
    def key_dim(self) -> int:
        return self.n_key_heads * self.state_size

    @property
    def value_dim(self) -> int:
        return self.n_value_heads * self.state_size


# -- parts


class Linear(nn.Module):
    """A matrix without bias, kept in F32 and multiplied in the type of its input."""

    def __init__(self, n_in: int, n_out: int, *, zero: bool = False) -> None:
        super().__init__()
        weight = torch.zeros(n_out, n_in) if zero else torch.randn(n_out, n_in) / math.sqrt(n_in)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The norm over the last axis, in F32."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class FeedForward(nn.Module):
    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.gate = Linear(config.n_embd, config.n_ff)
        self.up = Linear(config.n_embd, config.n_ff)
        self.down = Linear(config.n_ff, config.n_embd, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


def rotary_table(config: ReferenceConfig, n_positions: int, device: torch.device | None = None) -> Tensor:
    """Cosines and sines by position, (2, n_positions, n_rot / 2) f32.

    Text gives every rotary section the same position, so the sections do not show here.
    """
    inverse = config.rope_base ** (-torch.arange(0, config.n_rot, 2, device=device, dtype=torch.float64) / config.n_rot)
    angle = torch.arange(n_positions, device=device, dtype=torch.float64)[:, None] * inverse
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the first n_rot entries of each head; pairs are n_rot / 2 apart.

    Args:
        x: (..., n_positions, n_heads, head_dim)
        table: rows of `rotary_table` for these positions, (2, n_positions, n_rot / 2)
    """
    half = table.shape[-1]
    cos, sin = table[0].unsqueeze(-2), table[1].unsqueeze(-2)
    a, b, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


class Attention(nn.Module):
    """Full attention with a gated output, query and key norms and partial rotary positions."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        n_q, n_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        self.q = Linear(config.n_embd, 2 * n_q)  # (query, gate) for each head
        self.k = Linear(config.n_embd, n_kv)
        self.v = Linear(config.n_embd, n_kv)
        self.out = Linear(n_q, config.n_embd, zero=True)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps)

    def queries(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and gates, (..., n_positions, n_head, head_dim) each."""
        c = self.config
        q, gate = self.q(x).unflatten(-1, (c.n_head, 2 * c.head_dim)).split(c.head_dim, dim=-1)
        return rotate(self.q_norm(q), table).to(x.dtype), gate

    def keys_values(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (..., n_positions, n_head_kv, head_dim) each."""
        c = self.config
        k = self.k(x).unflatten(-1, (c.n_head_kv, c.head_dim))
        v = self.v(x).unflatten(-1, (c.n_head_kv, c.head_dim))
        return rotate(self.k_norm(k), table).to(x.dtype), v

    def output(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out((y * torch.sigmoid(gate)).flatten(-2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        q, gate = self.queries(x, table)
        k, v = self.keys_values(x, table)
        return self.output(causal_attention(q, k, v), gate)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of each position over itself and what comes before.

    Args:
        q: (n_seqs, n_tokens, n_head, head_dim); k, v: the same with n_head_kv heads
    Returns: the shape of q
    """
    if q.is_cuda:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    # plain products in bfloat16 are several times as fast as PyTorch's fused attention on a CPU
    n_seqs, n_tokens, n_head, head_dim = q.shape
    n_kv = k.shape[2]
    future = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=q.device).triu(1)
    grouped = q.unflatten(2, (n_kv, -1)).permute(0, 2, 3, 1, 4).reshape(n_seqs * n_kv, -1, head_dim)
    scores = torch.bmm(grouped, k.permute(0, 2, 3, 1).reshape(n_seqs * n_kv, head_dim, n_tokens))
    scores = scores.float().view(n_seqs * n_kv, -1, n_tokens, n_tokens) / math.sqrt(head_dim)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1).to(q.dtype).flatten(1, 2)
    y = torch.bmm(weights, v.transpose(1, 2).reshape(n_seqs * n_kv, n_tokens, head_dim))
    return y.view(n_seqs, n_kv, n_head // n_kv, n_tokens, head_dim).permute(0, 3, 1, 2, 4).flatten(2, 3)


# -- the gated delta rule


def delta_rule_recursive(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """The gated delta rule, token by token: what the block form is checked against.

    Args:
        q, k: (n_seqs, n_heads, n_tokens, state_size), normalised, q scaled
        v: (n_seqs, n_heads, n_tokens, state_size)
        log_decay, beta: (n_seqs, n_heads, n_tokens)
    Returns: (n_seqs, n_heads, n_tokens, state_size)
    """
    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    rows = []
    for t in range(v.shape[2]):
        state = state * log_decay[:, :, t, None, None].exp()
        delta = beta[:, :, t, None] * (v[:, :, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t]))
        state = state + k[:, :, t, :, None] * delta[:, :, None, :]
        rows.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(rows, dim=2)


def unit_lower_inverse(a: Tensor) -> Tensor:
    """The inverse of I + a for strictly lower triangular a, by matrix products.

    Blocks of 8 by the finite series (I - a)(I + a^2)(I + a^4), then pairs of blocks joined. Triangular solvers take one matrix at
    a time on a CPU; the series alone would lose all digits at 64, where powers of a reach 1e18 when keys repeat.

    Args:
        a: (n, size, size) f32; size is 8 times a power of 2
    """
    return _UnitLowerInverse.apply(a)  # type: ignore[no-any-return, no-untyped-call]


class _UnitLowerInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        n, size, _ = a.shape
        width = 8
        tiles = a.view(n, size // width, width, size // width, width)
        blocks = torch.stack([tiles[:, i, :, i] for i in range(size // width)], dim=1).flatten(0, 1)
        eye = torch.eye(width, dtype=a.dtype, device=a.device)
        square = torch.bmm(blocks, blocks)
        inverse = torch.bmm(torch.bmm(eye - blocks, eye + square), eye + torch.bmm(square, square))
        while width < size:
            pairs = size // (2 * width)
            tiles = a.view(n, pairs, 2, width, pairs, 2, width)
            below = torch.stack([tiles[:, i, 1, :, i, 0] for i in range(pairs)], dim=1).flatten(0, 1)
            first, second = inverse.view(n * pairs, 2, width, width).unbind(1)
            corner = -torch.bmm(torch.bmm(second, below), first)
            upper = torch.cat([first, torch.zeros_like(corner)], dim=-1)
            inverse = torch.cat([upper, torch.cat([corner, second], dim=-1)], dim=-2)
            width *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, d_inverse: Tensor) -> Tensor:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        return -torch.bmm(torch.bmm(inverse.mT, d_inverse), inverse.mT)


def delta_rule_blocks(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The gated delta rule in blocks: the same function as `delta_rule_recursive`, mostly matrix products.

    With G the running sum of the log decays inside a block and D_ij = exp(G_i - G_j), the updates U of a block follow from
    (I + A) U = beta (V - exp(G) K S), A_ij = beta_i D_ij (k_i . k_j) for j < i. The products take the inputs' type; decays, the
    triangular inverse and the state stay in F32.

    Args and returns: see `delta_rule_recursive`; n_tokens is a multiple of chunk.
    """
    n_seqs, n_heads, n_tokens, size = v.shape
    dtype, n_rows, n_chunks = v.dtype, n_seqs * n_heads, n_tokens // chunk

    q, k, v = (x.reshape(n_rows * n_chunks, chunk, -1) for x in (q, k, v))
    beta = beta.float().reshape(-1, chunk, 1)
    total = log_decay.float().reshape(-1, chunk).cumsum(-1)
    # the difference is formed before the exponential, and the upper half masked before it too: it would overflow
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).tril()
    decay = (total[:, :, None] - total[:, None, :]).masked_fill(~lower, -torch.inf).exp()

    a = (torch.bmm(k, k.mT).float() * decay * beta).tril(-1)
    inverse = unit_lower_inverse(a).to(dtype)
    from_root = total.exp().unsqueeze(-1)
    u = torch.bmm(inverse, (v * beta).to(dtype))
    w = torch.bmm(inverse, (k * (beta * from_root)).to(dtype)).unflatten(0, (n_rows, n_chunks))
    to_end = (k * (total[:, -1:] - total).exp().unsqueeze(-1)).to(dtype).unflatten(0, (n_rows, n_chunks))
    end = from_root[:, -1:].unflatten(0, (n_rows, n_chunks))

    u = u.unflatten(0, (n_rows, n_chunks))
    state = torch.zeros(n_rows, size, size, dtype=torch.float32, device=v.device)
    states, updates = [], []
    for i in range(n_chunks):
        states.append(state.to(dtype))
        updates.append(u[:, i] - torch.bmm(w[:, i], states[i]))
        state = state * end[:, i] + torch.bmm(to_end[:, i].mT, updates[i]).float()
    before = torch.stack(states, dim=1).flatten(0, 1)
    updated = torch.stack(updates, dim=1).flatten(0, 1)

    scores = (torch.bmm(q, k.mT).float() * decay).to(dtype)
    out = torch.bmm((q * from_root).to(dtype), before) + torch.bmm(scores, updated)
    return out.reshape(n_seqs, n_heads, n_tokens, size)


class DeltaNet(nn.Module):
    """Gated delta net: short convolution, delta rule, gated norm."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.qkv = Linear(c.n_embd, 2 * c.key_dim + c.value_dim)
        self.gate = Linear(c.n_embd, c.value_dim)
        self.beta = Linear(c.n_embd, c.n_value_heads)
        self.alpha = Linear(c.n_embd, c.n_value_heads)
        self.conv = nn.Parameter(torch.randn(2 * c.key_dim + c.value_dim, c.conv_kernel) / math.sqrt(c.conv_kernel))
        # decay rates between 1 and 16 times a step of .001 to .1, as in Mamba 2
        self.log_rate = nn.Parameter(torch.empty(c.n_value_heads).uniform_(1.0, 16.0).log())
        step = torch.exp(torch.empty(c.n_value_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.norm = RMSNorm(c.state_size, c.rms_eps)
        self.out = Linear(c.value_dim, c.n_embd, zero=True)

    def convolve(self, x: Tensor) -> Tensor:
        """Causal convolution over the last conv_kernel positions of each channel. x: (n_seqs, n_tokens, n_channels)"""
        n_tokens, width = x.shape[1], self.config.conv_kernel
        padded = F.pad(x, (0, 0, width - 1, 0)).float()
        terms = [padded[:, j : j + n_tokens] * self.conv[:, j] for j in range(width)]
        return F.silu(sum(terms[1:], terms[0]))

    def forward(self, x: Tensor, rule: Callable[..., Tensor] = delta_rule_blocks) -> Tensor:
        c, n_tokens = self.config, x.shape[1]
        mixed = self.convolve(self.qkv(x))
        q, k, v = mixed.split([c.key_dim, c.key_dim, c.value_dim], dim=-1)
        q, k, v = (y.unflatten(-1, (-1, c.state_size)).transpose(1, 2) for y in (q, k, v))
        q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + c.rms_eps) / math.sqrt(c.state_size)
        k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + c.rms_eps)
        repeat = c.n_value_heads // c.n_key_heads
        if repeat > 1:
            q, k = q.repeat(1, repeat, 1, 1), k.repeat(1, repeat, 1, 1)
        beta = torch.sigmoid(self.beta(x).float()).transpose(1, 2)
        log_decay = (-self.log_rate.exp() * F.softplus(self.alpha(x).float() + self.dt_bias)).transpose(1, 2)

        # padding behind the text changes nothing before it
        pad = -n_tokens % CHUNK
        q, k, v = (F.pad(y, (0, 0, 0, pad)).to(x.dtype) for y in (q, k, v))
        y = rule(q, k, v, F.pad(log_decay, (0, pad)), F.pad(beta, (0, pad)))[:, :, :n_tokens]
        z = self.gate(x).unflatten(-1, (-1, c.state_size))
        y = self.norm(y.transpose(1, 2)) * F.silu(z.float())
        return self.out(y.flatten(-2).to(x.dtype))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A trunk layer: x is the residual stream, kept in F32."""

    def __init__(self, config: ReferenceConfig, *, recurrent: bool) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.n_embd, config.rms_eps)
        self.mixer: DeltaNet | Attention = DeltaNet(config) if recurrent else Attention(config)
        self.post_norm = RMSNorm(config.n_embd, config.rms_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        y = self.attn_norm(x).to(dtype)
        x = x + (self.mixer(y) if isinstance(self.mixer, DeltaNet) else self.mixer(y, table))
        return x + self.ffn(self.post_norm(x).to(dtype))  # type: ignore[no-any-return]


class MtpBlock(nn.Module):
    """The MTP block, applied recursively.

    The entry at position p takes token x_p and the hidden row of position p - 1 (zeros before the first), and its output, behind
    shared_head_norm, gives both the logits of x_{p+1} and the hidden row of the next depth. A draft that starts at p has its
    entry of depth d at p + d - 1: it attends to the entries up to p that were made from the trunk's rows, and to its own entries
    at p + 1 .. p + d - 1, just as in the engine, where a draft goes on from the cache that the catch-up has filled.
    """

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        n = config.n_embd
        self.config = config
        self.enorm = RMSNorm(n, config.rms_eps)
        self.hnorm = RMSNorm(n, config.rms_eps)
        self.eh_proj = Linear(2 * n, n)
        self.attn_norm = RMSNorm(n, config.rms_eps)
        self.mixer = Attention(config)
        self.post_norm = RMSNorm(n, config.rms_eps)
        self.ffn = FeedForward(config)
        self.head_norm = RMSNorm(n, config.rms_eps)

    def entry(self, embedded: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """The block's input from token embeddings and hidden rows, F32."""
        both = torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1)
        return self.eh_proj(both.to(dtype)).float()  # type: ignore[no-any-return]

    def finish(self, x: Tensor, attended: Tensor, dtype: torch.dtype) -> Tensor:
        x = x + attended
        return self.head_norm(x + self.ffn(self.post_norm(x).to(dtype)))  # type: ignore[no-any-return]

    def forward(
        self, embedded: Tensor, hidden: Tensor, starts: Tensor, table: Tensor, n_depths: int, dtype: torch.dtype
    ) -> list[Tensor]:
        """Hidden rows of drafts of n_depths tokens, all given the true tokens.

        Args:
            embedded: token embeddings, (n_seqs, n_tokens, n_embd)
            hidden: rows of the trunk behind its final norm, the same shape
            starts: positions p where drafts start, ascending, at most n_tokens - n_depths; (n_starts,)
        Returns: for each depth d the rows that predict x_{p+d}, (n_seqs, n_starts, n_embd) f32
        """
        c, n_tokens = self.config, embedded.shape[1]
        x = self.entry(embedded, F.pad(hidden, (0, 0, 1, 0))[:, :n_tokens], dtype)
        normed = self.attn_norm(x).to(dtype)
        k, v = self.mixer.keys_values(normed, table[:, :n_tokens])
        group = c.n_head // c.n_head_kv
        context_k = k.permute(0, 2, 3, 1)  # (n_seqs, n_head_kv, head_dim, n_tokens)
        context_v = v.transpose(1, 2)
        future = torch.arange(n_tokens, device=starts.device) > starts[:, None]

        x, normed = x[:, starts], normed[:, starts]
        own_k: list[Tensor] = []
        own_v: list[Tensor] = []
        rows: list[Tensor] = []
        for depth in range(n_depths):
            positions = table[:, starts + depth]
            if depth > 0:
                x = self.entry(embedded[:, starts + depth], rows[-1], dtype)
                normed = self.attn_norm(x).to(dtype)
                k, v = self.mixer.keys_values(normed, positions)
                own_k.append(k)
                own_v.append(v)
            q, gate = self.mixer.queries(normed, positions)  # (n_seqs, n_starts, n_head, head_dim)
            grouped = q.unflatten(2, (c.n_head_kv, group))
            scores = torch.matmul(grouped.permute(0, 2, 3, 1, 4).flatten(2, 3), context_k).float()
            scores = scores.unflatten(2, (group, -1)).masked_fill(future, -torch.inf)
            own = [(grouped * k.unsqueeze(3)).float().sum(-1).permute(0, 2, 3, 1) for k in own_k]
            scores = torch.cat([scores, *(one.unsqueeze(-1) for one in own)], dim=-1) / math.sqrt(c.head_dim)
            weights = scores.softmax(-1).to(dtype)  # (n_seqs, n_head_kv, group, n_starts, n_tokens + depth)
            y = torch.matmul(weights[..., :n_tokens].flatten(2, 3), context_v).unflatten(2, (group, -1))
            y = y.permute(0, 3, 1, 2, 4)
            for i, value in enumerate(own_v):
                y = y + weights[..., n_tokens + i].permute(0, 3, 1, 2).unsqueeze(-1) * value.unsqueeze(3)
            rows.append(self.finish(x, self.mixer.output(y.flatten(2, 3), gate), dtype))
        return rows


class ReferenceModel(nn.Module):
    """Trunk, MTP block and tied embeddings.

    `dtype` is the type of the matrix products (F32 for proofs, bfloat16 for training); parameters, norms, decays and the
    residual stream are F32 always.
    """

    def __init__(self, config: ReferenceConfig, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.embedding = nn.Parameter(torch.randn(config.n_vocab, config.n_embd) * 0.02)
        self.blocks = nn.ModuleList(Block(config, recurrent=config.is_recurrent(i)) for i in range(config.n_layer))
        self.output_norm = RMSNorm(config.n_embd, config.rms_eps)
        self.mtp = MtpBlock(config)
        self.register_buffer("table", rotary_table(config, config.n_ctx), persistent=False)
        self.table: Tensor

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile the trunk layers one by one (their graphs are the same, so it is done twice) and the MTP block."""
        for block in self.blocks:
            block.compile(**options)
        self.mtp.compile(**options)

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding)

    def trunk(self, tokens: Tensor) -> Tensor:
        """Hidden rows behind the final norm, (n_seqs, n_tokens, n_embd) f32. They feed both heads."""
        return self.trunk_embedded(self.embed(tokens))

    def trunk_embedded(self, x: Tensor) -> Tensor:
        table = self.table[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, table, self.dtype)
        return self.output_norm(x)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, starts: Tensor, n_depths: int = MTP_DEPTHS, n_drafting: int | None = None) -> list[Tensor]:
        """Hidden rows of the trunk, then of the MTP depths (see `MtpBlock.forward`).

        Args:
            tokens: (n_seqs, n_tokens)
            n_drafting: the MTP block sees the first so many sequences; None = all
        """
        embedded = self.embed(tokens)
        hidden = self.trunk_embedded(embedded)
        drafting = slice(n_drafting)
        return [hidden, *self.mtp(embedded[drafting], hidden[drafting], starts, self.table, n_depths, self.dtype)]

    def logits(self, rows: Tensor) -> Tensor:
        """(..., n_embd) to (..., n_vocab) f32."""
        return F.linear(rows.to(self.dtype), self.embedding.to(self.dtype)).float()
