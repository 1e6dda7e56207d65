"""Streams of clips: runs of frames, described by a network over time.

Letters: k clips, u pictures of all segments of a call, n frames of a clip.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch

from encoders.backbones import clips, load
from encoders.descriptors.streams import Stream, clip_streams
from pipelines.settings.config import Config
from pipelines.settings.sections import Describe

CLIPS_AT_A_TIME = {"cpu": 1, "cuda": 16}
"""Clips of a forward pass. On a CPU one: the last bits depend on the size of a pass."""


class Described(Protocol):
    """The descriptors of a stream: the pictures [k, n] that each clip reads, and rows [k, views,
    cells, width] to be filled in."""

    stream: Stream
    indices: np.ndarray
    rows: np.ndarray


def described_clips(config: Config, levels: tuple[int, ...], views: int) -> dict[str, Stream]:
    """Return {column of DESCRIPTORS: its stream} of the entries of clips.

    Raises:
        WeightsError: the network has no such node, or does not take such clips.
    """
    describe, found = config.describe, []
    if describe.clips and config.picture.scales:
        raise load.WeightsError(
            "describe.streams: clip: expected pictures of one size, got picture.scales="
            f"{','.join(map(str, config.picture.scales))}; give clips a run of their own"
        )
    for spec in describe.clips:
        nodes = clips.named(describe.clip_backbone, spec.nodes)
        shapes = clips.shapes(describe.clip_backbone, nodes, spec.frames, spec.side_px)
        found += [(node, spec, shape) for node, shape in shapes.items()]
    return clip_streams(found, describe.scaling, levels, views)


class ClipNetwork:
    """The network of clips of an actor.

    Args:
        weights: of all networks of the run; None: random ones, to measure how long it takes.
    """

    def __init__(
        self, weights: bytes | None, settings: Describe, device: str, dtype: torch.dtype
    ) -> None:
        own = load.clips_of(weights) if weights is not None else None
        self.backbone = clips.build(settings.clip_backbone, own)
        self.backbone.model.to(device, dtype)
        self.at_a_time = CLIPS_AT_A_TIME[device]

    def describe(self, views: Iterable[torch.Tensor], outputs: Sequence[Described]) -> None:
        """Fill in the rows of streams.

        Args:
            views: of all pictures, uint8 [u, side, side, 3] each.
        """
        by_window = [
            [*group]
            for _, group in itertools.groupby(
                sorted(outputs, key=lambda o: repr(o.stream.clip)), lambda o: o.stream.clip
            )
        ]
        for view, pictures in enumerate(views):
            for group in by_window:
                self._describe(pictures, view, group)

    def _describe(self, pictures: torch.Tensor, view: int, group: Sequence[Described]) -> None:
        """Fill in the rows of one view of the streams that read the same clips."""
        indices, window = group[0].indices, group[0].stream.clip
        assert window is not None
        nodes = tuple(dict.fromkeys(output.stream.node for output in group))
        for first in range(0, len(indices), self.at_a_time):
            part = slice(first, first + self.at_a_time)
            maps = self.backbone.maps(pictures[indices[part]], nodes, window.side_px)
            for output in group:
                rows = output.stream.describe_clips(maps[output.stream.node])
                output.rows[part, view] = rows.half().cpu().numpy()
