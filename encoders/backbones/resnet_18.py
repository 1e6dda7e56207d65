"""ResNet-18 over time or over a pair of frames, whose stages a decoder of flow reads.

torchvision's blocks; with 64 channels the 3-D one is its `r3d_18` with a pool behind the first
layer (VU 4.3.2), so that weights of either fit the other.

Letters: b clips, c channels of a frame, t frames, h and w sides of maps.
"""

from typing import cast

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.video.resnet import BasicBlock as ClipBlock
from torchvision.models.video.resnet import Conv3DSimple

BLOCKS = 2
"""Blocks of each of the four stages."""


class ResNet18(nn.Module):
    """Four stages behind a first layer that loses three quarters of the side.

    Args:
        width: channels of the first stage; each later one has twice as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = tuple(width * 2**stage for stage in range(4))
        for stage, planes in enumerate(self.widths):
            inputs = self.widths[max(0, stage - 1)]
            stride = 1 if stage == 0 else 2
            blocks = [self.block(inputs, planes, stride)]
            blocks += [self.block(planes, planes, 1) for _ in range(1, BLOCKS)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def block(self, inputs: int, planes: int, stride: int) -> nn.Module:
        """Return a block of two convolutions."""
        raise NotImplementedError

    def first(self, pixels: Tensor) -> Tensor:
        """Return the maps that the first stage reads."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps of the stages, the deepest first."""
        maps = [self.first(pixels)]
        for stage in range(1, 5):
            maps.append(cast(nn.Module, getattr(self, f"layer{stage}"))(maps[-1]))
        return maps[:0:-1]


class ClipResNet(ResNet18):
    """Convolutions over time and space, of clips [b, c, t, h, w]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(width)
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        _initialise(self)

    def block(self, inputs: int, planes: int, stride: int) -> nn.Module:
        shortcut = None
        if stride != 1 or inputs != planes:
            shortcut = nn.Sequential(
                nn.Conv3d(inputs, planes, 1, stride, bias=False), nn.BatchNorm3d(planes)
            )
        return ClipBlock(inputs, planes, Conv3DSimple, stride, shortcut)

    def first(self, pixels: Tensor) -> Tensor:
        return self.pool(self.stem(pixels))


class PairResNet(ResNet18):
    """Convolutions over space, of pairs of frames as one picture [b, 2c, h, w]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(width)
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        _initialise(self)

    def block(self, inputs: int, planes: int, stride: int) -> nn.Module:
        return _pair_block(inputs, planes, stride)

    def first(self, pixels: Tensor) -> Tensor:
        return self.pool(nn.functional.relu(self.bn1(self.conv1(pixels))))


class FlowResNet(ResNet18):
    """A network of flow [b, 2, h, w], which has a quarter of the pictures' side: it has no pool,
    and its first convolution keeps the side (VU 4.3.3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.conv1 = nn.Conv2d(2, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        _initialise(self)

    def block(self, inputs: int, planes: int, stride: int) -> nn.Module:
        return _pair_block(inputs, planes, stride)

    def first(self, pixels: Tensor) -> Tensor:
        return nn.functional.relu(self.bn1(self.conv1(pixels)))


def _pair_block(inputs: int, planes: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or inputs != planes:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
        )
    return BasicBlock(inputs, planes, stride, shortcut)


def _initialise(network: nn.Module) -> None:
    """Draw weights as torchvision does."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
