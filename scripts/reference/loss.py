"""Cross entropy over the vocabulary with a z-loss, without ever holding all logits; and a penalty on repetition.

Knows nothing of models: it takes rows, a matrix of embeddings and targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Rows whose logits are in memory at a time: small enough that they stay in a processor's caches between the passes.
CHUNK_CPU = 512
CHUNK_CUDA = 4096
# What a token's probability should be when its segment comes again, as a share of what it was the time before.
REPEAT_DECAY = 0.5


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """The loss of one head. Only `total` carries a gradient."""

    total: Tensor  # weight * (nll + z_weight * z), scalar
    nll: Tensor  # mean negative log-likelihood, nats
    z: Tensor  # mean square of the log of the softmax denominator


def softmax_gradient(logits: Tensor, scale: float, z_weight: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row, and the gradient but for the -scale at the target.

    Args:
        logits: (n_rows, n_vocab)
    Returns: (n_rows,) f32, and (n_rows, n_vocab) in the type of the logits
    """
    x = logits.float()
    lse = x.logsumexp(-1)
    gradient = (x - lse[:, None]).exp() * (scale * (1 + 2 * z_weight * lse))[:, None]
    return lse, gradient.to(logits.dtype)


compiled_softmax_gradient = torch.compile(softmax_gradient, dynamic=True)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weight: float,
        z_weight: float,
        dtype: torch.dtype,
        compiled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_rows = rows.shape[0]
        scale = weight / n_rows
        matrix = embedding.to(dtype)
        gradient_of = compiled_softmax_gradient if compiled else softmax_gradient
        d_rows = torch.empty_like(rows)
        d_embedding = torch.zeros_like(embedding)
        nll = rows.new_zeros(())
        z = rows.new_zeros(())
        chunk = CHUNK_CUDA if rows.is_cuda else CHUNK_CPU
        for begin in range(0, n_rows, chunk):
            x = rows[begin : begin + chunk].to(dtype)
            target = targets[begin : begin + chunk]
            at_target = (torch.arange(len(target), device=target.device), target)
            logits = x @ matrix.mT
            lse, gradient = gradient_of(logits, scale, z_weight)
            nll += (lse - logits[at_target].float()).sum()
            z += lse.square().sum()
            gradient[at_target] -= scale
            d_rows[begin : begin + chunk] = gradient @ matrix
            d_embedding += gradient.mT @ x
        ctx.save_for_backward(d_rows, d_embedding)
        nll, z = nll / n_rows, z / n_rows
        total = weight * (nll + z_weight * z)
        ctx.mark_non_differentiable(nll, z)
        return total, nll, z

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_rows, d_embedding = ctx.saved_tensors
        return d_rows * d_outputs[0], d_embedding * d_outputs[0], None, None, None, None, None


def head_loss(
    rows: Tensor,
    embedding: Tensor,
    targets: Tensor,
    *,
    weight: float = 1.0,
    z_weight: float = 0.0,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> HeadLoss:
    """Weighted mean cross entropy of rows against their targets.

    The gradients are formed along with the loss, so no logits are kept for the backward pass.

    Args:
        rows: (..., n_embd) f32
        embedding: (n_vocab, n_embd) f32
        targets: (...) int64
        dtype: type of the matrix products
    """
    total, nll, z = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        rows.flatten(0, -2), embedding, targets.flatten(), weight, z_weight, dtype, compiled
    )
    return HeadLoss(total, nll, z)


@dataclass(frozen=True, slots=True)
class RepetitionLoss:
    """The penalty on repetition. Only `total` carries a gradient."""

    total: Tensor  # weight * (penalty + z_weight * z), scalar
    penalty: Tensor  # mean over what is repeated, nats
    probability: Tensor  # mean probability of what is repeated


def repetition_loss(
    rows: Tensor,
    embedding: Tensor,
    targets: Tensor,
    begins: Tensor,
    lengths: Tensor,
    *,
    weight: float = 1.0,
    z_weight: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> RepetitionLoss:
    """Mean of -log(1 - |p_n - REPEAT_DECAY * p_(n-1)|) over the second and later times of the repeated segments.

    p_n is a token's probability when the segment comes for the nth time; p_(n-1), one segment earlier, is taken as given. All
    logits are held: this is for a few rows.

    Args:
        rows: hidden rows of the trunk, (n_seqs, n_tokens, n_embd) f32
        embedding: (n_vocab, n_embd) f32
        targets: (n_seqs, n_tokens) int64, one further on than the inputs
        begins: index among a sequence's inputs where its segment stands for the first time, at least 1; (n_seqs,)
        lengths: of the segments; (n_seqs,)
        dtype: type of the matrix products
    Source: Xu et al. 2022, "Learning to Break the Loop" (DITTO), section 3; the z-loss keeps the denominators of these rows, too,
        where the ordinary rows have them.
    """
    logits = (rows.to(dtype) @ embedding.to(dtype).mT).float()
    lse = logits.logsumexp(-1)
    p = (logits.gather(-1, targets.unsqueeze(-1))[..., 0] - lse).exp()
    at = torch.arange(targets.shape[1], device=targets.device)
    before = p.detach().gather(1, (at - lengths[:, None]).clamp(min=0))
    # row i gives the token at i + 1
    repeated = at + 1 >= (begins + lengths)[:, None]
    # a factor rather than a clamp keeps the logarithm finite: a clamp has no gradient just where the penalty is largest
    penalty = -torch.log1p(-(1 - 1e-4) * (p - REPEAT_DECAY * before).abs())[repeated].mean()
    total = weight * (penalty + z_weight * lse[repeated].square().mean())
    return RepetitionLoss(total, penalty.detach(), p.detach()[repeated].mean())
