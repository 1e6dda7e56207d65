"""A network of colour pictures for stacks of optical flow: cross-modality initialisation (VU 5.3.3, after TSN).

Letters: c channels of a stack of flows (u and v of each).
"""

import copy
import itertools

from torch import nn

from encoders.backbones.family import WeightsError

COLOURS = 3
"""Input channels of a network of pictures."""


def for_stacks(model: nn.Module, num_channels: int) -> nn.Module:
    """Return the network with c = `num_channels` input channels; all but its convolutions of colours is shared with `model`.

    Those are one, or several where the network begins with parallel branches. Their weights are averaged over the
    colours, and the mean is taken for each channel. What such a network sees is the sum of all channels, hence motion
    but not its direction, until it is trained further.

    Raises:
        WeightsError: the network has no convolution of three channels.
    """
    shared = itertools.chain(model.parameters(), model.buffers())
    stacked = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    first = [module for module in stacked.modules() if _takes_colours(module)]
    if not first:
        raise WeightsError(
            f"describe.streams: a flow stream with stack > 1 expects a network with a convolution of three "
            f"channels, got {type(model).__name__} without; set stack=1"
        )
    for convolution in first:
        weight = convolution.weight
        mean = weight.detach().mean(dim=1, keepdim=True)
        convolution.weight = nn.Parameter(mean.repeat(1, num_channels, 1, 1), weight.requires_grad)
        convolution.in_channels = num_channels
    if rescales_colours(model):
        stacked.transform_input = False
    return stacked


def rescales_colours(model: nn.Module) -> bool:
    """Whether the network itself makes -1..1 of colours that are normalised as ImageNet's (GoogLeNet, Inception)."""
    return getattr(model, "transform_input", False)


def _takes_colours(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels == COLOURS and module.groups == 1
