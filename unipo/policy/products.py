"""The three matrix products of a linear layer, by whichever library is faster for them here.

On a CPU in float32 oneDNN's product reaches about 15 % more than the default one for large factors; elsewhere, and
for small factors, where its calls cost more to set up, the default is used.  All are exact products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGE = 10**7  # rows * inputs * outputs from which setting up oneDNN's product pays


def _pointwise() -> Any:
    return torch.ops.mkldnn._linear_pointwise


def _large(rows: int, weight: Tensor) -> bool:
    cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return cpu and torch.backends.mkldnn.is_available() and rows * weight.numel() >= LARGE  # type: ignore[attr-defined,no-any-return]


def forward_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. x: [n, in]; weight: [out, in]; bias: [out]. Returns [n, out]."""
    if _large(len(x), weight):
        return _pointwise()(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return torch.nn.functional.linear(x, weight, bias)


def input_gradient(g: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """g W, added to `plus` if given (whose memory it may take). g: [n, out]; weight: [out, in]. Returns [n, in]."""
    if _large(len(g), weight):
        if plus is None:
            return _pointwise()(g, weight.t(), None, "none", [], "")  # type: ignore[no-any-return]
        return _pointwise().binary(g, plus, weight.t(), None, "add")  # type: ignore[no-any-return]
    return torch.mm(g, weight) if plus is None else plus.addmm_(g, weight)


def weight_gradient(g: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """g^T x in `dtype`. g: [n, out]; x: [n, in]. Returns [out, in], contiguous."""
    return torch.mm(g.t(), x).to(dtype)
