"""What a codebook is fitted on: one worker's share of the sampled frames.

Letters: f frames of this worker, T descriptors of a frame, C channels, v videos, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FitSample:
    """Sampled frames, and the few things a fit may do with the world.

    Attributes:
        frames: [f, T, C], any float dtype; whole videos, in ascending order of their number.
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
        """At most `most` descriptors [n, C] in float32, drawn with the seed from those of all workers.

        The same on each worker, and the same however many workers there are.
        """
        num_videos = int(self._largest(self.video.max() + 1 if len(self.video) else 0))
        frames_of = torch.zeros(num_videos, dtype=torch.float64)
        frames_of += torch.bincount(self.video.cpu(), minlength=num_videos)
        frames_of = self.all_reduce(frames_of).long()
        first = frames_of.cumsum(0) - frames_of
        total = int(frames_of.sum()) * self.frames.shape[1]
        chosen = np.arange(total)
        if total > most:
            chosen = np.sort(np.random.default_rng(self.seed).choice(total, most, replace=False))
        gathered = torch.zeros(len(chosen), self.frames.shape[2])
        own = self._places(first)
        mine = np.isin(chosen, own)
        row = np.searchsorted(own, chosen[mine])
        flat = self.frames.flatten(0, 1)
        gathered[torch.from_numpy(mine)] = flat[torch.from_numpy(row)].float().cpu()
        return self.all_reduce(gathered)

    def _places(self, first: Tensor) -> NDArray[np.int64]:
        """Where this worker's descriptors stand among those of all workers, ascending."""
        video = self.video.cpu()
        starts = torch.searchsorted(video, video)
        frame = first[video] + torch.arange(len(video)) - starts
        cells = self.frames.shape[1]
        return (frame[:, None] * cells + torch.arange(cells)).flatten().numpy()

    def _largest(self, number: Tensor | int) -> float:
        """The largest of the workers' numbers, found with sums alone."""
        numbers = torch.zeros(self.world_size, dtype=torch.float64)
        numbers[self.rank] = float(number)
        return float(self.all_reduce(numbers).max())
