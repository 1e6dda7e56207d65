"""Scores of a long video over time: at each frame, what a network makes of the frames up to it.

Letters: n frames of a video, K classes.
"""

import torch
from torch import Tensor

from encoders.networks.over_time.head import IMAGE, OverTime

WINDOWS_AT_A_TIME = 8
FRAMES_AT_A_TIME = 16


@torch.inference_mode()
def scores_over_time(network: OverTime, frames: Tensor) -> Tensor:
    """Return scores [n, K]: row t is the score of the clip that ends with frame t.

    A clip is as long as those that the network is tested on; the first frame stands for what would
    be before it.

    Args:
        frames: maps [n, C, h, w] of the frozen backbone, or pictures [n, crop_px, crop_px, 3], as
            `Network.outputs` takes them.
    """
    device = next(network.parameters()).device
    # Each frame goes through the backbone once, not once for each clip.
    maps = torch.cat(
        [
            network.maps(part[None].to(device).float())[IMAGE][0]
            for part in frames.split(FRAMES_AT_A_TIME)
        ]
    )
    back = torch.arange(1 - network.clip_frames, 1)
    places = (torch.arange(len(maps))[:, None] + back).clamp_min(0)
    return torch.cat(
        [
            network.scores(network.joined(maps[windows])).float().cpu()
            for windows in places.split(WINDOWS_AT_A_TIME)
        ]
    )
