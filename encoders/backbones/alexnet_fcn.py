"""AlexNet whose fully connected layers are convolutions, for images of any size (FK 2.2)."""

import torch
from torch import Tensor, nn

from encoders.backbones.family import Layout
from encoders.backbones.torchvision_family import Torchvision


class AlexNetFcn(nn.Module):
    """Frames [f, 3, h, w], sides of 227 or more, to class scores [f, 1000, h', w'].

    The layers and the names are those of torchvision's AlexNet, with two differences: the first
    convolution has no padding, as in the Caffe network whose sides FK Table 1 gives, and FC6, FC7
    and FC8 are convolutions of 6 x 6 and 1 x 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Conv2d(256, 4096, kernel_size=6),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Conv2d(4096, 4096, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4096, 1000, kernel_size=1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.classifier(self.features(frames))


class AlexNetFcnFamily(Torchvision):
    """`alexnet_fcn`, with the weights and the preprocessing of torchvision's AlexNet."""

    def model(self, network: str, device: str) -> nn.Module:
        with torch.device(device):
            return AlexNetFcn().eval()

    def layout(self, model: nn.Module) -> Layout:
        return Layout()

    def preprocessing(self, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return super().preprocessing("alexnet")

    def published(self, network: str, weights: str) -> str:
        return super().published("alexnet", weights)

    def download(self, network: str, weights: str) -> dict[str, Tensor]:
        return super().download("alexnet", weights)

    def fitting(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return fully connected weights [out, C h w] as kernels [out, C, h, w]; kernels stay."""
        sides = {"classifier.1.weight": 6, "classifier.4.weight": 1, "classifier.6.weight": 1}
        return {
            key: value.unflatten(1, (-1, sides[key], sides[key]))
            if key in sides and value.ndim == 2
            else value
            for key, value in state.items()
        }
