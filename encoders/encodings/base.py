"""The contract of every encoding: a sum over descriptors, and one vector at the end.

Letters: n descriptors, v videos, C channels of a descriptor, D length of the finished vector.

Because `accumulate` is a sum, states of parts of a video add up to the state of the whole:
a long video can be split over workers, merged after a failure, and encoded as a stream.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from encoders.codebooks.sample import FitSample
from encoders.encodings.normalise import NORMALISATIONS
from encoders.settings import EncoderSettings
from encoders.tensor_files import metadata_of, save_tensors

CODEBOOK = "codebook.safetensors"


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
        learns: `fit` reads descriptors. Where it does not, their shape alone makes the encoder.
        reads: the kinds of stream it is made for, see `encoders.descriptors.streams.KINDS`.
        non_negative: what is appended to descriptors must not be below 0.
        per_frame: a descriptor is a whole frame, its T local descriptors side by side.
        has_attention: `attention` says how much each descriptor counts.
        descriptor_dim: C, the width that `accumulate` accepts.
        output_dim: D, the length of `finalise`'s vector.
        normalisation: a key of `encoders.encodings.normalise.NORMALISATIONS`, applied last by `finalise`.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = True
    non_negative: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"appearance", "difference"})
    per_frame: ClassVar[bool] = False
    has_attention: ClassVar[bool] = False
    descriptor_dim: int
    output_dim: int
    normalisation: str

    @classmethod
    @abstractmethod
    def fit(cls, sample: FitSample, settings: EncoderSettings, normalisation: str) -> Self:
        """Return the encoder of this codebook, the same on every worker.

        Args:
            settings: the encoder's record in `encoders.settings`.
            normalisation: a key of `encoders.encodings.normalise.NORMALISATIONS`.
        """

    def files(self) -> dict[str, bytes]:
        """What is stored of a fitted encoder, by file name. `CODEBOOK` is one of them."""
        return {CODEBOOK: self.to_bytes()}

    def with_files(self, files: dict[str, bytes], settings: EncoderSettings) -> Self:
        """This encoder, loaded from its `CODEBOOK`, as its other files and the settings want it."""
        return self

    @abstractmethod
    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return the float64 sums of this encoding's statistics, of one shape, over each of v videos.

        Args:
            descriptors: [n, C], of any float dtype, one video after the other.
            lengths: how many descriptors each video has; without any its sums are zeros.
        """

    @abstractmethod
    def _vector(self, sums: Tensor, count: int) -> Tensor:
        """Return the vector [D] of a state with count >= 1, before the last normalisation, in float64."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything learnt, by name; with `settings`, enough to build the encoder again."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Return the JSON-able constructor arguments that are not tensors."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        """Return the inverse of `tensors` and `settings`."""

    def accumulate(self, descriptors: Tensor) -> State:
        """Return the state of descriptors [n, C]; n may be 0. The input is not changed.

        Raises:
            ValueError: the input is not [n, C] with this encoder's C.
        """
        return self.accumulate_batch(descriptors, descriptors.shape[:1])[0]

    @torch.no_grad()  # the buffers that results are written into take no part in autograd
    def accumulate_batch(self, descriptors: Tensor, lengths: Sequence[int]) -> list[State]:
        """Return the states of v videos, whose descriptors [n, C] stand one video after the other.

        Args:
            lengths: how many descriptors each video has; 0 is allowed. Their sum is n.

        Raises:
            ValueError: the input is not [n, C] with this encoder's C, or the lengths are not its.
        """
        if descriptors.ndim != 2 or descriptors.shape[1] != self.descriptor_dim:
            raise ValueError(
                f"{self.name}: expected descriptors of shape [n, {self.descriptor_dim}], got "
                f"{list(descriptors.shape)}; encode with the codebook fitted on this stream"
            )
        lengths = [int(length) for length in lengths]
        if sum(lengths) != len(descriptors) or min(lengths, default=0) < 0:
            raise ValueError(
                f"{self.name}: expected lengths of 0 or more that add up to {len(descriptors)} "
                f"descriptors, got {len(lengths)} of sum {sum(lengths)}, the smallest "
                f"{min(lengths, default=0)}; give the number of descriptors of each video"
            )
        sums = self._batch_sums(descriptors, lengths) if lengths else []
        return [State(*state) for state in zip(sums, lengths, strict=True)]

    def finalise(self, state: State) -> Tensor:
        """Return the float32 vector [D] of a state; all zeros where no descriptor was seen."""
        if state.count == 0:
            return torch.zeros(self.output_dim, device=state.sums.device)
        vector = self._vector(state.sums, state.count)
        return NORMALISATIONS[self.normalisation](vector).float()

    def encode(self, descriptors: Tensor) -> Tensor:
        """`finalise` of `accumulate`: descriptors [n, C] to a vector [D]."""
        return self.finalise(self.accumulate(descriptors))

    def encode_batch(self, descriptors: Tensor, lengths: Sequence[int]) -> Tensor:
        """`finalise` of `accumulate_batch`: v videos of descriptors [n, C] to vectors [v, D]."""
        vectors = torch.empty(len(lengths), self.output_dim, device=descriptors.device)
        for row, state in zip(vectors, self.accumulate_batch(descriptors, lengths), strict=True):
            row.copy_(self.finalise(state))
        return vectors

    def to(self, device: torch.device | str) -> Self:
        """Return the same encoder with its tensors on `device`; accepts descriptors of that device."""
        tensors = {key: value.to(device) for key, value in self.tensors().items()}
        return type(self).build(tensors, self.settings())

    def to_bytes(self) -> bytes:
        """Return one safetensors file: the tensors, and name and settings in its header."""
        header = {"name": self.name, "settings": self.settings()}
        return save_tensors(self.tensors(), "encoder", header)


def header_of(data: bytes) -> dict[str, object]:
    """Name and settings of the encoder that `Encoder.to_bytes` wrote; nothing where it did not."""
    return json.loads(metadata_of(data).get("encoder", "{}"))
