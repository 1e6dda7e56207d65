"""What a codebook is fitted on: one worker's share of the sampled frames.

Letters: f frames of this worker, T descriptors of a frame, C channels, v videos, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FitSample:
    """Sampled frames, and the few things a fit may do with the world.

    Attributes:
        frames: [f, T, C], any float dtype; the frames of a video stand together and are on one worker.
        video: [f] int64, the video of each frame, numbered from 0 over all workers.
        targets: [v, K] of 0 and 1, the labels of all videos; None where there are none.
        multi_label: whether a video may have several labels.
        rank, world_size: this worker, of how many.
        all_reduce: sums a tensor over the workers and gives each the sum.
        log: (quantity, step, value) for the training curves.
        state: of an interrupted fit, or None.
        checkpoint: (function that returns the state) offers a state to keep; called at each step.
    """

    frames: Tensor
    video: Tensor
    targets: Tensor | None = None
    multi_label: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    log: Callable[[str, int, float], None] = lambda *_: None
    state: dict | None = None
    checkpoint: Callable[[Callable[[], dict]], None] = field(default=lambda _: None)

    def descriptors(self) -> Tensor:
        """This worker's descriptors [f T, C] in float32."""
        return self.frames.flatten(0, 1).float()

    def gather(self, most: int) -> Tensor:
        """At most `most` descriptors [n, C] of all workers, evenly spread, the same on each worker."""
        counts = torch.zeros(self.world_size, dtype=torch.float64)
        counts[self.rank] = self.frames.shape[0] * self.frames.shape[1]
        counts = self.all_reduce(counts).long()
        stride = max(1, -(-int(counts.sum()) // most))
        own = self.frames.flatten(0, 1)[::stride].float()
        sizes = -(-counts // stride)
        start = int(sizes[: self.rank].sum())
        gathered = torch.zeros(int(sizes.sum()), self.frames.shape[2])
        gathered[start : start + len(own)] = own.cpu()
        return self.all_reduce(gathered)
