"""Backbones of three convolutions, so that a training takes milliseconds; `added` registers them.

`tiny` has batch normalisations, `tiny_plain` has none, and `tiny_linear` has nothing but
convolutions without a bias.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from encoders.backbones import load
from encoders.backbones.torchvision_family import Torchvision
from encoders.networks.base import Network
from encoders.networks.body import Source
from encoders.networks.fit import ClipSample, fit_network
from encoders.networks.registry import NETWORKS, network_class
from encoders.networks.settings import (
    ActionFlowSettings,
    LstmSettings,
    NetworkSettings,
    PoolingSettings,
    TimeConvSettings,
    WindowSettings,
)

SIDE, CROP = 20, 16
K = 3
NODES = {"tiny": "features.8", "tiny_plain": "features.5", "tiny_linear": "features.2"}
"""The last node of each."""

_POOLING = {
    "clip_frames": (3, 3),
    "units": 16,
    "dropout": 0.0,
    "decay": 1e-4,
    "rate_every": 0,
}
_WINDOWS = {"window_frames": 2, "window_stride": 1}

SMALL: dict[type[NetworkSettings], dict] = {
    ActionFlowSettings: {
        "frames": 3,
        "width": 4,
        "learns": "scratch",
        "optimiser": "sgd",
        "dropout": 0.0,
        "crops": "random",
        "colour_jitter": 0.0,
    },
    PoolingSettings: _POOLING,
    WindowSettings: _POOLING | _WINDOWS,
    TimeConvSettings: _POOLING | _WINDOWS | {"kernels": 6},
    LstmSettings: {
        "clip_frames": (3,),
        "layers": 2,
        "cells": 12,
        "rate_every": 0,
        "learning_rate": 0.5,
    },
}
"""Settings without which a network is large, by its record."""


class Tiny(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        layers = []
        for before, after in ((3, 4), (4, 6), (6, 8)):
            layers.append(nn.Conv2d(before, after, 3, 2, 1, bias=kind != "tiny_linear"))
            if kind == "tiny":
                layers.append(nn.BatchNorm2d(after))
            if kind != "tiny_linear":
                layers.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(8, 5)

    def forward(self, frames: Tensor) -> Tensor:
        return self.classifier(self.features(frames).mean((2, 3)))


class TinyFamily(Torchvision):
    def model(self, network: str, device: str) -> nn.Module:
        with torch.device(device):
            return Tiny(network).eval()

    def preprocessing(self, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@contextmanager
def added() -> Iterator[None]:
    """Register the backbones for a while."""
    for name in NODES:
        load.OWN[name] = TinyFamily()
    try:
        yield
    finally:
        for name in NODES:
            load.OWN.pop(name)


def settings(name: str, **changed: object) -> NetworkSettings:
    """Settings of a training of few steps."""
    kind = NETWORKS[name][1]
    values = {"batch_clips": 6, "learning_rate": 0.05, "rate_at": (3,)} | SMALL.get(kind, {})
    return kind(**({"num_steps": steps(name, 4)} | values | changed))


def steps(name: str, total: int) -> tuple[int, ...]:
    """Steps of the phases of a network."""
    frames = SMALL.get(NETWORKS[name][1], {}).get("clip_frames")
    phases = len(frames) if frames else NETWORKS[name][1]().phases
    return (total - (phases - 1) * (total // phases), *[total // phases] * (phases - 1))


def source(backbone: str, *, channels: int = 3, seed: int = 0, **changed: Any) -> Source:
    return Source(
        network=backbone,
        node=NODES[backbone],
        weights=load.random_filters(backbone, seed),
        crop_px=CROP,
        channels=channels,
        **changed,
    )


def network(name: str, backbone: str = "tiny", *, channels: int = 3, **changed: object) -> Network:
    record = settings(name, **changed)
    return network_class(name).build(source(backbone, channels=channels), record, K)


def videos(count: int, frames: int = 5, *, channels: int = 3, seed: int = 0) -> Tensor:
    """Random frames uint8 [count, frames, SIDE, SIDE, channels]."""
    draw = torch.Generator().manual_seed(seed)
    shape = (count, frames, SIDE, SIDE, channels)
    return torch.randint(256, shape, generator=draw, dtype=torch.uint8)


def sample(frames: Tensor, targets: Tensor, **changed: object) -> ClipSample:
    """The sample of videos [v, n, h, w, c]."""
    return ClipSample(
        frames=frames.flatten(0, 1),
        counts=[frames.shape[1]] * len(frames),
        targets=targets,
        **changed,
    )


def trained(name: str, backbone: str = "tiny", *, of: ClipSample, **changed: object) -> Network:
    return fit_network(network(name, backbone, **changed), of, CROP)
