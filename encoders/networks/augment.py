"""Augmentation of training clips: one draw for all frames of a clip, on tensors.

Letters: n frames of a clip, t of them with true flow, h and w their sides, c their channels.
"""

import itertools

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from encoders.descriptors.views import mirrored_flow, mirrored_picture
from encoders.networks.end_point import scaled
from encoders.networks.settings import NetworkSettings

SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides of TSN's crops, relative to the shorter side of the frame."""

PLACES = (
    *itertools.product((0, 4), (0, 4)),  # corners
    (2, 2),  # centre
    *((0, 2), (4, 2), (2, 4), (2, 0)),  # middles of the edges
    *itertools.product((1, 3), (1, 3)),  # quarter points
)
"""TSN's 13 places of a crop: vertical and horizontal quarters of the room that it leaves."""


def augmented(
    frames: Tensor,
    settings: NetworkSettings,
    crop_px: int,
    draw: torch.Generator,
    flow: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return a clip [n, crop_px, crop_px, c] of uint8 frames [n, h, w, c], and its true flow
    [t, crop_px, crop_px, 2] in px of [t, h, w, 2], if there is one.

    Frames of other than three channels are stacks of flow: mirrored, u has the opposite sign, and
    their colours do not change.
    """
    is_flow = frames.shape[-1] != 3
    top, left, height, width = crop_box(frames.shape[1:3], settings.crops, crop_px, draw)
    clip = frames[:, top : top + height, left : left + width]
    if (height, width) != (crop_px, crop_px):
        planes = functional.resize(clip.permute(0, 3, 1, 2), [crop_px, crop_px], antialias=True)
        clip = planes.permute(0, 2, 3, 1)
    if flow is not None:
        flow = scaled(flow[:, top : top + height, left : left + width], (crop_px, crop_px))
    if settings.mirror and _uniform(draw) < 0.5:
        clip = mirrored_flow(clip) if is_flow else mirrored_picture(clip)
        if flow is not None:
            flow = flow.flip(2) * flow.new_tensor([-1.0, 1.0])
    if settings.colour_jitter and not is_flow:
        clip = _jittered(clip, settings.colour_jitter, draw)
    return clip, flow


def augmented_maps(frames: Tensor, settings: NetworkSettings, draw: torch.Generator) -> Tensor:
    """Return a clip of maps [n, C, h, w], mirrored half of the time: nearly the maps of mirrored
    pictures."""
    clip = frames.float()
    return clip.flip(3) if settings.mirror and _uniform(draw) < 0.5 else clip


def crop_box(
    sides: tuple[int, ...], crops: str, crop_px: int, draw: torch.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop, by `NetworkSettings.crops`."""
    height, width = sides
    if crops == "corners":
        pairs = [(i, j) for i in range(len(SCALES)) for j in range(len(SCALES)) if abs(i - j) <= 1]
        i, j = pairs[_below(len(pairs), draw)]
        own_height, own_width = (int(min(sides) * SCALES[place]) for place in (i, j))
        row, column = PLACES[_below(len(PLACES), draw)]
        top, left = (height - own_height) * row // 4, (width - own_width) * column // 4
        return top, left, own_height, own_width
    if crops == "random":
        top, left = (_below(side - crop_px + 1, draw) for side in sides)
    else:
        top, left = ((side - crop_px) // 2 for side in sides)
    return top, left, crop_px, crop_px


def _jittered(clip: Tensor, share: float, draw: torch.Generator) -> Tensor:
    planes = clip.permute(0, 3, 1, 2)
    for adjust in (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    ):
        planes = adjust(planes, 1 + share * (2 * _uniform(draw) - 1))
    return planes.permute(0, 2, 3, 1)


def _uniform(draw: torch.Generator) -> float:
    return torch.rand((), generator=draw, dtype=torch.float64).item()


def _below(end: int, draw: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=draw).item())
