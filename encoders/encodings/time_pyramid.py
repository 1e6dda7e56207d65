"""Temporal pyramid: vectors of the whole video, of its halves, and so on, side by side.

It is the spatial pyramid over time (Lazebnik, Schmid, Ponce 2006; Laptev et al. 2008). Letters: f
frames, D length of an encoder's vector, s parts of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from encoders.encodings.base import Encoder, State
from encoders.encodings.normalise import l2
from encoders.settings import UNIT_LENGTH


@dataclass(frozen=True)
class TemporalPyramid:
    """Parts of a video: at each level s parts of equal duration. (1,) is the whole video only.

    A frame at time x in 0 to 1 belongs to part floor(s x) of a level; x = 1 to the last part. A
    video has one state for each interval between neighbouring cuts of all levels, so that a frame
    is encoded once: states of parts of a video add up interval by interval.
    """

    levels: tuple[int, ...]

    @property
    def num_parts(self) -> int:
        """Number of vectors side by side."""
        return sum(self.levels)

    def accumulate(self, encoder: Encoder, descriptors: Tensor, times: np.ndarray) -> list[State]:
        """Return the state of each interval of frames [f, ...]; f may be 0.

        Args:
            times: [f], ascending, 0 is the start of the video and 1 its end.
        """
        ends = np.searchsorted(times, [float(cut) for cut in self._cuts[1:-1]], side="left")
        parts = torch.tensor_split(descriptors, ends.tolist())
        return [encoder.accumulate(part.reshape(-1, encoder.descriptor_dim)) for part in parts]

    def finalise(self, encoder: Encoder, states: Sequence[State]) -> Tensor:
        """Return the float32 vector [D num_parts], level by level.

        Each part is normalised by `Encoder.finalise`, and the whole scaled to norm 1 unless the
        normalisation keeps lengths. A part without frames is zeros.
        """
        if len(states) == 1:
            return encoder.finalise(states[0])
        vectors = []
        for parts in self.levels:
            cuts = [self._cuts.index(Fraction(k, parts)) for k in range(parts + 1)]
            for first, end in pairwise(cuts):
                total = states[first]
                for state in states[first + 1 : end]:
                    total = total + state
                vectors.append(encoder.finalise(total))
        vector = torch.cat(vectors)
        return l2(vector) if encoder.normalisation in UNIT_LENGTH else vector

    @property
    def _cuts(self) -> list[Fraction]:
        return sorted({Fraction(k, parts) for parts in self.levels for k in range(parts + 1)})
