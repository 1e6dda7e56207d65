"""Temporal segment network (VU 5.3.2 after Wang et al. 2016): a network of pictures on a snippet of
each part of a video, and the mean of their scores before the softmax."""

from typing import Self

import torch
from torch import Tensor

from encoders.networks.base import Network
from encoders.networks.body import Source
from encoders.networks.settings import NetworkSettings


class Tsn(Network):
    """A backbone, and a classifier of its maps."""

    name = "tsn"

    @classmethod
    def build(
        cls, source: Source, settings: NetworkSettings, num_classes: int, seed: int = 0
    ) -> Self:
        return cls({"image": source.body()}, settings, num_classes, seed)

    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        body = self.body("image")
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image" in self.current):
            maps, _ = body(body.pixels(frames.flatten(0, 1)))
        return {"image": maps.unflatten(0, frames.shape[:2])}
