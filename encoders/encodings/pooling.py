"""GA, AVE and Concatenation: means, for which nothing is learnt (DQ 5.2; METHODS 2).

Letters: f frames, T descriptors of a frame, C channels.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.settings import EncoderSettings


class Average(Encoder):
    """AVE: the mean descriptor, D = C. DQ's is that of the 49 positions of pool5."""

    name = "ave"
    learns = False
    reads = frozenset({"positions", "appearance", "difference", "dense"})

    def __init__(self, descriptor_dim: int, normalisation: str = "signed_sqrt_l2") -> None:
        self.descriptor_dim = self.output_dim = descriptor_dim
        self.normalisation = normalisation

    @classmethod
    def fit(cls, sample: FitSample, settings: EncoderSettings, normalisation: str) -> Self:
        cells, width = sample.frames.shape[1:]
        return cls(cells * width if cls.per_frame else width, normalisation)

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return [video.sum(0, dtype=torch.float64) for video in descriptors.split(lengths)]

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        return sums / count

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"descriptor_dim": self.descriptor_dim, "normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        return cls(**settings)


class GlobalActivation(Average):
    """GA: mean over frames of a node without spatial extent, such as VGG-19's fc7 (D = 4096)."""

    name = "ga"
    reads = frozenset({"global"})


class Concatenation(Average):
    """A frame's positions side by side, averaged over frames: D = T C, 25,088 for pool5."""

    name = "concat"
    reads = frozenset({"positions"})
    per_frame = True
