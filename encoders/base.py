"""The contract of every encoding: a sum over descriptors, and one vector at the end.

Letters: n descriptors, C channels of a descriptor, D length of the finished vector.

Because `accumulate` is a sum, states of parts of a video add up to the state of the whole:
a long video can be split over workers, merged after a failure, and encoded as a stream.
"""

import json
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Self

import safetensors.torch
import torch
from torch import Tensor

from encoders.normalise import NORMALISATIONS
from encoders.sample import FitSample


class State(NamedTuple):
    """What `accumulate` returns: float64 sums of a fixed shape, and how many descriptors are in."""

    sums: Tensor
    count: int

    def __add__(self, other: "State") -> "State":  # type: ignore[override]
        return State(self.sums + other.sums, self.count + other.count)


class Encoder(ABC):
    """A fitted encoding. Subclasses hold their codebook as tensors and do not change after `__init__`.

    Attributes:
        name: the registry key.
        descriptor_dim: C, the width that `accumulate` accepts.
        output_dim: D, the length of `finalise`'s vector.
        normalisation: a key of `encoders.normalise.NORMALISATIONS`, applied last by `finalise`.
    """

    name: ClassVar[str]
    descriptor_dim: int
    output_dim: int
    normalisation: str

    @classmethod
    @abstractmethod
    def fit(cls, sample: FitSample, settings: object, normalisation: str) -> Self:
        """The encoder of this codebook, the same on every worker.

        Args:
            settings: the encoder's record in `encoders.settings`, or None where it has none.
            normalisation: a key of `encoders.normalise.NORMALISATIONS`.
        """

    @abstractmethod
    def _sums(self, descriptors: Tensor) -> Tensor:
        """Sum over n >= 1 descriptors [n, C], in their dtype, of this encoding's statistics."""

    @abstractmethod
    def _zeros(self) -> Tensor:
        """The float64 sums of no descriptor."""

    @abstractmethod
    def _vector(self, sums: Tensor, count: int) -> Tensor:
        """The vector [D] of a state with count >= 1, before the last normalisation, in float64."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything learnt, by name; with `settings`, enough to build the encoder again."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """The JSON-able constructor arguments that are not tensors."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        """The inverse of `tensors` and `settings`."""

    def accumulate(self, descriptors: Tensor) -> State:
        """The state of descriptors [n, C]; n may be 0. The input is not changed.

        Raises:
            ValueError: the input is not [n, C] with this encoder's C.
        """
        if descriptors.ndim != 2 or descriptors.shape[1] != self.descriptor_dim:
            raise ValueError(
                f"{self.name}: expected descriptors of shape [n, {self.descriptor_dim}], got "
                f"{list(descriptors.shape)}; encode with the codebook fitted on this stream"
            )
        if len(descriptors) == 0:
            return State(self._zeros().to(descriptors.device), 0)
        return State(self._sums(descriptors).double(), len(descriptors))

    def finalise(self, state: State) -> Tensor:
        """The float32 vector [D] of a state; all zeros where no descriptor was seen."""
        if state.count == 0:
            return torch.zeros(self.output_dim, device=state.sums.device)
        vector = self._vector(state.sums, state.count)
        return NORMALISATIONS[self.normalisation](vector).float()

    def encode(self, descriptors: Tensor) -> Tensor:
        """`finalise` of `accumulate`: descriptors [n, C] to a vector [D]."""
        return self.finalise(self.accumulate(descriptors))

    def to(self, device: torch.device | str) -> Self:
        """The same encoder with its tensors on `device`; accepts descriptors of that device."""
        tensors = {key: value.to(device) for key, value in self.tensors().items()}
        return type(self).build(tensors, self.settings())

    def to_bytes(self) -> bytes:
        """One safetensors file: the tensors, and name and settings in its header."""
        # One key: safetensors writes several in any order, and equal codebooks should be equal files.
        header = json.dumps({"name": self.name, "settings": self.settings()}, sort_keys=True)
        tensors = {key: value.cpu().contiguous() for key, value in self.tensors().items()}
        # safetensors stores no tensor-free file, and the average learns nothing.
        return safetensors.torch.save(
            tensors or {"_": torch.zeros(1)}, metadata={"encoder": header}
        )
