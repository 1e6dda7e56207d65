"""Training of an FV-VAE through the network that computes its descriptors (DQ 3.3; METHODS 3.1).

Frames go through the backbone, the scaling and the spatial pyramid into the FV-VAE's loss, and its
gradients come back down to a named node. Letters: f frames, b frames of a batch, T descriptors of a
frame, C channels, v videos, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from encoders.backbones import load
from encoders.backbones.load import Backbone
from encoders.backbones.parameters import parameters_of
from encoders.codebooks.sample import FitSample
from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.training import Trunk, fit_fv_vae, random_frames, with_steps
from encoders.settings import FinetuneSettings, FvVaeSettings


@dataclass(frozen=True)
class Finetuned:
    """A trained network and FV-VAE.

    Attributes:
        weights: of the whole network, packed for `encoders.backbones.load.build`.
        codebook: the FV-VAE.
    """

    weights: bytes
    codebook: FvVae


@dataclass(frozen=True)
class Network:
    """The network to train.

    Attributes:
        name: of the network.
        node: the node of the descriptors.
        weights: packed.
        describe: maps [f, C, h, w] to descriptors [f, T, C], differentiable.
    """

    name: str
    node: str
    weights: bytes
    describe: Callable[[Tensor], Tensor]


def fine_tune(
    network: Network,
    sample: FitSample,
    settings: FvVaeSettings,
    finetune: FinetuneSettings,
    device: str = "cpu",
) -> Finetuned:
    """Train FV-VAE and backbone together on the labelled frames of all workers.

    The backbone stays in evaluation mode: a batch has few frames, and descriptors are later
        computed
    with the stored statistics of its batch normalisations, whose scales and offsets are trained. On
    the CPU an interrupted run that goes on from its state gives the same weights, bit for bit; on a
    GPU up to the order in which convolutions and poolings of cuDNN add up.

    Args:
        sample: `frames` are RGB pictures uint8 [f, height, width, 3] instead of descriptors; they
            may be in the memory of the CPU whatever the device.
        device: device of the training.

    Raises:
        ValueError: no class loss, no frames, a node that is not before the descriptors, or see
            `fit_fv_vae`.
    """
    if settings.lambda3 == 0:
        raise ValueError(
            "finetune: expected fv_vae.lambda3 above 0, got 0; without the class loss the backbone "
            "learns to give all frames the descriptors that are easiest to reconstruct; set "
            "fv_vae.lambda3"
        )
    if len(sample.frames) == 0:
        raise ValueError(
            f"finetune: expected frames on each of {sample.world_size} workers, got none on worker "
            f"{sample.rank}; lower fit.num_workers or raise finetune.num_frames"
        )
    model = load.load_model(network.name, network.weights)
    backbone = load.cut(network.name, model, (network.node,), device)
    parameters = dict(model.named_parameters())
    names = trainable(network.name, network.node, finetune.trainable_from, sample.frames.shape[1])
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    trunk = Trunk({name: parameters[name] for name in names}, finetune.learning_rate_factor)

    with torch.no_grad():
        width = _descriptors(backbone, network, sample.frames[:1]).shape[2]
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        net = fit_fv_vae(
            partial(_batch, backbone, network, sample, settings.batch_frames),
            width,
            0 if sample.targets is None else sample.targets.shape[1],
            with_steps(sample, settings),
            seed=sample.seed,
            multi_label=sample.multi_label,
            trunk=trunk,
            rank=sample.rank,
            all_reduce=sample.all_reduce,
            state=sample.state,
            on_step=sample.after_step,
        )
    return Finetuned(load.pack(model.cpu().state_dict()), FvVae.from_net(net.cpu()))


def trainable(network: str, node: str, trainable_from: str, crop_px: int) -> list[str]:
    """Return the names of the parameters between two nodes, `trainable_from` and `node`.

    The maps of `node` depend on them, those of `trainable_from` do not.

    No weights are needed. "" stands for the frames, which depend on no parameters.

    Raises:
        ValueError: unknown names, or no such parameters.
    """
    model = load.bare(network)
    nodes = (node, trainable_from) if trainable_from else (node,)
    frames = torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8, device="meta")
    maps = load.cut(network, model, nodes, "meta").differentiable_maps(frames)
    before = parameters_of(model, maps[trainable_from]) if trainable_from else set()
    behind = parameters_of(model, maps[node]) - before
    if not behind:
        raise ValueError(
            f"finetune.trainable_from: expected a node of {network} with parameters between it and "
            f"{node}, got {trainable_from!r}; name an earlier node, or '' for all"
        )
    return [name for name, _ in model.named_parameters() if name in behind]


def _descriptors(backbone: Backbone, network: Network, frames: Tensor) -> Tensor:
    """Return descriptors [b, T, C] of pictures uint8 [b, height, width, 3]."""
    return network.describe(backbone.differentiable_maps(frames)[network.node])


def _batch(
    backbone: Backbone,
    network: Network,
    sample: FitSample,
    batch_frames: int,
    step: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Return descriptors and targets of this worker's share of a batch, random frames of videos."""
    chosen = random_frames(sample, batch_frames, generator)
    frames = _descriptors(backbone, network, sample.frames[chosen])
    targets = sample.targets
    return frames, None if targets is None else targets[sample.video[chosen]].to(frames.device)
