"""Temporal difference network (VU 5.3): an image subnetwork, and a subnetwork of the differences of
its maps between neighbouring snippets.

The difference subnetwork has the layers of the image subnetwork, and weights of its own that start
from the same ones. Before each loss of resolution the difference of the image subnetwork's maps is
added to its own: D^0 = v^input, D^l = block_l(D^(l-1)) + v^l, the last block without.
"""

from typing import Self

import torch
from torch import Tensor

from encoders.networks.base import Network
from encoders.networks.body import Source, layer_nodes
from encoders.networks.settings import NetworkSettings, TdnSettings
from encoders.stream_specs import INPUT

FIRST, BOTH = 0, 1
"""Phases: with the image subnetwork's convolutions as they are, then of all."""


class Tdn(Network):
    """Two backbones, and a classifier of each one's maps: n of the images, n - 1 of differences."""

    name = "tdn"
    sees_order = True
    subnetworks = ("image", "difference")

    @classmethod
    def build(
        cls, source: Source, settings: NetworkSettings, num_classes: int, seed: int = 0
    ) -> Self:
        assert isinstance(settings, TdnSettings)
        layers = layer_nodes(source.network, settings.layers, source.node, source.crop_px)
        bodies = {name: source.body(layers) for name in cls.subnetworks}
        return cls(bodies, settings, num_classes, seed)

    def trained(self, phase: int) -> tuple[str, ...]:
        return ("difference",) if phase == FIRST else self.subnetworks

    def rate_factor(self, phase: int) -> float:
        assert isinstance(self.settings, TdnSettings)
        return self.settings.joint_rate_factor if phase == BOTH else 1.0

    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        b, n = frames.shape[:2]
        image, difference = self.body("image"), self.body("difference")
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image" in self.current):
            maps, outputs = image(image.pixels(frames.flatten(0, 1)))
        found = {"image": maps.unflatten(0, (b, n))}
        if n > 1:
            moved = {layer: _differences(values, b, n) for layer, values in outputs.items()}
            maps, _ = difference(torch.zeros_like(moved[INPUT]), moved)
            found["difference"] = maps.unflatten(0, (b, n - 1))
        return found


def _differences(outputs: Tensor, b: int, n: int) -> Tensor:
    """Return each snippet's output less that of the one before, [b (n - 1), ...] of [b n, ...]."""
    outputs = outputs.unflatten(0, (b, n))
    return (outputs[:, 1:] - outputs[:, :-1]).flatten(0, 1)
