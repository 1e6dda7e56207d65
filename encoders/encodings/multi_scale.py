"""One vector of an image at several scales (FK 2.3 and 4.4; METHODS 3.2).

With G_s the encoding of the descriptors of scale s, without a last normalisation:

    nfk   the encoding of the descriptors of all scales alike (FK Eq. 2)
    csf   G_s / |G_s| of all scales, concatenated (FK Table 2)
    mpp   the mean over scales of G_s / |G_s|, multi-scale pyramid pooling (FK Eq. 1)

each followed by the last normalisation (FK: power and L2).

Letters: S scales, C channels, h and w the height and width of a scale's map, D an encoder's length.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from encoders.encodings.base import Encoder, State
from encoders.encodings.normalise import NORMALISATIONS, l2

NUM_BANDS = 3
"""Top, middle and bottom."""


class MultiScale:
    """Image vectors by `encoder`, whose normalisation is applied once, at the end."""

    def __init__(self, encoder: Encoder, pooling: Literal["nfk", "csf", "mpp"] = "mpp") -> None:
        if pooling not in ("nfk", "csf", "mpp"):
            raise ValueError(
                f"multi_scale: expected pooling 'nfk', 'csf' or 'mpp', got {pooling!r}"
            )
        self.pooling = pooling
        self.normalisation = encoder.normalisation
        raw = encoder.settings() | {"normalisation": "none"}
        self._encoder = encoder.rebuilt(encoder.tensors(), raw)

    def encode(self, scales: Sequence[Tensor]) -> Tensor:
        """Return the vector [D], or [S D] of csf, of descriptors [n_s, C] of each scale.

        The encoding of a scale without descriptors is zero.
        """
        return self._finalise([self._encoder.accumulate(scale) for scale in scales])

    def encode_regions(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the four regions of a spatial pyramid of maps [h, w, C]: [4 D], or [4 S D].

        `encode`'s vectors of the whole image, its top, middle and bottom, concatenated and
        L2-normalised. Decision: the three are thirds of the height, and a position belongs to the
        third that its centre is in, which is never on a border.

        Args:
            maps: one for each scale.

        Raises:
            ValueError: a map has another shape.
        """
        bands = [self._bands(position_map) for position_map in maps]
        whole = [reduce(add, states) for states in bands]
        regions = [whole, *zip(*bands, strict=True)]
        return l2(torch.cat([self._finalise(states) for states in regions]))

    def _bands(self, position_map: Tensor) -> list[State]:
        """Return the states of top, middle and bottom of a map [h, w, C]."""
        if position_map.ndim != 3:
            raise ValueError(
                "multi_scale: expected a map of shape [h, w, C] for each scale, got "
                f"{list(position_map.shape)}; regions need the positions of descriptors"
            )
        height = len(position_map)
        # Row r has its centre at (r + 1/2) / h.
        band = (2 * torch.arange(height) + 1) * NUM_BANDS // (2 * height)
        sizes = torch.bincount(band, minlength=NUM_BANDS).tolist()
        return [self._encoder.accumulate(rows.flatten(0, 1)) for rows in position_map.split(sizes)]

    def _finalise(self, states: Sequence[State]) -> Tensor:
        if not states:
            raise ValueError("multi_scale: expected at least one scale, got none")
        if self.pooling == "nfk":
            vector = self._encoder.finalise(reduce(add, states))
        else:
            vectors = l2(torch.stack([self._encoder.finalise(state) for state in states]))
            vector = vectors.flatten() if self.pooling == "csf" else vectors.mean(0)
        return NORMALISATIONS[self.normalisation](vector)
