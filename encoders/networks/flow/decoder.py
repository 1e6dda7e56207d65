"""Decoder of optical flow: the encoder's maps, from the deepest on, to flow at a quarter of the
pictures' side.

Letters: b clips, t frames, h and w sides of maps, d = 2 or 3 the dimensions of the convolutions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """Transposed convolutions of 4^d that double the sides, each joined with the encoder's maps of
    these sides (VU 4.3.2); convolutions of 3^d give flow.

    Args:
        widths: channels of the encoder's stages, the deepest first.
        has_all_scales: flow of each stage's sides, and not of the largest alone.
    """

    def __init__(self, widths: Sequence[int], d: int, *, has_all_scales: bool) -> None:
        super().__init__()
        up, convolution = {
            2: (nn.ConvTranspose2d, nn.Conv2d),
            3: (nn.ConvTranspose3d, nn.Conv3d),
        }[d]
        inputs = [widths[0], *(2 * width for width in widths[1:])]
        self.up = nn.ModuleList(
            up(before, after, 4, 2, 1)
            for before, after in zip(inputs[:-1], widths[1:], strict=True)
        )
        self.first_scale = 0 if has_all_scales else len(widths) - 1
        self.flow = nn.ModuleList(
            convolution(width, 2, 3, 1, 1) for width in inputs[self.first_scale :]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return flows [b, 2, t, h, w] (or without t), the smallest first, of the encoder's maps,
        the deepest first."""
        current, found = maps[0], [maps[0]]
        for up, own in zip(self.up, maps[1:], strict=True):
            larger = torch.relu(up(current))
            # Twice the sides, where an odd side was halved upwards, is one too many.
            larger = larger[(..., *(slice(size) for size in own.shape[2:]))]
            current = torch.cat([larger, own], 1)
            found.append(current)
        return [flow(x) for flow, x in zip(self.flow, found[self.first_scale :], strict=True)]
