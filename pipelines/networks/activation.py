"""Class activation maps of tested videos (VU 5.4.5), or maps of what their scores lose where a
square is black (VU 4.4.3.1), as rows of CAMS."""

import torch

from encoders.networks.base import Network
from pipelines.storage.pictures import image_file

SHOWN = 2
"""Frames of a clip that are shown, as in VU Figure 5.3."""


OCCLUSION = "occlusion"
"""In the column `subnetwork`: a map of black squares."""

SQUARE, STRIDE = 4, 16
"""The side of a picture over that of the black square and of its steps: 56 and 14 px of 224."""

CLIPS_AT_A_TIME = 13


def activation_rows(
    network: Network, frames: torch.Tensor, indices: list[int], crop_px: int, label: int
) -> list[dict]:
    """Return a clip's maps of one class: of its first frames by each subnetwork, whose second one
    sees the difference of two frames, painted on their mean. A network that joins places before the
    scores has one map, of black squares.

    Args:
        frames: uint8 [n, side, side, 3] of the clip. indices: their places in the video.
        label: the class, by its number.
    """
    first = (frames.shape[1] - crop_px) // 2
    clip = frames[:, first : first + crop_px, first : first + crop_px]
    on_device = clip.to(next(network.parameters()).device)
    found = network.activation_maps(on_device[None])
    if not found:
        return [_occlusion_row(network, clip, on_device, indices, label)]
    rows = []
    for subnetwork, maps in found.items():
        # Maps of differences are of a frame and the next one.
        span = len(frames) - maps.shape[1] + 1
        for place in range(min(maps.shape[1], SHOWN if span == 1 else 1)):
            own = clip[place : place + span].float().mean(0).round().byte().numpy()
            rows.append(
                {
                    "subnetwork": subnetwork,
                    "place": place,
                    "frame_indices": indices[place : place + span],
                    "picture": image_file(own),
                    "values": maps[0, place, label].float().flatten().tolist(),
                }
            )
    return rows


def _occlusion_row(
    network: Network,
    clip: torch.Tensor,
    on_device: torch.Tensor,
    indices: list[int],
    label: int,
) -> dict:
    """Return the map of a clip, painted on its middle frame."""
    values = occlusion_map(network, on_device, label)
    return {
        "subnetwork": OCCLUSION,
        "place": 0,
        "frame_indices": [indices[0], indices[-1]],
        "picture": image_file(clip[len(clip) // 2].numpy()),
        "values": values.flatten().tolist(),
    }


@torch.inference_mode()
def occlusion_map(network: Network, clip: torch.Tensor, label: int) -> torch.Tensor:
    """Return the share [m, m] of a class's probability that is lost where a black square hides a
    part of all frames: (p - p_hidden) / p, row by row of places.

    Args:
        clip: uint8 [n, side, side, c].
    """
    side = clip.shape[1]
    square, stride = max(1, side // SQUARE), max(1, side // STRIDE)
    starts = range(0, side - square + 1, stride)
    hidden = [clip]
    for top in starts:
        for left in starts:
            copy = clip.clone()
            copy[:, top : top + square, left : left + square] = 0
            hidden.append(copy)
    parts = [
        network.scores(network.outputs(torch.stack(hidden[first : first + CLIPS_AT_A_TIME])))
        for first in range(0, len(hidden), CLIPS_AT_A_TIME)
    ]
    shares = torch.cat(parts).float().softmax(1)[:, label].cpu()
    return ((shares[0] - shares[1:]) / shares[0]).view(len(starts), len(starts))
