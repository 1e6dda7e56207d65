"""Networks of clips: torchvision's `models.video`, and the encoder of an ActionFlowNet.

`r3d_18` is torchvision's; `actionflownet` and, of another width, `actionflownet_16` take the
`encoder.safetensors` of a trained network of several frames.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from encoders.backbones.family import WeightsError, near
from encoders.backbones.resnet_18 import ClipResNet
from encoders.backbones.torchvision_family import Torchvision

OWN = re.compile(r"actionflownet(?:_(\d+))?$")
"""Our own network, with the channels of its first stage."""

OWN_WIDTH, OWN_SIDE_PX = 64, 224

LAST_NODES = {
    "r3d": "layer4",
    "mc3": "layer4",
    "r2plus1d": "layer4",
    "s3d": "features.15",
    "mvit": "blocks.15",
    "swin3d": "norm",
    "actionflownet": "layer4",
}
"""{family: the node with its last maps}."""


class Video(Torchvision):
    """Networks of clips [f, 3, t, h, w] by torchvision's names; nodes are modules."""

    def model(self, network: str, device: str) -> nn.Module:
        known = [*models.list_models(module=models.video), "actionflownet"]
        if own := OWN.match(network):
            with torch.device(device):
                return ClipResNet(3, int(own[1] or OWN_WIDTH)).eval()
        if network not in known:
            raise WeightsError(
                "describe.backbone: expected a network of torchvision.models.video or an "
                f"actionflownet, got {network!r}; known are {near(network, known)}"
            )
        # Some make tensors without naming a device, so that it is said twice.
        with torch.device(device):
            return models.get_model(network, weights=None).eval().to(device)

    def nodes(self, network: str) -> list[str]:
        return [name for name, _ in self.model(network, "meta").named_modules() if name]

    def preprocessing(self, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return super().preprocessing("r3d_18" if OWN.match(network) else network)

    def side_px(self, network: str) -> int:
        """Return the side of the pictures that belongs to the weights."""
        if OWN.match(network):
            return OWN_SIDE_PX
        transforms: Any = models.get_model_weights(network)["DEFAULT"].transforms()
        return transforms.crop_size[0]

    def published(self, network: str, weights: str) -> str:
        self._require_published(network, weights)
        return super().published(network, weights)

    def download(self, network: str, weights: str) -> dict[str, Tensor]:
        self._require_published(network, weights)
        return super().download(network, weights)

    def _require_published(self, network: str, weights: str) -> None:
        self.model(network, "meta")
        if OWN.match(network):
            raise WeightsError(
                f"describe.weights: {network} has no published weights, got {weights!r}; name the "
                "encoder.safetensors of a trained network, or random:SEED"
            )


def last_node(network: str) -> str:
    """Return the node with the last maps of a network."""
    return LAST_NODES.get(re.split(r"_", network)[0], "")
