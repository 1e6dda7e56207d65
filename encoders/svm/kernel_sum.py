"""Sums of kernels (linear multiple kernel learning with fixed weights), on Gram matrices.

With unit vectors x_s of M parts and weights w_s >= 0 that sum to 1, the kernel
sum_s w_s x_s . y_s is the inner product of the concatenations
[sqrt(w_1) x_1, ..., sqrt(w_M) x_M]: kernel averaging and early fusion are the same. Each kernel is
cosine-normalised, K_ij / sqrt(K_ii K_jj), so that none wins by its scale.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from encoders.svm.gram import Gram

ROWS = 1024
"""Rows of a matrix per chunk."""

PIECE_VALUES = 2**22
"""Values of vectors that are normalised to length 1 at a time."""


def unit(x: Tensor) -> Tensor:
    """Return vectors [n, D] normalised to length 1, float32; zero stays zero."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    return (x.double() / torch.where(length > 0, length, 1.0)).float()


def joined(parts: Sequence[Iterator[Tensor]]) -> Iterator[Tensor]:
    """Yield the concatenated unit vectors of parts, in pieces [.., D_1 + ... + D_M].

    A piece is valid until the next one.

    Args:
        parts: pieces [.., D_s] of each part, of any sizes, with the same number of vectors in all.
    """
    pieces = _next_pieces(parts)
    buffer = torch.empty(0, 0)
    while pieces:
        size = min(map(len, pieces))
        if size > len(buffer):
            # One for all pieces: to get new memory costs more than the computation.
            width = sum(piece.shape[1] for piece in pieces)
            buffer = pieces[0].new_empty(size, width, dtype=torch.float32)
        few = max(1, PIECE_VALUES // buffer.shape[1])
        for first in range(0, size, few):
            rows = slice(first, min(first + few, size))
            torch.cat([unit(piece[rows]) for piece in pieces], 1, out=buffer[rows])
        yield buffer[:size]
        pieces = _next_pieces(parts, [piece[size:] for piece in pieces])


def _next_pieces(
    parts: Sequence[Iterator[Tensor]], rests: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return what is left of each part's piece, or its next piece; [] after the last ones."""
    pieces = []
    for part, rest in zip(parts, rests or [None] * len(parts), strict=True):
        piece = rest if rest is not None and len(rest) else next(part, None)
        if piece is None:
            return []
        pieces.append(piece)
    return pieces


def kernel_sum(grams: Sequence[Gram], weights: Sequence[float]) -> Gram:
    """Return the Gram matrix of the sum of cosine-normalised kernels, in their precision.

    The constant 1 of the bias is added once, whatever the number of kernels.

    Raises:
        ValueError: matrices of different sizes, or wrong weights.
    """
    sizes = {len(gram.cross) for gram in grams}
    valid = len(weights) == len(grams) and min(weights) >= 0 and abs(sum(weights) - 1) < 1e-6
    if len(sizes) != 1 or not valid:
        raise ValueError(
            "kernels: expected matrices of one size and as many weights >= 0 that sum to 1, got "
            f"sizes {sorted(sizes)} and weights {list(weights)}"
        )
    parts = [(g, _scales(g), w) for g, w in zip(grams, weights, strict=True) if w > 0]
    first = grams[0].centred
    mean = first.new_zeros(len(first), dtype=torch.float64)
    for gram, scale, weight in parts:
        common = gram.cross * scale.sum() + (scale @ gram.cross + (gram.square - 1) * scale.sum())
        product = (gram.centred @ scale.to(gram.centred.dtype)).double()
        mean += weight * scale * (product + common) / len(first)
    # The centre is the mean of the concatenated vectors, so the matrix keeps the digits that
    # differ.
    level, centred = float(mean.mean()), torch.empty_like(first)
    for start in range(0, len(first), ROWS):
        rows = slice(start, start + ROWS)
        total = -(mean[rows, None] + mean - level)
        for gram, scale, weight in parts:
            kernel = gram.centred[rows].double() + gram.cross[rows, None] + gram.cross
            kernel += gram.square - 1
            total += weight * scale[rows, None] * kernel * scale
        centred[rows] = total.to(centred.dtype)
    return Gram(centred, mean - level, 1 + level)


def _scales(gram: Gram) -> Tensor:
    """Return 1 / |x|, [N]; 1 for a zero vector."""
    squares = gram.centred.diagonal().double() + 2 * gram.cross + gram.square - 1
    return torch.where(squares > 1e-12, squares.clamp_min(1e-12).rsqrt(), 1.0)
