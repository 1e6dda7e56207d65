"""Class activation maps of tested videos (VU 5.4.5), as rows of CAMS."""

import io

import numpy as np
import torch
from PIL import Image

from encoders.networks.base import Network

SHOWN = 2
"""Frames of a clip that are shown, as in VU Figure 5.3."""


def activation_rows(
    network: Network, frames: torch.Tensor, indices: list[int], crop_px: int, label: int
) -> list[dict]:
    """Return a clip's maps of one class: of its first frames by each subnetwork, whose second one
    sees the difference of two frames, painted on their mean.

    Args:
        frames: uint8 [n, side, side, 3] of the clip. indices: their places in the video.
        label: the class, by its number.
    """
    first = (frames.shape[1] - crop_px) // 2
    clip = frames[:, first : first + crop_px, first : first + crop_px]
    on_device = clip.to(next(network.parameters()).device)
    rows = []
    for subnetwork, maps in network.activation_maps(on_device[None]).items():
        # Maps of differences are of a frame and the next one.
        span = len(frames) - maps.shape[1] + 1
        for place in range(min(maps.shape[1], SHOWN if span == 1 else 1)):
            own = clip[place : place + span].float().mean(0).round().byte().numpy()
            rows.append(
                {
                    "subnetwork": subnetwork,
                    "place": place,
                    "frame_indices": indices[place : place + span],
                    "picture": _jpeg(own),
                    "values": maps[0, place, label].float().flatten().tolist(),
                }
            )
    return rows


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
