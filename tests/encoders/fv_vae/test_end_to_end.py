"""Gradients from the FV-VAE's loss into a backbone, on small networks with random filters."""

import io
import math
from dataclasses import replace
from functools import partial

import pytest
import safetensors.torch
import torch
from torch import Tensor

from encoders.backbones import load
from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import appearance
from encoders.fv_vae.end_to_end import Finetuned, Network, fine_tune, trainable
from encoders.fv_vae.network import FvVaeNet
from encoders.fv_vae.training import random_frames
from encoders.registry import encoder_from_bytes
from encoders.settings import FinetuneSettings, FvVaeSettings
from tests.encoders import oracles

SMALL = FvVaeSettings(
    hidden=(),
    num_latents=3,
    lambda3=20.0,
    optimiser="adam",
    learning_rate=0.01,
    batch_frames=4,
    num_steps=4,
)
FINETUNE = FinetuneSettings(trainable_from="features.7", learning_rate_factor=0.1)
CELLS = (2, 1)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(
        name="squeezenet1_1",
        node="features.9",
        weights=load.random_filters("squeezenet1_1", 0),
        describe=partial(appearance, scaling="per_position", levels=CELLS),
    )


@pytest.fixture(scope="module")
def residual() -> Network:
    return Network(
        name="timm:test_resnet",
        node="layer2",
        weights=load.random_filters("timm:test_resnet", 0),
        describe=partial(appearance, scaling="per_position", levels=CELLS),
    )


def pictures(num_videos: int = 6, each: int = 2, px: int = 48) -> FitSample:
    """Videos of two classes: vertical or horizontal stripes, under noise."""
    draws = torch.Generator().manual_seed(0)
    stripes = (torch.arange(px) // 4 % 2 * 120).float()
    classes = torch.arange(num_videos) % 2
    video = torch.arange(num_videos).repeat_interleave(each)
    frames = torch.rand(len(video), px, px, 3, generator=draws) * 100
    for place, number in enumerate(video):
        lines = stripes[:, None] if classes[number] else stripes[None, :]
        frames[place] += lines.expand(px, px)[..., None]
    return FitSample(
        frames=frames.to(torch.uint8),
        video=video,
        targets=torch.eye(2)[classes],
        seed=7,
    )


def state_of(weights: bytes) -> dict[str, Tensor]:
    return safetensors.torch.load(weights)


def test_gradients_are_those_of_finite_differences(network: Network) -> None:
    """Loss of pictures through backbone, scaling, pyramid and FV-VAE, in float64."""
    model = load.load_model(network.name, network.weights).double()
    backbone = load.cut(network.name, model, (network.node,))
    sample = pictures(num_videos=2, each=1, px=32)
    net = FvVaeNet(384, 2, SMALL, seed=1).double()

    def loss() -> Tensor:
        maps = backbone.differentiable_maps(sample.frames)[network.node]
        noise = torch.Generator().manual_seed(5)
        return net.loss(network.describe(maps), sample.targets, noise)[0]

    names = ("features.0.weight", "features.4.expand3x3.weight", "features.9.expand1x1.bias")
    parameters = [dict(model.named_parameters())[name] for name in names]
    gradients = torch.autograd.grad(loss(), parameters)
    draws = torch.Generator().manual_seed(2)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        direction *= 1e-6 / direction.norm()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * direction
                ends.append(loss())
                parameter -= sign * direction
        difference = (ends[0] - ends[1]) / 2
        assert gradient.abs().max() > 0
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-12)


def test_what_is_before_the_node_stays_and_what_is_behind_it_moves(network: Network) -> None:
    before = state_of(network.weights)
    after = state_of(fine_tune(network, pictures(), SMALL, FINETUNE).weights)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("features.8.", "features.9."))}


def test_without_a_node_all_that_the_descriptors_depend_on_is_trained(network: Network) -> None:
    before = state_of(network.weights)
    everything = replace(FINETUNE, trainable_from="")
    after = state_of(
        fine_tune(network, pictures(), replace(SMALL, num_steps=2), everything).weights
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    deeper = ("features.10.", "features.11.", "features.12.", "classifier.")
    assert moved == {name for name in before if not name.startswith(deeper)}


def test_batch_normalisations_keep_their_statistics_and_learn_their_scales(
    residual: Network,
) -> None:
    before = state_of(residual.weights)
    tuned = fine_tune(residual, pictures(), replace(SMALL, num_steps=2), FinetuneSettings())
    after = state_of(tuned.weights)
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(before["bn1.weight"], after["bn1.weight"])


def losses(
    network: Network, settings: FvVaeSettings, finetune: FinetuneSettings
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    sample = replace(
        pictures(), log=lambda name, _, value: values.setdefault(name, []).append(value)
    )
    fine_tune(network, sample, settings, finetune)
    return values


def test_the_loss_falls_and_falls_further_than_with_a_frozen_backbone(network: Network) -> None:
    settings = replace(SMALL, num_steps=60, dropout=0.0)
    trained = losses(network, settings, FINETUNE)
    frozen = losses(network, settings, replace(FINETUNE, learning_rate_factor=1e-9))
    last = slice(-10, None)
    assert sum(trained["total"][last]) < sum(trained["total"][:10])
    assert sum(trained["total"][last]) < sum(frozen["total"][last])


def test_the_classes_are_learnt(network: Network) -> None:
    """Each picture is trained with the label of its own video."""
    settings = replace(SMALL, num_steps=100, dropout=0.0, lambda3=300.0, class_pooling="max")
    last = losses(network, settings, FINETUNE)["classification"][-10:]
    assert sum(last) / 10 < 0.3 * math.log(2)


def test_the_new_weights_and_the_codebook_belong_together(network: Network) -> None:
    """Built from the files alone, they give the vector of the network in memory."""
    tuned = fine_tune(network, pictures(), SMALL, FINETUNE)
    maps = load.build(network.name, (network.node,), tuned.weights).maps(pictures().frames)
    descriptors = network.describe(maps[network.node]).flatten(0, 1)
    read = encoder_from_bytes(tuned.codebook.to_bytes())
    assert torch.equal(read.encode(descriptors), tuned.codebook.encode(descriptors))
    assert read.encode(descriptors).norm() > 0


def test_stopped_and_resumed_is_undisturbed(network: Network) -> None:
    files: list[bytes] = []

    def keep(state) -> None:
        data = io.BytesIO()
        torch.save(state(), data)
        files.append(data.getvalue())

    undisturbed = fine_tune(network, replace(pictures(), checkpoint=keep), SMALL, FINETUNE)
    assert len(files) == SMALL.num_steps
    for step in (0, 2):
        state = torch.load(io.BytesIO(files[step]), weights_only=True)
        resumed = fine_tune(network, replace(pictures(), state=state), SMALL, FINETUNE)
        assert_same(resumed, undisturbed)
    other = replace(FINETUNE, learning_rate_factor=0.2)
    with pytest.raises(ValueError, match=r"a state with trunk_factor = 0.2, got one with 0.1"):
        fine_tune(network, replace(pictures(), state=state), SMALL, other)


def assert_same(one: Finetuned, other: Finetuned) -> None:
    assert one.weights == other.weights
    assert one.codebook.to_bytes() == other.codebook.to_bytes()


def test_two_workers_take_the_steps_of_one(
    residual: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same union of frames and without noise; the workers' shares differ in size."""
    # Not a network of torchvision: the workers are threads here, which cannot trace at the same
    # time.
    layer1 = replace(FINETUNE, trainable_from="layer1")
    settings = replace(SMALL, dropout=0.0, num_steps=3)
    whole = pictures()

    def share(sample: FitSample, batch_frames: int, generator: torch.Generator) -> Tensor:
        return torch.arange(len(sample.frames))

    def quiet(frames: Tensor, targets: Tensor, noise: torch.Generator, net: FvVaeNet) -> tuple:
        with torch.no_grad():
            net.log_var_z.fill_(-80)
        return plain(net, frames, targets, noise)

    plain = FvVaeNet.loss
    monkeypatch.setattr("encoders.fv_vae.end_to_end.random_frames", share)
    monkeypatch.setattr(
        FvVaeNet, "loss", lambda net, frames, targets, noise: quiet(frames, targets, noise, net)
    )

    def work(rank: int | None, all_reduce) -> dict[str, Tensor]:
        own = {None: slice(0, 12), 0: slice(0, 8), 1: slice(8, 12)}[rank]
        sample = replace(
            whole,
            frames=whole.frames[own],
            video=whole.video[own],
            rank=rank or 0,
            world_size=1 if rank is None else 2,
            all_reduce=all_reduce,
        )
        return state_of(fine_tune(residual, sample, settings, layer1).weights)

    alone = work(None, lambda tensor: tensor)
    before = state_of(residual.weights)
    assert not torch.equal(alone["layer2.0.conv1.weight"], before["layer2.0.conv1.weight"])
    for worker in oracles.run_workers(2, work):
        for name, value in alone.items():
            torch.testing.assert_close(worker[name], value, rtol=1e-4, atol=1e-5)


def test_a_batch_is_random_frames_of_random_videos() -> None:
    """Each video is as likely as another, however many frames it has, and each of its frames."""
    sample = replace(pictures(), video=torch.tensor([3, 3, 3, 8]), frames=torch.zeros(4, 1, 1, 3))
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(random_frames(sample, 30_000, generator), minlength=4) / 30_000
    torch.testing.assert_close(counts, torch.tensor([1, 1, 1, 3]) / 6, atol=0.02, rtol=0)
    sizes = [
        len(random_frames(replace(sample, rank=rank, world_size=3), 8, generator))
        for rank in range(3)
    ]
    assert sizes == [2, 3, 3]


def test_a_node_within_a_residual_block_leaves_the_rest_of_the_block_trainable(
    residual: Network,
) -> None:
    """What is before it on its own path stays; its block's shortcut is behind the node before."""
    model = load.load_model(residual.name, residual.weights)
    names = set(trainable(residual.name, residual.node, "layer2.0.bn1", 48))
    before = ("conv1.", "bn1.", "layer1.", "layer2.0.conv1.", "layer2.0.bn1.")
    layer2 = {name for name, _ in model.named_parameters() if name.startswith("layer2.")}
    assert names == {name for name in layer2 if not name.startswith(before)}
    assert any("downsample" in name for name in names)


@pytest.mark.parametrize("node", ["features.9", "features.11"])
def test_a_node_that_is_not_before_the_descriptors(network: Network, node: str) -> None:
    with pytest.raises(ValueError, match=f"parameters between it and features.9, got '{node}'"):
        fine_tune(network, pictures(), SMALL, replace(FINETUNE, trainable_from=node))


def test_wrong_inputs(network: Network) -> None:
    with pytest.raises(ValueError, match=r"lambda3 above 0, got 0; without the class loss"):
        fine_tune(network, pictures(), replace(SMALL, lambda3=0.0), FINETUNE)
    empty = replace(pictures(), frames=torch.zeros(0, 48, 48, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"frames on each of 1 workers, got none on worker 0"):
        fine_tune(network, empty, SMALL, FINETUNE)
