"""Deep LSTM (VU 3.3.2): layers of LSTM with peepholes on the maps of each frame, and a softmax at
each frame.

Letters: b clips, T frames, K classes.
"""

import torch
from torch import Tensor

from encoders.networks.base import Clips, class_losses, dropped
from encoders.networks.over_time.head import IMAGE, SCORES_STD, Head, OverTime, linear
from encoders.networks.over_time.peephole_lstm import PeepholeLstm
from encoders.networks.settings import LstmSettings

READINGS = ("last", "max", "sum", "weighted")
"""Ways to score a clip by its frames (VU 3.3.3)."""


class LstmHead(Head):
    """Layers, each of which reads the one below, and the scores of each frame."""

    def __init__(
        self, inputs: int, settings: LstmSettings, num_classes: int, draw: torch.Generator
    ) -> None:
        super().__init__(inputs, settings, num_classes, draw)
        widths = [inputs, *[settings.cells] * settings.layers]
        self.layers = torch.nn.ModuleList(
            PeepholeLstm(below, settings.cells, draw) for below in widths[:-1]
        )
        self.out = linear(settings.cells, num_classes, SCORES_STD, draw)
        self.dropout = settings.dropout

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        values = maps.flatten(2)
        for layer in self.layers:
            values = layer(values)
        return self.out(dropped(values, self.dropout, noise))


class Lstm(OverTime):
    """Each frame is scored, later ones with a larger gain g_t = t / T."""

    name = "lstm"
    head_type = LstmHead
    sees_order = True

    @property
    def output_names(self) -> tuple[str, ...]:
        return READINGS

    def joined(self, maps: Tensor, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the four readings of the frames' softmax, as logarithms: of the last frame, the
        maximum, the mean, and the mean weighted by the gain."""
        return readings(self.head_scores(maps, noise))

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the weighted reading, which usually was best (VU 3.3.3)."""
        return outputs["weighted"]

    def losses(
        self, clips: Clips, targets: Tensor, noise: torch.Generator | None, *, multi_label: bool
    ) -> dict[str, Tensor]:
        """Return the mean over frames of the gain times the class loss, and the last frame's."""
        scores = self.head_scores(self.maps(clips.frames)[IMAGE], noise)
        of_frames = torch.stack(
            [class_losses(s, targets, multi_label=multi_label) for s in scores.unbind(1)], 1
        )
        weighted = (gains(scores.shape[1]).to(scores) * of_frames).mean()
        return {"total": weighted, "last": of_frames[:, -1].mean()}


def gains(num_frames: int) -> Tensor:
    """Return g_t = t / T of each frame, t from 1 on."""
    return torch.arange(1, num_frames + 1) / num_frames


def readings(scores: Tensor) -> dict[str, Tensor]:
    """Return the readings [b, K] of scores [b, T, K] of each frame."""
    shares = scores.log_softmax(2)
    weights = gains(scores.shape[1]).to(shares)
    weights = (weights / weights.sum()).log()[:, None]
    mean = shares.new_full((), scores.shape[1]).log()
    return {
        "last": shares[:, -1],
        "max": shares.amax(1),
        "sum": shares.logsumexp(1) - mean,
        "weighted": (shares + weights).logsumexp(1),
    }
