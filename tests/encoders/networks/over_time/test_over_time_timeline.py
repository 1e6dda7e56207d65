"""Scores over time: those of the clips that end with each frame, one by one."""

import pytest
import torch

from encoders.networks.over_time.head import OverTime
from encoders.networks.over_time.timeline import scores_over_time
from encoders.networks.registry import NETWORKS, network_class
from tests.encoders.networks import tiny
from tests.encoders.networks.tiny import CROP, K

NAMES = [name for name in NETWORKS if issubclass(network_class(name), OverTime)]


@pytest.mark.parametrize("name", NAMES)
def test_maps(name: str) -> None:
    settings = tiny.settings(name)
    network = network_class(name).build(tiny.source("tiny_plain", reads="maps"), settings, K)
    assert isinstance(network, OverTime)
    network.eval()
    maps = torch.rand(20, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    found = scores_over_time(network, maps.half())
    assert found.shape == (20, K)
    for place in range(20):
        clip = [max(0, place - back) for back in reversed(range(network.clip_frames))]
        with torch.inference_mode():
            (expected,) = network.scores(network.outputs(maps.half().float()[clip][None]))
        torch.testing.assert_close(found[place], expected)


@pytest.mark.parametrize("name", ["conv_pooling", "lstm"])
def test_pictures(name: str) -> None:
    """Each goes through the backbone once, and the scores are the same."""
    network = tiny.network(name, "tiny_plain").eval()
    assert isinstance(network, OverTime)
    frames = tiny.videos(1, 19)[0][:, :CROP, :CROP].float()
    found, passed = [], []
    network.body("image").register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    found = scores_over_time(network, frames)
    assert sum(passed) == 19
    for place in (0, 1, 7, 18):
        clip = [max(0, place - back) for back in reversed(range(network.clip_frames))]
        with torch.inference_mode():
            (expected,) = network.scores(network.outputs(frames[clip][None]))
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-5)
