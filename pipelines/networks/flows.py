"""Optical flow that a network estimates of a tested video, beside the flow of the pictures (VU
4.4.3.2), as rows of FLOWS.

Letters: n frames of a clip, t its flows, h and w sides.
"""

import torch
from torchvision.utils import flow_to_image

from encoders.networks.end_point import end_point_errors, from_levels, resized
from encoders.networks.flow.actionflownet import ActionFlowNet
from pipelines.storage.pictures import image_file

SHOWN = 8
"""The last frames of a clip, of which pictures are kept (VU Figure 4.5)."""


def flow_rows(
    network: ActionFlowNet,
    clip: torch.Tensor,
    levels: torch.Tensor,
    bound_px: float,
    indices: list[int],
    *,
    is_shown: bool,
) -> list[dict]:
    """Return a row for each flow of a clip, seen in its centre crop.

    Args:
        clip: uint8 [n, crop, crop, 3], the frames that the network is given.
        levels: uint8 [t, crop, crop, 2] of the pictures' own flow.
        bound_px: what the largest level stands for.
        indices: places of the frames in the video.
        is_shown: pictures of the last ones are kept.
    """
    device = next(network.parameters()).device
    found = network.flows(clip[None].to(device))[0].cpu()
    truth = resized(from_levels(levels, bound_px), found.shape[1:3])
    errors = end_point_errors(found, truth).mean((1, 2))
    lengths = truth.norm(dim=-1).mean((1, 2))
    rows = []
    for place in range(len(found)):
        row = {
            "place": place,
            "frame_index": indices[place],
            "is_extrapolated": place == len(clip) - 1,
            "error_px": errors[place].item(),
            "length_px": lengths[place].item(),
            "picture": None,
            "flow": None,
            "truth": None,
        }
        if is_shown and place >= len(found) - SHOWN:
            both = torch.stack([found[place], truth[place]]).permute(0, 3, 1, 2)
            # One scale for both: the longest flow of either has the fullest colour.
            coloured = flow_to_image(both).permute(0, 2, 3, 1).numpy()
            row |= {
                "picture": image_file(clip[place].numpy()),
                "flow": image_file(coloured[0], kind="PNG"),
                "truth": image_file(coloured[1], kind="PNG"),
            }
        rows.append(row)
    return rows
