"""Descriptors in chunks: memory that is used again, and products that add up in float64."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK_DESCRIPTORS = 2048
"""Rows to work on at a time on a CPU, and of one float32 product on any device: products add up in float64."""


ACCELERATOR_FACTOR = 16
"""A cache bounds what a CPU should work on at a time; other devices want more to do."""


Piece = tuple[int, slice]
"""Number of a video, and rows of a group that belong to it."""


class Scratch:
    """Memory that is used again for each group of a call. New pages of a size that the C library
    returns to the system at once would cost more time than what is done with them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._like = {"dtype": dtype, "device": device}
        self._memory: dict[str, Tensor] = {}

    def __call__(self, name: str, num_rows: int, width: int) -> Tensor:
        """A contiguous [num_rows, width] to be overwritten; it lies where the last `name` did."""
        size = num_rows * width
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = torch.empty(size, **self._like)
        return self._memory[name][:size].view(num_rows, width)


def group_rows(most: int, device: torch.device) -> int:
    """How many rows to work on at a time where a CPU should have `most`."""
    return most if device.type == "cpu" else ACCELERATOR_FACTOR * most


def groups(
    lengths: Sequence[int], most: int, device: torch.device
) -> Iterator[tuple[slice, list[Piece]]]:
    """Cuts the rows of videos that stand one after the other into groups to work on at a time.

    Args:
        lengths: rows of each video.
        most: rows of a piece, and of a group on the CPU. A video with no more is not cut.

    Yields:
        Rows of all videos, and the pieces they consist of, with rows counted from the group's first.
    """
    capacity = group_rows(most, device)
    start, used, pieces = 0, 0, []
    for video, length in enumerate(lengths):
        for size in [most] * (length // most) + [length % most] * (length % most > 0):
            if used + size > capacity:
                yield slice(start, start + used), pieces
                start, used, pieces = start + used, 0, []
            pieces.append((video, slice(used, used + size)))
            used += size
    if pieces:
        yield slice(start, start + used), pieces


def add_products(sums: list[Tensor], left: Tensor, right: Tensor, pieces: list[Piece]) -> None:
    """Adds to each video's float64 sums [P, Q] the product left^T right of its rows of a group.

    Args:
        sums: one a video.
        left, right: [n, P] and [n, Q], contiguous.
    """
    if len({rows.stop - rows.start for _, rows in pieces}) == 1:
        left, right = (factor.view(len(pieces), -1, factor.shape[1]) for factor in (left, right))
        products = torch.bmm(left.mT, right)
    else:
        products = (left[rows].T @ right[rows] for _, rows in pieces)
    for (video, _), product in zip(pieces, products, strict=True):
        sums[video] += product
