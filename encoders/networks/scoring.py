"""Scores of a video by a trained network: several clips, and several crops of each (VU 5.4.2).

Letters: n kept frames of a video, m clips, K classes.
"""

import torch
from torch import Tensor

from encoders.backbones.flow_input import COLOURS
from encoders.descriptors.views import mirrored_flow, mirrored_picture, views_of
from encoders.networks.base import Network

FRAMES_AT_A_TIME = 128
"""Pictures of a forward pass: 25 clips of 16 at once would take gigabytes."""


@torch.inference_mode()
def clip_scores(
    network: Network, frames: Tensor, places: list[list[int]], views: str, crop_px: int
) -> dict[str, Tensor]:
    """Return {output: scores [m, K] before the softmax, the mean over the crops}.

    Args:
        frames: uint8 [n, side, side, c]; or maps [n, C, h, w], of which there are no crops.
        places: [m] clips, each the places of its frames among the kept ones.
        views: a key of `encoders.stream_specs.VIEWS`.
    """
    mirrored = mirrored_picture if frames.shape[-1] == COLOURS else mirrored_flow
    device = next(network.parameters()).device
    of_maps = network.reads == "maps"
    totals: dict[str, Tensor] = {}
    count = 0
    for view in (frames.float(),) if of_maps else views_of(frames, views, crop_px, mirrored):
        on_device = view.to(device)
        for name, scores in _outputs(network, on_device, places).items():
            totals[name] = totals[name] + scores if name in totals else scores
        count += 1
    return {name: (total / count).float().cpu() for name, total in totals.items()}


def _outputs(network: Network, frames: Tensor, places: list[list[int]]) -> dict[str, Tensor]:
    """Return {output: scores [m, K]} of clips, in passes of so many that memory does not grow."""
    size = len(places)
    if network.reads == "pixels":
        size = max(1, FRAMES_AT_A_TIME // len(places[0]))
    parts = [
        network.outputs(torch.stack([frames[place] for place in places[first : first + size]]))
        for first in range(0, len(places), size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def drawn_clips(
    num_frames: int, run_frames: int, network: Network, num_clips: int, draw: torch.Generator
) -> list[list[int]]:
    """Draw the clips that a video is tested on, at random times (VU 5.4.2)."""
    num_runs = num_frames // run_frames
    return [list(network.clip_places(num_runs, run_frames, draw)) for _ in range(num_clips)]
