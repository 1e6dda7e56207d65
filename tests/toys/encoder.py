"""A toy encoder: the mean of squares. Its one line is `ENCODERS["toy"] =
"tests.toys.encoder.MeanSquare"`."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.settings import EncoderSettings


class MeanSquare(Encoder):
    """The mean of the squares of each channel, D = C."""

    name = "toy"
    learns = False

    def __init__(self, descriptor_dim: int, normalisation: str = "signed_sqrt_l2") -> None:
        self.descriptor_dim = self.output_dim = descriptor_dim
        self.normalisation = normalisation

    @classmethod
    def fit(cls, sample: FitSample, settings: EncoderSettings, normalisation: str) -> Self:
        """Return the encoder of descriptors as wide as the sample's."""
        return cls(sample.frames.shape[-1], normalisation)

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        squares = descriptors.to(torch.float64).square()
        return [video.sum(0) for video in squares.split(list(lengths))]

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        return sums / count

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: there is nothing to learn."""
        return {}

    def settings(self) -> dict[str, object]:
        """Return the constructor's arguments."""
        return {"descriptor_dim": self.descriptor_dim, "normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        """Build the encoder again."""
        return cls(**settings)
