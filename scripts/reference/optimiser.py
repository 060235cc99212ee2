"""Muon for matrices, AdamW for everything else, and the learning-rate schedule.

Knows nothing of the model but which of its parameters are matrices of a hidden layer.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

# Quintic iteration whose fixed points are near 1: Muon, Jordan et al. 2024 (github.com/KellerJordan/Muon).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_N_ITERATIONS = 5


def orthogonalised(update: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrices with singular values around 1. update: (n, rows, columns)"""
    a, b, c = _NEWTON_SCHULZ
    tall = update.shape[1] > update.shape[2]
    x = (update.mT if tall else update).to(dtype)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(dtype)
    for _ in range(_N_ITERATIONS):
        square = torch.bmm(x, x.mT)
        x = a * x + torch.bmm(b * square + c * torch.bmm(square, square), x)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised; matrices of one shape are handled together."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    gradient, momentum = parameter.grad, state["momentum"]
                    assert gradient is not None
                    momentum.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(momentum, group["momentum"]))
                steps = orthogonalised(torch.stack(updates), torch.bfloat16)
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, one in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(one, alpha=-group["lr"] * scale)


class Optimiser:
    """The optimisers of a model, their rates set together."""

    def __init__(self, model: nn.Module, *, matrix_lr: float, lr: float, weight_decay: float, muon: bool = True) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            # the two thin projections of a delta net give one number a head: no matrices in Muon's sense, nor are the kernels
            thin = parameter.ndim != 2 or min(parameter.shape) < 16 or name == "embedding"
            (others if thin else matrices).append(parameter)
        small: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0, "fused": True}
        if muon:
            self._parts: list[torch.optim.Optimizer] = [
                Muon(matrices, matrix_lr, weight_decay=weight_decay),
                torch.optim.AdamW(others, **small),
            ]
        else:
            wide = small | {"lr": matrix_lr, "weight_decay": weight_decay}
            self._parts = [torch.optim.AdamW(matrices, **wide), torch.optim.AdamW(others, **small)]
        self._rates = [[group["lr"] for group in part.param_groups] for part in self._parts]

    def step(self, share: float) -> None:
        """One step at this share of the full rates; the gradients are dropped."""
        for part, rates in zip(self._parts, self._rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def rate_share(step: int, done: float, *, n_warmup: int, decay_from: float) -> float:
    """Warm-up by steps, then full rate, then a straight line to zero at the end of the budget.

    Args:
        done: share of the budget that is spent, 0 to 1
        decay_from: share at which the rate begins to fall
    """
    warm = min(1.0, (step + 1) / n_warmup)
    return warm * min(1.0, max(0.0, (1.0 - done) / (1.0 - decay_from)))
