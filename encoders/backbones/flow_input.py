"""Cross-modality initialisation: a network of pictures for stacks of flow (VU 5.3.3, after TSN).

Letters: c channels of a stack of flows (u and v of each).
"""

import copy
import itertools

from torch import nn

from encoders.backbones.family import WeightsError

COLOURS = 3
"""Input channels of a network of pictures."""


def for_stacks(model: nn.Module, num_channels: int) -> nn.Module:
    """Return the network with c = `num_channels` input channels.

    It shares all tensors with `model` but those of its convolutions of colours: one, or several if
    the network begins with parallel branches. Their weights are averaged over the colours, and each
    channel gets the mean. Such a network sees the sum of all channels, hence motion but not its
    direction, until it is trained further.

    Raises:
        WeightsError: the network has no convolution of three channels.
    """
    shared = itertools.chain(model.parameters(), model.buffers())
    stacked = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    convolutions = [
        module
        for module in stacked.modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == COLOURS and module.groups == 1
    ]
    if not convolutions:
        raise WeightsError(
            "describe.streams: a flow stream with stack > 1 expects a network with a convolution "
            f"of three channels, got {type(model).__name__} without; set stack=1"
        )
    for convolution in convolutions:
        weight = convolution.weight
        mean = weight.detach().mean(dim=1, keepdim=True)
        convolution.weight = nn.Parameter(mean.repeat(1, num_channels, 1, 1), weight.requires_grad)
        convolution.in_channels = num_channels
    if rescales_colours(model):
        stacked.__dict__["transform_input"] = False
    return stacked


def rescales_colours(model: nn.Module) -> bool:
    """Return True if the network itself maps colours normalised as ImageNet's to -1..1.

    GoogLeNet and Inception do.
    """
    return getattr(model, "transform_input", False)
