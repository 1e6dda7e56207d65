"""Temporal pyramid: a vector for the whole video, then one for each half, and so on, side by side.

As a spatial pyramid over time (Lazebnik, Schmid, Ponce 2006; Laptev et al. 2008). Letters: f frames, D length of an
encoder's vector, s parts of a level.
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
    """Parts of a video: at each level s parts of equal duration. (1,) is the whole video alone.

    A frame belongs to part floor(s x) of a level, x in 0 to 1 being its place in time; that of x = 1 is the last. The
    state of a video is that of each interval between two neighbouring cuts of any level, so that a frame is encoded
    once: states of parts of a video add up interval by interval.
    """

    levels: tuple[int, ...]

    @property
    def num_parts(self) -> int:
        """How many vectors stand side by side."""
        return sum(self.levels)

    def accumulate(self, encoder: Encoder, descriptors: Tensor, place: np.ndarray) -> list[State]:
        """Return the state of each interval of frames [f, ...] at ascending places [f] in 0 to 1; f may be 0."""
        ends = np.searchsorted(place, [float(cut) for cut in self._cuts[1:-1]], side="left")
        parts = torch.tensor_split(descriptors, ends.tolist())
        return [encoder.accumulate(part.reshape(-1, encoder.descriptor_dim)) for part in parts]

    def finalise(self, encoder: Encoder, states: Sequence[State]) -> Tensor:
        """Return the float32 vector [D num_parts], level by level: each part's normalised as by `Encoder.finalise`, the whole
        scaled to norm 1 unless normalisation keeps lengths. A part without frames is zeros."""
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
