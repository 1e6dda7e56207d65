"""A backbone up to a node, as a part of a larger network: maps at earlier nodes are read, and may
be added to.

Letters: f frames, c channels of a frame, C channels of a map, h and w its sides.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encoders.backbones import load
from encoders.backbones.family import Layout, WeightsError, kept
from encoders.backbones.flow_input import COLOURS, for_stacks
from encoders.backbones.parameters import parameters_of
from encoders.stream_specs import INPUT, STAGES

TABLE_5_4 = {"conv1": "relu", "res2": "layer1", "res3": "layer2", "res4": "layer3"}
"""VU Table 5.4's names of the layers of torchvision's ResNets."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A backbone by name, with packed weights (`encoders.backbones.load`).

    Attributes:
        node: whose maps are classified.
        crop_px: side of the frames.
        channels: of a frame: 3 colours, or u and v of each flow of a stack.
        reads: `maps`: the backbone stays as it is, and a network is given what it computed.
    """

    network: str
    node: str
    weights: bytes
    crop_px: int
    channels: int = COLOURS
    reads: Literal["pixels", "maps"] = "pixels"

    def map_shape(self) -> tuple[int, int, int]:
        """Return C, h and w of the node's maps."""
        return _like(self.network, self.node, self.crop_px, self.channels).map_shape

    def body(self, layers: tuple[str, ...] = ()) -> "Body":
        """Return the backbone with its weights, whose outputs at `layers` (`layer_nodes`) are read.

        Raises:
            WeightsError: unknown names, or weights of another network.
        """
        like = _like(self.network, self.node, self.crop_px, self.channels)
        model = load.load_model(self.network, self.weights)
        if self.channels > COLOURS:
            model = for_stacks(model, self.channels)
        body = Body(model, like.layout, like.node, layers, like.mean, like.std)
        body.trained = tuple(n for n, _ in model.named_parameters() if n in like.trained)
        body.channels, body.frame_channels = like.channels, self.channels
        return body


@functools.cache
def _like(network: str, node: str, crop_px: int, channels: int) -> "Body":
    """Return a body without weights: what belongs to a network and its node."""
    module, bare = module_of(network, node), load.bare(network)
    cut = load.cut(network, bare, (module,), "meta", channels)
    body = Body(bare, cut.layout, module, (), cut.mean, cut.std)
    maps, _ = body(torch.zeros(1, COLOURS, crop_px, crop_px, device="meta"))
    body.trained = tuple(parameters_of(bare, maps))
    body.channels, body.map_shape = maps.shape[1], tuple(maps.shape[1:])
    return body


@functools.cache
def module_of(network: str, node: str) -> str:
    """Return the module that computes a node, by the papers' or the family's name.

    Raises:
        WeightsError: there is no such module.
    """
    named = TABLE_5_4.get(node, node) if network.startswith("resnet") else node
    module = load.resolve_nodes(network, (named,))[named]
    modules = dict(load.bare(network).named_modules())
    if module not in modules:
        near = [name for name in modules if name.startswith(module.rpartition(".")[0])]
        raise WeightsError(
            f"network.node, layers: expected modules of {network}, got {node!r}, which is none; "
            f"near it are {', '.join(near[:8])}"
        )
    return module


@functools.cache
def layer_nodes(network: str, layers: tuple[str, ...], node: str, crop_px: int) -> tuple[str, ...]:
    """Return the modules of `layers`, `stages` expanded; the input stays `input`.

    Those at or behind `node` are left out: a difference that goes straight into the classifier is
    unlikely to help (VU 5.3.2).

    Raises:
        WeightsError: unknown names.
    """
    expanded = load.expanded(network, layers, crop_px) if STAGES in layers else layers
    named = [name if name == INPUT else module_of(network, name) for name in expanded]
    before = _before(network, tuple(dict.fromkeys(named)), module_of(network, node), crop_px)
    wrong = [
        name
        for name, module in zip(expanded, named, strict=True)
        if module not in before and name in layers
    ]
    if wrong:
        raise WeightsError(
            f"layers: expected nodes of {network} before {node}, got {', '.join(wrong)}"
        )
    return before


def _before(network: str, layers: tuple[str, ...], node: str, crop_px: int) -> tuple[str, ...]:
    """Return the layers that are computed before a node, in the order of computation."""
    model, done = load.bare(network), [INPUT]
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: done.append(name))
        for name in (*layers, node)
        if name != INPUT
    ]
    with torch.inference_mode():
        model(torch.zeros(1, COLOURS, crop_px, crop_px, device="meta"))
    for hook in hooks:
        hook.remove()
    before = done[: done.index(node)]
    return tuple(name for name in dict.fromkeys(before) if name in layers)


class _Done(Exception):  # noqa: N818 - no error: the node is computed
    pass


class Body(nn.Module):
    """A backbone up to a node. Frames are [f, h, w, c] as they are stored.

    Attributes:
        layers: modules whose outputs are read, and `input`; each runs once a frame.
        trained: names of the parameters that the node's maps depend on.
        channels: C of these maps. frame_channels: c.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        node: str,
        layers: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.model, self.layout, self.node, self.layers = model.eval(), layout, node, layers
        self.mean, self.std = mean, std
        self.trained: tuple[str, ...] = ()
        self.channels, self.frame_channels = 0, COLOURS
        self.map_shape = (0, 0, 0)

    def pixels(self, frames: Tensor) -> Tensor:
        """Return the input [f, c, h, w] of frames: uint8 [f, h, w, c], or floats of 0 to 255.

        Flow is 0 where nothing moves (level 127.5), as in TSN.
        """
        weight = next(self.model.parameters())
        values = frames.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 255
        if frames.shape[-1] != COLOURS:
            return (values - 0.5) / (sum(self.std) / COLOURS)
        mean, std = (values.new_tensor(of).view(1, COLOURS, 1, 1) for of in (self.mean, self.std))
        return ((values - mean) / std).contiguous(memory_format=torch.channels_last)

    def forward(
        self, pixels: Tensor, added: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the maps [f, C, h, w] of the node, and the outputs at `layers`.

        Args:
            added: {layer: what is added to its output before it goes on}.
        """
        added = added or {}
        if INPUT in added:
            pixels = pixels + added[INPUT]
        outputs, found = {INPUT: pixels}, []

        def pass_on(name: str, output: Any) -> Any:
            if name in added:
                output = output + added[name]
            if name in self.layers:
                # Later layers may work in place.
                outputs[name] = output
                output = kept(output)
            if name == self.node:
                found.append(output)
                raise _Done
            return output

        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: pass_on(name, output)
            )
            for name in dict.fromkeys((*self.layers, self.node))
            if name != INPUT
        ]
        try:
            self.model(pixels)
        except _Done:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return self.layout.as_maps(found[0]), {name: outputs[name] for name in self.layers}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the node's maps depend on, by name."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self.trained}

    @property
    def first_of_flow(self) -> list[str]:
        """Return the weights of the first convolutions of a network of flow; else none."""
        return [
            f"{name}.weight"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Conv2d)
            and module.in_channels == self.frame_channels != COLOURS
        ]

    @property
    def batch_norms(self) -> list[nn.Module]:
        """Return the batch normalisations that run, in the order of the network."""
        used = {name.rpartition(".")[0] for name in self.trained}
        return [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and name in used
        ]
