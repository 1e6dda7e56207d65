"""The parameters of a network that an output depends on."""

import torch
from torch import Tensor, nn


def parameters_of(model: nn.Module, output: Tensor) -> set[str]:
    """Return the names of the parameters that an output depends on; on the meta device too."""
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(
        output.sum(), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }
