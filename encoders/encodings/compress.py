"""Compression of finished vectors: PCA, or random Maclaurin features (METHODS 3.5).

DQ 5.4 (Figure 4(c)) compares both; VU 2.3.3 whitens and has 128 dimensions. The result is
L2-normalised, as VU 2.3.4 compares by L2 distance and DQ 5.2's vectors have length 1.

Letters: N vectors, D their length before, P after.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor

from encoders.codebooks.pca import NEGLIGIBLE_VARIANCE, Pca, add_gram
from encoders.encodings.normalise import l2
from encoders.encodings.random_maps import SeededMaclaurin
from encoders.settings import CompressSettings
from encoders.tensor_files import load_tensors, metadata_of, save_tensors

BLOCK_VALUES = 2**24
"""Values of training vectors per float64 chunk: 128 MiB."""


@dataclass(frozen=True, eq=False)
class Compression:
    """Vectors [.., D] to L2-normalised [.., P] by `map`."""

    map: Pca | SeededMaclaurin

    @property
    def input_dim(self) -> int:
        """D, the length that `transform` accepts."""
        return len(self.map.mean) if isinstance(self.map, Pca) else self.map.width

    def transform(self, vectors: Tensor) -> Tensor:
        """Return vectors [.., P] of vectors [.., D], in float64 if they are, else in float32.

        Zeros stay zeros.

        Raises:
            ValueError: vectors of another length.
        """
        if vectors.shape[-1:] != (self.input_dim,):
            raise ValueError(
                f"compress: expected vectors of shape [.., {self.input_dim}], got "
                f"{list(vectors.shape)}; use the compression fitted on this encoding"
            )
        return l2(self.map.transform(vectors.to(torch.promote_types(vectors.dtype, torch.float32))))

    def to_bytes(self) -> bytes:
        """Return a safetensors file; of random features it holds the seed, not the signs."""
        if isinstance(self.map, Pca):
            return save_tensors(self.map.tensors(), "compression", {})
        return save_tensors({}, "compression", asdict(self.map))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Load a compression that `to_bytes` wrote.

        Raises:
            ValueError: the file holds no compression.
        """
        tensors, metadata = load_tensors(data), metadata_of(data)
        if "compression" not in metadata:
            raise ValueError(
                f"compression file: expected an entry 'compression', got {sorted(metadata)}; "
                "was the file written by `Compression.to_bytes`?"
            )
        seeded = json.loads(metadata["compression"])
        pca = Pca.from_tensors(tensors)
        return cls(pca or SeededMaclaurin(**seeded))


def fit_compression(blocks: Sequence[Tensor], settings: CompressSettings, seed: int) -> Compression:
    """Fit the compression to the training vectors.

    Random Maclaurin features depend only on D and the seed, so one block is enough.

    Args:
        blocks: [n, D] each, N vectors in all; they are read in place, a few columns or rows at a
            time.

    Raises:
        ValueError: settings.kind is "none", the vectors vary in fewer directions than the PCA has
            features, or a value is not finite.
    """
    if settings.kind == "pca":
        return Compression(_principal(blocks, settings.num_features, settings.whiten))
    if settings.kind == "random_maclaurin":
        return Compression(SeededMaclaurin(blocks[0].shape[1], settings.num_features, seed))
    raise ValueError(
        "compress.kind: expected 'pca' or 'random_maclaurin' to fit a compression, got "
        f"{settings.kind!r}; leave the vectors as they are"
    )


def fit_whitening(vectors: Tensor, num_features: int) -> Compression:
    """Fit a PCA with whitening for a search (VU 2.3.3) to vectors [N, D].

    P is `num_features`, but at most the directions in which the vectors vary, and at most N / 3
    (and at least 1): the nearer P is to N, the more whitening amplifies noise, and with P = N - 1
    all N vectors are at the same distance. On 8 to 60 videos of Weizmann a search finds videos of
    the query's class best, or nearly so, with N / 3, whatever the encoder.

    Raises:
        ValueError: the vectors do not vary, or a value is not finite.
    """
    fewer = min(num_features, max(1, len(vectors) // 3))
    return Compression(_principal([vectors], fewer, whiten=True, or_fewer=True))


def fit_bytes(num_vectors: int, width: int, settings: CompressSettings) -> int:
    """Return the memory that `fit_compression` takes besides the vectors."""
    if settings.kind != "pca":
        return 0
    # The matrix, its eigenvectors, LAPACK's workspace of twice that; components, copies; blocks.
    return (
        32 * min(num_vectors, width) ** 2 + 24 * width * settings.num_features + 32 * BLOCK_VALUES
    )


def _principal(
    blocks: Sequence[Tensor], num_features: int, whiten: bool, or_fewer: bool = False
) -> Pca:
    """Fit the float32 PCA from the smaller of the matrices [N, N] and [D, D] of products.

    Signs are fixed: the loading of largest magnitude of each component is positive.
    """
    num_vectors, width = sum(map(len, blocks)), blocks[0].shape[1]
    mean = torch.cat([part.mean(0) for part in _columns(blocks)])
    # A value that is not finite shows in the mean.
    if not torch.isfinite(mean).all():
        raise ValueError(
            "compress: expected finite vectors for PCA, got NaN or infinity; encode the videos "
            "they come from again"
        )
    values, basis = torch.linalg.eigh(_gram(blocks, mean), UPLO="U")
    values, basis = values.flip(0), basis.flip(1)
    usable = int((values > NEGLIGIBLE_VARIANCE * values[0]).sum())
    if or_fewer and usable:
        num_features = min(num_features, usable)
    if num_features > usable:
        raise ValueError(
            f"compress.num_features: expected at most {usable}, as many as the directions in which "
            f"{num_vectors} training vectors of length {width} vary, got {num_features}; lower it "
            "or train on more videos"
        )
    values, basis = values[:num_features], basis[:, :num_features]
    if num_vectors <= width:
        # From the eigenvectors of X X^T to those of X^T X.
        basis = torch.cat([part @ basis for part in _parts(blocks, mean)]) / values.sqrt()
    components = basis.T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    scale = ((num_vectors - 1) / values).sqrt() if whiten else torch.ones_like(values)
    return Pca(mean.float(), (components * largest.sign()).float().contiguous(), scale.float())


def _gram(blocks: Sequence[Tensor], mean: Tensor) -> Tensor:
    """Return X X^T of centred vectors X if N <= D, else X^T X: the upper triangle, in float64."""
    size = min(sum(map(len, blocks)), len(mean))
    gram = mean.new_zeros(size, size)
    for part in _parts(blocks, mean):
        add_gram(gram, part)
    return gram


def _parts(blocks: Sequence[Tensor], mean: Tensor) -> Iterator[Tensor]:
    """Yield chunks of rows of the centred vectors, or of their transpose if N <= D, in float64."""
    if sum(map(len, blocks)) <= len(mean):
        first = 0
        for part in _columns(blocks):
            last = first + part.shape[1]
            yield (part - mean[first:last]).T
            first = last
    else:
        size = max(1, BLOCK_VALUES // len(mean))
        for part in (part for block in blocks for part in block.split(size)):
            yield part.double() - mean


def _columns(blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield chunks of columns of the vectors, [N, ..] float64."""
    size = max(1, BLOCK_VALUES // sum(map(len, blocks)))
    for first in range(0, blocks[0].shape[1], size):
        yield torch.cat([block[:, first : first + size].double() for block in blocks])
