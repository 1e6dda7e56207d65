"""The nodes before each loss of resolution (VU 5.3.2), on published architectures and on small ones
with traps."""

import pytest
import torch
from torch import Tensor, nn

from encoders.backbones import load
from encoders.backbones.family import Layout, WeightsError
from encoders.backbones.stages import stages


def shapes_of(network: str, px: int) -> list[tuple[str, int]]:
    """Name and side of each of the network's stages."""
    nodes = load.expanded(network, ("stages",), px)
    shapes = load.node_shapes(network, nodes, px)
    return [(node, shapes[node][1]) for node in nodes]


def test_a_residual_network_has_the_sides_of_the_thesis() -> None:
    """VU 5.3.2 on ResNet-50: 224 x 224 (input images), 56 x 56, 28 x 28 and 14 x 14."""
    assert shapes_of("resnet50", 224) == [
        ("input", 224),
        ("layer1", 56),
        ("layer2", 28),
        ("layer3", 14),
    ]


@pytest.mark.parametrize(
    ("network", "px", "expected"),
    [
        (
            "vgg11",
            224,
            [
                ("features.1", 224),
                ("features.4", 112),
                ("features.9", 56),
                ("features.14", 28),
                ("features.19", 14),
            ],
        ),
        ("timm:crossvit_tiny_240", 240, [("input", 240)]),
        ("alexnet", 224, [("input", 224), ("features.4", 27), ("features.11", 13)]),
        ("alexnet_fcn", 227, [("input", 227), ("features.4", 27), ("features.11", 13)]),
        ("squeezenet1_0", 224, [("input", 224), ("features.5", 54), ("features.10", 27)]),
        pytest.param(
            "inception_v3",
            299,
            [
                ("input", 299),
                ("Conv2d_2b_3x3", 147),
                ("Conv2d_4a_3x3", 71),
                ("Mixed_5d", 35),
                ("Mixed_6e", 17),
            ],
            marks=pytest.mark.slow,
        ),
        ("timm:resnet18", 224, [("input", 224), ("layer1", 56), ("layer2", 28), ("layer3", 14)]),
    ],
)
def test_every_source_of_networks_has_stages(
    network: str, px: int, expected: list[tuple[str, int]]
) -> None:
    assert shapes_of(network, px) == expected


class Small(nn.Module):
    """A stem that loses resolution twice, a block with a branch past it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.side = nn.Conv2d(4, 8, 1, stride=2)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.pool(self.stem(frames))
        x = self.block(x)
        # In the residual block at the old resolution: no stage, because `side` goes past it.
        y = self.act(self.squeeze(x))
        y = self.down(y)
        y += self.side(x)
        y = self.act(self.last(y))
        return self.head(y.mean((2, 3)))


def test_the_input_beside_the_stages_counts_once() -> None:
    for network, first in (("vgg11", ["input", "features.1"]), ("squeezenet1_0", ["input"])):
        nodes = load.expanded(network, ("input", "stages"), 64)
        assert list(nodes[: len(first)]) == first
        assert nodes.count("input") == 1


def test_a_network_without_stages_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)).to("meta")
    monkeypatch.setattr(load.OWN["alexnet_fcn"], "model", lambda *_: flat)
    load._stages.cache_clear()
    with pytest.raises(WeightsError, match=r"stages expected .*alexnet_fcn.* none is found at 32"):
        load.expanded("alexnet_fcn", ("stages",), 32)


def test_what_a_branch_goes_past_is_no_stage() -> None:
    with torch.device("meta"):
        model = Small().eval()
    assert stages(model, Layout(), 32) == ["input", "block"]


def test_stages_stand_among_other_nodes_each_once() -> None:
    nodes = load.expanded("squeezenet1_0", ("features.12", "stages", "features.5"), 224)
    assert nodes == ("features.12", "input", "features.5", "features.10")


def test_the_input_is_the_normalised_picture_with_or_without_other_nodes() -> None:
    weights = load.random_filters("squeezenet1_0", 0)
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    alone = load.build("squeezenet1_0", ("input",), weights)
    beside = load.build("squeezenet1_0", ("features.5", "input"), weights)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (alone.mean, alone.std))
    expected = (frames.permute(0, 3, 1, 2) / 255 - mean) / std
    for network in (alone, beside):
        torch.testing.assert_close(network.maps(frames)["input"], expected)
    assert load.node_shapes("squeezenet1_0", ("input",), 32) == {"input": (3, 32, 32)}


def test_a_size_that_the_network_does_not_take_is_said() -> None:
    with pytest.raises(WeightsError, match=r"picture\.crop_px: vit_b_16 does not take 64 px"):
        load.expanded("vit_b_16", ("stages",), 64)
