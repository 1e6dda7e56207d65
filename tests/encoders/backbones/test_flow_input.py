"""Networks of pictures that take optical flow: one flow as a picture, stacks by cross-modality
initialisation."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from encoders.backbones import load
from encoders.backbones.family import WeightsError
from encoders.backbones.flow_input import for_stacks

NETWORKS = {
    "squeezenet1_1": ("features.0", 64),
    "mobilenet_v3_small": ("features.3", 64),
    "googlenet": ("inception3a", 64),
    "timm:test_resnet": ("layer1", 96),
    "timm:test_vit": ("blocks.0", 160),
    "timm:repvgg_a0": ("stages.0", 64),
    "timm:crossvit_tiny_240": ("patch_embed.1", 240),
}
"""Network -> a node behind its first convolutions, and a size in px that it takes."""

PARALLEL = {"timm:repvgg_a0": 2, "timm:crossvit_tiny_240": 2}
"""Network -> its convolutions of the picture, where they are more than one."""


@pytest.fixture(params=NETWORKS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> nn.Module:
    return load.load_model(name, load.random_filters(name, 5)).double()


def levels(px: int, channels: int, frames: int = 2) -> torch.Tensor:
    draws = torch.Generator().manual_seed(channels)
    return torch.randint(256, (frames, px, px, channels), generator=draws).to(torch.uint8)


@given(channels=st.sampled_from([2, 10, 20]), side=st.integers(1, 3), bias=st.booleans())
def test_equal_channels_meet_the_mean_weights(channels: int, side: int, bias: bool) -> None:
    """Against a float64 loop over filters, places, colours and channels."""
    network = nn.Sequential(nn.Conv2d(3, 4, side, bias=bias)).double()
    weight = network[0].weight.detach().numpy()
    plane = np.random.default_rng(channels).standard_normal((5, 6))
    stack = torch.from_numpy(np.stack([plane] * channels))[None]
    expected = np.zeros((4, 6 - side, 7 - side))
    for out, y, x in np.ndindex(expected.shape):
        total = network[0].bias[out].item() if bias else 0.0
        for dy, dx in np.ndindex(side, side):
            mean = sum(weight[out, colour, dy, dx] for colour in range(3)) / 3
            total += channels * mean * plane[y + dy, x + dx]
        expected[out, y, x] = total
    with torch.inference_mode():
        found = for_stacks(network, channels)(stack)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_stack_is_seen_as_the_grey_picture_of_its_sum(name: str, model: nn.Module) -> None:
    """Three equal colours, each a third of the sum, meet the same mean weights."""
    node, px = NETWORKS[name]
    stack = levels(px, 10)
    adapted = load.cut(name, model, (node,), num_channels=10)
    own = load.cut(name, model, (node,))
    scale = 0.5 if name == "googlenet" else sum(own.std) / 3
    grey = ((stack.double() / 255 - 0.5) / scale).sum(-1) / 3
    if name == "googlenet":
        # Its own step from ImageNet's normalisation to -1..1, backwards.
        mean, std = (grey.new_tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
        picture = (grey[:, None] * 0.5 + 0.5 - mean) / std
    else:
        picture = grey[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = own.layout.as_maps(own.network(picture)[own.nodes[node]])
    torch.testing.assert_close(adapted.flow_maps(stack)[node], expected, rtol=1e-9, atol=1e-9)


def test_all_but_the_first_convolutions_is_shared_and_the_network_stays(
    name: str, model: nn.Module
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = for_stacks(model, 10)
    mine, theirs = dict(adapted.named_parameters()), dict(model.named_parameters())
    own = [key for key in theirs if mine[key] is not theirs[key]]
    assert len(own) == PARALLEL.get(name, 1)
    assert all(mine[key].shape[1] == 10 for key in own)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    node, px = NETWORKS[name]
    picture = levels(px, 3)
    assert torch.isfinite(load.cut(name, model, (node,)).maps(picture)[node]).all()


def test_one_flow_is_a_picture_without_a_third_channel(name: str, model: nn.Module) -> None:
    node, px = NETWORKS[name]
    backbone = load.cut(name, model, (node,))
    flow = levels(px, 2)
    picture = torch.zeros(2, 3, px, px, dtype=torch.float64)
    std = sum(backbone.std) / 3
    for channel in (0, 1):
        picture[:, channel] = (flow[..., channel].double() - 127.5) / (255 * std)
    with torch.inference_mode():
        expected = backbone.layout.as_maps(backbone.network(picture)[backbone.nodes[node]])
    torch.testing.assert_close(backbone.flow_maps(flow)[node], expected, rtol=1e-9, atol=1e-9)
    coloured = dataclasses.replace(backbone, mean=(0.1, 0.2, 0.3))
    assert torch.equal(coloured.flow_maps(flow)[node], backbone.flow_maps(flow)[node])


def test_a_network_without_a_convolution_of_colours_is_refused() -> None:
    with pytest.raises(
        WeightsError, match=r"stack > 1 expects .* got Sequential without; set stack=1"
    ):
        for_stacks(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(3, 2)), 10)


def test_a_network_that_takes_colours_alone_is_refused_before_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its convolution takes the stack, and what stands before that does not."""
    load.check_stacks("squeezenet1_1", ("features.5",), 64, 10)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(frames))

    family = load.FAMILIES["timm"]
    monkeypatch.setattr(type(family), "model", lambda *_: Fixed().to("meta").eval())
    with pytest.raises(
        WeightsError, match=r"got timm:test_resnet, which does not take 10 channels .*set stack=1"
    ):
        load.check_stacks("timm:test_resnet", ("conv",), 64, 10)
