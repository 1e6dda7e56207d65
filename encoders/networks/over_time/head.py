"""Base of the networks on full-length video (VU 3): maps of all frames of a clip, from its backbone
or as a frozen one left them, and a head that joins them over time.

Letters: b clips, n frames of a clip, K classes, C channels, h and w sides of maps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.networks import training
from encoders.networks.base import Network, dropped
from encoders.networks.body import Source
from encoders.networks.settings import NetworkSettings, OverTimeSettings, PoolingSettings

IMAGE = "image"

EPSILON = 1e-6
"""Least root mean square of a map, so that an empty one stays 0."""

SCORES_STD = 0.01
"""Standard deviation of the weights of a new last layer."""

Shape = tuple[int, int, int]
"""C, h and w of maps."""


class Head(nn.Module, ABC):
    """What turns the maps of a clip into scores."""

    def __init__(self, inputs: Any, settings: Any, num_classes: int, draw: torch.Generator) -> None:
        super().__init__()

    @classmethod
    def for_maps(cls, shape: Shape, settings: Any, num_classes: int, draw: torch.Generator) -> Self:
        """Return the head for maps of a shape, with drawn weights."""
        return cls(math.prod(shape), settings, num_classes, draw)

    @abstractmethod
    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        """Return scores of maps [b, n, C, h, w]: [b, K], or of each frame [b, n, K]."""

    def tied(self, num_frames: int) -> tuple[nn.Parameter | None, float]:
        """Return the parameter whose parts act together in clips of so many frames, and how many
        of them act as one; None where there is none."""
        return None, 1.0


class OverTime(Network):
    """A network whose clips are consecutive sampled frames, from a random one on.

    Attributes:
        head_type: what joins the maps of its frames.
    """

    subnetworks = (IMAGE,)
    head_type: ClassVar[type[Head]]

    def __init__(
        self, source: Source, settings: OverTimeSettings, num_classes: int, seed: int
    ) -> None:
        draw = training.generator("cpu", seed)
        head = self.head_type.for_maps(source.map_shape(), settings, num_classes, draw)
        bodies = {} if source.reads == "maps" else {IMAGE: source.body()}
        super().__init__(bodies, settings, num_classes, seed, {"head": head})
        self.reads, self.own = source.reads, settings
        self.clip_frames = settings.clip_frames[-1]

    @classmethod
    def build(
        cls, source: Source, settings: NetworkSettings, num_classes: int, seed: int = 0
    ) -> Self:
        """Return the network with a new head, and with the backbone unless it reads maps."""
        assert isinstance(settings, OverTimeSettings)
        return cls(source, settings, num_classes, seed)

    @property
    def head(self) -> Head:
        """Return the head."""
        head = self.classifiers["head"]
        assert isinstance(head, Head)
        return head

    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        if self.reads == "maps":
            return {IMAGE: frames}
        body = self.body(IMAGE)
        with torch.set_grad_enabled(torch.is_grad_enabled() and IMAGE in self.current):
            maps, _ = body(body.pixels(frames.flatten(0, 1)))
        return {IMAGE: maps.unflatten(0, frames.shape[:2])}

    def head_scores(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        """Return what the head makes of maps [b, n, C, h, w]: scores [b, K], or of each frame
        [b, n, K].
        """
        return self.head(of_unit_size(maps), noise)

    def outputs(self, frames: Tensor, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        return self.joined(self.maps(frames)[IMAGE], noise)

    def joined(self, maps: Tensor, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the outputs of maps [b, n, C, h, w]."""
        return {IMAGE: self.head_scores(maps, noise)}

    def activation_maps(self, frames: Tensor) -> dict[str, Tensor]:
        """Return none: positions are joined before the scores."""
        return {}

    def clip_places(self, num_runs: int, run_frames: int, draw: torch.Generator) -> Sequence[int]:
        """Draw consecutive frames from a random one on; a video of fewer frames is repeated."""
        count, size = num_runs * run_frames, self.clip_frames
        end = count - size + 1 if count >= size else count
        start = int(torch.randint(end, (), generator=draw))
        return [(start + place) % count for place in range(size)]

    # --- training -----------------------------------------------------------------------------

    def trained(self, phase: int) -> tuple[str, ...]:
        return tuple(self.bodies)

    def begin(self, phase: int) -> None:
        super().begin(phase)
        self.clip_frames = self.own.clip_frames[phase]

    def _groups(self, phase: int) -> Iterable[training.Group]:
        """Give a tied parameter the learning rate and decay with which the sum of its parts learns
        as a single part would: growth does not depend on how far it goes."""
        tied, parts = self.head.tied(self.own.clip_frames[phase])
        for group in super()._groups(phase):
            others = tuple(p for p in group.parameters if p is not tied)
            rate, decay = group.learning_rate, group.decay
            if others:
                yield training.Group(parameters=others, learning_rate=rate, decay=decay)
            if tied is not None and len(others) < len(group.parameters):
                yield training.Group(
                    parameters=(tied,), learning_rate=rate / parts, decay=decay * parts
                )


def of_unit_size(maps: Tensor) -> Tensor:
    """Return maps [b, n, C, h, w], each over the root mean square of all its values.

    The size of activations differs by network and node, and stored maps have lost theirs.
    """
    return maps / maps.square().mean((2, 3, 4), keepdim=True).sqrt().clamp_min(EPSILON)


def linear(inputs: int, outputs: int, std: float, draw: torch.Generator) -> nn.Linear:
    """Return a linear layer with normal weights and biases of 0."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(std * torch.randn(outputs, inputs, generator=draw))
        layer.bias.zero_()
    return layer


class Connected(nn.Module):
    """A fully-connected layer with ReLU and dropout, for vectors [..., inputs]."""

    def __init__(self, inputs: int, settings: PoolingSettings, draw: torch.Generator) -> None:
        super().__init__()
        self.linear = linear(inputs, settings.units, (2 / inputs) ** 0.5, draw)
        self.dropout = settings.dropout

    def forward(self, vectors: Tensor, noise: torch.Generator | None) -> Tensor:
        """Return [..., units]; with noise a share of the values is dropped."""
        return dropped(functional.relu(self.linear(vectors)), self.dropout, noise)
