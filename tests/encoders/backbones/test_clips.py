"""Every kind of network of clips: its maps are those of the module that is named."""

import pytest
import torch
from torchvision import models

from encoders.backbones import clips, load

SHAPES = {
    "r3d_18": (512, 2, 7, 7),
    "mc3_18": (512, 16, 7, 7),
    "r2plus1d_18": (512, 2, 7, 7),
    "s3d": (1024, 2, 7, 7),
    "mvit_v2_s": (768, 8, 7, 7),
    "swin3d_t": (768, 8, 7, 7),
    "actionflownet_16": (128, 2, 7, 7),
}


@pytest.mark.parametrize("network", SHAPES)
def test_the_last_maps_are_known_without_weights(network: str) -> None:
    nodes = clips.named(network, ())
    assert clips.shapes(network, nodes, 16) == {nodes[0]: SHAPES[network]}


def test_tokens_of_mvit_are_maps_without_the_class_token() -> None:
    """A network of one block, whose places are numbered."""
    with torch.random.fork_rng(devices=[]):
        network = models.video.MViT(
            (32, 32),
            4,
            [models.video.mvit.MSBlockConfig(1, 8, 8, [], [], [], [])] * 2,
            residual_pool=False,
            residual_with_cls_embed=False,
            rel_pos_embed=False,
            proj_after_attn=True,
        ).eval()
    pixels = torch.randn(1, 3, 4, 32, 32)
    seen = []
    network.blocks[0].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        maps = clips._outputs(network, pixels, ("blocks.0",))["blocks.0"]
        network(pixels)
    tokens, sides = seen[-1]
    assert tuple(maps.shape) == (1, 8, *sides)
    assert torch.equal(maps[0, :, 1, 2, 3], tokens[0, 1 + (1 * sides[1] + 2) * sides[2] + 3])


def test_one_file_holds_both_networks() -> None:
    pictures, own = (
        load.random_filters(name, 0) for name in ("squeezenet1_1", "video:actionflownet_4")
    )
    both = load.with_clips(pictures, own)
    assert load.clips_of(both) == load.clips_of(load.with_clips(own, own)) == own
    model = load.load_model("squeezenet1_1", both)
    assert all(
        torch.equal(value, load.load_model("squeezenet1_1", pictures).state_dict()[name])
        for name, value in model.state_dict().items()
    )
