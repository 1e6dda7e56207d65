"""The contract of every encoding: a sum over descriptors, and one vector at the end.

Letters: n descriptors, v videos, C channels of a descriptor, D length of the finished vector.

Because `accumulate` is a sum, states of parts of a video add up to the state of the whole:
a long video can be split over workers, merged after a failure, and encoded as a stream.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from encoders import matmul
from encoders.codebooks.sample import FitSample
from encoders.encodings.normalise import NORMALISATIONS
from encoders.settings import CODEBOOK, EncoderSettings
from encoders.tensor_files import metadata_of, save_tensors


class State(NamedTuple):
    """Statistics of descriptors: float64 sums of a fixed shape, and the number of descriptors."""

    sums: Tensor
    count: int

    def __add__(self, other: "State") -> "State":
        return State(self.sums + other.sums, self.count + other.count)


class FitWork(NamedTuple):
    """Descriptors that a fit reads: `once`, and `step` in each of its `steps`.

    After each step it offers its state to `FitSample.checkpoint`. The time of both parts grows with
    these numbers; their unit does not matter.
    """

    once: float
    steps: int = 0
    step: float = 0.0


class Encoder(ABC):
    """A fitted encoding. Subclasses hold their codebook as tensors and are immutable.

    Attributes:
        name: the registry key.
        learns: `fit` reads descriptors; if not, it reads only their shape.
        reads: the kinds of stream that it is made for, see `encoders.descriptors.streams.KINDS`.
        non_negative: values that are appended to descriptors must not be below 0.
        per_frame: a descriptor is a whole frame, its T local descriptors side by side.
        has_attention: the encoder has `attention`, the weight of each descriptor.
        descriptor_dim: C, the width that `accumulate` accepts.
        output_dim: D, the length of `finalise`'s vector.
        normalisation: a key of `encoders.encodings.normalise.NORMALISATIONS`, applied last by
            `finalise`.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = True
    non_negative: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"appearance", "difference", "dense"})
    per_frame: ClassVar[bool] = False
    has_attention: ClassVar[bool] = False
    descriptor_dim: int
    output_dim: int
    normalisation: str

    @classmethod
    @abstractmethod
    def fit(cls, sample: FitSample, settings: EncoderSettings, normalisation: str) -> Self:
        """Fit the encoder to a sample; it is the same on every worker.

        Args:
            settings: the encoder's record in `encoders.settings`.
            normalisation: a key of `encoders.encodings.normalise.NORMALISATIONS`.
        """

    @classmethod
    def fit_work(cls, settings: EncoderSettings, num_frames: int, cells: int) -> FitWork:
        """Return the work of `fit` on a sample of so many frames of so many descriptors each."""
        return FitWork(num_frames * cells)

    @classmethod
    def short_fit(cls, settings: EncoderSettings, steps: int) -> EncoderSettings:
        """Return `settings` for a fit of at most so many steps.

        From its time follows that of a whole fit.
        """
        return settings

    def files(self) -> dict[str, bytes]:
        """Return the files of a fitted encoder by name. `CODEBOOK` is one of them."""
        return {CODEBOOK: self.to_bytes()}

    def with_files(self, files: dict[str, bytes], settings: EncoderSettings) -> Self:
        """Return this encoder, loaded from its `CODEBOOK`, with its other files and settings."""
        return self

    @abstractmethod
    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return the float64 sums of this encoding's statistics over each of v videos.

        Args:
            descriptors: [n, C], of any float dtype, one video after the other.
            lengths: number of descriptors of each video; without any, its sums are zeros.
        """

    @abstractmethod
    def _vector(self, sums: Tensor, count: int) -> Tensor:
        """Return the float64 vector [D] of a state, count >= 1, before the last normalisation."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the learnt tensors by name; with `settings` they are enough for `build`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments that are not tensors, as JSON values."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Build the encoder from its `tensors` and `settings`."""

    def attention(self, descriptors: Tensor) -> Tensor:
        """Return the weight [.., T] of each of descriptors [.., T, C], if `has_attention`.

        Raises:
            TypeError: the encoder has no attention.
        """
        raise TypeError(f"{self.name}: expected an encoder with attention, got one without")

    @property
    def core(self) -> "Encoder":
        """Return the encoder of single descriptors: itself, or the one that it wraps."""
        return self

    def learned_rows(self, frames: Tensor) -> Tensor:
        """Return the descriptors [n, C] of frames [f, T, C] that `core` is fitted on."""
        return frames.flatten(0, 1)

    def accumulate(self, descriptors: Tensor) -> State:
        """Return the state of descriptors [n, C]; n may be 0. The input is not changed.

        Raises:
            ValueError: the input is not [n, C] with this encoder's C.
        """
        return self.accumulate_batch(descriptors, descriptors.shape[:1])[0]

    @torch.no_grad()  # results are written into buffers, which autograd does not allow
    def accumulate_batch(self, descriptors: Tensor, lengths: Sequence[int]) -> list[State]:
        """Return the states of v videos, whose descriptors [n, C] stand one video after the other.

        Args:
            lengths: number of descriptors of each video, 0 or more. Their sum is n.

        Raises:
            ValueError: the input is not [n, C] with this encoder's C, or the lengths do not add up
                to n.
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
        with matmul.fastest():
            sums = self._batch_sums(descriptors, lengths) if lengths else []
        return [State(*state) for state in zip(sums, lengths, strict=True)]

    def finalise(self, state: State) -> Tensor:
        """Return the float32 vector [D] of a state; zeros without descriptors."""
        if state.count == 0:
            return torch.zeros(self.output_dim, device=state.sums.device)
        vector = self._vector(state.sums, state.count)
        return NORMALISATIONS[self.normalisation](vector).float()

    def encode(self, descriptors: Tensor) -> Tensor:
        """Return the vector [D] of descriptors [n, C]: `finalise` of `accumulate`."""
        return self.finalise(self.accumulate(descriptors))

    def encode_batch(self, descriptors: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return vectors [v, D] of v videos, with descriptors [n, C] as in `accumulate_batch`."""
        vectors = torch.empty(len(lengths), self.output_dim, device=descriptors.device)
        for row, state in zip(vectors, self.accumulate_batch(descriptors, lengths), strict=True):
            row.copy_(self.finalise(state))
        return vectors

    def to(self, device: torch.device | str) -> Self:
        """Return the same encoder on `device`; it accepts descriptors of that device."""
        tensors = {key: value.to(device) for key, value in self.tensors().items()}
        return self.rebuilt(tensors, self.settings())

    def rebuilt(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Build an encoder of this kind from other tensors and settings."""
        return type(self).build(tensors, settings)

    def to_bytes(self) -> bytes:
        """Return a safetensors file of the tensors, with name and settings in its header."""
        header = {"name": self.name, "settings": self.settings()}
        return save_tensors(self.tensors(), "encoder", header)


def header_of(data: bytes) -> dict[str, Any]:
    """Return name and settings in a file of `Encoder.to_bytes`; empty for other files."""
    return json.loads(metadata_of(data).get("encoder", "{}"))
