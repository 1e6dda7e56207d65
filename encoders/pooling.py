"""AVE: the mean of the descriptors (DQ 5.2)."""

from typing import Self

import torch
from torch import Tensor

from encoders.base import Encoder
from encoders.sample import FitSample


class Average(Encoder):
    """The mean descriptor: D = C. Learns nothing."""

    name = "ave"

    def __init__(self, descriptor_dim: int, normalisation: str = "signed_sqrt_l2") -> None:
        self.descriptor_dim = self.output_dim = descriptor_dim
        self.normalisation = normalisation

    @classmethod
    def fit(cls, sample: FitSample, settings: object, normalisation: str) -> Self:
        return cls(sample.frames.shape[2], normalisation)

    def _sums(self, descriptors: Tensor) -> Tensor:
        return descriptors.double().sum(0)

    def _zeros(self) -> Tensor:
        return torch.zeros(self.descriptor_dim, dtype=torch.float64)

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        return sums / count

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, object]:
        return {"descriptor_dim": self.descriptor_dim, "normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        return cls(**settings)
