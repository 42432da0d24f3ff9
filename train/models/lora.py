"""LoRA layers in two small products and one pass: peft's numbers without its temporaries.

peft computes result + B(A(x)) · scaling: two more tensors of the layer's size, read and written again. Here the scaling
falls on A(x), which is narrow, and the product with B is added where the result lies.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear


def _plain(layer: Any, x: Tensor) -> str | None:
    """The one active adapter of a layer that is nothing but x·W + b + (x·A·B)·scaling; None leaves it to peft."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1 or torch.is_autocast_enabled(x.device.type):
        return None
    (name,) = active
    dropout, parts = layer.lora_dropout[name], (layer.lora_A[name], layer.lora_B[name])
    if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p:
        return None
    if any(type(p) is not nn.Linear or p._forward_pre_hooks or p.bias is not None for p in parts):
        return None  # weights sharded by FSDP or ZeRO are only whole inside their own module's call
    return None if name in layer.lora_variant else name


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = None if args or kwargs else _plain(self, x)
    if name is None:
        return type(self).forward(self, x, *args, **kwargs)
    x_TD = x.flatten(0, -2)  # in place on a view of three dimensions, autograd would copy the gradient
    out_TE = self.base_layer(x_TD)
    down_RD, up_ER = self.lora_A[name].weight, self.lora_B[name].weight
    low_TR = linear(x_TD.to(down_RD.dtype), down_RD) * self.scaling[name]
    if out_TE.dtype == up_ER.dtype:
        out_TE.addmm_(low_TR, up_ER.t())
    else:  # added in the adapter's precision, rounded once
        out_TE.add_(low_TR @ up_ER.t())
    return out_TE.view(*x.shape[:-1], out_TE.shape[-1])


def lean_lora(model: nn.Module) -> None:
    """Give peft's LoRA over linear layers the forward above; whatever it does not cover goes the way of peft."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            setattr(module, "forward", MethodType(_forward, module))  # noqa: B010 - methods are not for assigning
