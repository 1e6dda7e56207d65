"""The networks that pool over time, by their definitions (VU 3.3.1), and their growth (3.3.3)."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from encoders.networks.base import Network
from encoders.networks.fit import fit_network
from encoders.networks.over_time.head import OverTime
from encoders.networks.over_time.windows import num_windows, resampled
from encoders.networks.registry import NETWORKS, network_class
from tests.encoders.networks import tiny
from tests.encoders.networks.tiny import CROP, K

POOLING = [name for name in NETWORKS if name.endswith(("_pooling", "_conv"))]
SHAPE = (8, 2, 2)
"""Of the maps of `tiny_plain`."""


def maps_network(name: str, **changed: object) -> OverTime:
    """A network of maps, with the thesis's windows."""
    windowed = name in ("slow_pooling", "local_pooling", "time_conv")
    values = {"window_frames": 10, "window_stride": 5} if windowed else {}
    source = tiny.source("tiny_plain", reads="maps")
    network = network_class(name).build(source, tiny.settings(name, **values | changed), K)
    assert isinstance(network, OverTime)
    return network


def pooling_network(name: str, **changed: object) -> OverTime:
    """A network of maps with random parameters, for clips of its last phase."""
    network = maps_network(name, **changed)
    with torch.no_grad():
        for parameter in network.parameters():
            # Far from the values that they start with: biases too.
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw(parameter.numel())))
    return network.eval()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_maps(*sizes: int, seed: int = 0) -> Tensor:
    return torch.rand(*sizes, *SHAPE, generator=draw(seed)).double()


def scores_of(network: Network, maps: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.scores(network.double().outputs(maps))


@pytest.mark.parametrize("name", POOLING)
def test_growth_leaves_the_outputs_of_copies_of_a_frame(name: str) -> None:
    network = pooling_network(name, clip_frames=(1, 30, 120), num_steps=(1, 1, 1))
    frame = random_maps(2, 1)
    one, *others = (scores_of(network, frame.expand(-1, n, -1, -1, -1)) for n in (1, 4, 30, 120))
    for other in others:
        torch.testing.assert_close(other, one)
    assert not torch.allclose(one[0], one[1])


@pytest.mark.parametrize("name", POOLING)
def test_the_order_of_frames(name: str) -> None:
    network = pooling_network(name, clip_frames=(30,), num_steps=(1,))
    clips = random_maps(2, 30)
    other = clips[:, torch.randperm(30, generator=draw())]
    is_same = torch.allclose(scores_of(network, clips), scores_of(network, other))
    assert is_same == (name in ("conv_pooling", "late_pooling", "googlenet_conv"))


def test_windows_are_ten_frames_every_five() -> None:
    counts = {n: num_windows(n, 10, 5) for n in (1, 9, 10, 14, 15, 30, 120)}
    assert counts == {1: 1, 9: 1, 10: 1, 14: 1, 15: 2, 30: 5, 120: 23}


def test_weights_of_more_windows_have_the_same_sum_and_go_back() -> None:
    weights = torch.rand(5, 3, generator=draw()).double()
    grown = resampled(weights, 23)
    torch.testing.assert_close(grown.sum(0), weights.sum(0))
    torch.testing.assert_close(resampled(grown, 5), weights)
    torch.testing.assert_close(resampled(weights[:1], 23), weights[:1].expand(23, -1) / 23)


def layers(network: OverTime, *names: str) -> list:
    def connected(name: str):
        layer = getattr(network.head, name).linear
        return lambda x: functional.relu(x @ layer.weight.T + layer.bias)

    return [connected(name) for name in names]


@pytest.mark.parametrize("name", POOLING)
def test_scores_are_those_of_a_loop_over_frames(name: str) -> None:
    network = pooling_network(name, clip_frames=(30,), num_steps=(1,)).double()
    clip = of_unit_size(random_maps(30))
    head = network.head
    f6, f7 = layers(network, "f6", "f7")
    windows = [clip[j : j + 10].flatten(1).amax(0) for j in range(0, 21, 5)]
    if name == "local_pooling":
        parts = [f7(f6(m)) for m in windows]
        flat = head.weight.permute(1, 0, 2).flatten(1)
        expected = flat @ torch.cat(parts) + head.bias
    else:
        if name == "conv_pooling":
            last = f7(f6(clip.amax(0).flatten()))
        elif name == "late_pooling":
            last = torch.stack([f7(f6(x.flatten())) for x in clip]).amax(0)
        elif name == "slow_pooling":
            last = f7(torch.stack([f6(m) for m in windows]).amax(0))
        elif name == "googlenet_conv":
            last = f7(f6(torch.stack([x.mean((1, 2)) for x in clip]).amax(0)))
        else:
            moved = [
                sum(
                    functional.conv2d(clip[j + t][None], head.kernel[t], padding=1)[0]
                    for t in range(10)
                )
                for j in range(0, 21, 5)
            ]
            biased = [functional.relu(x + head.kernel_bias[:, None, None]) for x in moved]
            last = f7(f6(torch.stack(biased).amax(0).flatten()))
        expected = head.out(last)
    torch.testing.assert_close(scores_of(network, random_maps(1, 30))[0], expected.detach())


def of_unit_size(clip: Tensor) -> Tensor:
    return torch.stack([x / (x**2).mean() ** 0.5 for x in clip])


def test_one_frame_is_convolved_in_two_dimensions() -> None:
    network = pooling_network("time_conv", clip_frames=(1, 30), num_steps=(1, 1)).double()
    (frame,) = of_unit_size(random_maps(1))
    head = network.head
    moved = functional.conv2d(frame[None], head.kernel.sum(0), head.kernel_bias, padding=1)
    f6, f7 = layers(network, "f6", "f7")
    expected = head.out(f7(f6(functional.relu(moved).flatten())))
    torch.testing.assert_close(scores_of(network, random_maps(1, 1))[0], expected.detach())


@pytest.mark.parametrize(("name", "weight"), [("local_pooling", "weight"), ("time_conv", "kernel")])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_tied_parts_learn_as_a_single_one(name: str, weight: str, optimiser: str) -> None:
    def trained(**changed: object) -> Tensor:
        network = maps_network(name, optimiser=optimiser, decay=0.01, rate_at=(), **changed)
        states = []
        of = maps_sample(checkpoint=lambda state: states.append(state()["model"]))
        fit_network(network, of, CROP)
        return states[2][f"classifiers.head.{weight}"]

    grown = trained(clip_frames=(1, 30), num_steps=(3, 1))
    single = trained(
        clip_frames=(1,), num_steps=(3,), **({"window_frames": 1} if weight == "kernel" else {})
    )
    assert len(grown) == (5 if name == "local_pooling" else 10)
    torch.testing.assert_close(grown.sum(0, keepdim=True), single, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grown, grown[:1].expand_as(grown))


def maps_sample(**changed: object):
    maps = random_maps(6, 5).float()
    return tiny.sample(maps, torch.eye(K).repeat(2, 1), **changed)


def test_slow_pooling_has_the_parameters_of_conv_pooling() -> None:
    sizes = [
        sum(p.numel() for p in pooling_network(name).parameters())
        for name in ("conv_pooling", "slow_pooling", "late_pooling")
    ]
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("name", [n for n in NETWORKS if NETWORKS[n][1].reads_maps])
def test_maps_and_pixels_are_one_network(name: str) -> None:
    network = tiny.network(name, "tiny_plain").eval()
    of_maps = network_class(name).build(
        tiny.source("tiny_plain", reads="maps"), tiny.settings(name), K
    )
    assert not of_maps.bodies
    rest = {n: v for n, v in network.state_dict().items() if not n.startswith("bodies.")}
    of_maps.load_state_dict(rest)
    clips = tiny.videos(2, 3)[:, :, :CROP, :CROP]
    with torch.inference_mode():
        # The size of stored maps is another one.
        maps = 7 * network.maps(clips)["image"]
        assert maps.shape[2:] == SHAPE == tiny.source("tiny_plain").map_shape()
        for output, scores in network.outputs(clips).items():
            torch.testing.assert_close(of_maps.outputs(maps)[output], scores)


@pytest.mark.parametrize("name", [n for n in NETWORKS if NETWORKS[n][1].reads_maps])
def test_maps_train_without_a_backbone_and_files_bring_scores_back(name: str) -> None:
    start = maps_network(name).state_dict()
    network = fit_network(maps_network(name), maps_sample(), CROP)
    assert all(not torch.equal(start[n], v) for n, v in network.state_dict().items())
    files = network.files()
    assert list(files) == ["classifiers.safetensors"]
    again = maps_network(name).load_files(files)
    maps = random_maps(2, 3).float()
    for output, scores in network.outputs(maps).items():
        assert torch.equal(again.outputs(maps)[output], scores)


def test_clips_are_consecutive_frames_from_a_random_one_and_short_videos_are_repeated() -> None:
    network = pooling_network("conv_pooling", clip_frames=(4,), num_steps=(1,))
    long = {tuple(network.clip_places(10, 1, draw(seed))) for seed in range(60)}
    assert long == {tuple(range(start, start + 4)) for start in range(7)}
    short = {tuple(network.clip_places(3, 1, draw(seed))) for seed in range(30)}
    assert short == {(0, 1, 2, 0), (1, 2, 0, 1), (2, 0, 1, 2)}
    whole = {tuple(network.clip_places(4, 1, draw(seed))) for seed in range(5)}
    assert whole == {(0, 1, 2, 3)}


def test_each_phase_has_its_frames() -> None:
    network = pooling_network("local_pooling", clip_frames=(1, 30, 120), num_steps=(1, 1, 1))
    sizes = []
    for phase in range(3):
        network.begin(phase)
        sizes.append(len(network.clip_places(300, 1, draw())))
    assert sizes == [1, 30, 120]
