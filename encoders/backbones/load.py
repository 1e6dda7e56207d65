"""Networks by name, cut at the nodes of the descriptors, with the preprocessing of their weights.

`vgg19` is torchvision's, `timm:vit_small_patch16_224` is timm's (the extra `timm`), and
`alexnet_fcn` is our own. Any node of a network can be named, and the papers' names of
`encoders.backbones.aliases`. Weights and preprocessing travel together in `Backbone`.
"""

import functools
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import safetensors.torch
import torch
from torch import Tensor, nn

from encoders.backbones.alexnet_fcn import AlexNetFcnFamily
from encoders.backbones.aliases import ALIASES
from encoders.backbones.family import Family, Layout, WeightsError, near
from encoders.backbones.flow_input import COLOURS, for_stacks, rescales_colours
from encoders.backbones.stages import stages
from encoders.backbones.timm_family import Timm
from encoders.backbones.torchvision_family import Torchvision
from encoders.backbones.video_family import Video
from encoders.stream_specs import INPUT, STAGES
from encoders.tensor_files import load_tensors, sealed

FAMILIES: dict[str, Family] = {
    "": Torchvision(),
    "timm": Timm(),
    "video": Video(),
}
"""Families by the prefix before the colon of a network's name."""

OWN: dict[str, Family] = {
    "alexnet_fcn": AlexNetFcnFamily(),
}
"""Our own networks, each by its whole name."""


CLIPS = "clips/"
"""Before the names of tensors of a second network, of clips, in a file of weights."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network cut at its deepest requested node, ready for inference.

    Attributes:
        network: frames [f, 3, h, w], normalised, to {the family's node: output}.
        nodes: {requested name: the family's node, or `input`}.
        layout: arrangement of the outputs.
        mean, std: the preprocessing that goes with the network's weights, for RGB in 0..1.
    """

    network: nn.Module
    nodes: dict[str, str]
    layout: Layout
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        """Return {requested node: float32 maps [f, C, h', w']} of RGB uint8 [f, height, width, 3].

        A vector is a map of one position; patch tokens are a square map (`Layout.as_maps`).
        """
        return self.differentiable_maps(frames)

    @torch.inference_mode()
    def flow_maps(self, levels: Tensor) -> dict[str, Tensor]:
        """Return `maps` of optical flow: uint8 [f, height, width, 2L], u and v in turn.

        127.5 is no motion. It is 0 at the network's input, as in TSN, and the colours' mean
        standard deviation is 1. A single flow (L = 1) goes into a network of pictures: its third
        channel is 0 (VU 3.3.4).
        """
        std = sum(self.std) / COLOURS
        pixels = (self._unit(levels) - 0.5) / std
        if levels.shape[-1] == 2:
            pixels = torch.cat([pixels, torch.zeros_like(pixels[:, :1])], dim=1)
        return self._outputs(pixels)

    def differentiable_maps(self, frames: Tensor) -> dict[str, Tensor]:
        """Return `maps` through which gradients flow back to the network's parameters."""
        pixels = self._unit(frames)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return self._outputs((pixels - mean) / std)

    def _unit(self, levels: Tensor) -> Tensor:
        """Return [f, c, h, w] in 0..1 of uint8 [f, h, w, c], in the weights' dtype and device."""
        weight = next(self.network.parameters())
        return levels.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 255

    def _outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        outputs = {**self.network(pixels), INPUT: pixels}
        return {name: self.layout.as_maps(outputs[node]) for name, node in self.nodes.items()}


def expanded(network: str, nodes: tuple[str, ...], crop_px: int) -> tuple[str, ...]:
    """Return the nodes without duplicates; the nodes at crop_px x crop_px replace `stages`.

    Raises:
        WeightsError: no such network, or one without stages.
    """
    expansions = (_stages(network, crop_px) if node == STAGES else [node] for node in nodes)
    return tuple(dict.fromkeys(itertools.chain(*expansions)))


@functools.cache
def _stages(network: str, crop_px: int) -> list[str]:
    family, family_name = _family(network)
    model = family.model(family_name, "meta")
    with _refusal(network, crop_px):
        last_nodes = stages(model, family.layout(model), crop_px)
    if not last_nodes:
        raise WeightsError(
            "describe.nodes: stages expected layers before a loss of resolution, got a network, "
            f"{network}, in which none is found at {crop_px} px; name its nodes, or {INPUT} alone"
        )
    return last_nodes


def resolve_nodes(network: str, nodes: tuple[str, ...]) -> dict[str, str]:
    """Return {requested name: the family's node}; `input` and `stages` stay.

    Raises:
        WeightsError: no such network or node; the message lists near names.
    """
    family, family_name = _family(network)
    known = family.nodes(family_name)
    resolved = {}
    for requested in nodes:
        if requested in (INPUT, STAGES):
            resolved[requested] = requested
            continue
        node = ALIASES.get((network, requested), requested)
        if not any(name == node or name.startswith(f"{node}.") for name in known):
            aliases = [alias for of, alias in ALIASES if of == network]
            raise WeightsError(
                f"describe.nodes: expected nodes of {network}, got {requested!r}; known are "
                f"{near(requested, aliases + known)}"
            )
        resolved[requested] = node
    return resolved


def node_shapes(
    network: str, nodes: tuple[str, ...], crop_px: int
) -> dict[str, tuple[int, int, int]]:
    """Return {requested node: (C, h, w)} at crop_px x crop_px, on torch's meta device.

    No weights are needed. A vector has h = w = 1.

    Raises:
        WeightsError: unknown names, a size that the network does not take, or a node whose output
            is neither a map nor a vector nor the tokens of square patches.
    """
    family, family_name = _family(network)
    resolved = resolve_nodes(network, nodes)
    model = family.model(family_name, "meta")
    part, layout = _part(family, model, resolved), family.layout(model)
    frame = torch.zeros(1, 3, crop_px, crop_px, device="meta")
    with _refusal(network, crop_px), torch.inference_mode():
        outputs = {**part(frame), INPUT: frame}
    return {name: _shape(outputs[node], layout, network, name) for name, node in resolved.items()}


def check_stacks(network: str, nodes: tuple[str, ...], crop_px: int, num_channels: int) -> None:
    """Check that a network of pictures accepts stacks of flow, by a run on torch's meta device.

    Args:
        num_channels: of a stack.

    Raises:
        WeightsError: it does not take them.
    """
    part = cut(network, bare(network), nodes, "meta", num_channels).network
    stack = torch.zeros(1, num_channels, crop_px, crop_px, device="meta")
    try:
        with torch.inference_mode():
            part(stack)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise WeightsError(
            "describe.streams: a flow stream with stack > 1 expects a network that reads pictures "
            f"by convolutions alone, got {network}, which does not take {num_channels} channels "
            f"({str(error)[:200]}); set stack=1"
        ) from error


@contextmanager
def _refusal(network: str, crop_px: int) -> Iterator[None]:
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        raise WeightsError(
            f"picture.crop_px: {network} does not take {crop_px} px ({str(error)[:200]}); set the "
            "size that the network was made for"
        ) from error


def _part(family: Family, model: nn.Module, resolved: dict[str, str]) -> nn.Module:
    """Return the network up to its deepest node; a stand-in if only `input` is requested."""
    nodes = tuple(dict.fromkeys(node for node in resolved.values() if node != INPUT))
    return family.cut(model, nodes) if nodes else _NoNetwork()


class _NoNetwork(nn.Module):
    """Stand-in for a network if only the input is requested."""

    def __init__(self) -> None:
        super().__init__()
        # Frames are prepared for its device and precision.
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        return {}


def _shape(output: object, layout: Layout, network: str, node: str) -> tuple[int, int, int]:
    form = f"a {type(output).__name__}"
    if isinstance(output, Tensor):
        form = str(list(output.shape))
        try:
            channels, height, width = layout.as_maps(output).shape[1:]
        except ValueError as error:
            form = str(error)
        else:
            if height == width:
                return channels, height, width
    raise WeightsError(
        "describe.nodes: expected a node with a vector [f, C], patch tokens [f, N, C] or maps "
        f"[f, C, h, w] that are square where the frame is square, got {form} from "
        f"{network}/{node}; name another node"
    )


def published(network: str, weights: str) -> str:
    """Return the identity of published weights, such as vgg19-dcbb9e9d.pth; nothing is downloaded.

    Raises:
        WeightsError: the network has no weights of that name.
    """
    family, family_name = _family(network)
    return family.published(family_name, weights)


def load_published(network: str, weights: str) -> bytes:
    """Return published weights, downloaded or from the library's cache, as safetensors bytes.

    Raises:
        WeightsError: no such weights, or they cannot be downloaded.
    """
    family, family_name = _family(network)
    return pack(family.download(family_name, weights))


def load_file(data: bytes, name: str) -> bytes:
    """Return a state dict in a safetensors or torch file as safetensors bytes, without pickle.

    Raises:
        WeightsError: the file holds no state dict.
    """
    try:
        if name.endswith(".safetensors"):
            return pack(load_tensors(data))
        return pack(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:
        raise WeightsError(
            f"describe.weights: expected a safetensors or torch file with a state dict, got {name} "
            f"({type(error).__name__}: {error})"
        ) from error


def random_filters(network: str, seed: int) -> bytes:
    """Return a seeded random initialisation, for demonstrations where no weights can be had."""
    family, family_name = _family(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pack(family.model(family_name, "cpu").state_dict())


def build(network: str, nodes: tuple[str, ...], weights: bytes, device: str = "cpu") -> Backbone:
    """Return the network with packed weights; only what the deepest requested node needs is run.

    Raises:
        WeightsError: unknown names, or weights of another network.
    """
    return cut(network, load_model(network, weights), nodes, device)


def cut(
    network: str,
    model: nn.Module,
    nodes: tuple[str, ...],
    device: str = "cpu",
    num_channels: int = COLOURS,
) -> Backbone:
    """Return a network cut at its deepest requested node; it shares parameters with `model`.

    Args:
        num_channels: more than the three colours for stacks of flow, whose network has other first
            convolutions (`encoders.backbones.flow_input`).

    Raises:
        WeightsError: unknown nodes, or a network without a convolution of colours to adapt.
    """
    family, family_name = _family(network)
    resolved = resolve_nodes(network, nodes)
    mean, std = family.preprocessing(family_name)
    if num_channels > COLOURS:
        std = (0.5,) * COLOURS if rescales_colours(model) else std
        model = for_stacks(model, num_channels)
    part = _part(family, model, resolved).to(device)
    # The overload with a memory format is missing from nn.Module's annotations.
    part = part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Backbone(
        network=part,
        nodes=resolved,
        layout=family.layout(model),
        mean=mean,
        std=std,
    )


def random_part(
    network: str, nodes: tuple[str, ...], device: str, num_channels: int = COLOURS
) -> Backbone:
    """Return `cut` with random filters, to measure the time of a forward pass.

    What lies behind the deepest node, often the largest part of a network, gets no memory.
    """
    part = cut(network, bare(network), nodes, "meta", num_channels)
    if any(not b.is_floating_point() and b.ndim for b in part.network.buffers()):
        # Such as the relative positions of a Swin transformer: random ones are no places.
        model = load_model(network, random_filters(network, 0))
        return cut(network, model, nodes, device, num_channels)
    module = part.network.to_empty(device=device).to(memory_format=torch.channels_last)
    for value in (*module.parameters(), *module.buffers()):
        if value.ndim > 1:
            nn.init.kaiming_uniform_(value)
        else:
            value.data.fill_(1)
    return replace(part, network=module)


def bare(network: str) -> nn.Module:
    """Return the whole network on torch's meta device: its structure, without weights or memory.

    Raises:
        WeightsError: an unknown name.
    """
    family, family_name = _family(network)
    return family.model(family_name, "meta")


def load_model(network: str, weights: bytes) -> nn.Module:
    """Return the whole network with packed weights, in evaluation mode and float32.

    Raises:
        WeightsError: an unknown name, or weights of another network.
    """
    family, family_name = _family(network)
    model = family.loadable(family_name)
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_tensors(weights).items()
        if not key.startswith(CLIPS)
    }
    try:
        model.load_state_dict(family.fitting(state), assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"describe.weights: the weights do not fit {network}: {str(error)[:300]}"
        ) from error
    return model


def pack(state: dict[str, Tensor]) -> bytes:
    """Return a state dict as safetensors bytes, as `build` takes it."""
    # A copy of each, because safetensors refuses tensors that share memory.
    copies = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()
    }
    return sealed(safetensors.torch.save(copies))


def with_clips(weights: bytes, of_clips: bytes) -> bytes:
    """Return one file of weights with those of a network of clips beside."""
    beside = {f"{CLIPS}{name}": value for name, value in load_tensors(of_clips).items()}
    return pack({**load_tensors(weights), **beside})


def clips_of(weights: bytes) -> bytes:
    """Return the weights of the network of clips, which `with_clips` has put beside others."""
    tensors = load_tensors(weights)
    own = {n.removeprefix(CLIPS): v for n, v in tensors.items() if n.startswith(CLIPS)}
    return pack(own)


def _family(network: str) -> tuple[Family, str]:
    """Return the network's family, and its name there.

    Raises:
        WeightsError: the prefix before the colon is unknown.
    """
    if network in OWN:
        return OWN[network], network
    prefix, _, name = network.rpartition(":")
    if prefix not in FAMILIES:
        raise WeightsError(
            f"describe.backbone: expected NAME or timm:NAME, got {network!r}; there are no "
            f"networks of {prefix!r}"
        )
    return FAMILIES[prefix], name
