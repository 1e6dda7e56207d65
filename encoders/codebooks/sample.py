"""What a codebook is fitted on: one worker's share of the sampled frames.

Letters: f frames of this worker, T descriptors of a frame, C channels, v videos, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class FitSample:
    """Sampled frames, and the few things a fit may do with the world.

    Attributes:
        frames: [f, T, C], any float dtype; whole videos, in ascending order of their number.
        video: [f] int64, the video of each frame, numbered from 0 over all workers.
        targets: [v, K] of 0 and 1, the labels of all videos; None where there are none.
        multi_label: whether a video may have several labels.
        group: [v] int64, videos of one group belong together; None where each is its own.
        levels: sides of the pyramid whose cells the descriptors of a frame are, once for each view.
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
    group: Tensor | None = None
    levels: tuple[int, ...] = ()
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    log: Callable[[str, int, float], None] = lambda *_: None
    state: dict | None = None
    checkpoint: Callable[[Callable[[], dict]], None] = field(default=lambda _: None)

    def after_step(self, step: int, losses: dict[str, float], state: Callable[[], dict]) -> None:
        """Logs the losses of a training step by name, and offers the state after it."""
        for quantity, value in losses.items():
            self.log(quantity, step, value)
        self.checkpoint(state)

    def descriptors(self) -> Tensor:
        """This worker's descriptors [f T, C]: the frames themselves, neither copied nor converted."""
        return self.frames.view(-1, self.frames.shape[2])

    def gather(self, most: int) -> Tensor:
        """At most `most` descriptors [n, C] in float32, drawn with the seed from those of all workers.

        The same on each worker, and the same however many workers there are.
        """
        places, total = self._places()
        chosen = np.random.default_rng(self.seed).choice(total, min(most, total), replace=False)
        chosen.sort()
        gathered = torch.zeros(len(chosen), self.frames.shape[2])
        mine, row = self._own(chosen, places)
        gathered[mine] = self.descriptors()[row.to(self.frames.device)].float().cpu()
        return self.all_reduce(gathered)

    def batches(self, size: int) -> tuple[int, Callable[[int], Tensor]]:
        """How many batches are one pass over the descriptors of all workers; and what gives this
        worker's part [m, C] of a step's batch, in float32.

        The batches of a pass have at most `size` descriptors, and deal each one out once, a frame's
        in different batches where possible. Seed and step say which; how many workers there are
        plays no part.
        """
        places, total = self._places()
        cells, num_frames = self.frames.shape[1], total // self.frames.shape[1]
        steps_per_pass = -(-total // size)

        def batch(step: int) -> Tensor:
            number, part = divmod(step, steps_per_pass)
            generator = np.random.default_rng((self.seed, number))
            order = generator.permutation(num_frames)
            first_cell = generator.integers(cells, size=num_frames)
            dealt = np.arange(*(total * i // steps_per_pass for i in (part, part + 1)))
            frame = order[dealt % num_frames]
            cell = (first_cell[frame] + dealt // num_frames) % cells
            _, row = self._own(np.sort(frame * cells + cell), places)
            return self.descriptors()[row.to(self.frames.device)].float()

        return steps_per_pass, batch

    def held_out(self, share: float) -> Tensor:
        """[v] bool: the videos of some groups, drawn with the seed, that a fit may be judged on.

        Groups in random order, each one that brings the number of videos nearer to `share` of all; the smallest where each
        is too large. Where there is one group, its videos are drawn instead.

        Raises:
            ValueError: there is one video.
        """
        has_frames = self._frames_of_videos() > 0
        group = torch.arange(len(has_frames)) if self.group is None else self.group.cpu()
        # The last videos may have no frames, here and on all workers.
        has_frames = functional.pad(has_frames, (0, len(group) - len(has_frames)))
        if len(group[has_frames].unique()) < 2:
            group = torch.arange(len(group))
        names = group[has_frames].unique()
        if len(names) < 2:
            raise ValueError(
                f"fit section: expected at least two videos to hold one out, got {len(names)}; set "
                "fv_vae.early_stopping_steps=0 or sample more videos"
            )
        order = names[np.random.default_rng(self.seed).permutation(len(names))]
        sizes = [int((group[has_frames] == name).sum()) for name in order]
        chosen, missing = [], share * sum(sizes)
        for place, size in enumerate(sizes):
            if size < 2 * missing and len(chosen) < len(names) - 1:
                chosen.append(place)
                missing -= size
        return torch.isin(group, order[chosen or [int(np.argmin(sizes))]])

    def _places(self) -> tuple[NDArray[np.int64], int]:
        """Where this worker's frames stand among those of all workers, ascending; and how many
        descriptors all workers have."""
        frames_of = self._frames_of_videos()
        first = frames_of.cumsum(0) - frames_of
        video = self.video.cpu()
        starts = torch.searchsorted(video, video)
        places = first[video] + torch.arange(len(video)) - starts
        return places.numpy(), int(frames_of.sum()) * self.frames.shape[1]

    def _frames_of_videos(self) -> Tensor:
        """[v] int64, of all workers; the last videos are left out where they have none."""
        num_videos = int(self._largest(self.video.max() + 1 if len(self.video) else 0))
        frames_of = torch.zeros(num_videos, dtype=torch.float64)
        frames_of += torch.bincount(self.video.cpu(), minlength=num_videos)
        return self.all_reduce(frames_of).long()

    def _own(self, chosen: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Which of the chosen descriptors of all workers are this one's, and their rows here."""
        frame, cell = np.divmod(chosen, self.frames.shape[1])
        mine = np.isin(frame, places)
        row = np.searchsorted(places, frame[mine]) * self.frames.shape[1] + cell[mine]
        return torch.from_numpy(mine), torch.from_numpy(row)

    def _largest(self, number: Tensor | int) -> float:
        """The largest of the workers' numbers, found with sums alone."""
        numbers = torch.zeros(self.world_size, dtype=torch.float64)
        numbers[self.rank] = float(number)
        return float(self.all_reduce(numbers).max())
