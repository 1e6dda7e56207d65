"""Networks of clips by name, with the preprocessing of their weights, and the maps of their nodes.

Letters: f clips, t frames of a clip, C channels, h and w the map's height and width; T, H and W the
clip's own frames, height and width.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from encoders.backbones import load
from encoders.backbones.family import WeightsError, kept
from encoders.backbones.video_family import Video, last_node

PREFIX = "video:"
"""Before a network's name, where those of pictures are too (`encoders.backbones.load`)."""

FAMILY = Video()


class _Done(Exception):  # noqa: N818 - no error: all nodes are computed
    pass


@dataclass(frozen=True, kw_only=True)
class ClipBackbone:
    """A network of clips, ready for inference.

    Attributes:
        side_px: of the pictures that the weights were made for.
        mean, std: the preprocessing that goes with the weights, for RGB in 0..1.
    """

    model: nn.Module
    side_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def maps(self, clips: Tensor, nodes: tuple[str, ...], side_px: int = 0) -> dict[str, Tensor]:
        """Return {node: float32 maps [f, C, t, h, w]} of RGB uint8 [f, T, H, W, 3].

        Args:
            side_px: pictures are resized to squares of this side; 0: to that of the weights.
        """
        pixels = self.pixels(clips, side_px or self.side_px)
        return {node: maps.float() for node, maps in _outputs(self.model, pixels, nodes).items()}

    def pixels(self, clips: Tensor, side_px: int) -> Tensor:
        """Return the network's input [f, 3, T, side, side]."""
        weight = next(self.model.parameters())
        planes = clips.to(weight.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        if planes.shape[-1] != side_px:
            planes = functional.interpolate(
                planes, (side_px, side_px), mode="bilinear", antialias=True
            )
        mean, std = (planes.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        planes = ((planes - mean) / std).to(weight.dtype)
        return planes.unflatten(0, clips.shape[:2]).transpose(1, 2).contiguous()


def build(network: str, weights: bytes | None) -> ClipBackbone:
    """Return a network with packed weights; None: random ones, to measure how long it takes.

    Raises:
        WeightsError: weights of another network.
    """
    data = load.random_filters(PREFIX + network, 0) if weights is None else weights
    mean, std = FAMILY.preprocessing(network)
    model = load.load_model(PREFIX + network, data).eval()
    return ClipBackbone(model=model, side_px=FAMILY.side_px(network), mean=mean, std=std)


def named(network: str, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the nodes; of none the one with the last maps.

    Raises:
        WeightsError: no such network or node; the message lists near names.
    """
    FAMILY.model(network, "meta")
    chosen = nodes or (last_node(network),)
    load.resolve_nodes(PREFIX + network, chosen)
    return chosen


@functools.cache
def shapes(
    network: str, nodes: tuple[str, ...], num_frames: int, side_px: int = 0
) -> dict[str, tuple[int, int, int, int]]:
    """Return {node: (C, t, h, w)}, on torch's meta device.

    Raises:
        WeightsError: a clip that the network does not take, or a node without maps.
    """
    side = side_px or FAMILY.side_px(network)
    pixels = torch.zeros(1, 3, num_frames, side, side, device="meta")
    try:
        with torch.inference_mode():
            found = _outputs(FAMILY.model(network, "meta"), pixels, nodes)
    except WeightsError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"describe.streams: clip: {network} does not take {num_frames} frames of {side} px "
            f"({str(error)[:200]}); set frames and side_px as the network was made for"
        ) from error
    sides = {node: maps.shape[1:] for node, maps in found.items()}
    return {node: (c, t, h, w) for node, (c, t, h, w) in sides.items()}


def _outputs(model: nn.Module, pixels: Tensor, nodes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the maps of nodes; what lies behind the last of them does not run."""
    found: dict[str, Tensor] = {}

    def take(name: str, output: object) -> None:
        # Later layers may work in place.
        found[name] = _as_maps(model, name, kept(output))
        if len(found) == len(nodes):
            raise _Done

    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: take(name, output)
        )
        for name in nodes
    ]
    try:
        model(pixels)
    except _Done:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name in nodes if name in found}


def _as_maps(model: nn.Module, node: str, output: object) -> Tensor:
    """Return maps [f, C, t, h, w] of a node's output.

    Swin's are [f, t, h, w, C]. MViT's blocks give tokens [f, 1 + t h w, C], the class token first,
    and t, h and w.
    """
    form = type(output).__name__
    if isinstance(output, tuple) and len(output) == 2:
        tokens, sides = output
        if isinstance(tokens, Tensor) and tokens.ndim == 3 and len(sides) == 3:
            places = tokens[:, tokens.shape[1] - math.prod(sides) :]
            return places.transpose(1, 2).unflatten(2, tuple(sides)).clone()
    if isinstance(output, Tensor):
        form = str(list(output.shape))
        if output.ndim == 5:
            is_last = isinstance(model, models.video.SwinTransformer3d)
            return output.permute(0, 4, 1, 2, 3) if is_last else output
    raise WeightsError(
        f"describe.streams: clip: expected a node with maps over time and space, got {form} from "
        f"{node}; name another node"
    )
