"""Gated feed-forward layers, act(gate) · up, that keep gate and up for backward and not their activation as well.

In a Llama these three tensors are half of all that a training step remembers; the activation is made again from gate.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class Gated(torch.autograd.Function):
    """act(gate) · up, elementwise; the numbers are those of autograd."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            active = ctx.act(again)
        (dgate,) = torch.autograd.grad(active, again, grad * up)
        return dgate, active.detach().mul_(grad), None


def _forward(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(Gated.apply(self.gate_proj(x), self.up_proj(x), self.act_fn))


def keep_less(model: nn.Module) -> None:
    """Give every layer that computes down_proj(act_fn(gate_proj(x)) · up_proj(x)) the forward above; tried on one x."""
    parts = {"gate_proj", "up_proj", "down_proj", "act_fn"}
    dtype, device = next((p.dtype, p.device) for p in model.parameters() if p.is_floating_point())
    for module in model.modules():
        if {name for name, _ in module.named_children()} == parts:
            gate: Any = module.gate_proj
            x = torch.linspace(-1, 1, gate.in_features, device=device, dtype=dtype)[None, None]
            with torch.no_grad():
                act: Any = module.act_fn
                in_place = act(x) is x  # an identity: the product would be written over gate
                same = not in_place and torch.equal(module(x), _forward(module, x))
            if same:
                setattr(module, "forward", MethodType(_forward, module))  # noqa: B010 - methods are not for assigning
