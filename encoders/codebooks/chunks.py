"""Descriptors in chunks: memory that is used again, and products that add up in float64."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK_DESCRIPTORS = 2048
"""Rows per chunk on a CPU, and of one float32 product on any device: products add up in float64."""


ACCELERATOR_FACTOR = 16
"""Chunks on other devices are larger by this: only a CPU's must fit its cache."""


Piece = tuple[int, slice]
"""Number of a video, and its rows of a group."""


class Scratch:
    """Memory that is used again for each group of a call.

    The C library returns memory of this size to the system at once; to get it anew each time costs
    more than the computation.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._memory: dict[str, Tensor] = {}

    def __call__(self, name: str, num_rows: int, width: int) -> Tensor:
        """Return a contiguous [num_rows, width] to overwrite, in the memory of the last `name`."""
        size = num_rows * width
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = torch.empty(size, dtype=self._dtype, device=self._device)
        return self._memory[name][:size].view(num_rows, width)


def group_rows(most: int, device: torch.device) -> int:
    """Return the rows of a chunk on this device, if `most` is right for a CPU."""
    return most if device.type == "cpu" else ACCELERATOR_FACTOR * most


def groups(
    lengths: Sequence[int], most: int, device: torch.device
) -> Iterator[tuple[slice, list[Piece]]]:
    """Cut the rows of consecutive videos into groups to work on at a time.

    Args:
        lengths: rows of each video.
        most: rows of a piece, and of a group on the CPU. A video of at most so many is not cut.

    Yields:
        Rows of a group, and its pieces, whose rows are counted from the group's first.
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
    """Add the product left^T right of each video's rows of a group to its float64 sums [P, Q].

    Args:
        sums: one for each video.
        left, right: [n, P] and [n, Q], contiguous.
    """
    if len({rows.stop - rows.start for _, rows in pieces}) == 1:
        left, right = (factor.view(len(pieces), -1, factor.shape[1]) for factor in (left, right))
        products = torch.bmm(left.mT, right)
    else:
        products = (left[rows].T @ right[rows] for _, rows in pieces)
    for (video, _), product in zip(pieces, products, strict=True):
        sums[video] += product
